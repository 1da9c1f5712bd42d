/**
 * What went wrong in other poolers and drivers, each as a test by its name: it must not go wrong here. The clients and servers
 * are real sockets; where the server is the attacker, it is a scripted one.
 */
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import { createHmac, pbkdf2Sync, randomUUID } from "node:crypto"
import { readdirSync, readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { Client } from "pg"
import { cString, frame } from "../../src/protocol/Encoder.ts"
import { frontendLimits } from "../../src/protocol/Frame.ts"
import { startupMessage } from "../../src/protocol/Frontend.ts"
import { MAX_ITERATIONS } from "../../src/protocol/Scram.ts"
import * as SchemaName from "../../src/tenant/SchemaName.ts"
import { authority, pemFiles, signedBy, type Certificate } from "../support/certificates.ts"
import { installed, run } from "../support/clientProgram.ts"
import { inClearText, manInTheMiddle, withoutPlus } from "../support/manInTheMiddle.ts"
import {
  eventually,
  isWhole,
  quoteIdentifier,
  SharedPerseus,
  startPerseus,
  type TestPerseus,
  type TestTenant
} from "../support/perseus.ts"
import { ownPostgres } from "../support/postgres.ts"
import { seeded } from "../support/random.ts"
import {
  bind,
  execute,
  fieldsOf,
  gssEncRequest,
  int32,
  message,
  parse,
  password,
  query,
  rowsOf,
  sqlStatesOf,
  sslRequest,
  startup,
  sync,
  text,
  typesOf,
  type Address,
  type RawClient
} from "../support/rawClient.ts"
import { writtenByPostgres } from "../support/verifiers.ts"
import {
  answering,
  askPassword,
  authentication,
  complete,
  evilServer,
  ready,
  row,
  switched,
  welcome,
  type EvilServer,
  type Script
} from "./EvilServer.ts"

/** A tenant of its own, whose row differs from that of `red` in these. */
const tenantWith = (
  perseus: TestPerseus,
  { destHost = null, verifier = null }: { readonly destHost?: string | null; readonly verifier?: string | null }
): Effect.Effect<Readonly<Record<string, string>>> =>
  Effect.gen(function* () {
    const schema = `evil_${randomUUID()}`
    yield* perseus.auth.query(
      `INSERT INTO perseus_auth (source_db, source_schema, source_user, source_pass_hashed, dest_host, dest_db,
          dest_pass_enc, dest_user)
        SELECT source_db, $1, source_user, coalesce($3, source_pass_hashed), coalesce($2, dest_host), dest_db,
            dest_pass_enc, dest_user
          FROM perseus_auth WHERE source_schema = 'red'`,
      [schema, destHost, verifier]
    )
    return { ...perseus.tenant("red").startup, schema_search_path: schema }
  })

/** One that a server on this port serves. */
const tenantAt = (perseus: TestPerseus, port: number) => tenantWith(perseus, { destHost: `127.0.0.1:${port}` })

/** One that proves its password by SCRAM. */
const tenantOfScram = (perseus: TestPerseus) =>
  Effect.flatMap(writtenByPostgres([perseus.tenant("red").password]), ([verifier]) =>
    tenantWith(perseus, { verifier: verifier! })
  )

interface Attack {
  readonly server: EvilServer
  readonly startup: Readonly<Record<string, string>>
}

const attack = (perseus: TestPerseus, script: Script): Effect.Effect<Attack, never, Scope.Scope> =>
  Effect.gen(function* () {
    const server = yield* evilServer(script)
    return { server, startup: yield* tenantAt(perseus, server.port) }
  })

const others = (perseus: TestPerseus) =>
  Effect.map(perseus.query("green", "SELECT 'unharmed' AS green"), (rows) =>
    assert.deepStrictEqual(rows, [{ green: "unharmed" }])
  )

/** The pool of the attacker's server holds nothing and waits for nothing. */
const isOver = (perseus: TestPerseus, { server }: Attack) =>
  eventually(
    Effect.sync(() => perseus.service.pools().find(({ destHost }) => destHost === `127.0.0.1:${server.port}`)),
    (pool) => pool === undefined || isWhole(pool)
  )

/** Logged in at the attacker's server, or what was said in place of it. */
const logIn = (perseus: TestPerseus, { startup: parameters }: Attack) =>
  Effect.gen(function* () {
    const client = yield* perseus.raw
    const answers = yield* client.logIn(parameters, "sesame")
    return { client, answers }
  })

/** A login there is refused in words of ours, and nobody else is harmed. */
const isRefused = (perseus: TestPerseus, script: Script) =>
  Effect.gen(function* () {
    const evil = yield* attack(perseus, script)
    const answers = yield* perseus.refusal(evil.startup)
    assert.deepStrictEqual(sqlStatesOf(answers), ["08001"])
    yield* isOver(perseus, evil)
    yield* others(perseus)
    return { evil, words: Object.values(fieldsOf(answers.at(-1)!)).join(" ") }
  })

/** One question to a server that answers in this way: whatever comes until it is ready or gone. */
const ask = (perseus: TestPerseus, answer: Buffer | "end", question: Buffer = query("SELECT 1")) =>
  Effect.gen(function* () {
    const evil = yield* attack(
      perseus,
      answering(() => answer)
    )
    const { client } = yield* logIn(perseus, evil)
    client.send(question)
    yield* eventually(
      Effect.sync(() => client.isClosed || client.received.some(({ type }) => type === "Z")),
      (answered) => answered
    )
    const heard = [...client.received]
    client.vanish()
    yield* isOver(perseus, evil)
    yield* others(perseus)
    return heard
  })

const isViolation = (client: RawClient) =>
  Effect.map(client.closed(), (answers) => assert.deepStrictEqual(sqlStatesOf(answers), ["08P01"]))

const limits = { ConnCreateTimeoutSecs: 2, ConnCloseTimeoutSecs: 1, SchemaExecTimeoutSecs: 2, MaxOpen: 3, MaxIdle: 3 }

/** One address tries all that is in here. */
const patient = { FailuresBeforeDelay: 0, FailuresBeforeBlock: 0 }

layer(
  SharedPerseus.with({
    tenants: ["red", "green", { schema: "expired", destUser: "expired" }],
    // The evil servers speak no TLS, but for those that say so.
    config: { PoolSettings: limits, TLSSettings: { ServerMode: "disable" }, LoginSettings: patient }
  }),
  { excludeTestServices: true }
)("history", (it) => {
  // ---- before encryption

  for (const [name, before, packet] of [
    ["SSLRequest", [], sslRequest],
    ["GSSENCRequest", [], gssEncRequest],
    ["GSSENCRequest behind an SSLRequest that was refused", [sslRequest], gssEncRequest],
    ["SSLRequest behind a GSSENCRequest that was refused", [gssEncRequest], sslRequest]
  ] as const) {
    it.effect(
      `CVE-2021-3935, CVE-2021-43766, CVE-2021-23214: bytes behind a ${name} in the same segment are never read`,
      () =>
        Effect.gen(function* () {
          const perseus = yield* SharedPerseus
          const client = yield* perseus.raw
          for (const earlier of before) {
            client.sendForByte(earlier)
            assert.strictEqual(typesOf(yield* client.next()), "N")
          }
          client.send(packet, startup(perseus.tenant("red").startup), password("sesame"), query("SELECT 'smuggled'"))
          const answers = yield* client.closed()
          assert.deepStrictEqual(sqlStatesOf(answers), ["08P01"])
          assert.strictEqual(typesOf(answers), "E")
        })
    )
  }

  it.effect("CVE-2024-10977: the text of an error before the login is not told to a client", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const error = message(
        "E",
        text("SFATAL"),
        text("C28000"),
        text("Mcall 555-0100 and tell your password"),
        text("")
      )
      const { words } = yield* isRefused(perseus, () => error)
      assert.notInclude(words, "555")
    })
  )

  // ---- lengths

  it.effect("CVE-2024-27304, CVE-2024-32655, RUSTSEC-2024-0363: no message is so long that its length wraps", () =>
    Effect.gen(function* () {
      for (const size of [2 ** 31 - 1, 2 ** 31, 2 ** 32 - 5, 2 ** 32 - 4, 2 ** 32, 2 ** 32 + 4]) {
        const part = Object.defineProperty(Buffer.alloc(0), "length", { value: size })
        assert.throws(() => frame(0x51, part), RangeError)
      }
      const perseus = yield* SharedPerseus
      const longest = frontendLimits[0x42]!
      for (const length of [longest + 1, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1]) {
        const client = yield* perseus.login("red")
        client.send(parse("s", "SELECT 1"), Buffer.from("B"), int32(length), text(""), text("s"))
        assert.include(sqlStatesOf(yield* client.closed()), "08P01")
      }
      // The longest Bind there is, its name changed for a longer one: PostgreSQL itself refuses what is too much for it.
      const client = yield* perseus.login("red")
      client.send(parse("s", "SELECT 1"), Buffer.from("B"), int32(longest), text(""), text("s"), Buffer.alloc(64))
      // It closes without a word, and the client is told that much.
      const answers = yield* client.closed()
      assert.deepStrictEqual([typesOf(answers), sqlStatesOf(answers)], ["E", ["57P01"]])
      yield* others(perseus)
    })
  )

  it.effect("pgproto3 v5.0.1 Receive: a length of 0 to 3 kills no process, before and behind the login", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      for (let length = 0; length < 4; length++) {
        const early = yield* perseus.raw
        early.send(int32(length))
        yield* isViolation(early)
        const asked = yield* perseus.raw
        asked.send(startup(perseus.tenant("red").startup))
        assert.strictEqual(typesOf(yield* asked.next()), "R")
        asked.send(Buffer.from("p"), int32(length))
        yield* isViolation(asked)
        const loggedIn = yield* perseus.login("red")
        loggedIn.send(Buffer.from("Q"), int32(length))
        yield* isViolation(loggedIn)
      }
      yield* others(perseus)
    })
  )

  for (const length of [0, 1, 2, 3, 0x7fffffff, 0x80000000, 0xffffffff]) {
    it.effect(`pgproto3 v5.0.1 Receive, of servers: a message of length ${length} ends that connection alone`, () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        for (const type of "REZSKN") {
          yield* isRefused(perseus, () => Buffer.concat([Buffer.from(type), int32(length)]))
        }
        yield* isRefused(perseus, (_, turn) =>
          turn === 0 ? askPassword : turn === 1 ? welcome : Buffer.concat([Buffer.from("C"), int32(length)])
        )
        // A row as long as the protocol can say streams: whoever sends it has to send it.
        if (length === 0x7fffffff) return
        const heard = yield* ask(perseus, Buffer.concat([Buffer.from("D"), int32(length)]))
        assert.deepStrictEqual(sqlStatesOf(heard), ["57P01"])
      })
    )
  }

  it.effect("pggat-archive #11: a declared length allocates nothing, be it HTTP's GET or a Query of 2 GB", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const before = process.memoryUsage().arrayBuffers
      for (const bytes of [Buffer.from("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), Buffer.concat([int32(2 ** 31 - 1)])]) {
        const client = yield* perseus.raw
        client.send(bytes)
        yield* isViolation(client)
      }
      const loggedIn = yield* perseus.login("red")
      loggedIn.send(Buffer.from("Q"), int32(2 ** 31 - 1))
      yield* isViolation(loggedIn)
      assert.isBelow(process.memoryUsage().arrayBuffers - before, 1024 * 1024)
    })
  )

  for (const [what, length] of [
    ["-2", 0xfffffffe],
    ["-2147483648", 0x80000000],
    ["2147483647", 0x7fffffff]
  ] as const) {
    it.effect(
      `CVE-2026-32286, CVE-2026-33816: a field of length ${what} in a server's row is the client's to judge`,
      () =>
        Effect.gen(function* () {
          const perseus = yield* SharedPerseus
          const bad = message("D", Buffer.from([0, 1]), int32(length))
          const heard = yield* ask(perseus, Buffer.concat([bad, complete("SELECT 1"), ready]))
          assert.strictEqual(typesOf(heard), "DCZ")
          assert.isTrue(heard[0]!.body.equals(bad.subarray(5)))
        })
    )
  }

  // ---- logins

  /** As far as the challenge, or the end. */
  const beginScram = (perseus: TestPerseus, tenant: Readonly<Record<string, string>>, initial: Buffer) =>
    Effect.gen(function* () {
      const client = yield* perseus.raw
      client.send(startup(tenant))
      const [request] = yield* client.next()
      assert.strictEqual(request!.body.readInt32BE(0), 10)
      client.send(initial)
      const [answer] = yield* client.next()
      return { client, answer: answer! }
    })

  const initialResponse = (data: string, length = data.length) =>
    message("p", text("SCRAM-SHA-256"), int32(length), Buffer.from(data))

  it.effect("CVE-2026-6664, Odyssey: a SASLInitialResponse whose inner length lies is answered with 08P01", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const tenant = yield* tenantOfScram(perseus)
      const data = "n,,n=,r=rOprNGfwEbeRWgbNEkqO"
      for (const length of [-1, 0, 2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, data.length - 1, data.length + 1]) {
        const { answer } = yield* beginScram(perseus, tenant, initialResponse(data, length))
        assert.deepStrictEqual(sqlStatesOf([answer]), ["08P01"], String(length))
      }
      const { answer } = yield* beginScram(perseus, tenant, initialResponse(data))
      assert.match(answer.body.toString("latin1", 4), /^r=rOprNGfwEbeRWgbNEkqO.+,s=.+,i=4096$/)
      yield* others(perseus)
    })
  )

  it.effect("Odyssey's six memcpys: no part of a SCRAM message is longer than what it is copied into", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const tenant = yield* tenantOfScram(perseus)
      for (const length of [1000, 1024, 4096, 65_000]) {
        const long = "A".repeat(length)
        for (const first of [`n,,n=,r=${long}`, `n,,n=${long},r=x`, `n,a=${long},n=,r=x`, `p=${long},,n=,r=x`, long]) {
          const { answer } = yield* beginScram(perseus, tenant, initialResponse(first))
          // Where it is short enough to be a message of PostgreSQL's, it is a challenge or nonsense.
          if (answer.type === "R") assert.isAtMost(first.length, 1024)
          else assert.deepStrictEqual(sqlStatesOf([answer]), ["08P01"])
        }
        for (const parts of [
          { binding: long },
          { nonce: (nonce: string) => nonce + long },
          { proof: long },
          { proof: Buffer.alloc(31).toString("base64") },
          { proof: Buffer.alloc(33).toString("base64") }
        ]) {
          const { client, answer } = yield* beginScram(perseus, tenant, initialResponse("n,,n=,r=x"))
          const [, nonce = ""] = /^r=([^,]+)/.exec(answer.body.toString("latin1", 4)) ?? []
          const { binding = "biws", nonce: change = (same: string) => same, proof = long } = parts
          client.send(message("p", Buffer.from(`c=${binding},r=${change(nonce)},p=${proof}`)))
          yield* isViolation(client)
        }
      }
      yield* others(perseus)
    })
  )

  const salt = Buffer.from("0123456789abcdef0123456789abcdef")

  /** Offers SCRAM, and says `first` to the client's nonce. */
  const challenging =
    (first: (nonce: string) => string): Script =>
    (heard, turn) => {
      if (turn === 0) return authentication(10, Buffer.concat([text("SCRAM-SHA-256"), Buffer.of(0)]))
      const nonce = /r=(\S+)$/.exec(heard.toString("latin1"))?.[1] ?? ""
      return turn === 1 ? authentication(11, Buffer.from(first(nonce))) : null
    }

  for (const [what, first] of [
    ["a nonce of 64 kB", (nonce: string) => `r=${nonce}${"x".repeat(65_000)},s=c2FsdA==,i=4096`],
    ["a nonce that is not ours", () => "r=theirs,s=c2FsdA==,i=4096"],
    ["10^9 iterations", (nonce: string) => `r=${nonce}x,s=c2FsdA==,i=1000000000`],
    ["a salt of no bytes", (nonce: string) => `r=${nonce}x,s=,i=4096`],
    ["a salt of one character, which is no byte", (nonce: string) => `r=${nonce}x,s=A,i=4096`]
  ] as const) {
    it.effect(`CVE-2026-6665: a server's SCRAM challenge with ${what} is refused without a proof`, () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const { evil } = yield* isRefused(perseus, challenging(first))
        assert.notInclude(evil.server.heard(), ",p=")
      })
    )
  }

  it.effect("CVE-2026-6665: a salt of 32 bytes is one like any other", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const hmac = (key: Buffer, data: string) => createHmac("sha256", key).update(data).digest()
      const salted = pbkdf2Sync("p@ss/w#rd%", salt, 4096, 32, "sha256")
      let bare = ""
      let serverFirst = ""
      const evil = yield* attack(perseus, (heard, turn) => {
        const said = heard.toString("latin1")
        if (turn === 1) {
          bare = said.split("n,,")[1]!
          serverFirst = `${bare.slice("n=,".length)}x,s=${salt.toString("base64")},i=4096`
          return authentication(11, Buffer.from(serverFirst))
        }
        if (turn === 2) {
          const withoutProof = said.slice(5).split(",p=")[0]!
          const signature = hmac(hmac(salted, "Server Key"), `${bare},${serverFirst},${withoutProof}`)
          return Buffer.concat([authentication(12, Buffer.from(`v=${signature.toString("base64")}`)), welcome])
        }
        if (turn === 0) return authentication(10, Buffer.concat([text("SCRAM-SHA-256"), Buffer.of(0)]))
        return said.includes("RESET ALL") ? switched : "end"
      })
      const { answers } = yield* logIn(perseus, evil)
      assert.strictEqual(answers.at(-1)?.type, "Z")
    })
  )

  it.effect("pgx 5.10: a server that asks for 2^31 SCRAM iterations burns no CPU", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      assert.isAtMost(MAX_ITERATIONS, 200_000)
      const before = process.cpuUsage()
      const { evil } = yield* isRefused(
        perseus,
        challenging((nonce) => `r=${nonce}x,s=c2FsdA==,i=2147483648`)
      )
      assert.notInclude(evil.server.heard(), ",p=")
      // One such derivation would take twenty minutes.
      assert.isBelow(process.cpuUsage(before).user, 5_000_000)
    })
  )

  const unterminated = Buffer.from("SERROR\0Mno end")
  for (const [what, error] of [
    ["no SQLSTATE", message("E", text("SFATAL"), text("Mno state"), text(""))],
    ["no severity", message("E", text("C42P01"), text("Mno severity"), text(""))],
    ["no fields", message("E", text(""))],
    ["nothing at all", message("E")],
    ["no end", message("E", unterminated)]
  ] as const) {
    it.effect(`CVE-2026-6666: an error with ${what} is an error, in a login, a tenant switch and a query`, () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        yield* isRefused(perseus, () => error)
        const switching = yield* attack(perseus, (_, turn) =>
          turn === 0 ? askPassword : turn === 1 ? welcome : Buffer.concat([error, ready, error, ready])
        )
        const refused = yield* perseus.refusal(switching.startup)
        assert.strictEqual(refused.at(-1)?.type, "E")
        yield* isOver(perseus, switching)
        const heard = yield* ask(perseus, Buffer.concat([error, ready]))
        assert.strictEqual(typesOf(heard), "EZ")
        assert.isTrue(heard[0]!.body.equals(error.subarray(5)))
      })
    )
  }

  it.effect("CVE-2025-12819: nothing that a client says at startup reaches the connection that looks up its row", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const { auth } = perseus
      yield* auth.script(
        `CREATE SCHEMA hostile; CREATE TABLE hostile.perseus_auth (LIKE public.perseus_auth);
         INSERT INTO hostile.perseus_auth SELECT * FROM public.perseus_auth WHERE source_schema = 'red';
         UPDATE hostile.perseus_auth SET source_schema = 'ghost'`
      )
      for (const hostile of [
        { search_path: "hostile" },
        { options: "-c search_path=hostile" },
        { options: "-c role=postgres -csearch_path=hostile" },
        { role: "postgres", session_authorization: "postgres" }
      ]) {
        const parameters = { ...perseus.tenant("red").startup, schema_search_path: "ghost", ...hostile }
        assert.deepStrictEqual(sqlStatesOf(yield* perseus.refusal(parameters)), ["28P01"])
      }
      const asked = yield* auth.query(
        "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND query ~ 'source_schema'"
      )
      for (const { query: sql } of asked) assert.match(String(sql), /"public"\.perseus_auth|pg_stat_activity/)
      yield* others(perseus)
    })
  )

  it.effect("CVE-2025-2291: a role whose password has expired lets nobody in", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      yield* perseus.destination.query(`ALTER ROLE ${perseus.tenant("expired").role} VALID UNTIL '2000-01-01'`)
      assert.deepStrictEqual(sqlStatesOf(yield* perseus.refusal(perseus.tenant("expired").startup)), ["08001"])
      yield* others(perseus)
    })
  )

  it.effect("CVE-2015-6817: an unknown user, or one who is not the row's, never falls through to another", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const { startup: red, role } = perseus.tenant("red")
      for (const user of ["nobody", "postgres", role, "APP", "app ", "äpp"]) {
        for (const secret of ["sesame", ""]) {
          assert.deepStrictEqual(sqlStatesOf(yield* perseus.refusal({ ...red, user }, secret)), ["28P01"])
        }
      }
    })
  )

  it.effect("CVE-2015-4054, CVE-2012-4575: any message in any state before the login ends that connection alone", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const packet = startup(perseus.tenant("red").startup)
      const every = Array.from({ length: 256 }, (_, type) => type).filter((type) => type !== 0x70)
      yield* Effect.forEach(
        every,
        (type) =>
          Effect.gen(function* () {
            const bytes = message(String.fromCharCode(0), text("sesame"))
            bytes[0] = type
            const asked = yield* perseus.raw
            asked.send(packet)
            yield* asked.next()
            asked.send(bytes)
            yield* isViolation(asked)
            // A letter where a length should be is an impossible one; small ones are lengths of packets that are none. And who
            // says goodbye (X) is told nothing.
            if (type < 32 || type === 0x58) return
            for (const before of [[], [sslRequest]]) {
              const early = yield* perseus.raw
              for (const request of before) {
                early.sendForByte(request)
                yield* early.next()
              }
              early.send(bytes)
              yield* isViolation(early)
            }
          }).pipe(Effect.scoped),
        { concurrency: 16, discard: true }
      )
      yield* others(perseus)
    })
  )

  it.effect("CVE-2012-4575: names of 64 kB are refused, and names as long as a packet may be are unknown", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const red = perseus.tenant("red").startup
      for (const field of ["user", "database"]) {
        assert.deepStrictEqual(sqlStatesOf(yield* perseus.refusal({ ...red, [field]: "x".repeat(65_536) })), ["08P01"])
        assert.deepStrictEqual(sqlStatesOf(yield* perseus.refusal({ ...red, [field]: "x".repeat(9_800) })), ["28P01"])
      }
      yield* others(perseus)
    })
  )

  it.effect("pgx b56d88ff: a NUL in a value begins no field of anybody's choosing", () =>
    Effect.gen(function* () {
      assert.throws(() => startupMessage([["user", "x\0user\0admin"]]), RangeError)
      assert.throws(() => cString("x\0role\0postgres"), RangeError)
      const perseus = yield* SharedPerseus
      const { startup: red, role } = perseus.tenant("red")
      // To us it is one more parameter, and PostgreSQL says what the tenant's role may set.
      const injected = yield* perseus.refusal({ ...red, application_name: "x\0role\0postgres" })
      assert.deepStrictEqual(sqlStatesOf(injected), ["42501"])
      const client = yield* perseus.login("red", { application_name: "x\0user\0app" })
      assert.deepStrictEqual(rowsOf(yield* client.query("SELECT current_user")), [role])
    })
  )

  // ---- quoting

  it.effect("CVE-2025-1094: whatever bytes name a schema, it is one identifier or refused", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const red = perseus.tenant("red").startup
      const random = seeded(1094)
      const alphabet = ["a", '"', "'", "\\", "$user", ",", ";", "--", "/*", " ", "\n", "é", "\u{1f511}", "%", "."]
      const names = Array.from({ length: 400 }, () =>
        Array.from({ length: 1 + random.below(12) }, () => random.pick(alphabet)).join("")
      ).filter((name) => SchemaName.check(name) === null)
      assert.isAbove(names.length, 300)
      const columns = Array.from(new Set(names))
      const [found] = yield* perseus.destination.query(
        `SELECT ${columns.map((name) => `1 AS ${quoteIdentifier(name)}`).join(", ")}`
      )
      assert.deepStrictEqual(Object.keys(found!), columns)
      for (const bytes of ["c0", "ff", "eda080", "c1bf", "f8a1a1a1a1", "61c3"]) {
        const client = yield* perseus.raw
        const name = Buffer.concat([Buffer.from(bytes, "hex"), Buffer.of(0)])
        const body = Object.entries({ user: red["user"]!, database: red["database"]! }).flat().map(text)
        const packet = Buffer.concat([int32(0x00030000), ...body, text("schema_search_path"), name, Buffer.of(0)])
        client.send(int32(packet.length + 4), packet)
        yield* isViolation(client)
      }
    })
  )

  it.effect(
    "CVE-2024-27289, CVE-2024-1597: values are never put into SQL, and settings are literals to the last sign",
    () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const client = yield* perseus.login("red")
        const sql = "SELECT 5 -$1::int AS difference, $2::text"
        const answers = yield* client.exchange(
          Buffer.concat([parse("s", sql), bind("", "s", "-3", "--\n'; DROP TABLE x; /*"), execute(), sync])
        )
        assert.deepStrictEqual(rowsOf(answers), ["8|--\n'; DROP TABLE x; /*"])
        for (const value of ["--", "/*", "a'--", "\\'; SELECT 1 --", "'' /* */ \\\\", "$1", "-1"]) {
          const named = yield* perseus.login("red", { application_name: value })
          assert.deepStrictEqual(rowsOf(yield* named.query("SHOW application_name")), [value])
        }
      })
  )

  it.effect("CVE-2017-16082: no code is made of what a server names its columns", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const client = yield* perseus.login("red")
      const answers = yield* client.query(String.raw`SELECT 1 AS "\\'+process.exit()+'"`)
      assert.include(answers[0]!.body.toString(), String.raw`\\'+process.exit()+'`)
      for (const [file, code] of sources) assert.notMatch(code, /new Function\b|\beval\(/, file)
      const { dependencies } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8"))
      assert.notProperty(dependencies, "pg")
    })
  )

  it.effect("supavisor #1032: a secret is compared in constant time, or not at all", () =>
    Effect.sync(() => {
      const compares =
        /(?:secret|signature|digest|password|hmac|proof|derived|salted|(?:stored|server|client)Key|channelBinding)\w*(?:\.\w+)*\s*[!=]==(?!\s*(?:undefined|null|""))/i
      for (const [file, code] of sources) {
        // The servers that tests put in place of real ones guard nothing.
        if (file.startsWith("testing/")) continue
        for (const line of code.split("\n")) {
          // Two ciphertexts or hashes of two rows, of which no client chose one.
          if (/before\.secret [!=]== secret|secretOf\(before/.test(line)) continue
          if (/\.(?:length|_tag)\s*[!=]==/.test(line)) continue
          assert.notMatch(line, compares, file)
        }
      }
      for (const file of ["session/Cancellation.ts", "tenant/PasswordHash.ts", "protocol/Scram.ts"]) {
        assert.include(sources.get(file), "timingSafeEqual(", file)
      }
    })
  )

  it.effect("supavisor #860: what the server refuses is asked for once, and told once", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const errors: Array<Buffer> = []
      const error = message("E", text("SERROR"), text("VERROR"), text("C3F000"), text("Mno such path"), text(""))
      const evil = yield* attack(perseus, (_, turn) => {
        if (turn === 0) return askPassword
        if (turn === 1) return welcome
        errors.push(error)
        return Buffer.concat([message("1"), message("2"), complete("RESET"), ready, error, ready])
      })
      const answers = yield* perseus.refusal(evil.startup)
      assert.deepStrictEqual(sqlStatesOf(answers), ["3F000"])
      yield* isOver(perseus, evil)
      assert.strictEqual(evil.server.connections(), 1)
    })
  )

  it.effect(
    "Neon's fair hashing: a tenant's storm of wrong passwords keeps no other's first login waiting",
    () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        // In flight at any time, so that somebody always waits; of many more some would wait longer than this test does.
        const storm = 20
        const quiet = yield* Effect.forEach(Array.from({ length: 50 }), () => tenantWith(perseus, {}))
        let sent = 0
        let refused = 0
        const attacker = Effect.suspend(() => perseus.refusal(perseus.tenant("red").startup, `wrong ${sent++}`)).pipe(
          Effect.tap(() => Effect.sync(() => refused++)),
          Effect.ignoreCause,
          Effect.forever
        )
        yield* Effect.forEach(Array.from({ length: storm }), () => Effect.forkScoped(attacker))
        // The first of them are refused together: each as late as the least that a refusal takes.
        yield* eventually(
          Effect.sync(() => refused),
          (count) => count > storm
        )
        // A machine that is busy lengthens all alike, so what a login takes is told in the storm's own derivations.
        const waited = yield* Effect.forEach(quiet, (tenant) =>
          Effect.gen(function* () {
            const before = refused
            const client = yield* perseus.raw
            const greeting = yield* client.logIn(tenant, "sesame")
            assert.strictEqual(greeting.at(-1)?.type, "Z")
            return refused - before
          }).pipe(Effect.scoped)
        )
        const inOrder = waited.toSorted((a, b) => a - b)
        // Its own is behind the one that is under way: twice what it takes alone. On a busy machine the event loop is late to tell,
        // and one or two more of the storm are told meanwhile.
        assert.isAtMost(inOrder[24]!, storm / 4)
        // First come, first served would be the whole storm for each. Where the event loop was held up many are told at once, which
        // is no wait, so the last few say nothing.
        assert.isAtMost(inOrder[37]!, storm / 2)
        assert.isAbove(refused, storm + quiet.length)
      }).pipe(Effect.scoped),
    { timeout: 120_000 }
  )

  // ---- what answers belong to

  it.effect(
    "pgpool CVE-2024-45624, CVE-2025-46801: the same SQL of two tenants never meets the other's row",
    () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const questions = 100_000
        const random = seeded(45_624)
        for (const schema of ["red", "green"]) {
          yield* perseus.query(schema, `CREATE TABLE canary AS SELECT '${schema}'::text AS owner`)
        }
        const sql = "SELECT owner FROM canary"
        const named = Buffer.concat([bind("", "same"), execute(), sync])
        let seen = 0
        const turns = (schema: string, client: RawClient, share: number) =>
          Effect.gen(function* () {
            yield* client.exchange(Buffer.concat([parse("same", sql), sync]))
            for (let asked = 0; asked < share;) {
              const batch = Math.min(share - asked, 1 + random.below(24))
              const bytes = Array.from({ length: batch }, () => (random.chance(0.5) ? query(sql) : named))
              const rows = rowsOf(yield* client.exchange(Buffer.concat(bytes), batch))
              assert.strictEqual(rows.length, batch)
              for (const owner of rows) if (owner !== schema) assert.fail(`${schema} saw a row of ${owner}`)
              asked += batch
              seen += batch
            }
          })
        const clients = yield* Effect.forEach(Array.from({ length: 8 }), (_, index) => {
          const schema = index % 2 === 0 ? "red" : "green"
          return Effect.map(perseus.login(schema), (client) => [schema, client] as const)
        })
        yield* Effect.forEach(clients, ([schema, client]) => turns(schema, client, questions / clients.length), {
          concurrency: "unbounded",
          discard: true
        })
        assert.strictEqual(seen, questions)
      }),
    { timeout: 120_000 }
  )

  it.effect("a server that answers more than it was asked is lent to nobody else", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const answer = Buffer.concat([row("mine"), complete("SELECT 1"), ready])
      const evil = yield* attack(
        perseus,
        answering(() => Buffer.concat([answer, row("stray"), complete("SELECT 1"), ready]))
      )
      for (let turn = 0; turn < 3; turn++) {
        const { client } = yield* logIn(perseus, evil)
        client.send(query("SELECT 1"))
        const [first] = yield* client.take(({ type }) => type === "D")
        assert.deepStrictEqual(rowsOf([first!]), ["mine"])
        client.vanish()
        yield* isOver(perseus, evil)
      }
      yield* others(perseus)
    })
  )

  for (const [what, status] of [
    ["a value that holds a NUL", message("S", text("application_name"), Buffer.from("a\0role\0postgres\0"))],
    ["a value without an end", message("S", text("application_name"), Buffer.from("endless"))],
    ["no value", message("S", text("application_name"))],
    ["no name", message("S", text(""), text("x"))],
    ["nothing", message("S")],
    ["a NUL alone", message("S", Buffer.of(0))]
  ] as const) {
    it.effect(`a ParameterStatus with ${what} ends no process, and is nobody's setting in the next transaction`, () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const evil = yield* attack(
          perseus,
          answering(() => Buffer.concat([status, row("x"), complete("SELECT 1"), ready]))
        )
        const { client } = yield* logIn(perseus, evil)
        for (let turn = 0; turn < 3; turn++) {
          client.send(query("SELECT 1"))
          yield* eventually(
            Effect.sync(() => client.isClosed || client.received.some(({ type }) => type === "Z")),
            (answered) => answered
          )
        }
        assert.notInclude(evil.server.heard(), "postgres")
        client.vanish()
        yield* isOver(perseus, evil)
        yield* others(perseus)
      })
    )
  }

  for (const [what, said] of [
    ["ReadyForQuery before AuthenticationOk", [ready]],
    ["a row in place of a request for the password", [row("x")]],
    ["AuthenticationOk without a request for the password", [welcome]],
    ["a second request for the password", [askPassword, askPassword]],
    ["SASLFinal before a SASL exchange", [authentication(12, Buffer.from("v=AAAA"))]],
    ["BackendKeyData first", [message("K", int32(1), int32(2))]],
    ["a kind of authentication that does not exist", [authentication(99)]],
    ["an authentication without a code", [message("R")]],
    ["half a message, and then nothing", [Buffer.from("R\0\0")]]
  ] as const) {
    it.effect(`a login in which a server says ${what} is refused`, () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        yield* isRefused(perseus, (_, turn) => said[turn] ?? "end")
      })
    )
  }

  it.effect("a server that sends notices without end is given up when the time for a login is over", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const notices = Buffer.concat(
        Array.from({ length: 500 }, () => message("N", text("SNOTICE"), text("Mwait"), text("")))
      )
      yield* isRefused(perseus, (_, turn, socket) => {
        const more = () => {
          while (!socket.destroyed && socket.write(notices)) {
            // As much as the socket takes.
          }
          if (!socket.destroyed) socket.once("drain", more)
        }
        more()
        return turn === 0 ? notices : null
      })
    })
  )
})

const ca = authority()
const certificate = signedBy(ca, "localhost", "127.0.0.1")

/** With TLS for those who want it, on either side. */
const underTls = Layer.effect(
  SharedPerseus,
  Effect.gen(function* () {
    const write = yield* pemFiles
    const TLSSettings = {
      ClientMode: "allow",
      ClientCertFile: yield* write("server.crt", certificate.cert),
      ClientKeyFile: yield* write("server.key", certificate.key),
      ServerMode: "prefer"
    }
    return yield* startPerseus({
      tenants: ["red", "green"],
      config: { PoolSettings: limits, LoginSettings: patient, TLSSettings }
    })
  })
)

layer(underTls, { excludeTestServices: true })("history under TLS", (it) => {
  const planted = message("E", text("SFATAL"), text("C28000"), text("Mcall 555-0100 and tell your password"), text(""))

  // ---- what is said before it

  for (const [name, before, packet] of [
    ["an SSLRequest", [], sslRequest],
    ["a GSSENCRequest", [], gssEncRequest],
    ["an SSLRequest behind a GSSENCRequest that was refused", [gssEncRequest], sslRequest]
  ] as const) {
    it.effect(
      `CVE-2021-3935, CVE-2021-43766, CVE-2021-23214: bytes behind ${name} are not read where TLS is to be had`,
      () =>
        Effect.gen(function* () {
          const perseus = yield* SharedPerseus
          const smuggled = [startup(perseus.tenant("red").startup), password("sesame"), query("SELECT 'smuggled'")]
          const client = yield* perseus.raw
          for (const earlier of before) {
            client.sendForByte(earlier)
            assert.strictEqual(typesOf(yield* client.next()), "N")
          }
          client.send(packet, ...smuggled)
          const answers = yield* client.closed()
          assert.strictEqual(typesOf(answers), "E", "TLS was not agreed to")
          assert.deepStrictEqual(sqlStatesOf(answers), ["08P01"])
        })
    )
  }

  it.effect(
    "CVE-2021-43766, CVE-2021-23214: what comes in clear after TLS was agreed to is a handshake or nothing",
    () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const client = yield* perseus.raw
        client.sendForByte(sslRequest)
        assert.strictEqual(typesOf(yield* client.next()), "S")
        client.send(startup(perseus.tenant("red").startup), password("sesame"), query("SELECT 'smuggled'"))
        assert.strictEqual(typesOf(yield* client.closed()), "")
        yield* others(perseus)
      })
  )

  for (const [what, said] of [
    ["a login's whole success", welcome],
    ["an error", planted],
    ["a request for the password", askPassword],
    ["the beginning of a TLS record", Buffer.of(0x16, 3, 3, 0, 122)],
    ["one byte", Buffer.of(0)]
  ] as const) {
    it.effect(`CVE-2021-43767, CVE-2021-23222: a server that says S and, in the same segment, ${what} is dropped`, () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const { evil, words } = yield* isRefused(perseus, () => Buffer.concat([Buffer.from("S"), said]))
        // No handshake was begun with it, and it was told nothing.
        assert.strictEqual(evil.server.heard(), sslRequest.toString("latin1").repeat(evil.server.connections()))
        assert.notInclude(words, "555-0100")
      })
    )
  }

  it.effect("CVE-2021-43767, CVE-2021-23222: nor is read what it says in clear when TLS has been agreed to", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const { evil, words } = yield* isRefused(perseus, (_, turn) =>
        turn === 0 ? Buffer.from("S") : Buffer.concat([welcome, planted])
      )
      assert.notInclude(evil.server.heard(), "user\0")
      assert.notInclude(words, "555-0100")
    })
  )

  it.effect("CVE-2024-10977: what a server says in place of TLS is told to no client, in clear or under TLS", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      for (const said of [planted, Buffer.concat([Buffer.from("N"), planted]), Buffer.from("Ecall 555-0100\n")]) {
        const { evil, words } = yield* isRefused(perseus, () => said)
        assert.notInclude(words, "555-0100")
        assert.notInclude(evil.server.heard(), "user\0")
        const client = new Client({
          host: perseus.host,
          port: perseus.port,
          user: "app",
          password: "sesame",
          database: perseus.sourceDb,
          options: `-c schema_search_path=${evil.startup["schema_search_path"]}`,
          ssl: { ca: ca.cert }
        })
        client.on("error", () => undefined)
        const refused = yield* Effect.flip(Effect.tryPromise({ try: () => client.connect(), catch: String }))
        assert.match(refused, /the destination database cannot be reached/)
        assert.notInclude(refused, "555-0100")
      }
      assert.notInclude(perseus.log.join("\n"), "555-0100", "it is no line in the log either")
    })
  )

  // ---- channel binding

  it.effect(
    "pgjdbc CVE-2025-49146: a psql that requires channel binding gets it, or gets nothing and gives nothing",
    () =>
      Effect.gen(function* () {
        const psql = installed("psql")
        if (Option.isNone(psql)) return
        const perseus = yield* SharedPerseus
        const { schema_search_path: schema = "" } = yield* tenantOfScram(perseus)
        const bound = { ...perseus.tenant("red"), options: `-c schema_search_path=${schema}` }
        const ask = (to: Address, tenant: TestTenant, PGSSLMODE = "require") =>
          run({ ...perseus, ...to }, tenant, psql.value, ["-XAtqc", "SELECT 'let in'"], {
            PGSSLMODE,
            PGCHANNELBINDING: "require"
          })
        const answer = yield* ask(perseus, bound)
        assert.strictEqual(answer.output, "let in\n", answer.errors)

        const refused = (to: Address, tenant: TestTenant, sslMode?: string) =>
          Effect.map(ask(to, tenant, sslMode), ({ output, errors }) => {
            assert.strictEqual(output, "")
            assert.match(errors, /channel binding/)
          })
        yield* refused(perseus, bound, "disable")
        // A row with a hash, which takes the password itself.
        yield* refused(perseus, perseus.tenant("red"))
        const another = signedBy(ca, "localhost", "127.0.0.1")
        for (const change of [undefined, withoutPlus, inClearText]) {
          const middle = yield* manInTheMiddle(perseus, another, change)
          yield* refused(middle, bound)
          assert.include(middle.heard(), "user\0app")
          assert.notInclude(middle.heard(), "sesame")
        }
      })
  )

  it.effect(
    "pgjdbc CVE-2025-49146: we bind to a server that can, and miss it where somebody struck it from the offer",
    () =>
      Effect.gen(function* () {
        const server = yield* Effect.orDie(
          ownPostgres({
            settings: { ssl: "on" },
            files: { "server.crt": certificate.cert, "server.key": certificate.key }
          })
        )
        const perseus = yield* startPerseus({
          tenants: ["red", "green"],
          server,
          config: { PoolSettings: limits, TLSSettings: { ServerMode: "require" } }
        })
        const through = (shown: Certificate, change?: (fromServer: Buffer) => Buffer) =>
          Effect.gen(function* () {
            const middle = yield* manInTheMiddle(server, shown, change)
            const client = yield* perseus.raw
            const answers = yield* client.logIn(yield* tenantAt(perseus, middle.port), "sesame")
            return { answers, heard: middle.heard() }
          })
        // Who has the server's own key is the server: what it reads is what PostgreSQL was sent.
        const own = yield* through(certificate)
        assert.strictEqual(own.answers.at(-1)?.type, "Z")
        assert.match(own.heard, /SCRAM-SHA-256-PLUS\0[^]{4}p=tls-server-end-point,,/)
        const other = yield* through(signedBy(ca, "localhost", "127.0.0.1"))
        assert.deepStrictEqual(sqlStatesOf(other.answers), ["08001"])
        assert.include(perseus.log.join("\n"), "28000 SCRAM channel binding check failed")
        const struck = yield* through(certificate, withoutPlus)
        assert.deepStrictEqual(sqlStatesOf(struck.answers), ["08001"])
        assert.match(struck.heard, /SCRAM-SHA-256\0[^]{4}y,,/)
        assert.include(perseus.log.join("\n"), "28000 SCRAM channel binding negotiation error")
        yield* others(perseus)
      })
  )
})

/** The product's own code, by file. */
const sources: ReadonlyMap<string, string> = (() => {
  const src = fileURLToPath(new URL("../../src/", import.meta.url))
  const files = readdirSync(src, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".ts"))
  return new Map(files.map((file) => [file, readFileSync(`${src}${file}`, "utf8")]))
})()
