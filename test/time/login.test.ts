/**
 * Logging in: how long it may take at each step, how long a refusal takes, and how many may be there.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { startupMessage } from "../../src/protocol/Frontend.ts"
import { REFUSAL_DELAY_MS } from "../../src/tenant/LoginThrottle.ts"
import { make, type MemoryPerseus } from "../support/memoryPerseus.ts"

const LOGIN_MS = 5000
const settings = {
  PoolSettings: { ConnCreateTimeoutSecs: 15, SchemaExecTimeoutSecs: 15 },
  LimitSettings: { ClientLoginTimeoutSecs: LOGIN_MS / 1000, AcquireTimeoutSecs: 60 }
}
const startup = startupMessage([
  ["user", "mm"],
  ["database", "shop"],
  ["schema_search_path", "red"]
])

describe("ClientLoginTimeoutSecs", () => {
  it.effect("leaves its client time to take the last words", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { LimitSettings: { ClientLoginTimeoutSecs: 5 } } })
      const client = perseus.dial()
      yield* perseus.pass(4000)
      client.memory.transport.pause()
      yield* perseus.pass(1200)
      assert.strictEqual(perseus.perseus.live.loginsUnderWay, 0)
      assert.strictEqual(perseus.perseus.live.count, 1)
      client.memory.transport.resume()
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["FATAL 08P01", "closed"])
      assert.strictEqual(perseus.perseus.live.count, 0)
    })
  )

  it.effect("leaves it two seconds for them", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { LimitSettings: { ClientLoginTimeoutSecs: 5 } } })
      const client = perseus.dial()
      client.memory.transport.pause()
      yield* perseus.pass(5200)
      assert.strictEqual(perseus.perseus.live.count, 1)
      yield* perseus.pass(2000)
      assert.strictEqual(perseus.perseus.live.count, 0)
    })
  )

  const stalls: Readonly<Record<string, (perseus: MemoryPerseus) => ReturnType<MemoryPerseus["dial"]>>> = {
    "has sent nothing": (perseus) => perseus.dial(),
    "has sent half of a startup packet": (perseus) => {
      const client = perseus.dial()
      client.send(startup.subarray(0, 12))
      return client
    },
    "has been asked for its password and does not send it": (perseus) => {
      const client = perseus.dial()
      client.send(startup)
      return client
    },
    "waits for a slow KMS": (perseus) => {
      perseus.slowDownKms("1 minute")
      return perseus.beginLogin("red")
    },
    "waits for a server that does not let us in": (perseus) => {
      perseus.postgres.stallAt("authentication")
      return perseus.beginLogin("red")
    },
    "waits for a switch that does not end": (perseus) => {
      perseus.postgres.stallAt("statement")
      return perseus.beginLogin("red")
    }
  }
  for (const [what, stall] of Object.entries(stalls)) {
    it.effect(`ends the session of a client that ${what}, at its moment and not before`, () =>
      Effect.gen(function* () {
        const perseus = yield* make({ settings })
        const client = stall(perseus)
        yield* perseus.falls(LOGIN_MS, {
          before: () =>
            assert.deepStrictEqual(
              client.heard().filter((line) => line !== "R"),
              []
            ),
          after: () => assert.deepStrictEqual(client.heard(), ["FATAL 08P01", "closed"])
        })
        assert.strictEqual(perseus.perseus.live.count, 0)
        assert.strictEqual(perseus.perseus.live.loginsUnderWay, 0)
        // What was begun for it goes on for those who come next.
        perseus.postgres.proceed()
        perseus.slowDownKms(0)
        yield* perseus.pass(15_000)
        yield* perseus.logIn("red")
        perseus.whole(1)
      })
    )
  }

  it.effect("is over with the login: a client may be idle for as long as it likes", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      yield* perseus.pass(4 * LOGIN_MS)
      assert.deepStrictEqual(client.heard(), [])
    })
  )
})

describe("a refusal", () => {
  it.effect("has the same words at the same time, whichever of tenant, user and password was wrong", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      const clients = [
        perseus.beginLogin("nobody"),
        perseus.beginLogin("red", { database: "nowhere" }),
        perseus.beginLogin("red", { user: "somebody" }),
        perseus.beginLogin("red", { password: "wrong" }),
        perseus.beginLogin("red", { password: "" })
      ]
      yield* perseus.settle
      yield* perseus.falls(REFUSAL_DELAY_MS, {
        late: 0,
        before: () => {
          for (const client of clients) assert.deepStrictEqual(client.heard(), ["R"])
        },
        after: () => {
          for (const client of clients) assert.deepStrictEqual(client.heard(), ["FATAL 28P01", "closed"])
        }
      })
      assert.deepStrictEqual(new Set(clients.map(({ complaint }) => complaint)).size, 1)
      assert.strictEqual(perseus.server.accepted(), 0)
      assert.strictEqual(perseus.kms.decrypts(), 0)
    })
  )

  it.effect("is no other for a wrong user who knows a password that was right a moment ago", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      yield* perseus.logIn("red")
      const client = perseus.beginLogin("red", { user: "somebody" })
      yield* perseus.settle
      yield* perseus.falls(REFUSAL_DELAY_MS, {
        late: 0,
        before: () => assert.deepStrictEqual(client.heard(), ["R"]),
        after: () => assert.deepStrictEqual(client.heard(), ["FATAL 28P01", "closed"])
      })
    })
  )

  it.effect("takes its time from the password's arrival, however late that was", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      const client = perseus.dial()
      client.send(startup)
      yield* perseus.pass(5000)
      client.send(Buffer.from("p\0\0\0\x0awrong\0", "latin1"))
      yield* perseus.falls(REFUSAL_DELAY_MS, {
        late: 0,
        before: () => assert.deepStrictEqual(client.heard(), ["R"]),
        after: () => assert.deepStrictEqual(client.heard(), ["FATAL 28P01", "closed"])
      })
    })
  )

  it.effect("does not keep a client that is let in waiting", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      perseus.beginLogin("red", { password: "wrong" })
      yield* perseus.logIn("red")
    })
  )
})

describe("MaxClients", () => {
  it.effect("refuses whoever is over it, and lets in again when somebody has left", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { LimitSettings: { MaxClients: 2 } } })
      const first = yield* perseus.logIn("red")
      yield* perseus.logIn("blue")
      const third = perseus.beginLogin("red")
      yield* perseus.settle
      assert.deepStrictEqual(third.heard(), ["FATAL 53300", "closed"])
      first.memory.disconnect()
      yield* perseus.settle
      yield* perseus.logIn("red")
    })
  )

  it.effect("does not refuse a cancel", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { LimitSettings: { MaxClients: 1 } } })
      const client = yield* perseus.logIn("red")
      client.ask("SELECT pg_sleep(60)")
      yield* perseus.settle
      perseus.cancel(client)
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["ERROR 57014", "ready I"])
    })
  )
})

describe("MaxClientsPerTenant", () => {
  it.effect("refuses one tenant's clients over it, and nobody else's", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { LimitSettings: { MaxClientsPerTenant: 1 } } })
      const first = yield* perseus.logIn("red")
      const second = perseus.beginLogin("red")
      yield* perseus.settle
      assert.deepStrictEqual(second.heard(), ["R", "FATAL 53300", "closed"])
      yield* perseus.logIn("blue")
      first.memory.vanish()
      yield* perseus.settle
      yield* perseus.logIn("red")
    })
  )

  it.effect("holds for clients that log in at the same time, too", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { LimitSettings: { MaxClientsPerTenant: 2 } } })
      perseus.postgres.stallAt("authentication")
      const clients = Array.from({ length: 5 }, () => perseus.beginLogin("red"))
      yield* perseus.settle
      perseus.postgres.proceed()
      yield* perseus.settle
      const greeted = clients.filter((client) => client.heard().includes("ready I"))
      assert.strictEqual(greeted.length, 2)
    })
  )
})
