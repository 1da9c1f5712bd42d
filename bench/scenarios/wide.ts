/**
 * Gigabytes through one connection, each way: how fast, and how much memory the pooler takes for it, whose bytes must not pile up
 * however long a row is.
 */
import * as Effect from "effect/Effect"
import { memoryOf, resetPeak } from "../Machine.ts"
import type { Sample } from "../Sample.ts"
import { OURS, type BenchFailed, type Case, type Scenario } from "../Scenario.ts"
import * as Driver from "../stage/Driver.ts"
import * as PerseusDaemon from "../stage/PerseusDaemon.ts"
import * as Pgbouncer from "../stage/Pgbouncer.ts"
import { ROLE } from "../stage/Stage.ts"
import type { Target } from "../stage/Target.ts"
import type { Order } from "../wire/Order.ts"

const POOL_SIZE = 20
const BYTES = 1_000_000_000

type Transfer = (target: Target) => Extract<Order, { do: "read" | "write" }>

const rowsOf = (bytes: number) => `SELECT repeat('x', ${bytes}) FROM generate_series(1, ${BYTES / bytes})`

const reads =
  (sql: string): Transfer =>
  (target) => ({ do: "read", at: target, login: target.login("t1"), sql })

const transfers: Readonly<Record<string, Transfer>> = {
  "rows of 1 kB": reads(rowsOf(1000)),
  "rows of 1 MB": reads(rowsOf(1_000_000)),
  "COPY out": reads(`COPY (${rowsOf(1000)}) TO STDOUT`),
  "COPY in": (target) => ({
    do: "write",
    at: target,
    login: target.login("t1"),
    sql: "COPY wide FROM STDIN",
    rowBytes: 1000,
    rows: BYTES / 1000
  })
}

export const wide: Scenario = {
  name: "wide",
  title: `${BYTES / 1e9} GB through one connection`,
  cases: Effect.fnUntraced(function* (stage) {
    const driver = yield* Driver.start
    const perseus = yield* PerseusDaemon.start(stage, POOL_SIZE)
    const pgbouncer = yield* Pgbouncer.startWhereInstalled(stage, { poolSize: POOL_SIZE, entries: "one" })
    yield* Effect.acquireRelease(stage.query(`CREATE UNLOGGED TABLE t1.wide (text text)`), () =>
      Effect.ignore(stage.query("DROP TABLE t1.wide"))
    )
    yield* stage.query(`ALTER TABLE t1.wide OWNER TO ${ROLE}`)
    const run = (target: Target, transfer: Transfer): Effect.Effect<Sample, BenchFailed> =>
      Effect.gen(function* () {
        yield* stage.query("TRUNCATE t1.wide")
        // The first transaction opens connections, and is not what is measured.
        yield* driver.tell({ ...reads("SELECT 1")(target) })
        if (target.pid !== null) resetPeak(target.pid)
        const before = target.pid === null ? null : memoryOf(target.pid)
        const bytesPerSecond = yield* driver.tell(transfer(target))
        return {
          mbPerSec: bytesPerSecond / 1e6,
          ...(before !== null && { growthMb: (memoryOf(target.pid!).peak - before.resident) / 2 ** 20 })
        }
      })
    return Object.entries(transfers).map(([variant, transfer]): Case => ({
      variant,
      clients: 1,
      runs: {
        [OURS]: run(perseus, transfer),
        direct: run(stage.direct, transfer),
        ...(pgbouncer !== null && { pgbouncer: run(pgbouncer, transfer) })
      },
      bars: [
        { measure: "mbPerSec", against: "direct", atLeast: 0.8 },
        { measure: "growthMb", atMost: 32 }
      ]
    }))
  })
}
