import * as PgClient from "@effect/sql-pg/PgClient"
import * as PgTypes from "@effect/sql-pg/PgTypes"
import * as Arr from "effect/Array"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import { compare, sqlStateOf, type Plays } from "./compare.ts"
import { digestOf, largeText, parameters, settings, statement, sumsOf } from "./scenarios.ts"
import type { Target } from "./targets.ts"

const open = ({ database, host, parameter, password, port, schema, user }: Target, more: PgClient.PgPoolConfig = {}) =>
  PgClient.make({
    host,
    port,
    username: user,
    password: Redacted.make(password),
    database,
    maxConnections: 1,
    ...more,
    startupParameters: { [parameter]: schema, ...more.startupParameters }
  }).pipe(Effect.provide(Reactivity.layer))

const run = <A, E>(effect: Effect.Effect<A, E, Scope.Scope>): Promise<A> => Effect.runPromise(Effect.scoped(effect))

type Rows = Effect.Effect<ReadonlyArray<any>, SqlError>

const column = (rows: Rows) => Effect.map(rows, (rows) => rows.map((row): any => Object.values(row)[0]))
const value = (rows: Rows) => Effect.map(column(rows), ([first]) => first)
const errorOf = (work: Effect.Effect<unknown, SqlError>) =>
  Effect.match(work, { onSuccess: () => null, onFailure: sqlStateOf })

const undone = Effect.fail("undo" as const)

/** Each statement by itself, or many at once on one connection. */
const plays = (manner: Pick<PgClient.PgPoolConfig, "multiplex">): Plays => {
  const play =
    <A, E>(use: (sql: PgClient.PgClient) => Effect.Effect<A, E, Scope.Scope>, more: PgClient.PgPoolConfig = {}) =>
    (target: Target) =>
      run(Effect.flatMap(open(target, { ...manner, ...more }), use))

  return {
    connect: play((sql) =>
      Effect.map(sql`SELECT current_schema() AS schema, name AS home FROM home`, ([first]) => first)
    ),

    "connect otherwise": (target) => {
      const { database, host, options, password, port, user } = target
      const login = `${user}:${encodeURIComponent(password)}`
      const url = Redacted.make(
        `postgres://${login}@${host}:${port}/${database}?options=${encodeURIComponent(options)}`
      )
      return run(
        PgClient.make({ url, maxConnections: 1 }).pipe(
          Effect.provide(Reactivity.layer),
          Effect.flatMap((sql) => value(sql`SELECT current_schema()`))
        )
      )
    },

    reconnect: (target) =>
      run(
        Effect.forEach([1, 2, 3, 4, 5], () =>
          Effect.scoped(Effect.flatMap(open(target, manner), (sql) => value(sql`SELECT current_schema()`)))
        )
      ),

    settings: play(
      (sql) =>
        Effect.map(
          Effect.forEach([1, 2, 3], () => sql.unsafe(settings)),
          (seen) => seen.flat()
        ),
      {
        applicationName: "drivers",
        startupParameters: { TimeZone: "Asia/Tokyo", DateStyle: "ISO, DMY" }
      }
    ),

    types: play((sql) =>
      Effect.gen(function* () {
        const { bytea, int8, ints, json, nothing, numeric, text, texts, timestamptz } = parameters
        const [row] = yield* sql.unsafe<any>(
          `SELECT $1::int8 AS int8, $2::numeric AS numeric, $3::timestamptz AS timestamptz, $4::bytea AS bytea,
            $5::int[] AS ints, $6::text[] AS texts, $7::jsonb AS json, $8::text AS nothing, $9::text AS text`,
          [BigInt(int8), numeric, timestamptz, bytea, ints, texts, PgTypes.jsonb(json), nothing, text]
        )
        return { ...row, int8: String(row.int8), bytea: Buffer.from(row.bytea).toString("hex") }
      })
    ),

    errors: play((sql) =>
      Effect.gen(function* () {
        yield* sql`CREATE TABLE errors (id int PRIMARY KEY)`
        yield* sql`INSERT INTO errors VALUES (1)`
        const { reason } = yield* Effect.flip(sql`INSERT INTO errors VALUES (1)`)
        return {
          syntax: yield* errorOf(sql`SELEC 1`),
          division: yield* errorOf(sql`SELECT 1 / 0`),
          table: yield* errorOf(sql`SELECT * FROM nowhere`),
          unique: sqlStateOf(reason),
          constraint: reason._tag === "UniqueViolation" ? reason.constraint : reason._tag
        }
      })
    ),

    transactions: play((sql) =>
      Effect.gen(function* () {
        yield* sql`CREATE TABLE transactions (id int)`
        const ids = column(sql`SELECT id FROM transactions ORDER BY id`)
        const insert = (id: number) => sql`INSERT INTO transactions VALUES (${id})`
        yield* sql.withTransaction(insert(1))
        const committed = yield* ids
        yield* Effect.ignore(sql.withTransaction(Effect.andThen(insert(2), undone)))
        const rolledBack = yield* ids
        yield* sql.withTransaction(
          Effect.gen(function* () {
            yield* insert(3)
            yield* Effect.ignore(sql.withTransaction(Effect.andThen(insert(4), undone)))
            yield* insert(5)
          })
        )
        return { committed, rolledBack, savepoint: yield* ids }
      })
    ),

    "failed transaction": play((sql) =>
      Effect.gen(function* () {
        yield* sql`CREATE TABLE failures (id int PRIMARY KEY)`
        const insert = (id: number) => sql`INSERT INTO failures VALUES (${id})`
        const seen: { error?: string | null; within?: string | null } = {}
        const failing = Effect.gen(function* () {
          yield* insert(1)
          seen.error = yield* errorOf(insert(1))
          seen.within = yield* errorOf(sql`SELECT 1`)
          return yield* undone
        })
        yield* Effect.ignore(sql.withTransaction(failing))
        yield* insert(7)
        return { ...seen, after: yield* column(sql`SELECT id FROM failures`) }
      })
    ),

    statements: (target) =>
      run(
        Effect.gen(function* () {
          const clients = yield* Effect.forEach([0, 1, 2, 3], () => open(target, manner))
          return yield* Effect.promise(() =>
            sumsOf(
              async (client) => (round) =>
                Effect.runPromise(value(clients[client]!.unsafe(statement(client, round), [round])))
            )
          )
        })
      ),

    "few statements kept": (target) =>
      run(
        Effect.gen(function* () {
          const config = { ...manner, preparedStatementCacheSize: 2 }
          const clients = yield* Effect.forEach([0, 1, 2, 3], () => open(target, config))
          return yield* Effect.promise(() =>
            sumsOf(
              async (client) => (round) =>
                Effect.runPromise(value(clients[client]!.unsafe(statement(client, round), [round])))
            )
          )
        })
      ),

    pool: play(
      (sql) =>
        Effect.promise(() =>
          sumsOf(async (client) => (round) => Effect.runPromise(value(sql.unsafe(statement(client, round), [round]))))
        ),
      { maxConnections: 3 }
    ),

    "streamed rows": play((sql) =>
      Effect.gen(function* () {
        const rows = yield* Stream.runCollect(sql<{ n: number }>`SELECT generate_series(1, 1000) AS n`.stream)
        return { rows: rows.length, sum: rows.reduce((sum, { n }) => sum + n, 0) }
      })
    ),

    batch: play((sql) =>
      Effect.gen(function* () {
        yield* sql`CREATE TABLE batch (id int PRIMARY KEY)`
        const insert = (ids: Arr.NonEmptyReadonlyArray<number>) =>
          sql`INSERT INTO batch ${sql.insert(Arr.map(ids, (id) => ({ id })))}`
        yield* insert(Arr.range(1, 500))
        const count = value(sql`SELECT count(*)::int FROM batch`)
        const rows = yield* count
        const sum = yield* value(sql`SELECT sum(id)::int FROM batch`)
        const error = yield* errorOf(insert([501, 1, 502]))
        return { rows, sum, error, left: yield* count }
      })
    ),

    "without waiting": play((sql) =>
      Effect.forEach(
        ["SELECT 1", "SELECT 1 / 0", "SELECT 3", "SELECT 4"],
        (text) => Effect.match(value(sql.unsafe(text)), { onSuccess: (one) => one, onFailure: sqlStateOf }),
        { concurrency: "unbounded" }
      )
    ),

    // Many at once cannot be told apart by a cancel request.
    ...(manner.multiplex !== true && {
      "given up": play(
        (sql) =>
          Effect.gen(function* () {
            const sleep = "SELECT pg_sleep(20) /* effect */"
            const running = value(
              sql`SELECT count(*)::int FROM pg_stat_activity WHERE state = 'active' AND query = ${sleep}`
            )
            const sleeper = yield* Effect.forkChild(sql.unsafe(sleep))
            while ((yield* running) === 0);
            yield* Fiber.interrupt(sleeper)
            return { gaveUp: true, after: yield* value(sql`SELECT 1`), running: yield* running }
          }),
        { maxConnections: 2 }
      )
    }),

    statement_timeout: play(
      (sql) =>
        Effect.gen(function* () {
          return { error: yield* errorOf(sql`SELECT pg_sleep(20)`), after: yield* value(sql`SELECT 1`) }
        }),
      { startupParameters: { statement_timeout: "500" } }
    ),

    large: play((sql) =>
      Effect.gen(function* () {
        return {
          sent: yield* value(sql`SELECT md5(${largeText})`),
          received: digestOf(yield* value(sql`SELECT repeat('0123456789', 524288)`))
        }
      })
    ),

    "many rows": play((sql) =>
      Effect.map(column(sql`SELECT generate_series(1, 100000)`), (rows) => ({
        rows: rows.length,
        sum: rows.reduce((sum, n) => sum + n, 0)
      }))
    ),

    "empty query": play((sql) =>
      Effect.gen(function* () {
        for (const empty of ["", " ; "]) yield* sql.unsafe(empty)
        return yield* value(sql`SELECT 1`)
      })
    )
  }
}

compare("@effect/sql-pg", plays({}))
compare("@effect/sql-pg with multiplex", plays({ multiplex: true }))
