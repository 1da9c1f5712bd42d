import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { eventually, isWhole, startPerseus } from "../support/perseus.ts"
import { bind, execute, parse, rowsOf, sqlStatesOf, sync, typesOf, type RawClient } from "../support/rawClient.ts"

const session = { PoolSettings: { MaxOpen: 3, MaxIdle: 3, Mode: "session" } }
const pid = (client: RawClient) => Effect.map(client.query("SELECT pg_backend_pid()"), (answers) => rowsOf(answers)[0])

describe("pool mode session", () => {
  it.live("gives the whole session one connection, with all that it leaves there", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: session })
      const one = yield* perseus.login("red")
      const other = yield* perseus.login("red")
      const mine = yield* pid(one)
      yield* one.query(
        "SET work_mem = '9MB'; CREATE TEMP TABLE t AS SELECT 'mine' AS x; PREPARE p AS SELECT * FROM t; LISTEN news"
      )
      assert.notStrictEqual(yield* pid(other), mine)
      assert.strictEqual(yield* pid(one), mine)
      assert.deepStrictEqual(rowsOf(yield* one.query("EXECUTE p")), ["mine"])
      assert.deepStrictEqual(rowsOf(yield* one.query("SHOW work_mem")), ["9MB"])
      assert.strictEqual(perseus.pool().statistics.inspections, 0)
    })
  )

  it.live("has a client's path and settings in the startup packet: RESET and DISCARD return to them", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red", 'a"b; --'], config: session })
      for (const schema of ["red", 'a"b; --']) {
        const client = yield* perseus.login(schema, { TimeZone: "Asia/Tokyo" })
        const state = "SELECT current_schemas(false)::text, current_setting('TimeZone')"
        const before = rowsOf(yield* client.query(state))
        yield* client.query("SET TimeZone = 'UTC'; SET search_path = pg_catalog")
        assert.deepStrictEqual(rowsOf(yield* client.query("RESET ALL; " + state)), before)
        yield* client.query("DISCARD ALL")
        assert.deepStrictEqual(rowsOf(yield* client.query(state)), before)
      }
    })
  )

  it.live("lends the connection to the next session of that tenant and these settings, with nothing on it", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red", "blue"], config: session })
      const one = yield* perseus.login("red")
      const mine = yield* pid(one)
      yield* one.query("SET work_mem = '9MB'; CREATE TEMP TABLE t (id int); SELECT pg_advisory_lock(1)")
      one.send(parse("s", "SELECT 1"), sync)
      yield* one.ready()
      one.vanish()
      yield* eventually(Effect.sync(perseus.pool), isWhole)
      const next = yield* perseus.login("red")
      assert.strictEqual(yield* pid(next), mine)
      assert.deepStrictEqual(rowsOf(yield* next.query("SHOW work_mem")), ["4MB"])
      assert.deepStrictEqual(sqlStatesOf(yield* next.query("SELECT * FROM t")), ["42P01"])
      const blue = yield* perseus.login("blue")
      assert.notStrictEqual(yield* pid(blue), mine)
      const other = yield* perseus.login("red", { TimeZone: "Asia/Tokyo" })
      assert.notStrictEqual(yield* pid(other), mine)
    })
  )

  it.live("closes an idle connection of one session's kind to make room for another's", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: ["red", "blue"],
        config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1, Mode: "session" } }
      })
      for (const schema of ["red", "blue", "red"]) {
        yield* Effect.scoped(
          Effect.gen(function* () {
            const client = yield* perseus.login(schema)
            assert.deepStrictEqual(rowsOf(yield* client.query("SELECT current_schema()")), [schema])
          })
        )
      }
    })
  )

  it.live("passes named statements through under their own names", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: session })
      const client = yield* perseus.login("red")
      client.send(parse("mine", "SELECT 'yes'"), sync)
      yield* client.ready()
      assert.deepStrictEqual(rowsOf(yield* client.query("EXECUTE mine")), ["yes"])
      assert.deepStrictEqual(rowsOf(yield* client.query("SELECT name FROM pg_prepared_statements")), ["mine"])
      yield* client.query("DEALLOCATE mine")
      client.send(bind("", "mine"), execute(), sync)
      assert.deepStrictEqual(sqlStatesOf(yield* client.ready()), ["26000"])
    })
  )

  it.live("refuses a setting that the server refuses, in its words", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: session })
      const answers = yield* perseus.refusal({ ...perseus.tenant("red").startup, TimeZone: "Middle/Earth" })
      assert.deepStrictEqual(sqlStatesOf(answers), ["22023"])
      assert.deepStrictEqual(yield* perseus.query("red", "SELECT 1 AS one"), [{ one: 1 }])
    })
  )
})

describe("pool mode statement", () => {
  it.live("ends a session that opens a transaction block", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { Mode: "statement" } } })
      const client = yield* perseus.login("red")
      assert.deepStrictEqual(rowsOf(yield* client.query("SELECT 'fine'")), ["fine"])
      client.send(Buffer.from("510000000a424547494e00", "hex"))
      const answers = yield* client.closed()
      assert.deepStrictEqual([typesOf(answers), sqlStatesOf(answers)], ["E", ["0A000"]])
      yield* eventually(perseus.backends, (backends) => backends.every(({ state }) => state === "idle"))
    })
  )
})

describe("a tenant's own pool_mode", () => {
  it.live("goes before the pool's", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: [{ schema: "red", poolMode: "session" }, "blue"],
        config: { PoolSettings: { MaxOpen: 3, MaxIdle: 3 } }
      })
      const red = yield* perseus.login("red")
      const mine = yield* pid(red)
      yield* red.query("SET work_mem = '9MB'")
      const blues = yield* Effect.forEach([1, 2, 3], () => perseus.login("blue"))
      for (const blue of blues) assert.notStrictEqual(yield* pid(blue), mine)
      assert.strictEqual(yield* pid(red), mine)
      assert.strictEqual(perseus.pool().statistics.inspections, 0)
    })
  )

  it.live("that is none of the three refuses the login, and the log says why", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: [{ schema: "red", poolMode: "shared" }] })
      const answers = yield* perseus.refusal(perseus.tenant("red").startup)
      assert.deepStrictEqual(sqlStatesOf(answers), ["28P01"])
      assert.isTrue(perseus.log.some((line) => line.includes("pool_mode")))
    })
  )
})
