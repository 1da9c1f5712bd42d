import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import postgres from "postgres"
import { installed, run } from "../support/clientProgram.ts"
import { startPerseus } from "../support/perseus.ts"

describe("node-postgres", () => {
  it.live("runs simple, parameterised and named prepared statements", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const client = yield* perseus.connect("red")
      const rows = yield* Effect.promise(async () => {
        await client.query("CREATE TABLE things (id int, name text)")
        await client.query("INSERT INTO things VALUES ($1, $2), ($3, $4)", [1, "one", 2, "two"])
        const named = { name: "by-id", text: "SELECT name FROM things WHERE id = $1" }
        const first = await client.query({ ...named, values: [1] })
        const second = await client.query({ ...named, values: [2] })
        const all = await client.query("SELECT count(*)::int AS n FROM things; SELECT current_schema()")
        return [first.rows, second.rows, Array.isArray(all) ? all.map((result) => result.rows) : []]
      })
      assert.deepStrictEqual(rows, [[{ name: "one" }], [{ name: "two" }], [[{ n: 2 }], [{ current_schema: "red" }]]])
    })
  )

  it.live("keeps a transaction on one connection and rolls it back on an error", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const client = yield* perseus.connect("red")
      const [error, left] = yield* Effect.promise(async () => {
        await client.query("CREATE TABLE things (id int PRIMARY KEY)")
        await client.query("BEGIN")
        await client.query("INSERT INTO things VALUES (1)")
        const error: unknown = await client.query("INSERT INTO things VALUES (1)").catch((cause: unknown) => cause)
        await client.query("ROLLBACK")
        return [error, (await client.query("SELECT * FROM things")).rows]
      })
      assert.strictEqual(Reflect.get(Object(error), "code"), "23505")
      assert.deepStrictEqual(left, [])
    })
  )
})

describe("postgres.js", () => {
  it.live("names its tenant in the DSN, and its prepared statements follow it across connections", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red", "green"] })
      const open = (schema: string) =>
        Effect.acquireRelease(
          Effect.sync(() => {
            const { host, port, sourceDb } = perseus
            const { user, password } = perseus.tenant(schema)
            // Its types do not know that any startup parameter may stand there.
            const connection: Record<string, string> = { schema_search_path: schema }
            return postgres({ host, port, database: sourceDb, user, password, max: 4, onnotice: () => {}, connection })
          }),
          (sql) => Effect.promise(() => sql.end())
        )
      const red = yield* open("red")
      const green = yield* open("green")
      yield* Effect.promise(async () => {
        for (const [sql, colour] of [
          [red, "red"],
          [green, "green"]
        ] as const) {
          await sql`CREATE TABLE me (id int, name text)`
          await sql`INSERT INTO me SELECT i, ${colour} || i FROM generate_series(1, 20) AS i`
        }
        const ids = Array.from({ length: 20 }, (_, index) => index + 1)
        const seen = await Promise.all(
          ids.flatMap((id) => [
            red`SELECT name FROM me WHERE id = ${id}`.then(([row]) => row?.["name"]),
            green`SELECT name FROM me WHERE id = ${id}`.then(([row]) => row?.["name"])
          ])
        )
        assert.deepStrictEqual(
          seen,
          ids.flatMap((id) => [`red${id}`, `green${id}`])
        )
        const inTransaction = await red.begin(async (sql) => {
          await sql`UPDATE me SET name = 'changed' WHERE id = 1`
          return sql`SELECT name FROM me WHERE id = 1`
        })
        assert.deepStrictEqual([...inTransaction], [{ name: "changed" }])
      })
    })
  )
})

describe("psql", () => {
  it.live("names its tenant in PGOPTIONS, and copies in and out", () =>
    Effect.gen(function* () {
      const psql = installed("psql")
      if (Option.isNone(psql)) return
      const perseus = yield* startPerseus({ tenants: ["red", 'a"b; drop schema red --'] })
      for (const schema of ["red", 'a"b; drop schema red --']) {
        const ran = yield* run(perseus, perseus.tenant(schema), psql.value, [
          "-XAtq",
          "-v",
          "ON_ERROR_STOP=1",
          "-c",
          "CREATE TABLE things (id int)",
          "-c",
          "\\copy things FROM PROGRAM 'seq 1 1000'",
          "-c",
          "SELECT current_schema(), count(*) FROM things",
          "-c",
          "\\copy (SELECT id FROM things WHERE id < 3 ORDER BY id) TO STDOUT"
        ])
        assert.deepStrictEqual(ran, { code: 0, output: `${schema}|1000\n1\n2\n`, errors: "" })
      }
    })
  )

  it.live("says which parameter is missing where no tenant is named", () =>
    Effect.gen(function* () {
      const psql = installed("psql")
      if (Option.isNone(psql)) return
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const ran = yield* run(perseus, { ...perseus.tenant("red"), options: "" }, psql.value, ["-c", "SELECT 1"])
      assert.strictEqual(ran.code, 2)
      assert.include(ran.errors, "schema_search_path")
    })
  )
})

describe("pgbench", () => {
  for (const protocol of ["simple", "extended", "prepared"]) {
    it.live(`runs all of its transactions with the ${protocol} protocol, eight clients on three connections`, () =>
      Effect.gen(function* () {
        const pgbench = installed("pgbench")
        if (Option.isNone(pgbench)) return
        const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 3, MaxIdle: 3 } } })
        const tenant = perseus.tenant("red")
        const filled = yield* run(perseus, tenant, pgbench.value, ["-i", "-q", "-s", "1", "-I", "dtGvp"])
        assert.strictEqual(filled.code, 0, filled.errors)
        // A thread for each client: pgbench prepares with blocking calls, and a thread that waits in one would leave the
        // transactions of its other clients open, on all connections there are.
        const ran = yield* run(perseus, tenant, pgbench.value, ["-n", "-M", protocol, "-c", "8", "-j", "8", "-t", "50"])
        assert.strictEqual(ran.code, 0, ran.errors)
        assert.match(ran.output, /number of transactions actually processed: 400\/400/)
        assert.notMatch(ran.errors, /error|abort/i)
        assert.isAtMost(perseus.pool().open, 3)
        const history = yield* perseus.query("red", "SELECT count(*)::int AS n FROM pgbench_history")
        assert.deepStrictEqual(history, [{ n: 400 }])
      })
    )
  }
})
