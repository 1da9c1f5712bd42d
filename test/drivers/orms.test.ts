import { asc, count, eq, sql as drizzleSql, sum } from "drizzle-orm"
import { drizzle, type NodePgDatabase } from "drizzle-orm/node-postgres"
import { integer, jsonb, pgTable, text } from "drizzle-orm/pg-core"
import { Kysely, PostgresDialect, sql } from "kysely"
import { Pool } from "pg"
import { compare, errorOf, sqlStateOf } from "./compare.ts"
import { sumsOf } from "./scenarios.ts"
import type { Target } from "./targets.ts"

const poolOf = ({ database, host, options, password, port, user }: Target, max: number) =>
  new Pool({ host, port, user, password, database, options, max })

class Undo extends Error {}

const undone = (work: Promise<unknown>) =>
  work.catch((error: unknown) => {
    if (!(error instanceof Undo)) throw error
  })

const ids = Array.from({ length: 500 }, (_, index) => index + 1)

// ---- kysely

interface Tables {
  readonly home: { readonly name: string }
  readonly things: { readonly id: number; readonly note: unknown }
}

const withKysely =
  <A>(use: (db: Kysely<Tables>) => Promise<A>, max = 1) =>
  async (target: Target): Promise<A> => {
    const db = new Kysely<Tables>({ dialect: new PostgresDialect({ pool: poolOf(target, max) }) })
    try {
      return await use(db)
    } finally {
      await db.destroy()
    }
  }

const kyselyThings = async (db: Kysely<Tables>) => {
  await db.schema.dropTable("things").ifExists().execute()
  await db.schema
    .createTable("things")
    .addColumn("id", "integer", (column) => column.primaryKey())
    .addColumn("note", "jsonb")
    .execute()
  return async () => {
    const rows = await db.selectFrom("things").select("id").orderBy("id").execute()
    return rows.map(({ id }) => id)
  }
}

compare("kysely", {
  connect: withKysely((db) =>
    db
      .selectFrom("home")
      .select(["name as home", sql<string>`current_schema()`.as("schema")])
      .executeTakeFirst()
  ),

  errors: withKysely(async (db) => {
    await sql`CREATE TABLE errors (id int PRIMARY KEY)`.execute(db)
    await sql`INSERT INTO errors VALUES (1)`.execute(db)
    const unique: any = await sql`INSERT INTO errors VALUES (1)`.execute(db).catch((error: unknown) => error)
    return {
      syntax: await errorOf(sql`SELEC 1`.execute(db)),
      division: await errorOf(sql`SELECT 1 / 0`.execute(db)),
      table: await errorOf(sql`SELECT * FROM nowhere`.execute(db)),
      unique: unique.code,
      constraint: unique.constraint
    }
  }),

  transactions: withKysely(async (db) => {
    const rows = await kyselyThings(db)
    await db.transaction().execute((tx) => tx.insertInto("things").values({ id: 1, note: null }).execute())
    const committed = await rows()
    await undone(
      db.transaction().execute(async (tx) => {
        await tx.insertInto("things").values({ id: 2, note: null }).execute()
        throw new Undo()
      })
    )
    const rolledBack = await rows()
    const tx = await db.startTransaction().execute()
    await tx.insertInto("things").values({ id: 3, note: null }).execute()
    const here = await tx.savepoint("here").execute()
    await here.insertInto("things").values({ id: 4, note: null }).execute()
    const before = await here.rollbackToSavepoint("here").execute()
    await before.insertInto("things").values({ id: 5, note: null }).execute()
    await tx.commit().execute()
    return { committed, rolledBack, savepoint: await rows() }
  }),

  "failed transaction": withKysely(async (db) => {
    const rows = await kyselyThings(db)
    const insert = (tx: Kysely<Tables>, id: number) => tx.insertInto("things").values({ id, note: null }).execute()
    const seen: { error?: string | null; within?: string | null } = {}
    await undone(
      db.transaction().execute(async (tx) => {
        await insert(tx, 1)
        seen.error = await errorOf(insert(tx, 1))
        seen.within = await errorOf(sql`SELECT 1`.execute(tx))
        throw new Undo()
      })
    )
    await insert(db, 7)
    return { ...seen, after: await rows() }
  }),

  pool: withKysely(
    (db) =>
      sumsOf(async (client) => async (round) => {
        const { rows } = await sql<{ n: number }>`SELECT ${round}::int * ${10 ** (round % 3)} + ${client} AS n`.execute(
          db
        )
        return rows[0]!.n
      }),
    3
  ),

  batch: withKysely(async (db) => {
    const rows = await kyselyThings(db)
    const insert = (all: ReadonlyArray<number>) =>
      db
        .insertInto("things")
        .values(all.map((id) => ({ id, note: { id } })))
        .execute()
    await insert(ids)
    const all = await rows()
    const error = await errorOf(insert([501, 1, 502]))
    const left = await rows()
    return { rows: all.length, sum: all.reduce((sum, id) => sum + id, 0), error, left: left.length }
  })
})

// ---- drizzle

const home = pgTable("home", { name: text() })
const things = pgTable("things", { id: integer().primaryKey(), note: jsonb() })

const withDrizzle =
  <A>(use: (db: NodePgDatabase) => Promise<A>, max = 1) =>
  async (target: Target): Promise<A> => {
    const pool = poolOf(target, max)
    try {
      return await use(drizzle(pool))
    } finally {
      await pool.end()
    }
  }

const drizzleThings = async (db: NodePgDatabase) => {
  await db.execute("DROP TABLE IF EXISTS things")
  await db.execute("CREATE TABLE things (id int PRIMARY KEY, note jsonb)")
  return async () => (await db.select({ id: things.id }).from(things).orderBy(asc(things.id))).map(({ id }) => id)
}

compare("drizzle", {
  connect: withDrizzle(
    async (db) => (await db.select({ schema: drizzleSql`current_schema()`, home: home.name }).from(home))[0]
  ),

  errors: withDrizzle(async (db) => {
    await db.execute("CREATE TABLE errors (id int PRIMARY KEY)")
    await db.execute("INSERT INTO errors VALUES (1)")
    // It puts an error of its own around the driver's.
    const unique: any = await db.execute("INSERT INTO errors VALUES (1)").catch((error: unknown) => error)
    return {
      syntax: await errorOf(db.execute("SELEC 1")),
      division: await errorOf(db.execute("SELECT 1 / 0")),
      table: await errorOf(db.execute("SELECT * FROM nowhere")),
      unique: sqlStateOf(unique),
      constraint: unique.cause.constraint
    }
  }),

  transactions: withDrizzle(async (db) => {
    const rows = await drizzleThings(db)
    await db.transaction((tx) => tx.insert(things).values({ id: 1 }))
    const committed = await rows()
    await undone(
      db.transaction(async (tx) => {
        await tx.insert(things).values({ id: 2 })
        throw new Undo()
      })
    )
    const rolledBack = await rows()
    await db.transaction(async (tx) => {
      await tx.insert(things).values({ id: 3 })
      await undone(
        tx.transaction(async (nested) => {
          await nested.insert(things).values({ id: 4 })
          throw new Undo()
        })
      )
      await tx.insert(things).values({ id: 5 })
    })
    return { committed, rolledBack, savepoint: await rows() }
  }),

  "failed transaction": withDrizzle(async (db) => {
    const rows = await drizzleThings(db)
    const seen: { error?: string | null; within?: string | null } = {}
    await undone(
      db.transaction(async (tx) => {
        await tx.insert(things).values({ id: 1 })
        seen.error = await errorOf(tx.insert(things).values({ id: 1 }))
        seen.within = await errorOf(tx.execute("SELECT 1"))
        throw new Undo()
      })
    )
    await db.insert(things).values({ id: 7 })
    return { ...seen, after: await rows() }
  }),

  pool: withDrizzle(
    (db) =>
      sumsOf(async (client) => async (round) => {
        const { rows } = await db.execute<{ n: number }>(
          drizzleSql`SELECT ${round}::int * ${drizzleSql.raw(String(10 ** (round % 3)))} + ${client} AS n`
        )
        return rows[0]!.n
      }),
    3
  ),

  // Its prepared statements are the protocol's, under names that the program gives.
  "prepared by name": withDrizzle(async (db) => {
    await drizzleThings(db)
    await db.insert(things).values([1, 2, 3].map((id) => ({ id, note: { id } })))
    const byId = db
      .select({ note: things.note })
      .from(things)
      .where(eq(things.id, drizzleSql.placeholder("id")))
      .prepare("by-id")
    const seen: Array<unknown> = []
    for (const id of [1, 2, 3, 1, 2, 3]) seen.push(...(await byId.execute({ id })))
    return seen
  }, 3),

  batch: withDrizzle(async (db) => {
    await drizzleThings(db)
    const insert = (all: ReadonlyArray<number>) => db.insert(things).values(all.map((id) => ({ id, note: { id } })))
    await insert(ids)
    const [all] = await db.select({ rows: count(), sum: sum(things.id).mapWith(Number) }).from(things)
    const error = await errorOf(insert([501, 1, 502]))
    return { ...all, error, left: await db.$count(things) }
  })
})
