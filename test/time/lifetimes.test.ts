/**
 * How long server connections and pools live: by age, by idleness, by number; and that one which died unseen is replaced.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { SWEEP_PERIOD_MS } from "../../src/pool/PoolContext.ts"
import { answered, type Client, make, type MemoryPerseus } from "../support/memoryPerseus.ts"

const MINUTE_MS = 60_000

const holdAll = Effect.fnUntraced(function* (perseus: MemoryPerseus, clients: ReadonlyArray<Client>) {
  for (const client of clients) client.ask("BEGIN")
  yield* perseus.settle
})

const releaseAll = Effect.fnUntraced(function* (perseus: MemoryPerseus, clients: ReadonlyArray<Client>) {
  for (const client of clients) client.ask("COMMIT")
  yield* perseus.settle
})

const logInAll = (perseus: MemoryPerseus, schemas: ReadonlyArray<string>) =>
  Effect.forEach(schemas, (schema) => perseus.logIn(schema))

describe("MaxLifetimeSecs", () => {
  const settings = { PoolSettings: { MaxLifetimeSecs: 30 } }

  it.effect("closes an idle connection of that age, though it was used a moment ago", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      for (let second = 0; second < 29; second++) {
        yield* perseus.pass(1000)
        client.ask("SELECT 1")
      }
      yield* perseus.falls(1000, {
        before: () => perseus.whole(1),
        after: () => perseus.whole(0)
      })
      assert.strictEqual(perseus.pool().statistics.maxLifetimeClosed, 1)
      client.heard()
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
    })
  )

  it.effect("closes a leased connection when it comes back, and not before", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      client.ask("BEGIN")
      yield* perseus.pass(2 * MINUTE_MS)
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.strictEqual(client.heard().at(-1), "ready T")
      client.ask("COMMIT")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["done COMMIT", "ready I"])
      perseus.whole(0)
    })
  )

  it.effect("is no limit where it is 0", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      yield* perseus.logIn("red")
      yield* perseus.pass(2 * MINUTE_MS)
      perseus.whole(1)
    })
  )
})

describe("MaxIdletimeSecs", () => {
  const settings = { PoolSettings: { MaxIdletimeSecs: 10 } }

  it.effect("closes a connection that was idle for so long", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      yield* perseus.pass(9000)
      client.ask("SELECT pg_sleep(15)")
      yield* perseus.pass(15_000)
      yield* perseus.falls(10_000, {
        before: () => perseus.whole(1),
        after: () => perseus.whole(0)
      })
      assert.strictEqual(perseus.pool().statistics.maxIdleTimeClosed, 1)
      assert.strictEqual(perseus.pool().statistics.maxLifetimeClosed, 0)
    })
  )

  it.effect("closes those that are not needed and keeps the one that is", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const clients = yield* logInAll(perseus, ["red", "red", "red"])
      yield* holdAll(perseus, clients)
      yield* releaseAll(perseus, clients)
      perseus.whole(3)
      for (let second = 0; second < 11; second++) {
        clients[0]!.ask("SELECT 1")
        yield* perseus.pass(1000)
      }
      perseus.whole(1)
    })
  )
})

describe("MaxIdle", () => {
  it.effect("closes what is idle beyond it at once", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { PoolSettings: { MaxIdle: 1, MaxOpen: 4 } } })
      const clients = yield* logInAll(perseus, ["red", "blue", "red", "blue"])
      yield* holdAll(perseus, clients)
      assert.strictEqual(perseus.pool().inUse, 4)
      yield* releaseAll(perseus, clients)
      perseus.whole(1)
      assert.strictEqual(perseus.pool().statistics.maxIdleClosed, 3)
    })
  )

  it.effect("closes the one idle longest, whichever user's it is and however short the time between", () =>
    Effect.gen(function* () {
      const perseus = yield* make({
        settings: { PoolSettings: { MaxIdle: 1, MaxOpen: 4 } },
        tenants: { red: {}, blue: { destUser: "other" } }
      })
      const [red, blue] = yield* logInAll(perseus, ["red", "blue"])
      for (const [last, first] of [
        [red!, blue!],
        [blue!, red!]
      ] as const) {
        yield* holdAll(perseus, [red!, blue!])
        yield* releaseAll(perseus, [first])
        yield* perseus.pass(1)
        yield* releaseAll(perseus, [last])
        perseus.whole(1)
        const { opened } = perseus.pool().statistics
        last.ask("SELECT 1")
        yield* perseus.settle
        assert.strictEqual(perseus.pool().statistics.opened, opened)
      }
    })
  )

  it.effect("counts all of a destination's users together", () =>
    Effect.gen(function* () {
      const perseus = yield* make({
        settings: { PoolSettings: { MaxIdle: 1, MaxOpen: 4 } },
        tenants: { red: {}, blue: { destUser: "other" } }
      })
      yield* logInAll(perseus, ["red", "blue"])
      perseus.whole(1)
    })
  )
})

describe("ConnCloseTimeoutSecs", () => {
  const settings = { PoolSettings: { MaxOpen: 1, MaxIdle: 1, MaxIdletimeSecs: 10, ConnCloseTimeoutSecs: 2 } }

  it.effect("closes by force a connection whose server does not close its end", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      yield* perseus.logIn("red")
      perseus.server.hang()
      yield* perseus.pass(10_000 + 2 * SWEEP_PERIOD_MS)
      const closing = perseus.pool().closing
      assert.strictEqual(closing, 1)
      yield* perseus.falls(1900, {
        before: () => assert.strictEqual(perseus.pool().closing, 1),
        after: () => perseus.whole(0)
      })
    })
  )

  it.effect("is how long a waiting client may have to wait for the place of a connection that does not close", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings, tenants: { red: {}, blue: { destUser: "other" } } })
      const blue = yield* perseus.logIn("blue")
      yield* perseus.pass(1000)
      yield* perseus.logIn("red")
      yield* perseus.pass(1000)
      perseus.server.hang()
      blue.ask("SELECT 1")
      yield* perseus.falls(2000, {
        before: () => {
          assert.deepStrictEqual(blue.heard(), [])
          assert.strictEqual(perseus.pool().open, 1)
        },
        after: () => assert.deepStrictEqual(blue.heard(), answered)
      })
      perseus.whole(1)
    })
  )

  it.effect("bounds the service's own end", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      client.memory.disconnect()
      perseus.server.hang()
      const end = yield* Effect.forkChild(perseus.shutDown, { startImmediately: true })
      yield* perseus.falls(2000, {
        late: 0,
        before: () => assert.isUndefined(end.pollUnsafe()),
        after: () => assert.isDefined(end.pollUnsafe())
      })
      assert.deepStrictEqual(perseus.network.openTransports(), { accepted: 0, connected: 0, connecting: 0 })
    })
  )
})

describe("ServerCheckDelaySecs", () => {
  const settings = {
    PoolSettings: { SchemaExecTimeoutSecs: 3 },
    LimitSettings: { ServerCheckDelaySecs: 30 }
  }
  /** Both ends of the time are told by the sweep. */
  const lateAtMost = 2 * SWEEP_PERIOD_MS

  it.effect("has a connection checked that was idle for so long, and none that was not", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      const { statistics } = perseus.pool()
      for (let round = 0; round < 3; round++) {
        yield* perseus.pass(29_999)
        client.ask("SELECT 1")
        yield* perseus.settle
        assert.deepStrictEqual(client.heard(), answered)
      }
      assert.strictEqual(statistics.checks, 0)
      yield* perseus.pass(30_000 + lateAtMost)
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
      assert.strictEqual(statistics.checks, 1)
      perseus.whole(1)
    })
  )

  it.effect("has none checked that goes from one client to the next, for hours", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { ...settings, PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const clients = yield* logInAll(perseus, ["red", "red"])
      clients[0]!.ask("BEGIN")
      yield* perseus.settle
      for (let turn = 0; turn < 50; turn++) {
        const [holder, waiting] = turn % 2 === 0 ? clients : clients.toReversed()
        waiting!.ask("BEGIN")
        yield* perseus.pass(1000)
        holder!.ask("COMMIT")
        yield* perseus.settle
      }
      assert.strictEqual(perseus.pool().statistics.checks, 0)
    })
  )

  it.effect("replaces a connection whose server resets it, and the client does not notice", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      perseus.server.hang()
      yield* perseus.pass(30_000 + lateAtMost)
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), [])
      perseus.server.reset()
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
      perseus.whole(1)
    })
  )

  it.effect("replaces a connection whose server does not answer any more, and the client does not notice", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      perseus.server.hang()
      yield* perseus.pass(30_000 + lateAtMost)
      client.ask("SELECT 1")
      yield* perseus.falls(3000, {
        before: () => assert.deepStrictEqual(client.heard(), []),
        after: () => assert.deepStrictEqual(client.heard(), answered)
      })
      yield* perseus.pass(3000)
      perseus.whole(1)
    })
  )

  it.effect("is not needed where the server says that it goes: the connection is gone before anybody asks for it", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      perseus.postgres.killAll("crash")
      yield* perseus.settle
      perseus.whole(0)
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
      perseus.whole(1)
    })
  )

  it.effect("has nothing checked where it is 0", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      const client = yield* perseus.logIn("red")
      yield* perseus.pass(2 * MINUTE_MS)
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
      assert.strictEqual(perseus.pool().statistics.checks, 0)
    })
  )
})

describe("a pool that nobody uses", () => {
  it.effect("is closed after five minutes, its connections and its metrics with it", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      const client = yield* perseus.logIn("red")
      yield* perseus.pass(2 * MINUTE_MS)
      client.memory.disconnect()
      yield* perseus.settle
      const shown = () => perseus.perseus.snapshot().pools.length
      yield* perseus.falls(5 * MINUTE_MS, {
        late: 0,
        before: () => {
          perseus.whole(1)
          assert.strictEqual(shown(), 1)
        },
        after: () => {
          assert.deepStrictEqual(perseus.pools(), [])
          assert.strictEqual(shown(), 0)
        }
      })
      perseus.whole(0)
      yield* perseus.logIn("red")
      perseus.whole(1)
    })
  )

  it.effect("is kept where somebody comes back in time", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      for (let visit = 0; visit < 2; visit++) {
        const client = yield* perseus.logIn("red")
        client.memory.disconnect()
        yield* perseus.pass(4 * MINUTE_MS)
      }
      perseus.whole(1)
      assert.strictEqual(perseus.pool().statistics.opened, 1)
    })
  )
})
