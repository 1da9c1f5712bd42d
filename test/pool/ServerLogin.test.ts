import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { createHash, createHmac, pbkdf2Sync } from "node:crypto"
import { Network } from "../../src/net/Network.ts"
import { Credential } from "../../src/pool/Credential.ts"
import { ServerConnection } from "../../src/pool/ServerConnection.ts"
import type { ConnectFailure } from "../../src/pool/ConnectFailure.ts"
import { openAndLogIn, type Policy } from "../../src/pool/ServerLogin.ts"
import { cString, frame, int32 } from "../../src/protocol/Encoder.ts"
import { Backend } from "../../src/protocol/Frame.ts"
import { decode } from "../../src/protocol/Startup.ts"
import { RecordedTransport } from "../support/RecordedTransport.ts"

const target = { host: "db", port: 5432, database: "shop" }
const strict: Policy = { allowTrust: false, allowClearText: false }
const PASSWORD = "pencil"

const authentication = (code: number, rest: Uint8Array = Buffer.alloc(0)) =>
  frame(Backend.authentication, int32(code), rest)
const ok = authentication(0)
const clearText = authentication(3)
const sasl = (...mechanisms: ReadonlyArray<string>) =>
  authentication(10, Buffer.concat([...mechanisms.map(cString), Buffer.of(0)]))
const parameter = (name: string, value: string) => frame(Backend.parameterStatus, cString(name), cString(value))
const key = frame(Backend.backendKeyData, int32(4711), Buffer.of(1, 2, 3, 4))
const ready = frame(Backend.readyForQuery, Buffer.from("I"))
const errorOf = (...fields: ReadonlyArray<string>) => frame(Backend.errorResponse, ...fields.map(cString), Buffer.of(0))
const welcome = Buffer.concat([ok, parameter("server_version", "18.4"), key, ready])

/** What a server answers to each message of the client's; null: it hangs up. The first is the startup packet. */
type Script = (message: Buffer, turn: number) => Uint8Array | null

interface Attempt {
  readonly transport: RecordedTransport
  readonly network: Network["Service"]
  /** What the client sent, message by message. */
  readonly said: Array<Buffer>
}

const scripted = (script: Script, local = true): Attempt => {
  const transport = new RecordedTransport(local)
  const said: Array<Buffer> = []
  transport.onWrite = (message) => {
    said.push(message)
    const answer = script(message, said.length - 1)
    // In a turn of its own, as from a network.
    queueMicrotask(() => {
      if (transport.closed) return
      if (answer === null) transport.leave()
      else transport.say(answer)
    })
  }
  const network = Network.of({ connect: () => Effect.succeed(transport), listen: () => Effect.fail("not here") })
  return { transport, network, said }
}

/** Says these, one for each message. */
const lines =
  (...answers: ReadonlyArray<Uint8Array | null>): Script =>
  (_, turn) =>
    answers[turn] ?? null

const logIn = (attempt: Attempt, policy = strict, password = PASSWORD) =>
  openAndLogIn(attempt.network, target, new Credential("app", Redacted.make(password)), policy, {
    mode: "disable"
  })

/** The failure, after which nothing may be left open. */
const failure = (attempt: Attempt, policy = strict, password = PASSWORD) =>
  Effect.map(Effect.flip(logIn(attempt, policy, password)), (failed): ConnectFailure => {
    assert.isTrue(attempt.transport.destroyed)
    assert.notInclude(failed.detail, PASSWORD)
    return failed
  })

/** The server's half of SCRAM-SHA-256, and what it says instead where a test wants it to be wrong. */
const scramServer = (options: {
  readonly password?: string
  readonly first?: (clientNonce: string) => string
  readonly final?: (signature: string) => Uint8Array
  readonly mechanisms?: ReadonlyArray<string>
  /** Is told each message of the client's without its header. */
  readonly hears?: (message: string) => void
}): Script => {
  const salt = Buffer.from("0123456789abcdef")
  const salted = pbkdf2Sync(options.password ?? PASSWORD, salt, 4096, 32, "sha256")
  const hmac = (secret: Uint8Array, text: string) => createHmac("sha256", secret).update(text).digest()
  let clientFirst = ""
  let serverFirst = ""
  return (message, turn) => {
    if (turn === 0) return sasl(...(options.mechanisms ?? ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]))
    options.hears?.(message.toString("utf8", 5))
    if (turn === 1) {
      clientFirst = message.toString("utf8").split(/(?:n|y|p=[a-z-]+),,/)[1]!
      const nonce = clientFirst.slice("n=,r=".length)
      serverFirst = options.first?.(nonce) ?? `r=${nonce}server,s=${salt.toString("base64")},i=4096`
      return authentication(11, Buffer.from(serverFirst))
    }
    const [withoutProof = "", proof = ""] = message.toString("utf8", 5).split(",p=")
    const authMessage = `${clientFirst},${serverFirst},${withoutProof}`
    const clientKey = hmac(salted, "Client Key")
    const signature = hmac(createHash("sha256").update(clientKey).digest(), authMessage)
    const expected = Buffer.from(clientKey.map((byte, index) => byte ^ signature[index]!)).toString("base64")
    if (proof !== expected) return errorOf("SFATAL", "VFATAL", "C28P01", "Mpassword authentication failed")
    const right = hmac(hmac(salted, "Server Key"), authMessage).toString("base64")
    return options.final?.(right) ?? Buffer.concat([authentication(12, Buffer.from(`v=${right}`)), welcome])
  }
}

describe("a login that succeeds", () => {
  it.effect("begins with the user, the database and the safe floor", () =>
    Effect.gen(function* () {
      const attempt = scripted(lines(clearText, welcome))
      yield* logIn(attempt)
      const packet = decode(attempt.said[0]!)
      assert.deepStrictEqual(packet._tag === "StartupMessage" && [...packet.message.parameters], [
        ["user", "app"],
        ["database", "shop"],
        ["role", "none"],
        ["search_path", ""],
        ["standard_conforming_strings", "on"],
        ["client_encoding", "UTF8"]
      ])
    })
  )

  it.effect("hands over the key and the last value of each parameter, notices passed over", () =>
    Effect.gen(function* () {
      const notice = frame(Backend.noticeResponse, cString("SWARNING"), cString("Mhello"), Buffer.of(0))
      const greeting = [notice, ok, notice, parameter("TimeZone", "UTC"), key, parameter("TimeZone", "CET"), ready]
      const loggedIn = yield* logIn(scripted(lines(clearText, Buffer.concat(greeting))))
      assert.deepStrictEqual([loggedIn.processId, loggedIn.secretKey], [4711, Buffer.of(1, 2, 3, 4)])
      assert.deepStrictEqual([...loggedIn.parameters], [["TimeZone", "CET"]])
      assert.isFalse(loggedIn.transport.closed)
    })
  )

  it.effect("does without a key, as behind a pooler that gives none", () =>
    Effect.gen(function* () {
      const loggedIn = yield* logIn(scripted(lines(clearText, Buffer.concat([ok, ready]))))
      assert.deepStrictEqual([loggedIn.processId, loggedIn.secretKey], [0, Buffer.alloc(4)])
    })
  )

  it.effect("reads a server that sends byte for byte", () =>
    Effect.gen(function* () {
      const attempt = scripted(() => Buffer.alloc(0))
      const loggingIn = yield* Effect.forkChild(logIn(attempt), { startImmediately: true })
      for (const byte of Buffer.concat([clearText, welcome])) attempt.transport.say(Buffer.of(byte))
      assert.strictEqual((yield* Fiber.join(loggingIn)).processId, 4711)
    })
  )

  it.effect("proves the password by MD5 as the manual has it", () =>
    Effect.gen(function* () {
      const salt = Buffer.of(0xde, 0xad, 0xbe, 0xef)
      const attempt = scripted(lines(authentication(5, salt), welcome))
      yield* logIn(attempt)
      const md5 = (...parts: ReadonlyArray<string | Buffer>) =>
        createHash("md5")
          .update(Buffer.concat(parts.map((part) => Buffer.from(part))))
          .digest("hex")
      assert.strictEqual(attempt.said[1]?.toString("utf8", 5), `md5${md5(md5(PASSWORD, "app"), salt)}\0`)
    })
  )

  // PBKDF2 runs on the thread pool, which TestClock does not drive and need not.
  it.live("proves the password by SCRAM-SHA-256, never sends it, and has the server prove that it knows it too", () =>
    Effect.gen(function* () {
      const attempt = scripted(scramServer({}))
      assert.strictEqual((yield* logIn(attempt)).processId, 4711)
      assert.notInclude(attempt.transport.written.toString("latin1"), PASSWORD)
    })
  )
})

describe("SCRAM", () => {
  const hash = Buffer.from("0123456789abcdef0123456789abcdef")
  const tls = { peerVerified: true, peerCommonName: null, serverEndPoint: hash }
  const both = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]
  const bound = Buffer.concat([Buffer.from("p=tls-server-end-point,,"), hash])

  const cases = [
    ["binds to the certificate where the server offers that", tls, both, "SCRAM-SHA-256-PLUS", bound],
    ["binds where the server takes nothing else", tls, ["SCRAM-SHA-256-PLUS"], "SCRAM-SHA-256-PLUS", bound],
    ["says that it could bind where the server does not offer it", tls, ["SCRAM-SHA-256"], "SCRAM-SHA-256", "y,,"],
    ["does not bind in clear", null, both, "SCRAM-SHA-256", "n,,"],
    [
      "does not bind to a certificate that has no hash defined, and does not pretend that it could",
      { ...tls, serverEndPoint: null },
      both,
      "SCRAM-SHA-256",
      "n,,"
    ]
  ] as const
  for (const [what, state, mechanisms, mechanism, bindsTo] of cases) {
    it.live(what, () =>
      Effect.gen(function* () {
        const heard: Array<string> = []
        const attempt = scripted(scramServer({ mechanisms, hears: (message) => heard.push(message) }))
        attempt.transport.tls = state
        yield* logIn(attempt)
        const [initial = "", final = ""] = heard
        assert.strictEqual(initial.split("\0")[0], mechanism)
        const data = Buffer.from(/^c=([^,]+),/.exec(final)?.[1] ?? "", "base64")
        assert.deepStrictEqual(data, Buffer.from(bindsTo))
        assert.include(initial, `${data.toString("latin1").split(",")[0]},,n=,r=`)
      })
    )
  }

  it.effect("is refused where the server offers to bind and nothing else, and there is nothing to bind to", () =>
    Effect.gen(function* () {
      const attempt = scripted(scramServer({ mechanisms: ["SCRAM-SHA-256-PLUS"] }))
      const refused = yield* failure(attempt)
      assert.deepStrictEqual([refused.kind, refused.detail.includes("SASL mechanism")], ["refused", true])
    })
  )

  it.live("derives the key of the prepared password, once for all connections of a credential", () =>
    Effect.gen(function* () {
      const credential = new Credential("app", Redacted.make("p\u00adencil"))
      const attempts = Array.from({ length: 5 }, () => scripted(scramServer({})))
      yield* Effect.forEach(
        attempts,
        ({ network }) => openAndLogIn(network, target, credential, strict, { mode: "disable" }),
        {
          concurrency: "unbounded"
        }
      )
      const salt = Buffer.from("salt")
      const keys = yield* Effect.all([1, 1, 2].map((iterations) => credential.saltedPassword(salt, iterations)))
      assert.strictEqual(keys[0], keys[1])
      assert.deepStrictEqual(keys[2], pbkdf2Sync(PASSWORD, salt, 2, 32, "sha256"))
      assert.deepStrictEqual(
        yield* credential.saltedPassword(Buffer.from("other"), 2),
        pbkdf2Sync(PASSWORD, "other", 2, 32, "sha256")
      )
    })
  )
})

describe("a policy", () => {
  it.effect("refuses a server that asks for no password, unless it is allowed", () =>
    Effect.gen(function* () {
      const refused = yield* failure(scripted(lines(welcome)))
      assert.strictEqual(refused.kind, "refused")
      assert.include(refused.detail, "AllowTrust")
      yield* logIn(scripted(lines(welcome)), { ...strict, allowTrust: true })
    })
  )

  it.effect("gives the password in clear text over TLS to a server that has proved whose it is, and to no other", () =>
    Effect.gen(function* () {
      for (const peerVerified of [true, false]) {
        const attempt = scripted(lines(clearText, welcome), false)
        attempt.transport.tls = { peerVerified, peerCommonName: null, serverEndPoint: null }
        if (peerVerified) yield* logIn(attempt)
        else assert.include((yield* failure(attempt)).detail, "AllowClearText")
        assert.lengthOf(attempt.said, peerVerified ? 2 : 1)
      }
    })
  )

  it.effect("gives the password in clear text over loopback, and elsewhere only where it is allowed", () =>
    Effect.gen(function* () {
      const away = scripted(lines(clearText, welcome), false)
      const refused = yield* failure(away)
      assert.include(refused.detail, "AllowClearText")
      assert.lengthOf(away.said, 1)
      for (const attempt of [scripted(lines(clearText, welcome)), scripted(lines(clearText, welcome), false)]) {
        yield* logIn(attempt, { ...strict, allowClearText: true })
        assert.strictEqual(attempt.said[1]?.toString("utf8", 5), `${PASSWORD}\0`)
      }
    })
  )
})

describe("a password in clear text over TLS", () => {
  it.effect("is given where the server's certificate was verified, and else as if there were no TLS", () =>
    Effect.gen(function* () {
      const over = (peerVerified: boolean) => {
        const attempt = scripted(lines(clearText, welcome), false)
        attempt.transport.tls = { peerVerified, peerCommonName: null, serverEndPoint: null }
        return attempt
      }
      const verified = over(true)
      yield* logIn(verified)
      assert.strictEqual(verified.said[1]?.toString("utf8", 5), `${PASSWORD}\0`)
      const unverified = over(false)
      assert.include((yield* failure(unverified)).detail, "AllowClearText")
      assert.lengthOf(unverified.said, 1)
    })
  )
})

describe("a server that is not what it should be", () => {
  it.live("is refused where it does not prove that it knows the password", () =>
    Effect.gen(function* () {
      const afterwards = (final: string) => () => Buffer.concat([authentication(12, Buffer.from(final)), welcome])
      for (const final of [
        afterwards(`v=${Buffer.alloc(32).toString("base64")}`),
        afterwards("v="),
        afterwards(""),
        afterwards("e=other-error"),
        // AuthenticationOk in its place: the man in the middle who knows nothing.
        () => welcome,
        // The right words in the wrong message.
        (signature: string) => Buffer.concat([authentication(11, Buffer.from(`v=${signature}`)), welcome])
      ]) {
        const refused = yield* failure(scripted(scramServer({ final })))
        assert.deepStrictEqual([refused.kind, refused.detail.includes("SCRAM signature")], ["refused", true])
      }
    })
  )

  it.live("is refused where another password is the right one", () =>
    Effect.gen(function* () {
      const refused = yield* failure(scripted(scramServer({ password: "other" })))
      assert.deepStrictEqual([refused.kind, refused.detail], ["refused", "28P01 password authentication failed"])
    })
  )

  it.effect("is refused at a SCRAM challenge that asks for too much or is none, without a proof being sent", () =>
    Effect.gen(function* () {
      for (const first of [
        (nonce: string) => `r=${nonce}${"x".repeat(60_000)},s=AAAA,i=4096`,
        (nonce: string) => `r=${nonce}x,s=AAAA,i=2147483648`,
        (nonce: string) => `r=${nonce}x,s=AAAA,i=1000000`,
        (nonce: string) => `r=${nonce}x,s=,i=4096`,
        (nonce: string) => `r=${nonce},s=AAAA,i=4096`,
        () => "r=another,s=AAAA,i=4096",
        () => ""
      ]) {
        const attempt = scripted(scramServer({ first }))
        const refused = yield* failure(attempt)
        assert.deepStrictEqual([refused.kind, refused.detail.includes("SCRAM challenge")], ["refused", true])
        assert.lengthOf(attempt.said, 2)
      }
    })
  )

  it.effect("is refused at a nonce of 64 kB, by the length of the message alone", () =>
    Effect.gen(function* () {
      const first = (nonce: string) => `r=${nonce}${"x".repeat(64 * 1024)},s=AAAA,i=4096`
      assert.strictEqual((yield* failure(scripted(scramServer({ first })))).kind, "refused")
    })
  )

  it.effect("is refused where it offers no mechanism, or asks for a kind that is not known", () =>
    Effect.gen(function* () {
      for (const request of [
        sasl("SCRAM-SHA-256-PLUS"),
        sasl(),
        authentication(7),
        authentication(2),
        authentication(11, Buffer.from("r=x")),
        authentication(12, Buffer.from("v=x")),
        authentication(5, Buffer.alloc(3)),
        frame(Backend.authentication, Buffer.alloc(2)),
        ready,
        parameter("a", "b")
      ]) {
        const attempt = scripted(lines(request, welcome))
        assert.strictEqual((yield* failure(attempt)).kind, "refused")
        assert.lengthOf(attempt.said, 1)
      }
    })
  )

  it.effect("is refused where it asks for one proof after another", () =>
    Effect.gen(function* () {
      for (const again of [clearText, sasl("SCRAM-SHA-256"), ready]) {
        const attempt = scripted(lines(clearText, again, welcome))
        assert.strictEqual((yield* failure(attempt)).kind, "refused")
        assert.lengthOf(attempt.said, 2)
      }
    })
  )

  it.effect("is refused at an impossible length, before anything is kept for it", () =>
    Effect.gen(function* () {
      for (const bytes of [
        Buffer.from("HTTP/1.1 400 Bad Request\r\n"),
        Buffer.from([0x52, 0, 0, 0, 3]),
        Buffer.from([0x52, 0xff, 0xff, 0xff, 0xff]),
        Buffer.from([0x52, 0, 1, 0, 1])
      ]) {
        const refused = yield* failure(scripted(lines(bytes)))
        assert.deepStrictEqual([refused.kind, refused.detail.includes("does not speak")], ["refused", true])
      }
      assert.strictEqual((yield* failure(scripted(lines(clearText, Buffer.from([0x5a, 0, 0, 0, 0]))))).kind, "refused")
    })
  )
})

describe("an error of the server's", () => {
  it.effect("is lasting where only an operator can mend it, and passing otherwise", () =>
    Effect.gen(function* () {
      for (const [sqlState, kind] of [
        ["28P01", "refused"],
        ["28000", "refused"],
        ["3D000", "refused"],
        ["42501", "refused"],
        ["22023", "refused"],
        ["0A000", "refused"],
        ["57P03", "unreachable"],
        ["53300", "unreachable"],
        ["57P01", "unreachable"],
        ["XX000", "unreachable"]
      ] as const) {
        const said = errorOf("SFATAL", "VFATAL", `C${sqlState}`, "Mno")
        for (const answers of [[said], [clearText, said], [clearText, Buffer.concat([ok, said])]]) {
          const failed = yield* failure(scripted(lines(...answers)))
          assert.deepStrictEqual([failed.kind, failed.detail], [kind, `${sqlState} no`])
        }
      }
    })
  )

  it.effect("may lack any field, the SQLSTATE too", () =>
    Effect.gen(function* () {
      for (const [said, detail] of [
        [errorOf("Mno"), "XX000 no"],
        [errorOf("C57P03"), "57P03 "],
        [errorOf(), "XX000 "],
        [frame(Backend.errorResponse), "XX000 "],
        [frame(Backend.errorResponse, Buffer.from("Mcut off")), "XX000 cut off"]
      ] as const) {
        const failed = yield* failure(scripted(lines(said)))
        assert.deepStrictEqual([failed.kind, failed.detail], ["unreachable", detail])
      }
    })
  )
})

describe("a login that does not end", () => {
  it.effect("is lost where the server hangs up, at every step", () =>
    Effect.gen(function* () {
      const half = welcome.subarray(0, welcome.length - 3)
      for (const answers of [[null], [clearText, null], [sasl("SCRAM-SHA-256"), null]]) {
        assert.strictEqual((yield* failure(scripted(lines(...answers)))).kind, "unreachable")
      }
      const attempt = scripted(lines(clearText, half))
      const loggingIn = yield* Effect.forkChild(failure(attempt), { startImmediately: true })
      yield* Effect.yieldNow
      attempt.transport.leave("ECONNRESET")
      assert.strictEqual((yield* Fiber.join(loggingIn)).detail, "ECONNRESET")
    })
  )

  it.effect("fails with the system's code where nothing listens", () =>
    Effect.gen(function* () {
      const network = Network.of({ connect: () => Effect.fail("ECONNREFUSED"), listen: () => Effect.fail("not here") })
      const login = openAndLogIn(network, target, new Credential("app", Redacted.make(PASSWORD)), strict, {
        mode: "disable"
      })
      const failed = yield* Effect.flip(login)
      assert.deepStrictEqual([failed.kind, failed.detail], ["unreachable", "ECONNREFUSED"])
    })
  )

  it.effect("closes its transport when it is interrupted, wherever it stands", () =>
    Effect.gen(function* () {
      const nothing = Buffer.alloc(0)
      for (const answers of [[nothing], [clearText, nothing], [clearText, ok], [sasl("SCRAM-SHA-256"), nothing]]) {
        const attempt = scripted(lines(...answers))
        const loggingIn = yield* Effect.forkChild(logIn(attempt), { startImmediately: true })
        yield* Effect.yieldNow
        assert.isFalse(attempt.transport.destroyed)
        yield* Fiber.interrupt(loggingIn)
        assert.isTrue(attempt.transport.destroyed)
      }
    })
  )

  it.effect("fails, and is no defect, where the password holds a NUL that no PasswordMessage can carry", () =>
    Effect.gen(function* () {
      const failed = yield* failure(scripted(lines(clearText, welcome)), strict, "pen\0cil")
      assert.strictEqual(failed.kind, "refused")
    })
  )
})

describe("what the server says in the same breath as ReadyForQuery", () => {
  it.effect("is heard by the connection that comes of the login, be it whole or cut anywhere", () =>
    Effect.gen(function* () {
      const late = parameter("TimeZone", "CET")
      for (let at = 0; at <= late.length; at++) {
        const attempt = scripted(lines(clearText, Buffer.concat([welcome, late.subarray(0, at)])))
        const lost: Array<string> = []
        const connection = new ServerConnection(yield* logIn(attempt), null, 0, () => lost.push("lost"))
        attempt.transport.say(late.subarray(at))
        assert.deepStrictEqual([connection.parameters.get("TimeZone"), lost], ["CET", []], `cut at ${at}`)
      }
    })
  )
})
