/**
 * Logging in by SCRAM, through the whole service: who is asked for it, what a refusal looks like, and what is no message of it.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { pbkdf2Sync } from "node:crypto"
import { cString, frame, int32 } from "../../src/protocol/Encoder.ts"
import { Frontend } from "../../src/protocol/Frame.ts"
import { saslInitialResponse, startupMessage } from "../../src/protocol/Frontend.ts"
import * as Scram from "../../src/protocol/Scram.ts"
import { REFUSAL_DELAY_MS } from "../../src/tenant/LoginThrottle.ts"
import { type Client, make, type MemoryPerseus } from "../support/memoryPerseus.ts"
import { seeded } from "../support/random.ts"

const verifierOf = (password: string, iterations = 4096) => {
  const salt = Buffer.from("0123456789abcdef")
  const salted = pbkdf2Sync(password, salt, iterations, 32, "sha256")
  return Scram.encodeVerifier(Scram.verifierFor(salted, salt, iterations))
}
const tenants = {
  red: { sourcePassHashed: verifierOf("password") },
  blue: {},
  strong: { sourcePassHashed: verifierOf("password", 10_000) },
  broken: { sourcePassHashed: "SCRAM-SHA-256$4096:AAAA$nothing" },
  empty: { sourcePassHashed: null }
}

/** What the server has said of each kind of authentication: 3 clear text, 10 SASL, 11 challenge, 12 the end of it, 0 ok. */
const requests = (client: Client) =>
  client.memory.messages.filter(({ type }) => type === "R").map(({ body }) => body.readInt32BE(0))

/** The salt and iterations that a name is challenged with. */
const challengeOf = (perseus: MemoryPerseus, schema: string, user = "mm") =>
  Effect.gen(function* () {
    const client = dialAs(perseus, schema, user)
    client.send(saslInitialResponse("SCRAM-SHA-256", Scram.clientFirst("nonce")))
    yield* perseus.settle
    const challenge = client.memory.messages.at(-1)?.body.toString("utf8", 4) ?? ""
    client.memory.vanish()
    return challenge.replace(/^r=nonce[^,]{24},/, "")
  })

const dialAs = (perseus: MemoryPerseus, schema: string, user = "mm"): Client => {
  const client = perseus.dial()
  client.send(
    startupMessage([
      ["user", user],
      ["database", "shop"],
      ["schema_search_path", schema]
    ])
  )
  return client
}

describe("a tenant whose row has a SCRAM verifier", () => {
  it.effect("logs in by SCRAM, and has it proved that we knew its password", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants })
      const client = yield* perseus.logIn("red")
      assert.deepStrictEqual(requests(client), [10, 11, 12, 0])
      const other = yield* perseus.logIn("blue")
      assert.deepStrictEqual(requests(other), [3, 0])
    })
  )

  it.effect("is told of a wrong password as anybody is, and as late", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants })
      const clients = [
        perseus.beginLogin("red", { password: "wrong" }),
        perseus.beginLogin("red", { user: "somebody" }),
        perseus.beginLogin("broken"),
        perseus.beginLogin("blue", { password: "wrong" })
      ]
      yield* perseus.settle
      for (const client of clients) client.heard()
      yield* perseus.falls(REFUSAL_DELAY_MS, {
        late: 0,
        before: () => {
          for (const client of clients) assert.deepStrictEqual(client.heard(), [])
        },
        after: () => {
          for (const client of clients) assert.deepStrictEqual(client.heard(), ["FATAL 28P01", "closed"])
        }
      })
      assert.deepStrictEqual(clients.map(requests), [[10, 11], [10, 11], [10, 11], [3]])
      assert.strictEqual(new Set(clients.map(({ complaint }) => complaint)).size, 1)
    })
  )

  it.effect("is challenged with its own salt; any other user with one of as many iterations that stays the same", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants })
      assert.strictEqual(yield* challengeOf(perseus, "red"), "s=MDEyMzQ1Njc4OWFiY2RlZg==,i=4096")
      const other = yield* challengeOf(perseus, "strong", "somebody")
      assert.match(other, /^s=[A-Za-z0-9+/]{22}==,i=10000$/)
      assert.strictEqual(yield* challengeOf(perseus, "strong", "somebody"), other)
      assert.notStrictEqual(yield* challengeOf(perseus, "strong", "somebody else"), other)
    })
  )

  it.effect("counts for the throttle as others do, and right proofs are refused in a block like wrong ones", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants, settings: { LoginSettings: { FailuresBeforeBlock: 2 } } })
      for (const from of ["10.0.0.1", "10.0.0.2"]) perseus.beginLogin("red", { password: "wrong" }, from)
      yield* perseus.settle
      for (const login of [{}, { password: "wrong" }]) {
        const client = perseus.beginLogin("red", login, "10.0.0.3")
        yield* perseus.settle
        assert.deepStrictEqual(client.heard().slice(-2), ["FATAL 28000", "closed"])
        assert.deepStrictEqual(requests(client), [10, 11])
      }
      yield* perseus.pass(60_000)
      yield* perseus.logIn("red")
    })
  )
})

describe("UnknownTenant", () => {
  for (const [kind, expected] of [
    ["clear", [3]],
    ["scram", [10, 11]]
  ] as const) {
    it.effect(`${kind}: what a tenant without a row, or without a hash, is asked for`, () =>
      Effect.gen(function* () {
        const perseus = yield* make({ tenants, settings: { LoginSettings: { UnknownTenant: kind } } })
        const clients = ["nobody", "empty"].map((schema) => perseus.beginLogin(schema))
        yield* perseus.settle
        yield* perseus.falls(REFUSAL_DELAY_MS, {
          late: 0,
          before: () => {
            for (const client of clients) assert.deepStrictEqual(new Set(client.heard()), new Set(["R"]))
          },
          after: () => {
            for (const client of clients) assert.deepStrictEqual(client.heard(), ["FATAL 28P01", "closed"])
          }
        })
        assert.deepStrictEqual(clients.map(requests), [[...expected], [...expected]])
      })
    )
  }

  it.effect("scram: challenges a name with the same salt each time, which looks like PostgreSQL's", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants, settings: { LoginSettings: { UnknownTenant: "scram" } } })
      const first = yield* challengeOf(perseus, "nobody")
      assert.match(first, /^s=[A-Za-z0-9+/]{22}==,i=4096$/)
      assert.strictEqual(yield* challengeOf(perseus, "nobody"), first)
      assert.notStrictEqual(yield* challengeOf(perseus, "nobody", "other"), first)
    })
  )
})

describe("what is no SCRAM message", () => {
  const initial = (length: number, data = "n,,n=,r=nonce") =>
    frame(Frontend.password, cString("SCRAM-SHA-256"), int32(length), Buffer.from(data))
  const messages: Readonly<Record<string, Uint8Array>> = {
    "an inner length of -1": initial(-1),
    "an inner length of 0": initial(0),
    "an inner length that is one too small": initial(12),
    "an inner length that is one too large": initial(14),
    "an inner length of 2 GB": initial(0x7fffffff),
    "an inner length of -2 GB": initial(-0x80000000),
    "no data at all": initial(0, ""),
    "no inner length": frame(Frontend.password, cString("SCRAM-SHA-256")),
    "a clear-text password": frame(Frontend.password, cString("password")),
    "an empty message": frame(Frontend.password),
    "a query": frame(Frontend.query, cString("SELECT 1")),
    "a mechanism that was not offered": saslInitialResponse("SCRAM-SHA-256-PLUS", "p=tls-server-end-point,,n=,r=x"),
    "a message longer than PostgreSQL takes": saslInitialResponse("SCRAM-SHA-256", `n,,n=,r=${"x".repeat(2000)}`),
    "an impossible length": Buffer.from([Frontend.password, 0x7f, 0xff, 0xff, 0xff])
  }
  for (const [what, message] of Object.entries(messages)) {
    it.effect(`ends the login: ${what}`, () =>
      Effect.gen(function* () {
        const perseus = yield* make({ tenants })
        const client = dialAs(perseus, "red")
        client.send(Buffer.from(message))
        yield* perseus.settle
        assert.deepStrictEqual(client.heard(), ["R", "FATAL 08P01", "closed"])
      })
    )
  }

  it.effect("ends the login in place of the last message, too", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants })
      for (const message of [
        frame(Frontend.password),
        frame(Frontend.password, cString("password")),
        frame(Frontend.password, Buffer.from("c=biws,r=nonce,p=AAAA")),
        frame(Frontend.sync)
      ]) {
        const client = dialAs(perseus, "red")
        client.send(saslInitialResponse("SCRAM-SHA-256", Scram.clientFirst("nonce")), message)
        yield* perseus.settle
        assert.deepStrictEqual(client.heard(), ["R", "R", "FATAL 08P01", "closed"])
      }
      yield* perseus.pass(1000)
      assert.strictEqual(perseus.perseus.live.count, 0)
    })
  )

  it.effect("never lets in or breaks anything: 2000 changed messages", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants, settings: { LoginSettings: { FailuresBeforeBlock: 0 } } })
      const random = seeded(4)
      for (let run = 0; run < 2000; run++) {
        const message = Buffer.from(initial(13))
        for (let change = 0; change <= random.below(3); change++) {
          message[5 + random.below(message.length - 5)] = random.below(256)
        }
        const client = dialAs(perseus, "red")
        client.send(message)
        yield* perseus.settle
        assert.include([10, 11], requests(client).at(-1))
        client.memory.vanish()
      }
      yield* perseus.settle
      yield* perseus.logIn("red")
      assert.strictEqual(perseus.perseus.live.count, 1)
    })
  )
})

describe("RequireTLS", () => {
  it.effect("refuses a client in clear before it is asked for anything, whichever tenant it names, but no cancel", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants })
      const client = yield* perseus.logIn("red")
      yield* perseus.reload({ LoginSettings: { RequireTLS: true } })
      for (const schema of ["red", "blue", "nobody"]) {
        const refused = perseus.beginLogin(schema)
        yield* perseus.settle
        assert.deepStrictEqual(refused.heard(), ["FATAL 28000", "closed"])
        assert.strictEqual(refused.complaint, "this pooler requires TLS")
      }
      client.ask("SELECT pg_sleep(60)")
      yield* perseus.settle
      perseus.cancel(client)
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["ERROR 57014", "ready I"])
    })
  )
})
