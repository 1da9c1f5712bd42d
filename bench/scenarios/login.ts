/**
 * Logins: in a steady stream, with passwords that the pooler knows already, and all at once after a restart, when it knows none.
 *
 * A password that is not known costs a derivation of some 40 ms, which is the hash's purpose and not the pooler's to save. What can
 * be asked of the pooler is that the derivations are not much slower than they are alone, and that those who are logged in
 * already do not notice more of them than of any other program that takes as much CPU.
 */
import * as Effect from "effect/Effect"
import { drive, driveDuring, type Load } from "../Pgbench.ts"
import { only, type Sample } from "../Sample.ts"
import { OURS, type BenchFailed, type Case, type Scenario } from "../Scenario.ts"
import * as Driver from "../stage/Driver.ts"
import * as PerseusDaemon from "../stage/PerseusDaemon.ts"
import * as Pgbouncer from "../stage/Pgbouncer.ts"
import { PASSWORD, tenantNames, type Stage } from "../stage/Stage.ts"
import type { Target } from "../stage/Target.ts"

const POOL_SIZE = 20

const oneRow: Load["script"] = { text: "SELECT abalance FROM pgbench_accounts WHERE aid = 1;\n", transactions: 1 }

/** Afterwards the pooler knows the tenants' passwords. */
const logInOnce = (driver: Driver.Driver, target: Target, tenants: ReadonlyArray<string>) =>
  driver.tell({
    do: "storm",
    at: target,
    groups: tenants.map((tenant) => ({ login: target.login(tenant), count: 1 })),
    sql: "SELECT 1"
  })

export const login: Scenario = {
  name: "login",
  title: "pgbench -C: log in, ask for one row, log out; the password is known",
  cases: Effect.fnUntraced(function* (stage, { seconds }) {
    const driver = yield* Driver.start
    const perseus = yield* PerseusDaemon.start(stage, POOL_SIZE)
    yield* logInOnce(driver, perseus, tenantNames)
    const one = yield* Pgbouncer.startWhereInstalled(stage, { poolSize: POOL_SIZE, entries: "one" })
    const each = yield* Pgbouncer.startWhereInstalled(stage, { poolSize: 5, entries: "each tenant" })
    const run = (target: Target, tenants: ReadonlyArray<string>, clients: number) =>
      drive(
        target,
        tenants.map((tenant) => ({
          login: target.login(tenant),
          clients,
          script: oneRow,
          reconnects: true,
          // pgbench's clock begins when it is logged in.
          untimed: true
        })),
        seconds
      )
    const caseOf = (
      variant: string,
      tenants: ReadonlyArray<string>,
      clients: number,
      pgbouncer: Target | null
    ): Case => ({
      variant,
      clients: clients * tenants.length,
      runs: {
        [OURS]: run(perseus, tenants, clients),
        ...(pgbouncer !== null && { pgbouncer: run(pgbouncer, tenants, clients) })
      },
      bars: [{ measure: "cpuPerTx", atMost: 400 }]
    })
    return [caseOf("1 tenant", ["t1"], 8, one), caseOf(`${tenantNames.length} tenants`, tenantNames, 1, each)]
  })
}

const STORM = 1000
const BUSY_CLIENTS = 8
/** A tenant beside the others, whose password is known when the storm comes. */
const KNOWN = "known"
const DERIVATIONS_ALONE = "derivations alone"
const DERIVATIONS_OUTSIDE = "derivations outside"

export const storm: Scenario = {
  name: "storm",
  title: `${STORM} clients at once after a restart of the pooler, each logs in and asks one thing`,
  cases: Effect.fnUntraced(function* (stage) {
    const driver = yield* Driver.start
    yield* stage.addRows({
      database: KNOWN,
      places: [{ schema: "t1", host: `${stage.direct.host}:${stage.direct.port}` }]
    })
    const daemon = PerseusDaemon.start(stage, POOL_SIZE)
    const come = (target: Target, tenants: ReadonlyArray<string>) =>
      driver.tell({
        do: "storm",
        at: target,
        groups: tenants.map((tenant) => ({ login: target.login(tenant), count: STORM / tenants.length })),
        sql: "SELECT 1"
      })
    const derive = driver.tell({ do: "derive", hash: stage.hash, password: PASSWORD, times: tenantNames.length })
    const timed = (seconds: Effect.Effect<number, BenchFailed>) => Effect.map(seconds, (seconds) => ({ seconds }))
    const pgbouncer = yield* Pgbouncer.find
    return [
      {
        variant: "1 tenant",
        clients: STORM,
        runs: {
          [OURS]: timed(Effect.scoped(Effect.flatMap(daemon, (target) => come(target, ["t1"])))),
          ...(pgbouncer !== null && {
            pgbouncer: timed(
              Effect.scoped(
                Effect.flatMap(Pgbouncer.start(stage, pgbouncer, { poolSize: POOL_SIZE, entries: "one" }), (target) =>
                  come(target, ["t1"])
                )
              )
            )
          })
        },
        bars: [{ measure: "seconds", atMost: 2 }]
      },
      {
        variant: `${tenantNames.length} tenants, unknown`,
        clients: STORM,
        runs: {
          [OURS]: timed(Effect.scoped(Effect.flatMap(daemon, (target) => come(target, tenantNames)))),
          [DERIVATIONS_ALONE]: timed(derive)
        },
        bars: [{ measure: "seconds", against: DERIVATIONS_ALONE, atMost: 1.5 }]
      },
      {
        variant: `${tenantNames.length} tenants, unknown, beside ${BUSY_CLIENTS} busy clients`,
        clients: STORM,
        runs: {
          [OURS]: besideBusy(stage, driver, (target) => come(target, tenantNames)),
          [DERIVATIONS_OUTSIDE]: besideBusy(stage, driver, () => derive)
        },
        bars: [{ measure: "p99", against: DERIVATIONS_OUTSIDE, atMost: 3 }]
      }
    ]
  })
}

/** What the busy clients of a known tenant see while something happens, and how long that takes. */
const besideBusy = (
  stage: Stage,
  driver: Driver.Driver,
  happen: (target: Target) => Effect.Effect<number, BenchFailed>
): Effect.Effect<Sample, BenchFailed> =>
  Effect.gen(function* () {
    const perseus = yield* PerseusDaemon.start(stage, POOL_SIZE)
    const login = { ...perseus.login("t1"), database: KNOWN }
    yield* driver.tell({ do: "storm", at: perseus, groups: [{ login, count: 1 }], sql: "SELECT 1" })
    const [sample, seconds] = yield* driveDuring(
      perseus,
      [{ login, clients: BUSY_CLIENTS, script: { builtin: "select-only" } }],
      happen(perseus)
    )
    return { ...only(sample, "tps", "p50", "p95", "p99"), seconds }
  }).pipe(Effect.scoped)
