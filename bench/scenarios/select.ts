/** One row by its key: the plainest transaction, where the pooler's own cost shows most. */
import * as Effect from "effect/Effect"
import { drive, type Protocol } from "../Pgbench.ts"
import { OURS, type Bar, type Case, type Scenario } from "../Scenario.ts"
import * as BareRelay from "../stage/BareRelay.ts"
import * as PerseusDaemon from "../stage/PerseusDaemon.ts"
import * as Pgbouncer from "../stage/Pgbouncer.ts"
import type { Target } from "../stage/Target.ts"

export const POOL_SIZE = 20
const CLIENTS = [1, 8, 64, 512]

/** CPU against pgbouncer, by clients. */
const cpuBar: Readonly<Record<number, number>> = { 8: 1.35, 64: 1.2, 512: 1.3 }

export const barsOf = (protocol: Protocol, clients: number): ReadonlyArray<Bar> => [
  ...(protocol === "prepared"
    ? [{ measure: "cpuPerTx" as const, against: "pgbouncer", atMost: 1 }]
    : [
        ...(cpuBar[clients] === undefined
          ? []
          : [{ measure: "cpuPerTx" as const, against: "pgbouncer", atMost: cpuBar[clients] }]),
        { measure: "cpuPerTx" as const, against: "relay", atMost: 1.1 }
      ]),
  ...(clients >= 64
    ? [
        { measure: "tps" as const, against: "pgbouncer", atLeast: 0.9 },
        { measure: "p99" as const, against: "pgbouncer", atMost: 1.1 }
      ]
    : [])
]

export const select: Scenario = {
  name: "select",
  title: `pgbench -S, one tenant, a pool of ${POOL_SIZE}`,
  cases: Effect.fnUntraced(function* (stage, { seconds }) {
    const perseus = yield* PerseusDaemon.start(stage, POOL_SIZE)
    const relay = yield* BareRelay.start(stage, POOL_SIZE)
    const installed = yield* Pgbouncer.find
    const pgbouncer =
      installed === null ? null : yield* Pgbouncer.start(stage, installed, { poolSize: POOL_SIZE, entries: "one" })
    const run = (target: Target, protocol: Protocol, clients: number) =>
      drive(target, [{ login: target.login("t1"), clients, protocol, script: { builtin: "select-only" } }], seconds)
    const caseOf = (protocol: Protocol, clients: number): Case => ({
      variant: protocol,
      clients,
      runs: {
        [OURS]: run(perseus, protocol, clients),
        ...(pgbouncer !== null &&
          (protocol !== "prepared" || installed!.prepared) && { pgbouncer: run(pgbouncer, protocol, clients) }),
        // It does not know named statements.
        ...(protocol !== "prepared" && { relay: run(relay, protocol, clients) })
      },
      bars: barsOf(protocol, clients)
    })
    return (["simple", "extended", "prepared"] as const).flatMap((protocol) =>
      CLIENTS.map((clients) => caseOf(protocol, clients))
    )
  })
}
