import { assert, describe, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { eventually, SharedPerseus, startPerseus } from "../support/perseus.ts"
import { execute, parse, bind, rowsOf, sqlStatesOf, sync, typesOf } from "../support/rawClient.ts"

const oneConnection = { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } }

/** What is neither a keyword nor one word, and reads as SQL where it is pasted. */
const HOSTILE = 'a"b; drop schema x --'

describe("rows", () => {
  it.live("stay with their tenant when tenants take turns on one connection, transaction by transaction", () =>
    Effect.gen(function* () {
      const schemas = ["red", "green", "blue", HOSTILE, "SELECT", "ünïcode 🐘", "a,b", "back\\slash's"]
      const perseus = yield* startPerseus({ tenants: schemas, config: oneConnection })
      const clients = yield* Effect.forEach(schemas, (schema) => perseus.connect(schema))
      yield* Effect.forEach(clients, (client, index) =>
        Effect.promise(async () => {
          await client.query("CREATE TABLE me (name text)")
          await client.query("INSERT INTO me VALUES ($1)", [schemas[index]])
        })
      )
      for (let round = 0; round < 3; round++) {
        const seen = yield* Effect.forEach(
          clients,
          (client) =>
            Effect.promise(async () => {
              const one = await client.query("SELECT name FROM me")
              await client.query("BEGIN")
              const two = await client.query("SELECT name, current_schema() AS schema FROM me")
              await client.query("COMMIT")
              return [one.rows, two.rows]
            }),
          { concurrency: "unbounded" }
        )
        assert.deepStrictEqual(
          seen,
          schemas.map((name) => [[{ name }], [{ name, schema: name }]])
        )
      }
      assert.strictEqual(perseus.pool().statistics.opened, 1)
    })
  )

  it.live("of another tenant cannot be named without its schema, even by one whose own table is gone", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red", "green"], config: oneConnection })
      const red = yield* perseus.login("red")
      const green = yield* perseus.login("green")
      yield* red.query("CREATE TABLE me (name text); INSERT INTO me VALUES ('red')")
      yield* red.query("SELECT * FROM me")
      assert.deepStrictEqual(sqlStatesOf(yield* green.query("SELECT * FROM me")), ["42P01"])
    })
  )

  it.live("of the schema named in the row are what every driver's `options` and startup parameter gives", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red", "green"] })
      const path = (parameters: Readonly<Record<string, string>>) =>
        Effect.scoped(
          Effect.gen(function* () {
            const client = yield* perseus.raw
            yield* client.logIn({ user: "app", database: perseus.sourceDb, ...parameters }, "sesame")
            return rowsOf(yield* client.query("SHOW search_path"))[0]
          })
        )
      assert.strictEqual(yield* path({ options: "-c search_path=red" }), "red")
      assert.strictEqual(yield* path({ options: "-c schema_search_path=red" }), "red")
      assert.strictEqual(yield* path({ search_path: "red" }), "red")
      assert.strictEqual(yield* path({ schema_search_path: "red", search_path: "green" }), "red")
      assert.strictEqual(yield* path({ schema_search_path: "red", options: "-c search_path=green" }), "red")
    })
  )
})

layer(SharedPerseus.with({ tenants: ["red"] }), { excludeTestServices: true })(
  "a name that cannot be a tenant's",
  (it) => {
    for (const [what, name] of [
      ["empty", ""],
      ["of 64 bytes", "x".repeat(64)],
      ["of 64 bytes in 32 characters", "ü".repeat(32)],
      ["$user", "$user"],
      ["that begins with pg_", "pg_temp"]
    ] as const) {
      it.effect(`is refused at login where it is ${what}`, () =>
        Effect.gen(function* () {
          const perseus = yield* SharedPerseus
          const answers = yield* perseus.refusal({ ...perseus.tenant("red").startup, schema_search_path: name })
          assert.strictEqual(typesOf(answers), "E")
          assert.deepStrictEqual(sqlStatesOf(answers), ["42602"])
        })
      )
    }

    it.effect("or not valid UTF-8 is refused before a password is asked for", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const client = yield* perseus.raw
        const pairs = Buffer.concat([
          Buffer.from("user\0app\0database\0shop\0schema_search_path\0"),
          Buffer.of(0x72, 0xff, 0, 0)
        ])
        const header = Buffer.alloc(8)
        header.writeUInt32BE(pairs.length + 8)
        header.writeUInt32BE(0x00030000, 4)
        client.send(header, pairs)
        assert.deepStrictEqual(sqlStatesOf(yield* client.closed()), ["08P01"])
      })
    )

    it.effect("of 63 bytes is one like any other: it is unknown here, and that is all that is said", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const name = "x".repeat(63)
        const answers = yield* perseus.refusal({ ...perseus.tenant("red").startup, schema_search_path: name })
        assert.deepStrictEqual(sqlStatesOf(answers), ["28P01"])
      })
    )
  }
)

describe("what one tenant does to its session", () => {
  it.live("is unnoticed where it happened by extended messages, prepared statements included", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red", "green"], config: oneConnection })
      const red = yield* perseus.login("red")
      const green = yield* perseus.login("green")
      const run = (sql: string) => Buffer.concat([parse("", sql), bind("", ""), execute(), sync])
      yield* red.query("CREATE TABLE me (name text); INSERT INTO me VALUES ('red')")
      yield* green.query("CREATE TABLE me (name text); INSERT INTO me VALUES ('green')")
      yield* red.exchange(Buffer.concat([parse("mine", "SELECT name FROM me"), sync]))
      yield* red.exchange(run("SET statement_timeout = 1"))
      const stolen = yield* green.exchange(Buffer.concat([bind("", "mine"), execute(), sync]))
      assert.deepStrictEqual(sqlStatesOf(stolen), ["26000"])
      assert.deepStrictEqual(rowsOf(yield* green.query("SELECT count(*) FROM pg_prepared_statements")), ["0"])
      yield* green.exchange(Buffer.concat([parse("mine", "SELECT name FROM me"), sync]))
      const use = Buffer.concat([bind("", "mine"), execute(), sync])
      for (let turn = 0; turn < 3; turn++) {
        assert.deepStrictEqual(rowsOf(yield* red.exchange(use)), ["red"])
        assert.deepStrictEqual(rowsOf(yield* green.exchange(use)), ["green"])
      }
    })
  )

  it.live("by ALTER ROLE … SET search_path leads no new connection into another's schema", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red", "green"], config: oneConnection })
      const { role } = perseus.tenant("red")
      const red = yield* perseus.login("red")
      yield* red.query("CREATE TABLE secret (name text)")
      yield* red.query(
        `ALTER ROLE ${role} SET search_path = 'red'; ALTER ROLE ${role} SET standard_conforming_strings = off`
      )
      const [{ pid } = { pid: 0 }] = yield* perseus.backends
      yield* perseus.destination.query("SELECT pg_terminate_backend($1)", [pid])
      yield* eventually(Effect.sync(perseus.pool), ({ open }) => open === 0)
      const green = yield* perseus.login("green")
      assert.deepStrictEqual(rowsOf(yield* green.query("SHOW search_path")), ["green"])
      // A client that resets its path falls to no schema at all.
      const fallen = yield* green.query("RESET ALL; SELECT * FROM secret")
      assert.deepStrictEqual(sqlStatesOf(fallen), ["42P01"])
      const discarded = yield* green.exchange(
        Buffer.concat([
          parse("", "DISCARD ALL"),
          bind("", ""),
          execute(),
          sync,
          parse("", "SHOW search_path"),
          bind("", ""),
          execute(),
          sync
        ]),
        2
      )
      assert.notInclude(rowsOf(discarded).join(), "red")
      assert.deepStrictEqual(rowsOf(yield* green.query("SHOW search_path")), ["green"])
    })
  )

  it.live("does not outlive it: a client that reset its path has it again in its next transaction", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: oneConnection })
      const red = yield* perseus.login("red")
      for (const statement of ["RESET ALL", "DISCARD ALL", "SET LOCAL search_path = public", "RESET search_path"]) {
        yield* red.query(statement)
        assert.deepStrictEqual(rowsOf(yield* red.query("SHOW search_path")), ["red"], statement)
      }
    })
  )
})

describe("a client's own settings", () => {
  it.live("hold on whichever connection serves it, and on nobody else's turn", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red", "green"], config: oneConnection })
      const tokyo = yield* perseus.login("red", { TimeZone: "Asia/Tokyo", application_name: "tokyo" })
      const options = yield* perseus.login("red", { options: "-c work_mem=128kB -c TimeZone=Europe/Paris" })
      const latin = yield* perseus.login("red", { client_encoding: "LATIN1" })
      const plain = yield* perseus.login("red")
      const green = yield* perseus.login("green", { datestyle: "German" })
      const show =
        "SELECT current_setting('TimeZone'), current_setting('work_mem'), current_setting('application_name')"
      const [normal] = rowsOf(yield* plain.query(show))
      for (let turn = 0; turn < 3; turn++) {
        assert.deepStrictEqual(rowsOf(yield* tokyo.query(show)), [normal!.replace(/^[^|]*/, "Asia/Tokyo") + "tokyo"])
        assert.match(rowsOf(yield* options.query(show))[0]!, /^Europe\/Paris\|128kB\|$/)
        assert.deepStrictEqual(rowsOf(yield* latin.query("SHOW client_encoding")), ["LATIN1"])
        assert.deepStrictEqual(rowsOf(yield* plain.query(show))[0], normal)
        assert.deepStrictEqual(rowsOf(yield* plain.query("SHOW client_encoding")), ["UTF8"])
        assert.deepStrictEqual(rowsOf(yield* green.query("SELECT '2020-02-01'::date")), ["01.02.2020"])
        assert.deepStrictEqual(rowsOf(yield* plain.query("SELECT '2020-02-01'::date")), ["2020-02-01"])
      }
    })
  )
})

describe("what PostgreSQL keeps apart", () => {
  const neighbours = Effect.fnUntraced(function* (destUsers: readonly [string, string]) {
    const perseus = yield* startPerseus({
      tenants: [
        { schema: "red", destUser: destUsers[0] },
        { schema: "green", destUser: destUsers[1] }
      ]
    })
    yield* perseus.query("green", "CREATE TABLE secret (name text); INSERT INTO secret VALUES ('green''s')")
    return yield* perseus.login("red")
  })

  it.live("is roles: who shares a dest_user reads a neighbour's table by its qualified name", () =>
    Effect.gen(function* () {
      const red = yield* neighbours(["one", "one"])
      assert.deepStrictEqual(rowsOf(yield* red.query("SELECT * FROM green.secret")), ["green's"])
      assert.deepStrictEqual(sqlStatesOf(yield* red.query("SELECT * FROM secret")), ["42P01"])
    })
  )

  it.live("is roles: with a dest_user of its own a tenant is refused at its neighbour's schema, whatever it does", () =>
    Effect.gen(function* () {
      const red = yield* neighbours(["one", "two"])
      for (const attempt of [
        "SELECT * FROM green.secret",
        "DELETE FROM green.secret",
        "SET search_path = green; SELECT * FROM green.secret",
        "CREATE TABLE green.mine (id int)",
        "RESET ROLE; RESET SESSION AUTHORIZATION; TABLE green.secret"
      ]) {
        assert.deepStrictEqual(sqlStatesOf(yield* red.query(attempt)), ["42501"], attempt)
      }
    })
  )
})

describe("tenants of one destination with different dest_users", () => {
  for (const MaxOpen of [1, 4]) {
    it.live(`never run as each other, with ${MaxOpen} connections for all`, () =>
      Effect.gen(function* () {
        const perseus = yield* startPerseus({
          tenants: [
            { schema: "red", destUser: "one" },
            { schema: "green", destUser: "two" },
            { schema: "blue", destUser: "one" }
          ],
          config: { PoolSettings: { MaxOpen, MaxIdle: MaxOpen } }
        })
        const schemas = ["red", "green", "blue"]
        yield* Effect.forEach(
          schemas.flatMap((schema) => [schema, schema, schema]),
          (schema) =>
            Effect.gen(function* () {
              const client = yield* perseus.login(schema)
              for (let turn = 0; turn < 10; turn++) {
                const seen = rowsOf(yield* client.query("SELECT current_user, session_user, current_schema()"))
                const { role } = perseus.tenant(schema)
                assert.deepStrictEqual(seen, [`${role}|${role}|${schema}`])
              }
            }),
          { concurrency: "unbounded" }
        )
        assert.isAtMost(perseus.pool().open, MaxOpen)
      })
    )
  }
})
