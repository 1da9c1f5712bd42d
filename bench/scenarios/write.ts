/** A transaction of five statements that writes: more round trips for each lease, and frames of more kinds. */
import * as Effect from "effect/Effect"
import { drive, type Protocol } from "../Pgbench.ts"
import { OURS, type Case, type Scenario } from "../Scenario.ts"
import * as BareRelay from "../stage/BareRelay.ts"
import * as PerseusDaemon from "../stage/PerseusDaemon.ts"
import * as Pgbouncer from "../stage/Pgbouncer.ts"
import type { Target } from "../stage/Target.ts"

const POOL_SIZE = 20

export const write: Scenario = {
  name: "write",
  title: `pgbench -N, one tenant, a pool of ${POOL_SIZE}`,
  cases: Effect.fnUntraced(function* (stage, { seconds }) {
    const perseus = yield* PerseusDaemon.start(stage, POOL_SIZE)
    const relay = yield* BareRelay.start(stage, POOL_SIZE)
    const pgbouncer = yield* Pgbouncer.startWhereInstalled(stage, { poolSize: POOL_SIZE, entries: "one" })
    // Rows that earlier runs left dead would make later ones slower.
    const tidy = Effect.andThen(
      stage.query("TRUNCATE t1.pgbench_history"),
      stage.query("VACUUM t1.pgbench_accounts, t1.pgbench_history")
    )
    const run = (target: Target, protocol: Protocol, clients: number) =>
      Effect.andThen(
        tidy,
        drive(target, [{ login: target.login("t1"), clients, protocol, script: { builtin: "simple-update" } }], seconds)
      )
    const caseOf = (protocol: Protocol, clients: number): Case => ({
      variant: protocol,
      clients,
      runs: {
        [OURS]: run(perseus, protocol, clients),
        ...(pgbouncer !== null && { pgbouncer: run(pgbouncer, protocol, clients) }),
        relay: run(relay, protocol, clients)
      },
      bars: [{ measure: "cpuPerTx", against: "pgbouncer", atMost: 1.25 }]
    })
    return (["simple", "extended"] as const).flatMap((protocol) => [8, 64].map((clients) => caseOf(protocol, clients)))
  })
}
