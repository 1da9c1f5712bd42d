/**
 * `perseus demo`: shows on one machine, with nothing installed but this package's npm dependencies, what Perseus is for.
 * 200 clients of three tenants work at once over five server connections, and each checks that every row is its own.
 *
 * It proves what it says: the clients count what they have seen and written, and PostgreSQL is asked past the pooler how
 * many connections there were and what stands in the tables. A number that must not be is a failure.
 *
 * Nothing outlives it: no file, no process, no port.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Logging from "../../observability/Logging.ts"
import { DemoFailed } from "./DemoFailed.ts"
import * as Driver from "./Driver.ts"
import * as Load from "./Load.ts"
import * as Screen from "./Screen.ts"
import * as Stage from "./Stage.ts"

export interface Options extends Screen.Output {
  /** Ends after the load, instead of serving until it is interrupted. */
  readonly once: boolean
}

const CLIENTS = 200
const LOAD_SECONDS = 8

const tenants = Object.keys(Stage.TENANTS)

/** Succeeds after the load with `once`, and else ends by interruption alone. */
export const run = (options: Options): Effect.Effect<void, DemoFailed> =>
  Effect.gen(function* () {
    const screen = Screen.make(options)
    // Said last: finalizers run in reverse.
    yield* Effect.addFinalizer(() => screen.line("\nStopped. Nothing is left behind."))
    yield* screen.line("Perseus demo: three tenants, one small pool of server connections\n")
    const driver = yield* Driver.load
    const stage = yield* Stage.build(driver, (step) => screen.line(`  - ${step}`))

    const maxOpen = Stage.SERVER_CONNECTIONS
    yield* screen.line(`\n${CLIENTS} clients of ${tenants.length} tenants over ${maxOpen} server connections\n`)
    yield* drive(driver, stage, screen)
    if (options.once) return
    yield* screen.line(`\n${invitation(stage)}`)
    return yield* Effect.never
  }).pipe(Effect.scoped, Effect.provide(Logging.layerWith(options, () => ({ Level: "WARN", Json: false }))))

// ---- the load ----------------------------------------------------------------------------------------------------

const drive = Effect.fnUntraced(function* (driver: Driver.Driver, stage: Stage.Stage, screen: Screen.Screen) {
  const counts = Load.noCounts()
  const { host, port } = stage.perseus.address
  const load = Load.run({ driver, host, port, clients: CLIENTS, seconds: LOAD_SECONDS, counts })
  const watch = yield* Effect.forkChild(watching(stage, counts, screen))
  // Whichever fails first ends the other.
  yield* Effect.raceFirst(load, Effect.andThen(Fiber.join(watch), Effect.never))
  yield* Fiber.interrupt(watch)
  yield* verdict(stage, counts, screen)
})

/** Each second, until it is interrupted. */
const watching = Effect.fnUntraced(function* (stage: Stage.Stage, counts: Load.Counts, screen: Screen.Screen) {
  let before = { millis: yield* Clock.currentTimeMillis, transactions: 0, switches: 0 }
  for (let second = 1; ; second++) {
    yield* Effect.sleep("1 second")
    const serverConnections = yield* stage.backends
    if (serverConnections > Stage.SERVER_CONNECTIONS) return yield* tooMany(serverConnections)
    const now = {
      millis: yield* Clock.currentTimeMillis,
      transactions: counts.transactions,
      switches: tenantSwitches(stage)
    }
    // On a busy machine it is more than the second that was slept.
    const seconds = (now.millis - before.millis) / 1000
    yield* screen.moment({
      second,
      clients: counts.clients,
      waiting: stage.perseus.snapshot().clients.waiting,
      serverConnections,
      transactions: now.transactions,
      transactionsPerSecond: (now.transactions - before.transactions) / seconds,
      tenantSwitches: now.switches,
      tenantSwitchesPerSecond: (now.switches - before.switches) / seconds,
      rowsChecked: counts.rowsChecked,
      wrongRows: counts.wrongRows
    })
    before = now
  }
})

const tenantSwitches = ({ perseus }: Stage.Stage): number =>
  perseus.snapshot().pools.reduce((sum, { statistics }) => sum + statistics.tenantSwitches, 0)

const tooMany = (connections: number) =>
  new DemoFailed({ message: `PostgreSQL counts ${connections} connections, more than ${Stage.SERVER_CONNECTIONS}` })

// ---- the verdict -------------------------------------------------------------------------------------------------

/** What each tenant's table holds, against what its clients know that they wrote. */
export const verdict = Effect.fnUntraced(function* (stage: Stage.Stage, counts: Load.Counts, screen: Screen.Screen) {
  yield* screen.line("\nPostgreSQL was asked past the pooler:\n")
  let wrong = counts.wrongRows
  for (const tenant of tenants) {
    const [row] = yield* stage.direct.query(
      `SELECT count(*) AS found, count(*) FILTER (WHERE owner <> $1) AS foreign FROM ${tenant}.visit`,
      [tenant]
    )
    const [written, found, foreign] = [counts.visits.get(tenant) ?? 0, Number(row?.found), Number(row?.foreign)]
    yield* screen.line(
      `  ${tenant.padEnd(10)}${Screen.number(written).padStart(7)} rows written by its clients, ` +
        `${Screen.number(found)} found in its schema, ${foreign} of another tenant`
    )
    wrong += Math.abs(found - written) + foreign
  }
  const { transactions, rowsChecked } = counts
  yield* screen.line(
    `\n${Screen.number(transactions)} transactions, ${Screen.number(tenantSwitches(stage))} tenant switches, ` +
      `${Screen.number(rowsChecked)} rows checked, ${Screen.number(wrong)} wrong`
  )
  if (wrong > 0 || transactions === 0) {
    return yield* new DemoFailed({ message: "the demo saw rows that must not be, or nothing at all" })
  }
})

// ---- to try by hand ----------------------------------------------------------------------------------------------

const invitation = ({ perseus }: Stage.Stage): string => {
  const at = Stage.hostPort(perseus.address)
  const { DATABASE: database, CLIENT_USER: user, CLIENT_PASSWORD: password } = Stage
  const dsn = `postgres://${user}:${password}@${at}/${database}`
  const [first = "", second = ""] = tenants
  return [
    "Now it is yours. The same table, another tenant, another answer:",
    "",
    `  PGOPTIONS='-c schema_search_path=${first}' psql '${dsn}' -c 'select * from item'`,
    `  PGOPTIONS='-c schema_search_path=${second}' psql '${dsn}' -c 'select * from item'`,
    "",
    "Without psql, in this directory (node-postgres takes the schema in options):",
    "",
    `  node -e 'new (require("pg").Pool)({ connectionString: process.argv[1] })`,
    `    .query("select * from item").then((r) => { console.table(r.rows); process.exit() })' \\`,
    `    '${dsn}?options=-c%20schema_search_path%3D${tenants[2] ?? ""}'`,
    "",
    ...(perseus.httpAddress === undefined ? [] : [`Metrics: http://${Stage.hostPort(perseus.httpAddress)}/metrics`]),
    `The tenants are ${tenants.join(", ")}. Ctrl-C ends the demo and removes all of it.`
  ].join("\n")
}
