import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { eventually, startPerseus } from "../support/perseus.ts"
import { rowsOf, sqlStatesOf, type RawClient } from "../support/rawClient.ts"

const config = { PoolSettings: { MaxOpen: 2, MaxIdle: 2, MaxPinned: 1 } }
const show = (client: RawClient, name: string) =>
  Effect.map(client.query(`SHOW ${name}`), (answers) => rowsOf(answers)[0])
const backendOf = (client: RawClient) =>
  Effect.map(client.query("SELECT pg_backend_pid()"), (answers) => rowsOf(answers)[0])

describe("a client that keeps its connection", () => {
  it.live("a client of another encoding that keeps its connection keeps its path, whatever it sets", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["größe"], config })
      const a = yield* perseus.login("größe", { client_encoding: "LATIN1" })
      const schema = "SELECT pg_catalog.encode(pg_catalog.convert_to(current_schema(), 'UTF8'), 'hex')"
      const before = rowsOf(yield* a.query(schema))
      assert.deepStrictEqual(before, [Buffer.from("größe").toString("hex")])
      yield* a.query("LISTEN news")
      yield* a.query("SET work_mem = '9MB'")
      assert.deepStrictEqual(rowsOf(yield* a.query(schema)), before)
    })
  )

  it.live("and reaches no neighbour whose name is what its own looks like in that encoding", () =>
    Effect.gen(function* () {
      const looksLike = Buffer.from("größe").toString("latin1")
      const perseus = yield* startPerseus({ tenants: ["größe", looksLike], config })
      const other = yield* perseus.login(looksLike)
      yield* other.query("CREATE TABLE secret AS SELECT 'the neighbour''s' AS x")
      const a = yield* perseus.login("größe", { client_encoding: "LATIN1" })
      yield* a.query("LISTEN news")
      yield* a.query("SET work_mem = '9MB'")
      assert.deepStrictEqual(rowsOf(yield* a.query("SELECT x FROM secret")), [])
    })
  )

  it.live("in session mode, where ExtraSchemas have changed", () =>
    Effect.gen(function* () {
      const session = { PoolSettings: { MaxOpen: 2, MaxIdle: 2, Mode: "session" } }
      const perseus = yield* startPerseus({ tenants: ["größe"], config: session })
      const a = yield* perseus.login("größe", { client_encoding: "LATIN1" })
      const schema = "SELECT pg_catalog.encode(pg_catalog.convert_to(current_schema(), 'UTF8'), 'hex')"
      yield* perseus.reload({ PoolSettings: { ...session.PoolSettings, ExtraSchemas: ["pg_catalog"] } })
      assert.deepStrictEqual(rowsOf(yield* a.query(schema)), [Buffer.from("größe").toString("hex")])
    })
  )

  it.live("a client that keeps its connection may set what its next role may not", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config })
      const { role } = perseus.tenant("red")
      yield* perseus.destination.script(
        `CREATE ROLE ${role}_g; GRANT ${role}_g TO ${role}; GRANT SET ON PARAMETER session_replication_role TO ${role}`
      )
      yield* Effect.addFinalizer(() =>
        perseus.destination.script(`DROP ROLE ${role}_g; REVOKE SET ON PARAMETER session_replication_role FROM ${role}`)
      )
      const a = yield* perseus.login("red")
      yield* a.query("LISTEN news")
      assert.deepStrictEqual(sqlStatesOf(yield* a.query("SET session_replication_role = replica")), [])
      assert.deepStrictEqual(sqlStatesOf(yield* a.query(`SET ROLE ${role}_g`)), [])
      assert.strictEqual(yield* show(a, "session_replication_role"), "replica")
    })
  )

  it.live("no operator of a tenant's answers in the server's place", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config })
      const a = yield* perseus.login("red")
      const made = yield* a.query(
        "CREATE FUNCTION no(text, text) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT false'; CREATE OPERATOR = (LEFTARG = text, RIGHTARG = text, FUNCTION = no)"
      )
      assert.deepStrictEqual(sqlStatesOf(made), [])
      yield* a.query("SET search_path = red, pg_catalog; SET work_mem = '9MB'")
      assert.strictEqual(yield* show(a, "work_mem"), "9MB")
    })
  )

  it.live("what a client had set before its row changed to session mode follows it", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: [{ schema: "red", poolMode: "transaction" }], config })
      const a = yield* perseus.login("red")
      yield* a.query("SET work_mem = '9MB'")
      yield* a.query("SELECT 1")
      yield* perseus.updateRow("red", "pool_mode", "session")
      const competitor = yield* perseus.login("red")
      const pids = Effect.all([backendOf(a), backendOf(competitor)])
      // As long as connections are lent for a transaction, the two share one.
      const [pid] = yield* eventually(pids, ([its, other]) => its !== other)
      assert.strictEqual(yield* show(a, "work_mem"), "9MB")
      assert.strictEqual(yield* show(competitor, "work_mem"), "4MB")
      assert.strictEqual(yield* backendOf(a), pid)
    })
  )

  it.live("a Parse that is refused leaves nothing to run", () =>
    Effect.gen(function* () {
      const { parse, bind, execute, sync, describeStatement } = yield* Effect.promise(
        () => import("../support/rawClient.ts")
      )
      const perseus = yield* startPerseus({
        tenants: ["red"],
        config: { PoolSettings: { ...config.PoolSettings, Pinning: "off" } }
      })
      const a = yield* perseus.login("red")
      yield* a.exchange(Buffer.concat([parse("", "SELECT 'an old one'"), describeStatement(""), sync]))
      assert.deepStrictEqual(sqlStatesOf(yield* a.exchange(Buffer.concat([parse("", "LISTEN x"), sync]))).length, 1)
      const answers = yield* a.exchange(Buffer.concat([bind("", ""), execute(), sync]))
      assert.deepStrictEqual(rowsOf(answers), [])
    })
  )
})
