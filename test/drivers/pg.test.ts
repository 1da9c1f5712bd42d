import { Client, Pool, type ClientConfig } from "pg"
import { compare, errorOf, type Plays } from "./compare.ts"
import { digestOf, largeText, parameters, settings, statement, sumsOf } from "./scenarios.ts"
import type { Target } from "./targets.ts"

const configOf = ({ database, host, options, password, port, user }: Target): ClientConfig => ({
  host,
  port,
  user,
  password,
  database,
  options
})

type Row = Readonly<Record<string, any>>

/** A connected client, and how it sends a statement. */
class Session {
  readonly client: Client
  readonly #named: boolean
  readonly #names = new Map<string, string>()

  constructor(config: ClientConfig, named: boolean) {
    this.client = new Client(config)
    this.#named = named
  }

  /** Under a name that other clients have for other statements. */
  async rows(text: string, values: ReadonlyArray<unknown> = []): Promise<ReadonlyArray<Row>> {
    if (!this.#named) return (await this.client.query(text, values.slice())).rows
    const name = this.#names.get(text) ?? `s${this.#names.size}`
    this.#names.set(text, name)
    return (await this.client.query({ name, text, values: values.slice() })).rows
  }

  async value(text: string, values: ReadonlyArray<unknown> = []): Promise<any> {
    return Object.values((await this.rows(text, values))[0] ?? {})[0]
  }

  async column(text: string): Promise<ReadonlyArray<any>> {
    return (await this.rows(text)).map((row) => Object.values(row)[0])
  }
}

/** How node-postgres is used: each statement by itself, prepared under names, or without waiting for answers. */
interface Manner {
  readonly named: boolean
  readonly pipeline: boolean
}

const plays = ({ named, pipeline }: Manner): Plays => {
  const open = async (config: ClientConfig) => {
    const session = new Session({ ...config, pipeline }, named)
    await session.client.connect()
    return session
  }
  const using = async <A>(config: ClientConfig, use: (session: Session) => Promise<A>): Promise<A> => {
    const session = await open(config)
    try {
      return await use(session)
    } finally {
      await session.client.end()
    }
  }
  const play =
    <A>(use: (session: Session) => Promise<A>) =>
    (target: Target) =>
      using(configOf(target), use)

  return {
    connect: play(async (session) => {
      const [row] = await session.rows("SELECT current_schema() AS schema, name AS home FROM home")
      return row
    }),

    "connect otherwise": ({ database, host, options, password, port, user }) => {
      const login = `${user}:${encodeURIComponent(password)}`
      const connectionString = `postgres://${login}@${host}:${port}/${database}?options=${encodeURIComponent(options)}`
      return using({ connectionString }, (session) => session.value("SELECT current_schema()"))
    },

    reconnect: async (target) => {
      const seen: Array<unknown> = []
      for (let i = 0; i < 5; i++) {
        seen.push(await using(configOf(target), (session) => session.value("SELECT current_schema()")))
      }
      return seen
    },

    settings: (target) => {
      const options = `${target.options} -c TimeZone=Asia/Tokyo -c DateStyle=ISO,DMY`
      return using({ ...configOf(target), options, application_name: "drivers" }, async (session) => {
        const seen: Array<unknown> = []
        for (let i = 0; i < 3; i++) seen.push((await session.rows(settings))[0])
        return seen
      })
    },

    types: play(async (session) => {
      const { bytea, int8, ints, json, nothing, numeric, text, texts, timestamptz } = parameters
      const [row] = await session.rows(
        `SELECT $1::int8 AS int8, $2::numeric AS numeric, $3::timestamptz AS timestamptz, $4::bytea AS bytea,
          $5::int[] AS ints, $6::text[] AS texts, $7::jsonb AS json, $8::text AS nothing, $9::text AS text`,
        [int8, numeric, timestamptz, bytea, ints, texts, json, nothing, text]
      )
      return { ...row, bytea: row?.["bytea"].toString("hex") }
    }),

    errors: play(async (session) => {
      await session.rows("CREATE TABLE errors (id int PRIMARY KEY)")
      await session.rows("INSERT INTO errors VALUES (1)")
      const unique: any = await session.rows("INSERT INTO errors VALUES (1)").catch((error: unknown) => error)
      return {
        syntax: await errorOf(session.rows("SELEC 1")),
        division: await errorOf(session.rows("SELECT 1 / 0")),
        table: await errorOf(session.rows("SELECT * FROM nowhere")),
        unique: unique.code,
        constraint: unique.constraint
      }
    }),

    transactions: play(async (session) => {
      await session.rows("CREATE TABLE transactions (id int)")
      const ids = () => session.column("SELECT id FROM transactions ORDER BY id")
      const insert = (id: number) => session.rows("INSERT INTO transactions VALUES ($1)", [id])
      await session.rows("BEGIN")
      await insert(1)
      await session.rows("COMMIT")
      const committed = await ids()
      await session.rows("BEGIN")
      await insert(2)
      await session.rows("ROLLBACK")
      const rolledBack = await ids()
      await session.rows("BEGIN")
      await insert(3)
      await session.rows("SAVEPOINT here")
      await insert(4)
      await session.rows("ROLLBACK TO here")
      await insert(5)
      await session.rows("COMMIT")
      return { committed, rolledBack, savepoint: await ids() }
    }),

    "failed transaction": play(async (session) => {
      await session.rows("CREATE TABLE failures (id int PRIMARY KEY)")
      const insert = (id: number) => session.rows("INSERT INTO failures VALUES ($1)", [id])
      await session.rows("BEGIN")
      await insert(1)
      const error = await errorOf(insert(1))
      const within = await errorOf(session.rows("SELECT 1"))
      await session.rows("ROLLBACK")
      await insert(7)
      return { error, within, after: await session.column("SELECT id FROM failures") }
    }),

    statements: async (target) => {
      const sessions = new Set<Session>()
      const sums = await sumsOf(async (client) => {
        const session = await open(configOf(target))
        sessions.add(session)
        return (round) => session.value(statement(client, round), [round])
      })
      for (const { client } of sessions) await client.end()
      return sums
    },

    pool: async (target) => {
      const pool = new Pool({ ...configOf(target), max: 3 })
      const sums = await sumsOf(async (client) => async (round) => {
        // Of one text each: statements of the pool are nobody's own.
        const text = statement(client, round)
        const query = named ? { name: `${client}-${round % 3}`, text, values: [round] } : { text, values: [round] }
        return (await pool.query<{ n: number }>(query)).rows[0]!.n
      })
      await pool.end()
      return sums
    },

    cursor: play(async (session) => {
      await session.rows("BEGIN")
      await session.rows("DECLARE portions CURSOR FOR SELECT generate_series(1, 1000)")
      const portion = () => session.column("FETCH 100 FROM portions")
      const seen = [...(await portion())]
      const between = await session.value("SELECT 10")
      for (let next = await portion(); next.length > 0; next = await portion()) seen.push(...next)
      await session.rows("COMMIT")
      return { rows: seen.length, sum: seen.reduce((sum, n) => sum + n, 0), between }
    }),

    batch: play(async (session) => {
      await session.rows("CREATE TABLE batch (id int PRIMARY KEY)")
      const insert = (ids: ReadonlyArray<number>) => session.rows("INSERT INTO batch SELECT unnest($1::int[])", [ids])
      await insert(Array.from({ length: 500 }, (_, index) => index + 1))
      const rows = await session.value("SELECT count(*)::int FROM batch")
      const sum = await session.value("SELECT sum(id)::int FROM batch")
      const error = await errorOf(insert([501, 1, 502]))
      return { rows, sum, error, left: await session.value("SELECT count(*)::int FROM batch") }
    }),

    // Without a pipeline the driver itself waits.
    ...(pipeline && {
      "without waiting": play(async (session) => {
        const sent = ["SELECT 1", "SELECT 1 / 0", "SELECT 3", "SELECT 4"].map((sql) =>
          session.value(sql).catch((error: unknown) => Reflect.get(Object(error), "code"))
        )
        return Promise.all(sent)
      })
    }),

    statement_timeout: (target) =>
      using({ ...configOf(target), statement_timeout: 500 }, async (session) => ({
        error: await errorOf(session.rows("SELECT pg_sleep(20)")),
        after: await session.value("SELECT 1")
      })),

    large: play(async (session) => ({
      sent: await session.value("SELECT md5($1)", [largeText]),
      received: digestOf(await session.value("SELECT repeat('0123456789', 524288)"))
    })),

    "many rows": play(async (session) => {
      const rows = await session.column("SELECT generate_series(1, 100000)")
      return { rows: rows.length, sum: rows.reduce((sum, n) => sum + n, 0) }
    }),

    "several statements": play(async ({ client }) => {
      const count = async () => (await client.query("SELECT count(*)::int AS n FROM several")).rows[0]?.n
      await client.query("CREATE TABLE several (id int)")
      await client.query("INSERT INTO several VALUES (1); INSERT INTO several VALUES (2)")
      const rows = await count()
      const error = await errorOf(client.query("INSERT INTO several VALUES (3); SELECT 1 / 0"))
      return { rows, error, left: await count() }
    }),

    "empty query": play(async (session) => {
      for (const empty of ["", " ; "]) await session.rows(empty)
      return session.value("SELECT 1")
    }),

    notices: play(async (session) => {
      const seen: Array<unknown> = []
      session.client.on("notice", ({ message }) => seen.push(message))
      await session.rows("DO $$ BEGIN RAISE NOTICE 'first'; RAISE NOTICE 'second'; END $$")
      return seen
    })
  }
}

compare("node-postgres", plays({ named: false, pipeline: false }))
compare("node-postgres with named statements", plays({ named: true, pipeline: false }))
compare("node-postgres in pipeline mode", plays({ named: true, pipeline: true }))
