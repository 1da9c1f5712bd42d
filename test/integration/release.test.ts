import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { eventually, isWhole, startPerseus, whole, type TestPerseus } from "../support/perseus.ts"
import { bind, describePortal, execute, message, parse, query, rowsOf, sync, terminate } from "../support/rawClient.ts"

const three = { PoolSettings: { MaxOpen: 3, MaxIdle: 3 } }

/** A client that logs in, does something and is gone, its own scope with it. */
const visit = (perseus: TestPerseus, bytes: ReadonlyArray<Buffer>, answered: boolean) =>
  Effect.scoped(
    Effect.gen(function* () {
      const client = yield* perseus.login("red")
      client.send(...bytes)
      if (answered) yield* client.ready()
      client.vanish()
    })
  )

describe("a client that vanishes", () => {
  it.live(
    "gives its connection back at whatever point of its work, a thousand times",
    () =>
      Effect.gen(function* () {
        const perseus = yield* startPerseus({ tenants: ["red"], config: three })
        yield* perseus.query("red", "CREATE TABLE t (id int)")
        const extended = Buffer.concat([parse("s", "INSERT INTO t VALUES (2)"), bind("", "s"), execute(), sync])
        const points: ReadonlyArray<readonly [ReadonlyArray<Buffer>, boolean]> = [
          [[query("BEGIN")], true],
          [[query("BEGIN")], false],
          [[query("BEGIN; INSERT INTO t VALUES (1)")], true],
          [[parse("s", "BEGIN"), bind("", "s"), execute(), sync], true],
          [[query("BEGIN"), extended.subarray(0, 20)], true],
          [[parse("", "SELECT 1")], false],
          [[query("BEGIN; COPY t FROM STDIN")], false],
          [[query("SELECT generate_series(1, 10000)")], false],
          [[query("BEGIN"), query("SELECT 1/0")], true],
          [[query("BEGIN"), query("SELECT pg_sleep(60)")], true]
        ]
        const visits = Array.from({ length: 1000 }, (_, index) => points[index % points.length]!)
        yield* Effect.forEach(visits, ([bytes, answered]) => visit(perseus, bytes, answered), {
          concurrency: 16,
          discard: true
        })
        const pool = yield* whole(perseus)
        assert.isAtMost(pool.open, 3)
        assert.deepStrictEqual(yield* perseus.query("red", "SELECT count(*)::int AS n FROM t"), [{ n: 0 }])
        yield* eventually(perseus.backends, (backends) => backends.every(({ state }) => state === "idle"))
        assert.strictEqual(perseus.service.live.states().active, 0)
      }),
    60_000
  )

  it.live("in mid-query has the query cancelled on the server, and the slot is free at once", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const client = yield* perseus.login("red")
      client.send(query("SELECT pg_sleep(600)"))
      yield* eventually(perseus.backends, (backends) => backends.some(({ query }) => query.includes("pg_sleep")))
      client.vanish()
      yield* eventually(perseus.backends, (backends) => backends.every(({ query }) => !query.includes("pg_sleep")))
      assert.deepStrictEqual(yield* perseus.query("red", "SELECT 1 AS one"), [{ one: 1 }])
      assert.strictEqual((yield* whole(perseus)).statistics.cancelsForwarded, 1)
    })
  )

  it.live("in the first query of a pipeline has the next cancelled, too: nothing of it runs on", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const client = yield* perseus.login("red")
      client.send(query("SELECT pg_sleep(600)"), query("SELECT pg_sleep(601)"))
      yield* eventually(perseus.backends, (backends) => backends.some(({ query }) => query.includes("pg_sleep(600)")))
      client.vanish()
      yield* eventually(perseus.backends, (backends) => backends.every(({ query }) => !query.includes("pg_sleep")))
      yield* whole(perseus)
    })
  )

  it.live("while it waits for a connection leaves the queue, and nothing of it reaches the server", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      yield* perseus.query("red", "CREATE TABLE t (id int)")
      const holder = yield* perseus.login("red")
      const waiter = yield* perseus.login("red")
      yield* holder.query("BEGIN")
      waiter.send(query("INSERT INTO t VALUES (1)"))
      yield* eventually(Effect.sync(perseus.pool), ({ waiting }) => waiting === 1)
      waiter.vanish()
      yield* eventually(Effect.sync(perseus.pool), ({ waiting }) => waiting === 0)
      yield* holder.query("COMMIT")
      assert.deepStrictEqual(rowsOf(yield* holder.query("SELECT count(*) FROM t")), ["0"])
    })
  )

  it.live("while it waits leaves the queue at once, whatever it had sent ahead", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const holder = yield* perseus.login("red")
      yield* holder.query("BEGIN")
      for (let round = 0; round < 30; round++) {
        const waiter = yield* perseus.login("red")
        waiter.sendAndEnd(query(`SELECT length('${"x".repeat(3 * 1024 * 1024)}')`))
        yield* waiter.closed()
        yield* eventually(Effect.sync(perseus.pool), ({ waiting }) => waiting === 0)
      }
      assert.deepStrictEqual(rowsOf(yield* holder.query("SELECT 'mine'")), ["mine"])
    })
  )
})

describe("a client that says goodbye", () => {
  it.live("behind a query, in the same chunk, has that query run to its end", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: three })
      yield* perseus.query("red", "CREATE TABLE t (id int)")
      const holder = yield* perseus.login("red")
      yield* holder.query("BEGIN; LOCK TABLE t")
      const simple = yield* perseus.login("red")
      simple.sendAndEnd(query("INSERT INTO t VALUES (1)"), terminate)
      const extended = yield* perseus.login("red")
      extended.sendAndEnd(parse("", "INSERT INTO t VALUES (2)"), bind("", ""), execute(), sync, terminate)
      // Both run when their clients have gone.
      yield* eventually(perseus.backends, (backends) => backends.filter(({ state }) => state === "active").length === 2)
      yield* holder.query("COMMIT")
      yield* simple.closed()
      yield* extended.closed()
      yield* eventually(perseus.query("red", "SELECT id FROM t ORDER BY id"), (rows) => rows.length === 2)
      yield* whole(perseus)
    })
  )

  it.live("behind a query that has to wait has that query run as well", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      yield* perseus.query("red", "CREATE TABLE t (id int)")
      const holder = yield* perseus.login("red")
      const leaver = yield* perseus.login("red")
      yield* holder.query("BEGIN")
      leaver.send(query("INSERT INTO t VALUES (1)"), terminate)
      yield* eventually(Effect.sync(perseus.pool), ({ waiting }) => waiting === 1)
      yield* holder.query("COMMIT")
      yield* leaver.closed()
      assert.deepStrictEqual(rowsOf(yield* holder.query("SELECT count(*) FROM t")), ["1"])
    })
  )

  it.live("within a transaction has it rolled back", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: three })
      yield* perseus.query("red", "CREATE TABLE t (id int)")
      const client = yield* perseus.login("red")
      yield* client.query("BEGIN; INSERT INTO t VALUES (1)")
      client.send(terminate)
      yield* client.closed()
      yield* whole(perseus)
      assert.deepStrictEqual(yield* perseus.query("red", "SELECT count(*)::int AS n FROM t"), [{ n: 0 }])
    })
  )
})

describe("half a message", () => {
  it.live("holds no connection, whatever the message", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const halves = [
        query("SELECT 1"),
        parse("s", "SELECT 1"),
        bind("p", "s", "x".repeat(1000)),
        describePortal("p"),
        execute(),
        message("F", Buffer.alloc(100))
      ]
      for (const whole of halves) {
        for (const length of [1, 4, 5, whole.length - 1]) {
          const client = yield* perseus.login("red")
          client.send(whole.subarray(0, length))
        }
      }
      assert.deepStrictEqual(yield* perseus.query("red", "SELECT 1 AS one"), [{ one: 1 }])
      const { idle, logins } = {
        idle: yield* eventually(Effect.sync(perseus.pool), isWhole),
        logins: perseus.service.live.states()
      }
      assert.strictEqual(idle.open, 1)
      assert.strictEqual(logins.waiting + logins.active, 0)
    })
  )

  it.live("is answered like any other when its rest has come, byte by byte", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: three })
      const client = yield* perseus.login("red")
      const bytes = Buffer.concat([
        parse("s", "SELECT $1::text"),
        bind("", "s", "ü"),
        execute(),
        sync,
        query("SELECT 2")
      ])
      for (const byte of bytes) {
        client.send(Buffer.of(byte))
        yield* Effect.callback<void>((resume) => void setImmediate(() => resume(Effect.void)))
      }
      assert.deepStrictEqual(rowsOf(yield* client.ready(2)), ["ü", "2"])
    })
  )
})
