import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Net from "node:net"
import { eventually, startPerseus } from "../support/perseus.ts"
import { fieldsOf, query, rowsOf, sqlStatesOf } from "../support/rawClient.ts"

describe("a shutdown", () => {
  it.live("tells idle clients at once, lets a transaction end, and leaves nothing on the server", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const idle = yield* perseus.login("red")
      const busy = yield* perseus.login("red")
      const waits = yield* perseus.raw
      yield* busy.query("CREATE TABLE t (id int)")
      yield* busy.query("BEGIN; INSERT INTO t VALUES (1)")
      const stopping = yield* Effect.forkChild(perseus.stop, { startImmediately: true })
      const goodbye = yield* idle.closed()
      assert.deepStrictEqual(sqlStatesOf(goodbye), ["57P01"])
      assert.strictEqual(fieldsOf(goodbye[0]!)["S"], "FATAL")
      assert.deepStrictEqual(rowsOf(yield* busy.query("SELECT count(*) FROM t")), ["1"])
      const late = yield* waits.logIn(perseus.tenant("red").startup, "sesame")
      assert.deepStrictEqual(sqlStatesOf(late), ["57P01"])
      const refused = yield* Effect.callback<string>((resume) => {
        const socket = Net.connect({ host: perseus.host, port: perseus.port })
        socket.once("connect", () => resume(Effect.succeed("connected")))
        socket.once("error", (error: NodeJS.ErrnoException) => resume(Effect.succeed(error.code ?? "")))
        return Effect.sync(() => socket.destroy())
      })
      assert.strictEqual(refused, "ECONNREFUSED")
      assert.isUndefined(stopping.pollUnsafe())
      assert.deepStrictEqual(sqlStatesOf(yield* busy.query("COMMIT")), [])
      assert.deepStrictEqual(sqlStatesOf(yield* busy.closed()), ["57P01"])
      yield* Fiber.join(stopping)
      yield* eventually(perseus.backends, (backends) => backends.length === 0)
      assert.deepStrictEqual(yield* perseus.destination.query("SELECT id FROM red.t"), [{ id: 1 }])
    })
  )

  it.live("goes on through a reload that comes meanwhile", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const busy = yield* perseus.login("red")
      yield* busy.query("BEGIN")
      const idle = yield* perseus.login("red")
      const stopping = yield* Effect.forkChild(perseus.stop, { startImmediately: true })
      yield* idle.closed()
      yield* perseus.reload({ PoolSettings: { MaxOpen: 1, MaxIdle: 1 } })
      assert.deepStrictEqual(rowsOf(yield* busy.query("SELECT 'still here'")), ["still here"])
      assert.isUndefined(stopping.pollUnsafe())
      assert.deepStrictEqual(sqlStatesOf(yield* busy.query("COMMIT")), [])
      assert.deepStrictEqual(sqlStatesOf(yield* busy.closed()), ["57P01"])
      yield* Fiber.join(stopping)
      yield* eventually(perseus.backends, (backends) => backends.length === 0)
    })
  )

  it.live("says goodbye to PostgreSQL: its log knows of no connection that was lost", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const clients = yield* Effect.forEach([1, 2, 3], () => perseus.login("red"))
      for (const sql of ["BEGIN", "COMMIT"]) yield* Effect.forEach(clients, (client) => client.query(sql))
      yield* perseus.stop
      const [row] = yield* eventually(
        perseus.destination.query(
          "SELECT sessions_abandoned::int AS lost, sessions_killed::int AS killed, numbackends FROM pg_stat_database WHERE datname = current_database()"
        ),
        ([row]) => row?.["numbackends"] === 1
      )
      assert.deepStrictEqual([row?.["lost"], row?.["killed"]], [0, 0])
    })
  )

  it.live("that is told to cut waits for no transaction, and ends on the server what still runs", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { LimitSettings: { ShutdownTimeoutSecs: 600 } } })
      const busy = yield* perseus.login("red")
      const stuck = yield* perseus.login("red")
      const idle = yield* perseus.login("red")
      yield* busy.query("BEGIN")
      stuck.send(query("SELECT pg_sleep(600)"))
      yield* eventually(perseus.backends, (backends) => backends.some(({ state }) => state === "active"))
      const stopping = yield* Effect.forkChild(perseus.stop, { startImmediately: true })
      yield* idle.closed()
      yield* perseus.service.cut
      yield* Fiber.join(stopping)
      yield* busy.closed()
      yield* stuck.closed()
      yield* eventually(perseus.backends, (backends) => backends.length === 0)
      assert.isTrue(perseus.log.some((line) => line.includes("cutting off")))
    })
  )

  it.live("answers those who wait for a connection", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: ["red"],
        config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 }, LimitSettings: { ShutdownTimeoutSecs: 2 } }
      })
      const holder = yield* perseus.login("red")
      const waiter = yield* perseus.login("red")
      yield* holder.query("BEGIN")
      waiter.send(query("SELECT 1"))
      yield* eventually(Effect.sync(perseus.pool), ({ waiting }) => waiting === 1)
      const stopping = yield* Effect.forkChild(perseus.stop, { startImmediately: true })
      assert.deepStrictEqual(sqlStatesOf(yield* waiter.closed()), ["57P01"])
      yield* holder.query("COMMIT")
      yield* Fiber.join(stopping)
    })
  )
})
