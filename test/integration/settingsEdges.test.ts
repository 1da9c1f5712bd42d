import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { needsSession } from "../../src/session/NeedsSession.ts"
import { eventually, startPerseus } from "../support/perseus.ts"
import {
  bind,
  closeStatement,
  describeStatement,
  execute,
  functionCall,
  parse,
  query,
  rowsOf,
  sqlStatesOf,
  sync,
  type Message,
  type RawClient
} from "../support/rawClient.ts"

const one = { PoolSettings: { MaxOpen: 1, MaxIdle: 1, MaxPinned: 1 } }
const show = (client: RawClient, name: string) =>
  Effect.map(client.query(`SHOW ${name}`), (answers) => rowsOf(answers)[0])
const reported = (messages: ReadonlyArray<Message>, name: string) =>
  messages
    .filter(({ type }) => type === "S")
    .map(({ body }) => body.toString("latin1").split("\0"))
    .filter(([key]) => key === name)
    .map(([, value]) => value)
    .at(-1)

describe("what a client sets, and what is shared", () => {
  it.live("a SET whose tag comes while a SET LOCAL is on its way that fails reaches nobody else", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: one })
      const a = yield* perseus.login("red")
      const b = yield* perseus.login("red")
      yield* b.query("SELECT 1")
      yield* a.exchange(
        Buffer.concat([query("SET statement_timeout = '5s'"), query("SET LOCAL no_such_parameter = 1")]),
        2
      )
      assert.strictEqual(yield* show(b, "statement_timeout"), "0")
      assert.strictEqual(yield* show(a, "statement_timeout"), "5s")
    })
  )

  it.live("where the SET LOCAL is skipped with its batch", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: one })
      const a = yield* perseus.login("red")
      const b = yield* perseus.login("red")
      yield* b.query("SELECT 1")
      yield* a.query("BEGIN")
      a.send(parse("", "no sql"))
      yield* a.take(({ type }) => type === "E")
      a.send(query("SET LOCAL work_mem = '1MB'"), sync, query("ROLLBACK"), query("SET statement_timeout = '5s'"))
      yield* a.ready(3)
      assert.strictEqual(yield* show(b, "statement_timeout"), "0")
      assert.strictEqual(yield* show(a, "statement_timeout"), "5s")
    })
  )

  for (const undo of ["RESET ALL", "DISCARD ALL", "RESET client_encoding"]) {
    it.live(`${undo}: what the client was told of its encoding is what it gets`, () =>
      Effect.gen(function* () {
        const perseus = yield* startPerseus({ tenants: ["red"], config: one })
        const a = yield* perseus.login("red", { client_encoding: "LATIN1" })
        const told = reported(yield* a.query(undo), "client_encoding") ?? "LATIN1"
        const answers = yield* a.query("SHOW client_encoding")
        assert.strictEqual(rowsOf(answers)[0], reported(answers, "client_encoding") ?? told)
      })
    )
  }

  it.live("MaxPreparedStatements 0: an advisory lock taken by the extended protocol pins", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: ["red"],
        config: { PoolSettings: { MaxOpen: 4, MaxIdle: 4, MaxPreparedStatements: 0 } }
      })
      const a = yield* perseus.login("red")
      yield* a.exchange(Buffer.concat([parse("", "SELECT pg_advisory_lock(7)"), bind("", ""), execute(), sync]))
      yield* eventually(Effect.sync(perseus.pool), ({ pinned }) => pinned === 1)
    })
  )

  it.live("MaxPreparedStatements 0: set_config by the extended protocol follows", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: ["red"],
        config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1, MaxPreparedStatements: 0 } }
      })
      const a = yield* perseus.login("red")
      const b = yield* perseus.login("red")
      yield* a.exchange(
        Buffer.concat([parse("", "SELECT set_config('work_mem', '9MB', false)"), bind("", ""), execute(), sync])
      )
      assert.strictEqual(yield* show(b, "work_mem"), "4MB")
      assert.strictEqual(yield* show(a, "work_mem"), "9MB")
    })
  )

  it.live("a statement prepared anew in a batch that fails is there for the batch behind it", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: ["red"],
        config: { PoolSettings: { MaxOpen: 2, MaxIdle: 2 } }
      })
      const a = yield* perseus.login("red")
      const b = yield* perseus.login("red")
      yield* a.exchange(Buffer.concat([parse("s", "SELECT 'mine'"), sync]))
      // The connection that has it is taken.
      yield* b.query("BEGIN")
      const answers = yield* a.exchange(
        Buffer.concat([parse("", "no sql"), bind("", "s"), execute(), sync, bind("", "s"), execute(), sync]),
        2
      )
      assert.deepStrictEqual(sqlStatesOf(answers), ["42601"])
      assert.deepStrictEqual(rowsOf(answers), ["mine"])
    })
  )

  it.live("a SET that was refused breaks nothing later", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: one })
      const a = yield* perseus.login("red")
      yield* a.query("DO $$BEGIN END$$")
      yield* a.query("DO $$BEGIN END$$; SET plpgsql.variable_conflict = 'use_column'")
      const set = yield* a.query("DO $$BEGIN END$$; SET work_mem = '9MB'")
      assert.deepStrictEqual(sqlStatesOf(set), [])
      for (let round = 0; round < 3; round++) {
        const answers = yield* a.query("DO $$BEGIN END$$; SELECT 1")
        assert.deepStrictEqual([sqlStatesOf(answers), rowsOf(answers)], [[], ["1"]])
      }
    })
  )

  it.live("words in a string are no statement", () =>
    Effect.sync(() => {
      assert.isNull(needsSession("INSERT INTO recipe (body) VALUES ('wash your hands; prepare dinner')"))
      assert.isNull(needsSession("INSERT INTO note (body) VALUES ('sit down; listen to me')"))
      assert.isNull(needsSession("INSERT INTO note (body) VALUES ('we moved into temporary rooms')"))
    })
  )
  it.live("a comment before it hides nothing", () =>
    Effect.sync(() => {
      assert.strictEqual(needsSession("/* app:web */ LISTEN news"), "LISTEN")
      assert.strictEqual(needsSession("-- app\nLISTEN news"), "LISTEN")
      assert.strictEqual(needsSession('LISTEN"news"'), "LISTEN")
    })
  )

  it.live("what a FunctionCall sets reaches nobody else", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: one })
      const a = yield* perseus.login("red")
      const b = yield* perseus.login("red")
      yield* b.query("SELECT 1")
      const oid = Number(rowsOf(yield* b.query("SELECT 'pg_catalog.set_config'::regproc::oid"))[0])
      yield* a.exchange(functionCall(oid, "statement_timeout", "5000", "f"))
      assert.strictEqual(yield* show(b, "statement_timeout"), "0")
    })
  )

  for (const pinned of [true, false]) {
    it.live(`a statement parsed again under other settings reads them (pinned: ${pinned})`, () =>
      Effect.gen(function* () {
        const perseus = yield* startPerseus({ tenants: ["red"], config: one })
        const a = yield* perseus.login("red")
        yield* a.query(pinned ? "LISTEN news" : "BEGIN")
        const day = "SELECT extract(day FROM '01/02/2020'::date)"
        const ask = Buffer.concat([parse("s", day), bind("", "s"), execute(), closeStatement("s"), sync])
        yield* a.query("SET datestyle = 'ISO, MDY'")
        assert.deepStrictEqual(rowsOf(yield* a.exchange(ask)), ["2"])
        yield* a.query("SET datestyle = 'ISO, DMY'")
        assert.deepStrictEqual(rowsOf(yield* a.exchange(ask)), ["1"])
      })
    )
  }

  it.live("a statement parsed under SET LOCAL is nobody else's", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: one })
      const a = yield* perseus.login("red")
      const b = yield* perseus.login("red")
      const ask = Buffer.concat([
        parse("s", "SELECT '{NULL}'::text[] IS NOT DISTINCT FROM ARRAY[NULL::text]"),
        bind("", "s"),
        execute(),
        sync
      ])
      yield* a.query("BEGIN")
      yield* a.query("SET LOCAL array_nulls = off")
      assert.deepStrictEqual(rowsOf(yield* a.exchange(ask)), ["f"])
      yield* a.query("COMMIT")
      assert.deepStrictEqual(rowsOf(yield* b.exchange(ask)), ["t"])
    })
  )

  it.live("an unnamed statement parsed behind one that failed is there", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: one })
      const a = yield* perseus.login("red")
      yield* a.query("BEGIN")
      yield* a.exchange(Buffer.concat([query("COMMIT")]))
      yield* a.exchange(
        Buffer.concat([parse("", "no sql"), sync, parse("", "SELECT 'mine'"), describeStatement(""), sync]),
        2
      )
      const answers = yield* a.exchange(Buffer.concat([bind("", ""), execute(), sync]))
      assert.deepStrictEqual([sqlStatesOf(answers), rowsOf(answers)], [[], ["mine"]])
    })
  )

  it.live("settings of more than 64 kB end a session that shares its connections, with words", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: one })
      const a = yield* perseus.login("red")
      a.send(query("SELECT set_config('my.claims', repeat('x', 600000), false)"))
      assert.deepStrictEqual(sqlStatesOf(yield* a.closed()), ["0A000"])
      const b = yield* perseus.login("red")
      assert.deepStrictEqual(rowsOf(yield* b.query("SELECT 'fine'")), ["fine"])
    })
  )

  for (const sql of [
    "/* app */ SET my.name1 = 'me'",
    "-- app\nSET my.name1 = 'me'",
    "SET my.\"name1\" = 'me'",
    "SET SESSION my . name1 = 'me'"
  ]) {
    it.live(`a custom setting follows: ${sql}`, () =>
      Effect.gen(function* () {
        const perseus = yield* startPerseus({ tenants: ["red"], config: one })
        const a = yield* perseus.login("red")
        assert.deepStrictEqual(sqlStatesOf(yield* a.query(sql)), [])
        assert.strictEqual(rowsOf(yield* a.query("SELECT current_setting('my.name1', true)"))[0], "me")
      })
    )
  }
  it.live("a transaction that turned out to hold nothing costs no reset", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: one })
      const a = yield* perseus.login("red")
      a.send(parse("s", "SELECT 1"), sync)
      yield* a.ready()
      yield* a.query("CREATE TABLE t (id int)")
      const before = perseus.pool().statistics.tenantSwitches
      yield* a.query("SELECT 1")
      assert.strictEqual(perseus.pool().statistics.tenantSwitches, before)
    })
  )

  it.live("a pinned client whose idle backend is terminated is told why", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 2, MaxIdle: 2 } } })
      const a = yield* perseus.login("red")
      const pid = rowsOf(yield* a.query("SELECT pg_backend_pid()"))[0]
      yield* a.query("LISTEN news")
      yield* eventually(Effect.sync(perseus.pool), ({ pinned }) => pinned === 1)
      yield* perseus.destination.script(`SELECT pg_terminate_backend(${pid})`)
      const last = yield* a.closed()
      assert.deepStrictEqual(sqlStatesOf(last), ["57P01"])
    })
  )

  it.live("in session mode", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: ["red"],
        config: { PoolSettings: { MaxOpen: 2, MaxIdle: 2, Mode: "session" } }
      })
      const a = yield* perseus.login("red")
      const pid = rowsOf(yield* a.query("SELECT pg_backend_pid()"))[0]
      yield* perseus.destination.script(`SELECT pg_terminate_backend(${pid})`)
      assert.deepStrictEqual(sqlStatesOf(yield* a.closed()), ["57P01"])
    })
  )
})
