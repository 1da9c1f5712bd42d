/**
 * Opening server connections: how long it may take, what is said meanwhile, and that a server which is down is neither hammered
 * nor forgotten.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { answered, make, type MemoryPerseus } from "../support/memoryPerseus.ts"

const CONNECT_MS = 5000
const patient = { settings: { PoolSettings: { ConnCreateTimeoutSecs: CONNECT_MS / 1000 } } }
/** The longest pause between two attempts. */
const LONGEST_PAUSE_MS = 5000

/** A client whose tenant is greeted from memory, and no server connection left: the next query has to open one. */
const alone = Effect.fnUntraced(function* (perseus: MemoryPerseus) {
  const client = yield* perseus.logIn("red")
  perseus.postgres.killAll("clean")
  yield* perseus.settle
  perseus.whole(0)
  return client
})

describe("ConnCreateTimeoutSecs", () => {
  for (const step of ["startup", "authentication"] as const) {
    it.effect(`fails the login behind a server that falls silent at ${step}, at its moment and not before`, () =>
      Effect.gen(function* () {
        const perseus = yield* make(patient)
        perseus.postgres.stallAt(step)
        const client = perseus.beginLogin("red")
        yield* perseus.falls(CONNECT_MS, {
          late: 0,
          before: () => assert.deepStrictEqual(client.heard(), ["R"]),
          after: () => assert.deepStrictEqual(client.heard(), ["FATAL 08001", "closed"])
        })
        perseus.whole(0)
      })
    )

    it.effect(`answers the query behind a server that falls silent at ${step}, and the client stays`, () =>
      Effect.gen(function* () {
        const perseus = yield* make(patient)
        const client = yield* alone(perseus)
        perseus.postgres.stallAt(step)
        client.ask("SELECT 1")
        yield* perseus.falls(CONNECT_MS, {
          late: 0,
          before: () => assert.deepStrictEqual(client.heard(), []),
          after: () => assert.deepStrictEqual(client.heard(), ["ERROR 08001", "ready I"])
        })
        perseus.whole(0)
        perseus.postgres.proceed()
        yield* perseus.pass(LONGEST_PAUSE_MS)
        client.ask("SELECT 1")
        yield* perseus.settle
        assert.deepStrictEqual(client.heard(), answered)
        perseus.whole(1)
      })
    )
  }

  it.effect("fails the login behind a connect that nobody answers", () =>
    Effect.gen(function* () {
      const perseus = yield* make(patient)
      perseus.server.vanish()
      const client = perseus.beginLogin("red")
      yield* perseus.falls(CONNECT_MS, {
        late: 0,
        before: () => assert.deepStrictEqual(client.heard(), ["R"]),
        after: () => assert.deepStrictEqual(client.heard(), ["FATAL 08001", "closed"])
      })
      perseus.whole(0)
    })
  )

  it.effect("answers the query behind a connect that nobody answers", () =>
    Effect.gen(function* () {
      const perseus = yield* make(patient)
      const client = yield* alone(perseus)
      perseus.server.vanish()
      client.ask("SELECT 1")
      yield* perseus.falls(CONNECT_MS, {
        late: 0,
        before: () => assert.deepStrictEqual(client.heard(), []),
        after: () => assert.deepStrictEqual(client.heard(), ["ERROR 08001", "ready I"])
      })
      perseus.whole(0)
    })
  )

  it.effect("fails all who wait for the same destination, of whichever tenant", () =>
    Effect.gen(function* () {
      const perseus = yield* make(patient)
      perseus.postgres.stallAt("authentication")
      const clients = ["red", "blue", "red", "blue", "red", "blue"].map((schema) => perseus.beginLogin(schema))
      yield* perseus.pass(CONNECT_MS)
      for (const client of clients) assert.deepStrictEqual(client.heard(), ["R", "FATAL 08001", "closed"])
      perseus.whole(0)
    })
  )
})

describe("a destination that is down", () => {
  it.effect("is asked with growing pauses however often clients ask, who are told of it at once", () =>
    Effect.gen(function* () {
      const perseus = yield* make(patient)
      const client = yield* alone(perseus)
      perseus.postgres.stop("crash")
      client.ask("SELECT 1")
      // Whoever waits does so for as long as a connect may take.
      yield* perseus.pass(2 * CONNECT_MS)
      assert.deepStrictEqual(client.heard(), ["ERROR 08001", "ready I"])
      const { statistics } = perseus.pool()
      assert.isBelow(statistics.connectFailures, 9)
      for (let asked = 0; asked < 500; asked++) {
        client.ask("SELECT 1")
        yield* perseus.settle
        assert.deepStrictEqual(client.heard(), ["ERROR 08001", "ready I"])
        yield* perseus.pass(100)
      }
      // 100, 200, 400 … 3200 ms, then each 5 s: in a minute no more than these.
      assert.isBelow(statistics.connectFailures, 19)
      assert.isAbove(statistics.connectFailures, 10)
      perseus.whole(0)
    })
  )

  it.effect("is asked by one attempt at a time, however many wait", () =>
    Effect.gen(function* () {
      const perseus = yield* make(patient)
      const first = yield* alone(perseus)
      const clients = [first, ...(yield* Effect.all(Array.from({ length: 8 }, () => perseus.logIn("red"))))]
      perseus.postgres.killAll("clean")
      yield* perseus.settle
      perseus.postgres.stop("crash")
      clients[0]!.ask("SELECT 1")
      yield* perseus.settle
      assert.strictEqual(perseus.pool().statistics.connectFailures, 1)
      perseus.server.vanish()
      for (const client of clients.slice(1)) client.ask("SELECT 1")
      for (let step = 0; step < 45; step++) {
        yield* perseus.pass(100)
        assert.isAtMost(perseus.network.openTransports().connecting, 1)
      }
      assert.strictEqual(perseus.network.openTransports().connecting, 1)
    })
  )

  it.effect("serves again within the longest pause once it is back", () =>
    Effect.gen(function* () {
      const perseus = yield* make(patient)
      const client = yield* alone(perseus)
      perseus.postgres.stop("crash")
      for (let step = 0; step < 60; step++) {
        client.ask("SELECT 1")
        yield* perseus.pass(1000)
      }
      client.heard()
      perseus.postgres.start()
      yield* perseus.pass(LONGEST_PAUSE_MS)
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard().slice(-3), answered)
      perseus.whole(1)
    })
  )

  it.effect("that was never reached keeps no login waiting", () =>
    Effect.gen(function* () {
      const perseus = yield* make(patient)
      perseus.postgres.stop("crash")
      const first = perseus.beginLogin("red")
      const second = perseus.beginLogin("blue")
      yield* perseus.settle
      assert.deepStrictEqual(first.heard(), ["R", "FATAL 08001", "closed"])
      assert.deepStrictEqual(second.heard(), ["R", "FATAL 08001", "closed"])
      perseus.whole(0)
    })
  )
})

describe("a restart that is over within ConnCreateTimeoutSecs", () => {
  for (const outage of [50, 500, 1400, 2900, 3200, 4000, 4900]) {
    it.effect(`of ${outage} ms fails no client that waits`, () =>
      Effect.gen(function* () {
        const perseus = yield* make(patient)
        const clients = [yield* perseus.logIn("red"), yield* perseus.logIn("blue"), yield* perseus.logIn("red")]
        perseus.postgres.stop("clean")
        yield* perseus.settle
        for (const client of clients) client.ask("SELECT 1")
        yield* perseus.pass(outage)
        for (const client of clients) assert.deepStrictEqual(client.heard(), [])
        perseus.postgres.start()
        yield* perseus.pass(CONNECT_MS)
        for (const client of clients) assert.deepStrictEqual(client.heard(), answered)
        perseus.whole(perseus.pool().idle)
      })
    )
  }

  it.effect("fails only the transaction that was under way", () =>
    Effect.gen(function* () {
      const perseus = yield* make(patient)
      const active = yield* perseus.logIn("red")
      const idle = yield* perseus.logIn("red")
      active.ask("BEGIN")
      yield* perseus.settle
      active.heard()
      perseus.postgres.stop("crash")
      yield* perseus.settle
      assert.deepStrictEqual(active.heard(), ["FATAL 57P01", "closed"])
      idle.ask("SELECT 1")
      yield* perseus.pass(300)
      perseus.postgres.start()
      yield* perseus.pass(1000)
      assert.deepStrictEqual(idle.heard(), answered)
      perseus.whole(1)
    })
  )
})

describe("a login that only an operator can mend", () => {
  it.effect("fails those who wait at once, and those of another dest_user not at all", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ ...patient, tenants: { red: {}, blue: { destUser: "other" } } })
      const client = yield* alone(perseus)
      perseus.users["app"] = "rotated"
      client.ask("SELECT 1")
      const late = perseus.beginLogin("red", { parameters: { application_name: "late" } })
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["ERROR 08001", "ready I"])
      assert.deepStrictEqual(late.heard(), ["R", "FATAL 08001", "closed"])
      const other = yield* perseus.logIn("blue")
      other.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(other.heard(), answered)
      perseus.whole(1)
    })
  )

  it.effect("is tried again with growing pauses, and holds once it is mended", () =>
    Effect.gen(function* () {
      const perseus = yield* make(patient)
      const client = yield* alone(perseus)
      perseus.postgres.refuseLogins("28P01", "password authentication failed")
      for (let asked = 0; asked < 200; asked++) {
        client.ask("SELECT 1")
        yield* perseus.pass(100)
        assert.deepStrictEqual(client.heard(), ["ERROR 08001", "ready I"])
      }
      assert.isBelow(perseus.pool().statistics.connectFailures, 11)
      perseus.postgres.acceptLogins()
      yield* perseus.pass(LONGEST_PAUSE_MS)
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
      perseus.whole(1)
    })
  )
})
