/** Ten thousand clients that are logged in and ask for nothing: the memory that each takes, and whether the busy ones notice them. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { connectionsOf, memoryOf } from "../Machine.ts"
import { drive } from "../Pgbench.ts"
import { OURS, type BenchFailed, type Scenario } from "../Scenario.ts"
import * as Driver from "../stage/Driver.ts"
import * as PerseusDaemon from "../stage/PerseusDaemon.ts"
import * as Pgbouncer from "../stage/Pgbouncer.ts"
import type { Pooler } from "../stage/Target.ts"

const POOL_SIZE = 20
const IDLE_CLIENTS = 10_000
const BUSY_CLIENTS = 8
const ALONE = "without idle ones"

/** Garbage of the logins is collected, buffers of the last ones are let go. */
const SETTLE_MS = 2000

export const idle: Scenario = {
  name: "idle",
  title: `${IDLE_CLIENTS} idle clients of one tenant, and ${BUSY_CLIENTS} busy ones among them`,
  cases: Effect.fnUntraced(function* (stage, { seconds }) {
    const busy = (target: Pooler) =>
      drive(target, [{ login: target.login("t1"), clients: BUSY_CLIENTS, script: { builtin: "select-only" } }], seconds)
    /** The busy clients among idle ones; with the target's memory before the first of these came. */
    const amongIdle = (target: Pooler, residentBefore: number) =>
      Effect.gen(function* () {
        yield* heldClients(target)
        yield* Effect.sleep(SETTLE_MS)
        const kbPerClient = (memoryOf(target.pid).resident - residentBefore) / 1024 / IDLE_CLIENTS
        return { ...(yield* busy(target)), kbPerClient }
      }).pipe(Effect.scoped)
    const perseus = yield* PerseusDaemon.start(stage, POOL_SIZE)
    const pgbouncer = yield* Pgbouncer.startWhereInstalled(stage, { poolSize: POOL_SIZE, entries: "one" })
    const runAmongIdle = Effect.fnUntraced(function* (target: Pooler) {
      // What it takes to serve the busy ones is not the idle ones' to answer for.
      yield* busy(target)
      return amongIdle(target, memoryOf(target.pid).resident)
    })
    return [
      {
        variant: "simple",
        clients: IDLE_CLIENTS + BUSY_CLIENTS,
        runs: {
          [OURS]: yield* runAmongIdle(perseus),
          [ALONE]: busy(perseus),
          ...(pgbouncer !== null && { pgbouncer: yield* runAmongIdle(pgbouncer) })
        },
        bars: [
          { measure: "kbPerClient", atMost: 12 },
          { measure: "cpuPerTx", against: ALONE, atMost: 1.1 }
        ]
      }
    ]
  })
}

/** Logged in for as long as the scope; afterwards the pooler has closed their connections, too. */
const heldClients = (target: Pooler): Effect.Effect<void, BenchFailed, Scope.Scope> =>
  Effect.gen(function* () {
    // Registered before the driver is, hence waited for when that is gone.
    yield* Effect.addFinalizer(() => gone(target))
    const driver = yield* Driver.start
    yield* driver.tell({ do: "open", at: target, groups: [{ login: target.login("t1"), count: IDLE_CLIENTS }] })
  })

const GONE_TIMEOUT_MS = 10_000

const gone = Effect.fnUntraced(function* ({ pid, port }: Pooler) {
  const until = Date.now() + GONE_TIMEOUT_MS
  while (connectionsOf(pid, { at: port }) > 0 && Date.now() < until) yield* Effect.sleep(100)
})
