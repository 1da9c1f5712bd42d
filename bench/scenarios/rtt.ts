/**
 * A server that is 1 ms away: whether a pooler adds round trips. One more for a transaction would double its latency; what the
 * pooler itself takes is small beside it.
 */
import * as Effect from "effect/Effect"
import { drive } from "../Pgbench.ts"
import { OURS, type Scenario } from "../Scenario.ts"
import * as Delay from "../stage/Delay.ts"
import * as PerseusDaemon from "../stage/PerseusDaemon.ts"
import type { Login, Target } from "../stage/Target.ts"

const POOL_SIZE = 20
const MILLIS = 1
/** What clients ask for to be sent over the delaying relay. */
const FAR = "far"

export const rtt: Scenario = {
  name: "rtt",
  title: `pgbench -S, a server ${MILLIS} ms away, a tenant whose last connection is free`,
  cases: Effect.fnUntraced(function* (stage, { seconds }) {
    const direct = yield* Delay.start(stage, MILLIS)
    yield* stage.addRows({ database: FAR, places: [{ schema: "t1", host: `${direct.host}:${direct.port}` }] })
    const perseus = { ...(yield* PerseusDaemon.start(stage, POOL_SIZE)), serverPort: direct.port }
    const run = (target: Target, login: Login, clients: number) =>
      drive(target, [{ login, clients, script: { builtin: "select-only" } }], seconds)
    return [1, 8].map((clients) => ({
      variant: "simple",
      clients,
      runs: {
        [OURS]: run(perseus, { ...perseus.login("t1"), database: FAR }, clients),
        [direct.name]: run(direct, direct.login("t1"), clients)
      },
      bars: [{ measure: "p50", against: direct.name, atMost: 1.3 }]
    }))
  })
}
