import { Readable } from "node:stream"
import { pipeline } from "node:stream/promises"
import { text as textOf } from "node:stream/consumers"
import postgres from "postgres"
import { compare, errorOf } from "./compare.ts"
import { digestOf, largeText, parameters, settings, statement, sumsOf } from "./scenarios.ts"
import type { Target } from "./targets.ts"

interface More {
  readonly connection?: Readonly<Record<string, string | number>>
  readonly max?: number
  readonly onnotice?: (notice: postgres.Notice) => void
}

/** One connection unless told otherwise. Any startup parameter may stand in `connection`, which its types do not know. */
const open = (target: Target, { connection, max = 1, onnotice = () => undefined }: More = {}) =>
  postgres({
    host: target.host,
    port: target.port,
    user: target.user,
    password: target.password,
    database: target.database,
    max,
    onnotice,
    connection: Object.assign<object, object>({ [target.parameter]: target.schema }, connection ?? {})
  })

const using = async <A>(sql: postgres.Sql, use: (sql: postgres.Sql) => Promise<A>): Promise<A> => {
  try {
    return await use(sql)
  } finally {
    await sql.end()
  }
}

const play =
  <A>(use: (sql: postgres.Sql) => Promise<A>, more?: More) =>
  (target: Target) =>
    using(open(target, more), use)

/** The only column of all rows. */
const column = async (rows: PromiseLike<ReadonlyArray<postgres.Row>>): Promise<ReadonlyArray<any>> =>
  (await rows).map((row) => Object.values(row)[0])

const value = async (rows: PromiseLike<ReadonlyArray<postgres.Row>>): Promise<any> => (await column(rows))[0]

/** PostgreSQL's oids of them. */
const INT4 = 23
const TEXT = 25

class Undo extends Error {}

const undone = (work: Promise<unknown>) =>
  work.catch((error: unknown) => {
    if (!(error instanceof Undo)) throw error
  })

compare("postgres.js", {
  connect: play(async (sql) => (await sql`SELECT current_schema() AS schema, name AS home FROM home`)[0]),

  "connect otherwise": ({ database, host, parameter, password, port, schema, user }) => {
    const login = `${user}:${encodeURIComponent(password)}`
    const url = `postgres://${login}@${host}:${port}/${database}?${parameter}=${schema}`
    return using(postgres(url, { max: 1 }), (sql) => value(sql`SELECT current_schema()`))
  },

  reconnect: async (target) => {
    const seen: Array<unknown> = []
    for (let i = 0; i < 5; i++) seen.push(await using(open(target), (sql) => value(sql`SELECT current_schema()`)))
    return seen
  },

  settings: play(
    async (sql) => {
      const seen: Array<unknown> = []
      for (let i = 0; i < 3; i++) seen.push((await sql.unsafe(settings))[0])
      return seen
    },
    { connection: { application_name: "drivers", TimeZone: "Asia/Tokyo", DateStyle: "ISO, DMY" } }
  ),

  types: play(async (sql) => {
    const { bytea, int8, ints, json, nothing, numeric, text, texts, timestamptz } = parameters
    // Connected, it knows the types of arrays.
    await sql`SELECT 1`
    const [row] = await sql`
      SELECT ${int8}::int8 AS int8, ${numeric}::numeric AS numeric, ${timestamptz}::timestamptz AS timestamptz,
        ${bytea}::bytea AS bytea, ${sql.array(ints.slice(), INT4)}::int[] AS ints, ${sql.array(texts.slice(), TEXT)}::text[] AS texts,
        ${sql.json(JSON.parse(JSON.stringify(json)))}::jsonb AS json, ${nothing}::text AS nothing, ${text}::text AS text`
    // It takes NULL in an array for a text.
    const seen = row?.["texts"].map((text: string) => (text === "NULL" ? null : text))
    return { ...row, bytea: row?.["bytea"].toString("hex"), texts: seen }
  }),

  // Types of arrays are looked up at connect.
  "own types": async (target) => {
    await using(open(target), (sql) => sql`CREATE TYPE mood AS ENUM ('sad', 'happy')`)
    return using(open(target), async (sql) => {
      const [row] = await sql`SELECT 'happy'::mood AS one, ARRAY['sad', 'happy']::mood[] AS both`
      return [row?.["one"], row?.["both"]]
    })
  },

  errors: play(async (sql) => {
    await sql`CREATE TABLE errors (id int PRIMARY KEY)`
    await sql`INSERT INTO errors VALUES (1)`
    const unique: any = await sql`INSERT INTO errors VALUES (1)`.catch((error: unknown) => error)
    return {
      syntax: await errorOf(sql`SELEC 1`),
      division: await errorOf(sql`SELECT 1 / 0`),
      table: await errorOf(sql`SELECT * FROM nowhere`),
      unique: unique.code,
      constraint: unique.constraint_name
    }
  }),

  transactions: play(async (sql) => {
    await sql`CREATE TABLE transactions (id int)`
    const ids = () => column(sql`SELECT id FROM transactions ORDER BY id`)
    await sql.begin((sql) => sql`INSERT INTO transactions VALUES (1)`)
    const committed = await ids()
    await undone(
      sql.begin(async (sql) => {
        await sql`INSERT INTO transactions VALUES (2)`
        throw new Undo()
      })
    )
    const rolledBack = await ids()
    await sql.begin(async (sql) => {
      await sql`INSERT INTO transactions VALUES (3)`
      await undone(
        sql.savepoint(async (sql) => {
          await sql`INSERT INTO transactions VALUES (4)`
          throw new Undo()
        })
      )
      await sql`INSERT INTO transactions VALUES (5)`
    })
    return { committed, rolledBack, savepoint: await ids() }
  }),

  "failed transaction": play(async (sql) => {
    await sql`CREATE TABLE failures (id int PRIMARY KEY)`
    const seen: { error?: string | null; within?: string | null } = {}
    await undone(
      sql.begin(async (sql) => {
        await sql`INSERT INTO failures VALUES (1)`
        seen.error = await errorOf(sql`INSERT INTO failures VALUES (1)`)
        seen.within = await errorOf(sql`SELECT 1`)
        throw new Undo()
      })
    )
    await sql`INSERT INTO failures VALUES (7)`
    return { ...seen, after: await column(sql`SELECT id FROM failures`) }
  }),

  statements: async (target) => {
    const clients = new Set<postgres.Sql>()
    const sums = await sumsOf(async (client) => {
      const sql = open(target)
      clients.add(sql)
      return (round) => value(sql.unsafe(statement(client, round), [round], { prepare: true }))
    })
    for (const sql of clients) await sql.end()
    return sums
  },

  pool: play(
    (sql) =>
      sumsOf(async (client) => (round) => value(sql.unsafe(statement(client, round), [round], { prepare: true }))),
    { max: 3 }
  ),

  "streamed rows": play(async (sql) => {
    const seen: Array<number> = []
    for await (const rows of sql`SELECT generate_series(1, 1000) AS n`.cursor(100)) seen.push(...rows.map(({ n }) => n))
    return { rows: seen.length, sum: seen.reduce((sum, n) => sum + n, 0) }
  }),

  batch: play(async (sql) => {
    await sql`CREATE TABLE batch (id int PRIMARY KEY)`
    const insert = (ids: ReadonlyArray<number>) => sql`INSERT INTO batch ${sql(ids.map((id) => ({ id })))}`
    await insert(Array.from({ length: 500 }, (_, index) => index + 1))
    const count = () => value(sql`SELECT count(*)::int FROM batch`)
    const rows = await count()
    const sum = await value(sql`SELECT sum(id)::int FROM batch`)
    const error = await errorOf(insert([501, 1, 502]))
    return { rows, sum, error, left: await count() }
  }),

  // Of a copy that is refused in the middle postgres.js never sees the end, with or without a pooler.
  "copy in and out": play(async (sql) => {
    await sql`CREATE TABLE copied (id int, name text)`
    const lines = Array.from({ length: 1000 }, (_, index) => `${index + 1}\tr${index + 1}\n`)
    await pipeline(Readable.from(lines), await sql`COPY copied FROM STDIN`.writable())
    const rows = await value(sql`SELECT count(*)::int FROM copied`)
    const out = await textOf(await sql`COPY (SELECT * FROM copied WHERE id < 4 ORDER BY id) TO STDOUT`.readable())
    return { rows, out: out.trim().split("\n") }
  }),

  "without waiting": play((sql) =>
    Promise.all(
      ["SELECT 1", "SELECT 1 / 0", "SELECT 3", "SELECT 4"].map((text) =>
        value(sql.unsafe(text)).catch((error: unknown) => Reflect.get(Object(error), "code"))
      )
    )
  ),

  cancel: play(
    async (sql) => {
      const sleep = "SELECT pg_sleep(20) /* postgres.js */"
      const sleeper = sql.unsafe(sleep)
      const error = errorOf(sleeper)
      const running = () =>
        value(sql`SELECT count(*)::int FROM pg_stat_activity WHERE state = 'active' AND query = ${sleep}`)
      while ((await running()) === 0);
      sleeper.cancel()
      return { error: await error, after: await value(sql`SELECT 1`) }
    },
    { max: 2 }
  ),

  statement_timeout: play(
    async (sql) => ({ error: await errorOf(sql`SELECT pg_sleep(20)`), after: await value(sql`SELECT 1`) }),
    { connection: { statement_timeout: 500 } }
  ),

  large: play(async (sql) => ({
    sent: await value(sql`SELECT md5(${largeText})`),
    received: digestOf(await value(sql`SELECT repeat('0123456789', 524288)`))
  })),

  "many rows": play(async (sql) => {
    const rows = await column(sql`SELECT generate_series(1, 100000)`)
    return { rows: rows.length, sum: rows.reduce((sum, n) => sum + n, 0) }
  }),

  "several statements": play(async (sql) => {
    await sql`CREATE TABLE several (id int)`
    const count = () => value(sql`SELECT count(*)::int FROM several`)
    await sql.unsafe("INSERT INTO several VALUES (1); INSERT INTO several VALUES (2)")
    const rows = await count()
    const error = await errorOf(sql.unsafe("INSERT INTO several VALUES (3); SELECT 1 / 0"))
    return { rows, error, left: await count() }
  }),

  "empty query": play(async (sql) => {
    for (const empty of ["", " ; "]) await sql.unsafe(empty)
    return value(sql`SELECT 1`)
  }),

  notices: async (target) => {
    const seen: Array<unknown> = []
    await using(open(target, { onnotice: ({ message }) => seen.push(message) }), (sql) =>
      sql.unsafe("DO $$ BEGIN RAISE NOTICE 'first'; RAISE NOTICE 'second'; END $$")
    )
    return seen
  }
})
