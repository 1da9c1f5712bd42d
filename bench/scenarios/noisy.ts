/**
 * One tenant asks for as much as it can get; twenty others ask for one row now and then. Told are the quiet ones' latencies, from
 * the moment at which each transaction was due: a load that waits with its next until the last is done would hide the waiting.
 */
import * as Effect from "effect/Effect"
import { drive } from "../Pgbench.ts"
import { only } from "../Sample.ts"
import { OURS, type Scenario } from "../Scenario.ts"
import * as PerseusDaemon from "../stage/PerseusDaemon.ts"
import * as Pgbouncer from "../stage/Pgbouncer.ts"
import { tenantNames } from "../stage/Stage.ts"
import type { Target } from "../stage/Target.ts"

const POOL_SIZE = 20
const NOISY_CLIENTS = 200
const QUIET = 20
const QUIET_RATE = 20

const DIRECT = "noisy goes direct"
const FIRST_COME = "first come"

const script = {
  text: "\\set aid random(1, 1000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n",
  transactions: 1
}

export const noisy: Scenario = {
  name: "noisy",
  title: `one tenant with ${NOISY_CLIENTS} clients, ${QUIET} with ${QUIET_RATE} transactions a second each, a pool of ${POOL_SIZE}: the quiet ones' latencies`,
  cases: Effect.fnUntraced(function* (stage, { seconds }) {
    const perseus = yield* PerseusDaemon.start(stage, POOL_SIZE)
    const pgbouncer = yield* Pgbouncer.startWhereInstalled(stage, { poolSize: POOL_SIZE, entries: "one" }, FIRST_COME)
    const run = (quiet: Target, noisy: Target) =>
      Effect.map(
        drive(
          quiet,
          [
            { target: noisy, login: noisy.login("t1"), clients: NOISY_CLIENTS, script },
            ...tenantNames
              .slice(1, 1 + QUIET)
              .map((tenant) => ({ login: quiet.login(tenant), clients: 1, script, rate: QUIET_RATE, watched: true }))
          ],
          seconds
        ),
        // CPU for each transaction would be of two loads, which may not even go the same way.
        (sample) => only(sample, "tps", "p50", "p95", "p99")
      )
    return [
      {
        variant: "quiet tenants",
        clients: NOISY_CLIENTS + QUIET,
        runs: {
          [OURS]: run(perseus, perseus),
          [DIRECT]: run(perseus, stage.direct),
          ...(pgbouncer !== null && { [FIRST_COME]: run(pgbouncer, pgbouncer) })
        },
        bars: [
          { measure: "p99", against: DIRECT, atMost: 3 },
          { measure: "p99", against: FIRST_COME, atMost: 0.1 }
        ]
      }
    ]
  })
}
