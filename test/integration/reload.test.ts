import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { eventually, startPerseus, whole, type TestPerseus } from "../support/perseus.ts"
import { query, rowsOf } from "../support/rawClient.ts"

/** As many connections as clients, idle afterwards. */
const fill = (perseus: TestPerseus, count: number) =>
  Effect.gen(function* () {
    const clients = yield* Effect.forEach(Array.from({ length: count }), () => perseus.login("red"))
    for (const client of clients) yield* client.query("BEGIN")
    return clients
  })

describe("a reload", () => {
  it.live("that lowers MaxOpen closes idle connections at once, and the rest as they come back", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 6, MaxIdle: 6 } } })
      const clients = yield* fill(perseus, 6)
      for (const client of clients.slice(0, 3)) yield* client.query("COMMIT")
      assert.strictEqual(perseus.pool().open, 6)
      yield* perseus.reload({ PoolSettings: { MaxOpen: 2, MaxIdle: 2 } })
      yield* eventually(Effect.sync(perseus.pool), ({ open, inUse }) => open === 3 && inUse === 3)
      yield* eventually(perseus.backends, (backends) => backends.length === 3)
      for (const client of clients.slice(3)) yield* client.query("COMMIT")
      const pool = yield* whole(perseus)
      assert.strictEqual(pool.open, 2)
      assert.strictEqual(pool.maxOpen, 2)
      for (const client of clients) assert.deepStrictEqual(rowsOf(yield* client.query("SELECT 1")), ["1"])
    })
  )

  it.live("that lowers MaxIdle alone closes what is idle beyond it", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 5, MaxIdle: 5 } } })
      const clients = yield* fill(perseus, 5)
      for (const client of clients) yield* client.query("COMMIT")
      yield* perseus.reload({ PoolSettings: { MaxOpen: 5, MaxIdle: 1 } })
      yield* eventually(Effect.sync(perseus.pool), ({ open }) => open === 1)
      assert.strictEqual(perseus.pool().statistics.maxIdleClosed, 4)
    })
  )

  it.live("that raises MaxOpen serves those who wait", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const holder = yield* perseus.login("red")
      const waiter = yield* perseus.login("red")
      yield* holder.query("BEGIN")
      waiter.send(query("SELECT 'served'"))
      yield* eventually(Effect.sync(perseus.pool), ({ waiting }) => waiting === 1)
      yield* perseus.reload({ PoolSettings: { MaxOpen: 2, MaxIdle: 2 } })
      assert.deepStrictEqual(rowsOf(yield* waiter.ready()), ["served"])
    })
  )

  it.live("with other ExtraSchemas changes the path of living sessions", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const client = yield* perseus.login("red")
      assert.deepStrictEqual(rowsOf(yield* client.query("SHOW search_path")), ["red"])
      yield* perseus.reload({ PoolSettings: { ExtraSchemas: ["public"] } })
      yield* eventually(Effect.map(client.query("SHOW search_path"), rowsOf), ([path]) => path === "red, public")
    })
  )

  it.live("of the same settings leaves all connections as they are", () =>
    Effect.gen(function* () {
      const config = { PoolSettings: { MaxOpen: 3, MaxIdle: 3 } }
      const perseus = yield* startPerseus({ tenants: ["red"], config })
      const clients = yield* fill(perseus, 3)
      for (const client of clients.slice(1)) yield* client.query("COMMIT")
      const before = (yield* perseus.backends).map(({ pid }) => pid)
      yield* perseus.reload(config)
      yield* eventually(
        Effect.sync(() => perseus.log),
        (log) => log.some((line) => line.includes("nothing changed"))
      )
      yield* clients[0]!.query("COMMIT")
      for (const client of clients) yield* client.query("SELECT 1")
      assert.deepStrictEqual(
        (yield* perseus.backends).map(({ pid }) => pid),
        before
      )
    })
  )

  it.live("of settings that cannot be used changes nothing and is in the log", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 3, MaxIdle: 3 } } })
      yield* perseus.reload({ PoolSettings: { MaxOpen: 3, MaxIdle: 0 } })
      yield* perseus.query("red", "SELECT 1")
      assert.strictEqual(perseus.pool().maxOpen, 3)
      assert.isTrue(perseus.log.some((line) => line.includes("configuration not reloaded")))
    })
  )
})
