/**
 * What one tenant does so that the next one's switch should fail, and how the next one notices nothing of it: its statements
 * are answered, in its own schema, by a session that is as new. (What stays of a session is in leaks.test.ts.)
 */
import { assert, describe, it, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { bytesOf, change, cut, faultyServer, pass, sqlOf, withSql, type Fate } from "../support/faultyServer.ts"
import { eventually, SharedPerseus, startPerseus, whole, type TestPerseus } from "../support/perseus.ts"
import { connection, ownPostgres } from "../support/postgres.ts"
import {
  bind,
  copyData,
  execute,
  parse,
  query,
  rowsOf,
  sqlStatesOf,
  sync,
  type Message,
  type RawClient
} from "../support/rawClient.ts"

/** Both tenants need the one connection there is. */
const PoolSettings = { MaxOpen: 1, MaxIdle: 1, MaxPinned: 1 }

/** No words of SQL can be made of it but as a quoted identifier, under no encoding and no syntax of strings. */
const ODD = "gr\\ü'n"

const furnish = (perseus: TestPerseus, schemas: ReadonlyArray<string>) =>
  Effect.forEach(schemas, (schema) =>
    Effect.flatMap(perseus.connect(schema), (client) =>
      Effect.promise(async () => {
        await client.query("CREATE TABLE me (name text); CREATE TABLE visit (name text)")
        await client.query("INSERT INTO me VALUES ($1)", [schema])
      })
    )
  ).pipe(Effect.scoped)

/** Reads and writes as if nobody had been there before. */
const isUntroubled = Effect.fnUntraced(function* (client: RawClient, schema: string, why?: string) {
  const read = yield* client.query("SELECT name FROM me")
  assert.deepStrictEqual([sqlStatesOf(read), rowsOf(read)], [[], [schema]], why)
  const extended = yield* client.exchange(
    Buffer.concat([parse("", "SELECT name, length('ü\\') FROM me"), bind("", ""), execute(), sync])
  )
  assert.deepStrictEqual([sqlStatesOf(extended), rowsOf(extended)], [[], [`${schema}|2`]], why)
  const written = yield* client.query("BEGIN; INSERT INTO visit SELECT name FROM me; SELECT pg_sleep(0.01); COMMIT")
  assert.deepStrictEqual(sqlStatesOf(written), [], why)
})

const statements =
  (...all: ReadonlyArray<string>) =>
  (client: RawClient) =>
    Effect.forEach(all, (sql) => client.query(sql))

type Deed = (client: RawClient, perseus: TestPerseus) => Effect.Effect<unknown>

const spoils: ReadonlyArray<readonly [what: string, deed: Deed]> = [
  ["statement_timeout = 1", statements("SET statement_timeout = 1")],
  ["lock_timeout = 1", statements("SET lock_timeout = 1")],
  ["idle_session_timeout = 1: PostgreSQL closes it", statements("SET idle_session_timeout = 1")],
  ["idle_in_transaction_session_timeout = 1", statements("SET idle_in_transaction_session_timeout = 1")],
  ["transaction_timeout = 1", statements("SET transaction_timeout = 1")],
  ["every timeout at once", statements("SET statement_timeout = 1; SET lock_timeout = 1; SET transaction_timeout = 1")],
  ["default_transaction_read_only", statements("SET default_transaction_read_only = on")],
  [
    "serializable, deferrable and read-only by default",
    statements("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE")
  ],
  ["standard_conforming_strings = off", statements("SET standard_conforming_strings = off")],
  ["backslash_quote = off", statements("SET standard_conforming_strings = off; SET backslash_quote = off")],
  ["client_encoding = LATIN1", statements("SET client_encoding = LATIN1")],
  ["client_encoding = SJIS, where a backslash may be half a character", statements("SET client_encoding = SJIS")],
  ["client_encoding = BIG5", statements("SET client_encoding = BIG5")],
  ["row_security = off", statements("SET row_security = off")],
  ["quote_all_identifiers and the like", statements("SET quote_all_identifiers = on; SET array_nulls = off")],
  ["client_min_messages = debug5", statements("SET client_min_messages = debug5")],
  ["a path of pg_temp alone", statements("SET search_path = pg_temp")],
  ["a role with fewer rights", statements("SET ROLE pg_monitor")],
  [
    "500 temporary tables",
    statements(`DO $$ BEGIN FOR i IN 1..500 LOOP EXECUTE format('CREATE TEMP TABLE t%s (id int PRIMARY KEY)', i);
      END LOOP; END $$`)
  ],
  [
    "300 prepared statements and 300 held cursors",
    statements(`DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('PREPARE p%s AS SELECT 1', i);
      EXECUTE format('DECLARE c%s CURSOR WITH HOLD FOR SELECT 1', i); END LOOP; END $$`)
  ],
  [
    "1000 advisory locks and 300 LISTENs",
    statements(
      "SELECT count(pg_advisory_lock(i)) FROM generate_series(1, 1000) i",
      "DO $$ BEGIN FOR i IN 1..300 LOOP EXECUTE format('LISTEN c%s', i); END LOOP; END $$"
    )
  ],
  ["leaving in a transaction", statements("BEGIN; INSERT INTO visit VALUES ('lost')")],
  ["leaving in a failed transaction", statements("BEGIN; SELECT 1/0")],
  [
    "leaving in the middle of COPY FROM STDIN",
    (client) =>
      Effect.suspend(() => {
        client.send(query("COPY visit FROM STDIN"))
        return Effect.andThen(
          client.take(({ type }) => type === "G"),
          Effect.sync(() => client.send(copyData("half a li")))
        )
      })
  ],
  [
    "leaving in the middle of COPY TO STDOUT",
    (client) =>
      Effect.suspend(() => {
        client.send(query("COPY (SELECT repeat('x', 1000) FROM generate_series(1, 100000)) TO STDOUT"))
        return client.take(({ type }) => type === "d")
      })
  ],
  [
    "leaving between Parse and Sync",
    (client) =>
      Effect.suspend(() => {
        client.send(parse("", "SELECT 1"), bind("", ""), execute(), Buffer.from("H\0\0\0\x04"))
        return client.take(({ type }) => type === "C")
      })
  ],
  [
    "leaving in the middle of a message",
    (client) => Effect.sync(() => client.send(query("BEGIN"), parse("", "x".repeat(20_000)).subarray(0, 17_000)))
  ],
  [
    "leaving while a query runs",
    (client, perseus) =>
      Effect.suspend(() => {
        client.send(query("SELECT pg_sleep(600)"))
        return eventually(perseus.backends, (all) => all.some(({ query }) => query.includes("pg_sleep(600)")))
      })
  ]
]

const furnished = SharedPerseus.with({ tenants: ["red", ODD], config: { PoolSettings } }).pipe(
  Layer.tap((context) => {
    const perseus = Context.get(context, SharedPerseus)
    const { role } = perseus.tenant("red")
    return Effect.andThen(
      perseus.destination.query(`GRANT pg_monitor TO ${role} WITH SET TRUE`),
      furnish(perseus, ["red", ODD])
    )
  })
)

layer(furnished, { excludeTestServices: true })("a tenant spoils no switch for the next", (it) => {
  for (const [what, deed] of spoils) {
    it.effect(`by ${what}`, () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const waiting = yield* perseus.login(ODD)
        const next = yield* perseus.login(ODD)
        yield* Effect.scoped(
          Effect.gen(function* () {
            const red = yield* perseus.login("red")
            yield* deed(red, perseus)
            // Red has let go, or holds the connection until it vanishes: then this one is in the queue before that.
            waiting.send(query("SELECT name FROM me"))
          })
        )
        const answers = yield* waiting.ready()
        assert.deepStrictEqual([sqlStatesOf(answers), rowsOf(answers)], [[], [ODD]])
        yield* isUntroubled(next, ODD)
        assert.deepStrictEqual(rowsOf(yield* next.query("SELECT DISTINCT name FROM visit")), [ODD])
        assert.isAtMost((yield* whole(perseus)).open, 1)
      })
    )
  }
})

const sharingRole = SharedPerseus.with({ tenants: ["red", "green"], config: { PoolSettings } }).pipe(
  Layer.tap((context) => {
    const perseus = Context.get(context, SharedPerseus)
    const { role } = perseus.tenant("red")
    return Effect.andThen(
      perseus.destination.query(`GRANT pg_monitor TO ${role} WITH SET TRUE`),
      furnish(perseus, ["red", "green"])
    )
  })
)

layer(sharingRole, { excludeTestServices: true })("ALTER ROLE by one tenant of a common role", (it) => {
  /** What is a role's holds for new connections: each change begins and ends with the last one closed. */
  const alterRole = Effect.fnUntraced(function* (change: string) {
    const perseus = yield* SharedPerseus
    const { role } = perseus.tenant("red")
    const closeLast = Effect.gen(function* () {
      for (const { pid } of yield* perseus.backends) {
        yield* perseus.destination.query("SELECT pg_terminate_backend($1)", [pid])
      }
      yield* eventually(Effect.sync(perseus.pool), ({ open }) => open === 0)
    })
    yield* perseus.destination.query(`ALTER ROLE ${role} RESET ALL`)
    yield* closeLast
    yield* perseus.query("red", `ALTER ROLE ${role} ${change}`)
    yield* closeLast
    return perseus
  })

  const areUntroubled = Effect.fnUntraced(function* (change: string) {
    const perseus = yield* alterRole(change)
    const green = yield* perseus.login("green")
    yield* isUntroubled(green, "green")
    const red = yield* perseus.login("red")
    yield* isUntroubled(red, "red")
    yield* isUntroubled(green, "green")
  })

  for (const change of [
    "SET search_path = red",
    "SET standard_conforming_strings = off",
    "SET client_encoding = LATIN1",
    "SET client_min_messages = debug5",
    "SET lock_timeout = 1",
    "SET idle_in_transaction_session_timeout = 1",
    "SET row_security = off"
  ]) {
    it.effect(`${change} leads nobody astray on a new connection`, () => areUntroubled(change))
  }

  it.effect("SET role = pg_monitor leads nobody astray on a new connection", () =>
    areUntroubled("SET role = pg_monitor")
  )

  it.effect("SET statement_timeout = 1 may end statements, but never shows them another's rows", () =>
    Effect.gen(function* () {
      const perseus = yield* alterRole("SET statement_timeout = 1")
      const turn = (schema: string) =>
        Effect.exit(
          Effect.scoped(Effect.flatMap(perseus.login(schema), (client) => client.query("SELECT name FROM me")))
        )
      const seen = new Set<string>()
      for (let turns = 0; turns < 20; turns++) {
        yield* turn("red")
        const exit = yield* turn("green")
        if (exit._tag === "Success") for (const name of rowsOf(exit.value)) seen.add(name)
      }
      assert.deepStrictEqual([...seen], ["green"])
    })
  )
})

describe("a switch that fails costs the connection, and its client does not notice", () => {
  /** Green's second transaction needs a switch; its first DISCARD ALL meets that fate. */
  const inSwitch = Effect.fnUntraced(function* (fate: (sent: Message) => Fate) {
    const server = yield* faultyServer(connection())
    const perseus = yield* startPerseus({ tenants: ["red", "green"], through: server, config: { PoolSettings } })
    yield* furnish(perseus, ["red", "green"])
    const green = yield* perseus.login("green")
    yield* perseus.query("red", "SELECT 1")
    const { opened } = perseus.pool().statistics
    let met = false
    yield* server.inject({
      fromFrontend: (sent) => {
        if (met || sqlOf(sent) !== "DISCARD ALL") return pass
        met = true
        return fate(sent)
      }
    })
    yield* isUntroubled(green, "green")
    assert.isTrue(met)
    assert.strictEqual(perseus.pool().statistics.opened, opened + 1)
  })

  it.live("where the connection is lost in it", () => inSwitch(() => cut))

  it.live("where the server answers more than it was asked", () =>
    inSwitch((sent) => change(query("SELECT 1"), bytesOf(sent)))
  )

  it.live("where the server refuses it", () => inSwitch((sent) => change(withSql(sent, "SELECT 1/0"))))

  it.live("where the last tenant's temporary tables are more than PostgreSQL can lock at once", () =>
    Effect.gen(function* () {
      const settings = { max_locks_per_transaction: "10", max_connections: "20" }
      const server = yield* Effect.orDie(ownPostgres({ settings }))
      const perseus = yield* startPerseus({ tenants: ["red", "green"], server, config: { PoolSettings } })
      yield* furnish(perseus, ["red", "green"])
      const green = yield* perseus.login("green")
      yield* Effect.scoped(
        Effect.gen(function* () {
          const red = yield* perseus.login("red")
          yield* red.query(`CREATE PROCEDURE litter() LANGUAGE plpgsql AS $$ BEGIN FOR i IN 1..800 LOOP
            EXECUTE format('CREATE TEMP TABLE t%s (id int)', i); COMMIT; END LOOP; END $$`)
          assert.deepStrictEqual(sqlStatesOf(yield* red.query("CALL litter()")), [])
        })
      )
      yield* isUntroubled(green, "green")
    })
  )
})
