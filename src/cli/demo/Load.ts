/**
 * The demo's clients: they log in, read and write their tenant's tables by unqualified names, check every row that they
 * see, and count. They hold nothing back: the counts are theirs, not the pooler's.
 *
 * Each pauses a little between two transactions, as applications do. Who finds a row of another tenant counts it and
 * goes on; any other failure ends the load.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import type { ClientConfig } from "pg"
import { DemoFailed } from "./DemoFailed.ts"
import type { Connection, Driver, Row } from "./Driver.ts"
import { CLIENT_PASSWORD, CLIENT_USER, DATABASE, TENANTS } from "./Stage.ts"

/** What the clients of all tenants have counted. */
export interface Counts {
  /** That have logged in, those that have left included. */
  clients: number
  transactions: number
  rowsChecked: number
  /** Rows of another tenant, and rows of its own that were not there. */
  wrongRows: number
  /** By tenant: rows that were committed to `visit`. */
  readonly visits: Map<string, number>
}

export const noCounts = (): Counts => ({
  clients: 0,
  transactions: 0,
  rowsChecked: 0,
  wrongRows: 0,
  visits: new Map()
})

export interface Options {
  readonly driver: Driver
  readonly host: string
  readonly port: number
  /** Of all tenants together, dealt out evenly. */
  readonly clients: number
  readonly seconds: number
  /** Written to while the load runs. */
  readonly counts: Counts
}

/** Between two transactions of one client. 200 clients then ask for some 4000 transactions a second. */
const MAX_PAUSE_MS = 100

/** All clients at once; ends when each has finished what it was at when the time was over, and has left. */
export const run = (options: Options): Effect.Effect<void, DemoFailed> => {
  const tenants = Object.keys(TENANTS)
  return Effect.flatMap(Clock.currentTimeMillis, (now) =>
    Effect.forEach(
      Array.from({ length: options.clients }, (_, index) => tenants[index % tenants.length] ?? ""),
      (tenant) => Effect.scoped(client(options, tenant, now + options.seconds * 1000)),
      { concurrency: "unbounded", discard: true }
    )
  )
}

const client = Effect.fnUntraced(function* ({ driver, host, port, counts }: Options, tenant: string, until: number) {
  const connection = yield* driver.connect(loginOf(tenant, { host, port }))
  counts.clients++
  while ((yield* Clock.currentTimeMillis) < until) {
    yield* Effect.sleep(yield* Random.nextIntBetween(0, MAX_PAUSE_MS))
    if (yield* Random.nextBoolean) yield* read(connection, tenant, counts)
    else yield* write(connection, tenant, counts)
    counts.transactions++
  }
})

/** As libpq would send it: node-postgres passes no parameters on that it does not know. */
const loginOf = (tenant: string, at: { readonly host: string; readonly port: number }): ClientConfig => ({
  ...at,
  database: DATABASE,
  user: CLIENT_USER,
  password: CLIENT_PASSWORD,
  options: `-c schema_search_path=${tenant}`
})

/** One statement: a transaction by itself. */
const read = Effect.fnUntraced(function* (connection: Connection, tenant: string, counts: Counts) {
  const names = TENANTS[tenant] ?? []
  const rows = yield* connection.query("SELECT owner, name, current_schema() FROM item WHERE length(name) > $1", [0])
  check(rows, counts, (row) => row.owner === tenant && row.current_schema === tenant && names.includes(`${row.name}`))
  counts.wrongRows += Math.max(0, names.length - rows.length)
})

/** A transaction of several statements, which must all run on one server connection. */
const write = Effect.fnUntraced(function* (connection: Connection, tenant: string, counts: Counts) {
  const isOwn = (row: Row) => row.owner === tenant
  yield* connection.query("BEGIN")
  check(yield* connection.query("INSERT INTO visit VALUES ($1) RETURNING owner", [tenant]), counts, isOwn)
  check(yield* connection.query("SELECT owner FROM visit LIMIT 3"), counts, isOwn)
  yield* connection.query("COMMIT")
  counts.visits.set(tenant, (counts.visits.get(tenant) ?? 0) + 1)
})

const check = (rows: ReadonlyArray<Row>, counts: Counts, isOwn: (row: Row) => boolean) => {
  counts.rowsChecked += rows.length
  counts.wrongRows += rows.filter((row) => !isOwn(row)).length
}
