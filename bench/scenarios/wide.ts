/**
 * Gigabytes through one connection, each way: how fast, and how much memory the pooler takes for it, whose bytes must not pile up
 * however long a row is.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { memoryOf, resetPeak } from "../Machine.ts"
import { drive } from "../Pgbench.ts"
import type { Sample } from "../Sample.ts"
import { OURS, type BenchFailed, type Case, type Scenario } from "../Scenario.ts"
import * as Driver from "../stage/Driver.ts"
import * as PerseusDaemon from "../stage/PerseusDaemon.ts"
import * as Pgbouncer from "../stage/Pgbouncer.ts"
import { ROLE } from "../stage/Stage.ts"
import type { Pooler, Target } from "../stage/Target.ts"
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
    yield* Effect.acquireRelease(stage.query("CREATE UNLOGGED TABLE t1.wide (text text)"), () =>
      Effect.ignore(stage.query("DROP TABLE t1.wide"))
    )
    yield* stage.query(`ALTER TABLE t1.wide OWNER TO ${ROLE}`)
    const transferTo = (target: Target, transfer: Transfer): Effect.Effect<Sample, BenchFailed> =>
      Effect.gen(function* () {
        yield* stage.query("TRUNCATE t1.wide")
        const bytesPerSecond = yield* driver.tell(transfer(target))
        return { mbPerSec: bytesPerSecond / 1e6 }
      })
    /** A process of its own each time: what the transfer before has left would hide what this one takes. */
    const through = (pooler: Effect.Effect<Pooler, BenchFailed, Scope.Scope>, transfer: Transfer) =>
      Effect.gen(function* () {
        const target = yield* pooler
        // What any work takes is not the transfer's to answer for.
        yield* drive(target, [{ login: target.login("t1"), clients: 8, script: { builtin: "select-only" } }], 1)
        resetPeak(target.pid)
        const before = memoryOf(target.pid).resident
        const sample = yield* transferTo(target, transfer)
        return { ...sample, growthMb: (memoryOf(target.pid).peak - before) / 2 ** 20 }
      }).pipe(Effect.scoped)
    const perseus = PerseusDaemon.start(stage, POOL_SIZE)
    const installed = yield* Pgbouncer.find
    const setup = { poolSize: POOL_SIZE, entries: "one" } as const
    return Object.entries(transfers).map(([variant, transfer]): Case => ({
      variant,
      clients: 1,
      runs: {
        [OURS]: through(perseus, transfer),
        direct: transferTo(stage.direct, transfer),
        ...(installed !== null && { pgbouncer: through(Pgbouncer.start(stage, installed, setup), transfer) })
      },
      bars: [
        { measure: "mbPerSec", against: "direct", atLeast: 0.8 },
        { measure: "growthMb", atMost: 32 }
      ]
    }))
  })
}
