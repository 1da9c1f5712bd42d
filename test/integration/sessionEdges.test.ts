import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { faultyServer, change, noFault, pass, sqlOf, withSql } from "../support/faultyServer.ts"
import { eventually, startPerseus, whole } from "../support/perseus.ts"
import { connection } from "../support/postgres.ts"
import { functionCall, query, rowsOf, sqlStatesOf } from "../support/rawClient.ts"

describe("what a client does in its session", () => {
  it.live("temp_buffers, which a connection refuses once it has had a temporary table, ends no session", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 2, MaxIdle: 2 } } })
      const a = yield* perseus.login("red")
      const b = yield* perseus.login("red")
      // One connection has had a temporary table.
      yield* a.query("BEGIN")
      yield* a.query("CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1")
      // The other has not.
      assert.deepStrictEqual(sqlStatesOf(yield* b.query("SET temp_buffers = '16MB'")), [])
      yield* b.query("SELECT 1")
      yield* a.query("COMMIT")
      yield* whole(perseus)
      const holder = yield* perseus.login("red")
      const holder2 = yield* perseus.login("red")
      yield* holder.query("BEGIN")
      assert.deepStrictEqual(rowsOf(yield* b.query("SELECT 1")), ["1"])
      yield* holder2.query("BEGIN")
      yield* holder.query("COMMIT")
      assert.deepStrictEqual(rowsOf(yield* b.query("SELECT 1")), ["1"])
    })
  )

  it.live("statement_timeout = 1 ends no session", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      for (let round = 0; round < 300; round++) {
        const a = yield* perseus.login("red")
        a.send(query("SET statement_timeout = 1"))
        yield* a.ready()
        a.send(query("RESET statement_timeout"))
        const answers = yield* a.ready()
        assert.deepStrictEqual(
          sqlStatesOf(answers).filter((state) => state !== "57014"),
          []
        )
        a.vanish()
      }
    })
  )

  it.live("a question of ours that runs into the session's own statement_timeout is asked again", () =>
    Effect.gen(function* () {
      const server = yield* faultyServer(connection())
      const perseus = yield* startPerseus({ through: server, tenants: ["red"] })
      const client = yield* perseus.login("red")
      let slowed = 0
      yield* server.inject({
        fromFrontend: (message) => {
          if (slowed === 3 || sqlOf(message) !== "SHOW statement_timeout") return pass
          slowed++
          return change(withSql(message, "SELECT pg_sleep(1)::text"))
        }
      })
      assert.deepStrictEqual(sqlStatesOf(yield* client.query("SET statement_timeout = '10ms'")), [])
      assert.deepStrictEqual(rowsOf(yield* client.query("SHOW statement_timeout")), ["10ms"])
      assert.strictEqual(slowed, 3)
      yield* server.inject(noFault)
      assert.deepStrictEqual(rowsOf(yield* client.query("SELECT 1")), ["1"])
    })
  )

  it.live("an advisory lock taken by FunctionCall is its client's alone", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const a = yield* perseus.login("red")
      const b = yield* perseus.login("red")
      const oid = Number(
        rowsOf(yield* b.query("SELECT 'pg_catalog.pg_advisory_lock(bigint)'::regprocedure::oid::text"))[0]
      )
      yield* a.exchange(functionCall(oid, "7"))
      a.vanish()
      yield* eventually(
        Effect.sync(() => perseus.pool()),
        (pool) => pool.inUse === 0
      )
      assert.deepStrictEqual(
        rowsOf(yield* b.query("SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()")),
        []
      )
    })
  )
})
