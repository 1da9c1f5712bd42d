/**
 * Waiting for a server connection: how long it may take, in what words it ends, and how many one tenant may hold.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { flush, query, runUnnamed, sync } from "../../src/protocol/Frontend.ts"
import { answered, type Client, make, type MemoryPerseus } from "../support/memoryPerseus.ts"
import { bind, execute, functionCall, parse } from "../support/rawClient.ts"

const ACQUIRE_MS = 10_000
const settings = {
  PoolSettings: { MaxOpen: 1, MaxIdle: 1 },
  LimitSettings: { AcquireTimeoutSecs: ACQUIRE_MS / 1000 }
}
const batch = (sql: string) => Buffer.concat([runUnnamed(sql), sync])
const batchAnswered = ["1", "2", "row 1", "done SELECT 1", "ready I"]

/** The only connection is held by a transaction of `holder`, and `waiter` has been greeted. */
const crowded = Effect.fnUntraced(function* () {
  const perseus = yield* make({ settings })
  const waiter = yield* perseus.logIn("blue")
  const holder = yield* perseus.logIn("red")
  holder.ask("BEGIN")
  yield* perseus.settle
  holder.heard()
  return { perseus, holder, waiter }
})

const commit = Effect.fnUntraced(function* (perseus: MemoryPerseus, holder: Client) {
  holder.ask("COMMIT")
  yield* perseus.settle
  assert.deepStrictEqual(holder.heard(), ["done COMMIT", "ready I"])
})

describe("AcquireTimeoutSecs", () => {
  it.effect("answers a Query by ERROR and ReadyForQuery, and nothing of it was run", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      perseus.statements()
      waiter.ask("SELECT 1")
      yield* perseus.falls(ACQUIRE_MS, {
        before: () => assert.deepStrictEqual(waiter.heard(), []),
        after: () => assert.deepStrictEqual(waiter.heard(), ["ERROR 53300", "ready I"])
      })
      assert.strictEqual(perseus.pool().statistics.acquireTimeouts, 1)
      yield* commit(perseus, holder)
      assert.deepStrictEqual(perseus.statements(), ["red: COMMIT"])
      waiter.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(waiter.heard(), answered)
      perseus.whole(1)
    })
  )

  it.effect("answers an extended batch by ERROR, and its Sync by ReadyForQuery", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      waiter.send(batch("SELECT 1"))
      yield* perseus.falls(ACQUIRE_MS, {
        before: () => assert.deepStrictEqual(waiter.heard(), []),
        after: () => assert.deepStrictEqual(waiter.heard(), ["ERROR 53300", "ready I"])
      })
      yield* commit(perseus, holder)
      perseus.whole(1)
    })
  )

  it.effect("answers a FunctionCall as it answers a Query", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      waiter.send(functionCall(177, "1", "2"))
      yield* perseus.pass(ACQUIRE_MS + 100)
      assert.deepStrictEqual(waiter.heard(), ["ERROR 53300", "ready I"])
      yield* commit(perseus, holder)
      waiter.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(waiter.heard(), answered)
      perseus.whole(1)
    })
  )

  it.effect("knows nothing of a statement that was in a refused batch", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      waiter.send(parse("s", "SELECT 1"), bind("", "s"), execute(), sync)
      yield* perseus.pass(ACQUIRE_MS + 100)
      assert.deepStrictEqual(waiter.heard(), ["ERROR 53300", "ready I"])
      yield* commit(perseus, holder)
      waiter.send(bind("", "s"), sync)
      yield* perseus.settle
      assert.deepStrictEqual(waiter.heard(), ["ERROR 26000", "ready I"])
      perseus.whole(1)
    })
  )

  it.effect("drops what comes behind a refused batch up to its Sync, whenever that comes", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      waiter.send(runUnnamed("SELECT 1"))
      yield* perseus.pass(ACQUIRE_MS + 100)
      assert.deepStrictEqual(waiter.heard(), ["ERROR 53300"])
      waiter.send(runUnnamed("SELECT 2"), flush, query("SELECT 3"))
      yield* commit(perseus, holder)
      assert.deepStrictEqual(waiter.heard(), [])
      waiter.send(sync, batch("SELECT 1"))
      yield* perseus.settle
      assert.deepStrictEqual(waiter.heard(), ["ready I", ...batchAnswered])
      waiter.send(sync, sync)
      yield* perseus.settle
      assert.deepStrictEqual(waiter.heard(), ["ready I", "ready I"])
      perseus.whole(1)
    })
  )

  it.effect("answers the first of a pipelined pair, and the second waits for itself", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      waiter.send(query("SELECT 1"), query("SELECT 1"))
      yield* perseus.pass(ACQUIRE_MS + 100)
      assert.deepStrictEqual(waiter.heard(), ["ERROR 53300", "ready I"])
      yield* perseus.falls(ACQUIRE_MS - 100, {
        before: () => assert.deepStrictEqual(waiter.heard(), []),
        after: () => assert.deepStrictEqual(waiter.heard(), ["ERROR 53300", "ready I"])
      })
      waiter.send(query("SELECT 1"), batch("SELECT 1"))
      yield* perseus.pass(ACQUIRE_MS + 100)
      assert.deepStrictEqual(waiter.heard(), ["ERROR 53300", "ready I"])
      yield* commit(perseus, holder)
      assert.deepStrictEqual(waiter.heard(), batchAnswered)
      perseus.whole(1)
    })
  )

  it.effect("answers each batch of a pipeline, and each Sync", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      waiter.send(batch("SELECT 1"), batch("SELECT 1"), batch("SELECT 1"))
      yield* perseus.pass(ACQUIRE_MS + 100)
      assert.deepStrictEqual(waiter.heard(), ["ERROR 53300", "ready I"])
      yield* commit(perseus, holder)
      assert.deepStrictEqual(waiter.heard(), [...batchAnswered, ...batchAnswered])
      perseus.whole(1)
    })
  )

  it.effect("fails a login that has to ask the destination for its greeting", () =>
    Effect.gen(function* () {
      const { perseus, holder } = yield* crowded()
      const late = perseus.beginLogin("blue", { parameters: { application_name: "late" } })
      yield* perseus.falls(ACQUIRE_MS, {
        before: () => assert.deepStrictEqual(late.heard(), ["R"]),
        after: () => assert.deepStrictEqual(late.heard(), ["FATAL 53300", "closed"])
      })
      yield* commit(perseus, holder)
      perseus.whole(1)
    })
  )

  it.effect("is each client's own: who came later waits longer", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      const later = yield* perseus.logIn("blue")
      waiter.ask("SELECT 1")
      yield* perseus.pass(3000)
      later.ask("SELECT 1")
      yield* perseus.pass(ACQUIRE_MS - 2900)
      assert.deepStrictEqual(waiter.heard(), ["ERROR 53300", "ready I"])
      yield* perseus.falls(2900, {
        before: () => assert.deepStrictEqual(later.heard(), []),
        after: () => assert.deepStrictEqual(later.heard(), ["ERROR 53300", "ready I"])
      })
      yield* commit(perseus, holder)
      perseus.whole(1)
    })
  )

  it.effect("does not keep a place for a client that has gone", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      waiter.ask("SELECT 1")
      yield* perseus.settle
      assert.strictEqual(perseus.pool().waiting, 1)
      waiter.memory.vanish()
      yield* perseus.settle
      assert.strictEqual(perseus.pool().waiting, 0)
      perseus.statements()
      yield* commit(perseus, holder)
      assert.deepStrictEqual(perseus.statements(), ["red: COMMIT"])
      perseus.whole(1)
    })
  )

  it.effect("is not waited for by a client that cancels its query", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      waiter.ask("SELECT 1")
      yield* perseus.pass(1000)
      perseus.cancel(waiter)
      yield* perseus.settle
      assert.deepStrictEqual(waiter.heard(), ["ERROR 57014", "ready I"])
      yield* commit(perseus, holder)
      perseus.whole(1)
    })
  )
})

describe("MaxServersPerTenant of -1, which it is where it is not set", () => {
  const shared = { PoolSettings: { MaxOpen: 4, MaxIdle: 4 }, LimitSettings: { AcquireTimeoutSecs: 10 } }

  const many = Effect.fnUntraced(function* (perseus: MemoryPerseus, count: number, schema = "red") {
    return yield* Effect.forEach(Array.from({ length: count }), () => perseus.logIn(schema))
  })

  /** How many of them are answered now. */
  const begin = Effect.fnUntraced(function* (perseus: MemoryPerseus, clients: ReadonlyArray<Client>) {
    for (const client of clients) client.ask("BEGIN")
    yield* perseus.settle
    return clients.filter((client) => client.heard().includes("ready T")).length
  })

  const end = Effect.fnUntraced(function* (perseus: MemoryPerseus, clients: ReadonlyArray<Client>) {
    for (const client of clients) client.memory.vanish()
    yield* perseus.settle
  })

  it.effect("leaves all connections to a tenant that is alone", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: shared })
      const clients = yield* many(perseus, 4)
      assert.strictEqual(yield* begin(perseus, clients), 4)
      yield* end(perseus, clients)
    })
  )

  it.effect("keeps one back for every other that is active, and no more than half of them", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: shared, tenants: { red: {}, blue: {}, green: {}, brown: {} } })
      const others: Array<Client> = []
      for (const [schema, granted] of [
        ["blue", 3],
        ["green", 2],
        ["brown", 2]
      ] as const) {
        others.push(yield* perseus.logIn(schema))
        for (const other of others) other.ask("SELECT 1")
        yield* perseus.settle
        for (const other of others) assert.deepStrictEqual(other.heard(), answered)
        const clients = yield* many(perseus, 4)
        assert.strictEqual(yield* begin(perseus, clients), granted)
        for (const other of others) other.ask("SELECT 1")
        yield* perseus.settle
        for (const other of others) assert.deepStrictEqual(other.heard(), answered)
        yield* end(perseus, clients)
      }
    })
  )

  it.effect("gives them to those who wait when the others have been away for two seconds", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: shared })
      const other = yield* perseus.logIn("blue")
      other.ask("SELECT 1")
      const clients = yield* many(perseus, 4)
      assert.strictEqual(yield* begin(perseus, clients), 3)
      yield* perseus.pass(2200)
      assert.strictEqual(clients.filter((client) => client.heard().includes("ready T")).length, 1)
      yield* end(perseus, clients)
      other.ask("SELECT 1")
      yield* perseus.pass(100)
      const later = yield* many(perseus, 4)
      assert.strictEqual(yield* begin(perseus, later), 3)
      yield* end(perseus, later)
    })
  )

  it.effect("counts one as active in the second after its last transaction, and not behind a rest of the pool", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: shared })
      const other = yield* perseus.logIn("blue")
      for (const [pause, granted] of [
        [1000, 3],
        [3_600_000, 4]
      ] as const) {
        const clients = yield* many(perseus, 4)
        other.ask("SELECT 1")
        yield* perseus.pass(pause)
        assert.deepStrictEqual(other.heard(), answered)
        assert.strictEqual(yield* begin(perseus, clients), granted)
        yield* end(perseus, clients)
        yield* perseus.pass(5000)
      }
    })
  )

  it.effect("does not count sessions that began when the tenant was in session mode", () =>
    Effect.gen(function* () {
      const perseus = yield* make({
        settings: shared,
        tenants: { red: { poolMode: "session" }, blue: {}, green: {} }
      })
      const sessions = yield* many(perseus, 2)
      for (const session of sessions) session.ask("SELECT 1")
      yield* perseus.settle
      perseus.setTenant("red", { poolMode: "transaction" })
      const others = [yield* perseus.logIn("blue"), yield* perseus.logIn("green")]
      for (const other of others) other.ask("SELECT 1")
      yield* perseus.settle
      const [late] = yield* many(perseus, 1)
      late!.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(late!.heard(), answered)
    })
  )

  it.effect("serves one who waits when another's connection is pinned, and counts it again when it is not", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: shared })
      const other = yield* perseus.logIn("blue")
      other.ask("SELECT 1")
      const clients = yield* many(perseus, 4)
      assert.strictEqual(yield* begin(perseus, clients), 3)
      clients[0]!.ask("LISTEN news")
      clients[0]!.ask("COMMIT")
      yield* perseus.settle
      assert.strictEqual(perseus.pool().pinned, 1)
      assert.include(clients[3]!.heard(), "ready T")
      clients[0]!.ask("UNLISTEN *")
      for (const client of clients.slice(1)) client.ask("COMMIT")
      yield* perseus.pass(100)
      assert.strictEqual(perseus.pool().pinned, 0)
      other.ask("SELECT 1")
      yield* perseus.settle
      for (const client of clients) client.heard()
      assert.strictEqual(yield* begin(perseus, clients), 3)
      yield* end(perseus, clients)
    })
  )

  it.effect("does not count those that are pinned, or in session mode", () =>
    Effect.gen(function* () {
      const perseus = yield* make({
        settings: shared,
        tenants: { red: {}, blue: {}, green: {}, brown: { poolMode: "session" } }
      })
      const others = [yield* perseus.logIn("blue"), yield* perseus.logIn("green")]
      for (const other of others) other.ask("SELECT 1")
      const pinned = yield* many(perseus, 2)
      for (const client of pinned) client.ask("LISTEN news")
      yield* perseus.settle
      assert.strictEqual(perseus.pool().pinned, 2)
      const clients = yield* many(perseus, 2)
      assert.strictEqual(yield* begin(perseus, clients), 2)
      yield* end(perseus, [...pinned, ...clients])
      yield* perseus.pass(100)
      for (const other of others) other.ask("SELECT 1")
      yield* perseus.settle
      const unpinned = yield* many(perseus, 4)
      assert.strictEqual(yield* begin(perseus, unpinned), 2)
      yield* end(perseus, unpinned)
      const sessions = yield* many(perseus, 3, "brown")
      assert.strictEqual(yield* begin(perseus, sessions), 3)
      yield* end(perseus, sessions)
    })
  )
})

describe("MaxServersPerTenant", () => {
  it.effect("leaves connections to other tenants, and those over it wait for their own", () =>
    Effect.gen(function* () {
      const perseus = yield* make({
        settings: { LimitSettings: { MaxServersPerTenant: 2, AcquireTimeoutSecs: ACQUIRE_MS / 1000 } }
      })
      const holders = [yield* perseus.logIn("red"), yield* perseus.logIn("red")]
      const third = yield* perseus.logIn("red")
      const blue = yield* perseus.logIn("blue")
      for (const holder of holders) holder.ask("BEGIN")
      yield* perseus.settle
      third.ask("SELECT 1")
      blue.ask("SELECT 1")
      yield* perseus.pass(1000)
      assert.deepStrictEqual(third.heard(), [])
      assert.deepStrictEqual(blue.heard(), answered)
      holders[0]!.ask("COMMIT")
      yield* perseus.settle
      assert.deepStrictEqual(third.heard(), answered)
      third.ask("BEGIN")
      yield* perseus.settle
      third.heard()
      holders[0]!.heard()
      holders[0]!.ask("SELECT 1")
      yield* perseus.falls(ACQUIRE_MS, {
        before: () => assert.deepStrictEqual(holders[0]!.heard(), []),
        after: () => assert.deepStrictEqual(holders[0]!.heard(), ["ERROR 53300", "ready I"])
      })
      const { body } = holders[0]!.memory.messages.findLast(({ type }) => type === "E")!
      assert.include(body.toString(), "This tenant holds 2, as many as MaxServersPerTenant allows.")
      third.ask("COMMIT")
      holders[1]!.ask("COMMIT")
      yield* perseus.settle
      perseus.whole(perseus.pool().idle)
    })
  )

  it.effect("counts a connection that is lost as free", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { LimitSettings: { MaxServersPerTenant: 1 } } })
      const holder = yield* perseus.logIn("red")
      const second = yield* perseus.logIn("red")
      holder.ask("BEGIN")
      yield* perseus.settle
      second.ask("SELECT 1")
      yield* perseus.settle
      holder.memory.vanish()
      yield* perseus.settle
      assert.deepStrictEqual(second.heard(), answered)
      perseus.whole(1)
    })
  )
})
