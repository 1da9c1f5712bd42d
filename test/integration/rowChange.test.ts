import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { eventually, quoteIdentifier, startPerseus, type TestPerseus } from "../support/perseus.ts"
import { freshDatabase } from "../support/postgres.ts"
import { fieldsOf, query, rowsOf, sqlStatesOf, typesOf, type Message } from "../support/rawClient.ts"

const accepts = (perseus: TestPerseus, schema: string, password: string) =>
  Effect.map(perseus.refusal(perseus.tenant(schema).startup, password), (answers) => answers.at(-1)?.type === "Z")

const isRevoked = (answers: ReadonlyArray<Message>) => {
  assert.strictEqual(typesOf(answers), "E")
  assert.deepStrictEqual([fieldsOf(answers[0]!)["S"], ...sqlStatesOf(answers)], ["FATAL", "57P01"])
}

describe("a tenant's row", () => {
  it.live("that is deleted ends its living sessions at their transaction's border, and others' not", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red", "green"] })
      const idle = yield* perseus.login("red")
      const busy = yield* perseus.login("red")
      const other = yield* perseus.login("green")
      yield* busy.query("BEGIN; CREATE TABLE kept (id int)")
      yield* perseus.auth.query("DELETE FROM perseus_auth WHERE source_schema = 'red'")
      isRevoked(yield* idle.closed())
      assert.deepStrictEqual(rowsOf(yield* busy.query("SELECT 'still here'")), ["still here"])
      assert.deepStrictEqual(sqlStatesOf(yield* busy.query("COMMIT")), [])
      isRevoked(yield* busy.closed())
      assert.isFalse(yield* accepts(perseus, "red", "sesame"))
      assert.deepStrictEqual(rowsOf(yield* other.query("SELECT 1")), ["1"])
      const tables = yield* perseus.destination.query("SELECT to_regclass('red.kept') IS NOT NULL AS kept")
      assert.deepStrictEqual(tables, [{ kept: true }])
    })
  )

  it.live("that is deleted in a table without triggers ends its living sessions when the cache's time has passed", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: ["red", "green", "blue"],
        config: { AuthDBSettings: { AuthCacheTtlSecs: 1 } }
      })
      const clients = [yield* perseus.login("red"), yield* perseus.login("green")]
      const other = yield* perseus.login("blue")
      yield* perseus.auth.query("ALTER TABLE perseus_auth DISABLE TRIGGER USER")
      // Whether there are any is seen when the listening begins.
      yield* perseus.auth.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
      )
      yield* eventually(
        Effect.sync(() => perseus.log.join("\n")),
        (log) => log.includes("perseus_auth lacks the triggers")
      )
      for (const [index, schema] of ["red", "green"].entries()) {
        yield* perseus.auth.query("DELETE FROM perseus_auth WHERE source_schema = $1", [schema])
        isRevoked(yield* clients[index]!.closed())
      }
      assert.deepStrictEqual(rowsOf(yield* other.query("SELECT 1")), ["1"])
    })
  )

  it.live("with a new password ends its living sessions, and logins follow at once", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const idle = yield* perseus.login("red")
      yield* perseus.updateRow("red", "source_pass_hashed", yield* perseus.hash("open"))
      isRevoked(yield* idle.closed())
      assert.isFalse(yield* accepts(perseus, "red", "sesame"))
      assert.isTrue(yield* accepts(perseus, "red", "open"))
    })
  )

  it.live("that appears lets its tenant in, though it was refused a moment ago", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      yield* perseus.updateRow("red", "source_schema", "was red")
      yield* eventually(accepts(perseus, "red", "sesame"), (accepted) => !accepted)
      yield* perseus.updateRow("was red", "source_schema", "red")
      yield* eventually(accepts(perseus, "red", "sesame"), (accepted) => accepted)
    })
  )

  it.live("with the server's new password opens new connections, and living sessions go on", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const { role } = perseus.tenant("red")
      const idle = yield* perseus.login("red")
      const busy = yield* perseus.login("red")
      const pidOf = (answers: ReadonlyArray<Message>) => rowsOf(answers)[0]
      yield* busy.query("BEGIN")
      const old = pidOf(yield* busy.query("SELECT pg_backend_pid()"))
      yield* perseus.destination.query(`ALTER ROLE ${role} PASSWORD 'another'`)
      yield* perseus.updateRow("red", "dest_pass_enc", yield* perseus.encrypt("another"))
      yield* eventually(
        Effect.map(idle.query("SELECT pg_backend_pid()"), pidOf),
        (pid) => pid !== undefined && pid !== old
      )
      assert.strictEqual(pidOf(yield* busy.query("SELECT pg_backend_pid()")), old)
      yield* busy.query("COMMIT")
      yield* eventually(perseus.backends, (backends) => backends.every(({ pid }) => String(pid) !== old))
      assert.deepStrictEqual(rowsOf(yield* busy.query("SELECT 1")), ["1"])
      assert.deepStrictEqual(rowsOf(yield* idle.query("SELECT 1")), ["1"])
      assert.isTrue(yield* accepts(perseus, "red", "sesame"))
    })
  )

  it.live("with the server's new password serves those who wait for a connection that the old one does not open", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const busy = yield* perseus.login("red")
      const waiter = yield* perseus.login("red")
      yield* busy.query("BEGIN")
      yield* perseus.destination.query(`ALTER ROLE ${perseus.tenant("red").role} PASSWORD 'another'`)
      waiter.send(query("SELECT 'served'"))
      yield* eventually(Effect.sync(perseus.pool), ({ statistics }) => statistics.connectFailures > 0)
      yield* perseus.updateRow("red", "dest_pass_enc", yield* perseus.encrypt("another"))
      assert.deepStrictEqual(rowsOf(yield* waiter.ready()), ["served"])
      assert.deepStrictEqual(sqlStatesOf(yield* busy.query("COMMIT")), [])
    })
  )

  it.live("with another dest_db moves its sessions there, each at its transaction's border", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red", "green"] })
      const { role } = perseus.tenant("red")
      const elsewhere = yield* freshDatabase()
      yield* elsewhere.query(`CREATE SCHEMA ${quoteIdentifier("red")} AUTHORIZATION ${role}`)
      const idle = yield* perseus.login("red")
      const busy = yield* perseus.login("red")
      const other = yield* perseus.login("green")
      yield* busy.query("BEGIN")
      yield* perseus.updateRow("red", "dest_db", elsewhere.database)
      const where = "SELECT current_database()"
      yield* eventually(Effect.map(idle.query(where), rowsOf), ([database]) => database === elsewhere.database)
      assert.deepStrictEqual(rowsOf(yield* busy.query(where)), [perseus.destination.database])
      yield* busy.query("COMMIT")
      assert.deepStrictEqual(rowsOf(yield* busy.query(where)), [elsewhere.database])
      assert.deepStrictEqual(rowsOf(yield* other.query(where)), [perseus.destination.database])
    })
  )
})
