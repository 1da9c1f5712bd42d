/**
 * How the service stands at one moment, put together from those that know: what monitoring reads, and nothing else does.
 *
 * Keeps nothing and changes nothing; what it tells is what the sessions, the pools and the auth database say when asked.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { LiveConfig } from "../config/LiveConfig.ts"
import { Pools } from "../pool/Pools.ts"
import { Sessions } from "../session/Sessions.ts"
import { AuthRepo } from "../tenant/AuthRepo.ts"
import { Authenticator } from "../tenant/Authenticator.ts"
import type { Readiness } from "./Http.ts"
import type { ServiceSnapshot } from "./Metrics.ts"

export class Status extends Context.Service<
  Status,
  {
    /** Plain counts; cheap enough for every scrape. */
    readonly snapshot: () => ServiceSnapshot
    /** Whether new clients should be sent here: the auth database answers, and the service is not going down. */
    readonly ready: Effect.Effect<Readiness>
  }
>()("perseus/observability/Status") {
  static readonly layer: Layer.Layer<Status, never, LiveConfig | Sessions | Pools | Authenticator | AuthRepo> =
    Layer.effect(
      Status,
      Effect.gen(function* () {
        const config = yield* LiveConfig
        const { live } = yield* Sessions
        const pools = yield* Pools
        const auth = yield* AuthRepo
        const { throttled } = yield* Authenticator

        const snapshot = (): ServiceSnapshot => {
          const snapshots = pools.snapshots()
          return {
            pools: snapshots,
            clients: live.states(),
            maxClients: config.current().LimitSettings.MaxClients,
            logins: live.logins,
            throttledLogins: throttled,
            errorsBySqlState: live.counters.errorsBySqlState,
            transactions: live.counters.transactions,
            pinnedBy: live.counters.pinnedBy,
            cancels: {
              forwarded: snapshots.reduce((sum, { statistics }) => sum + statistics.cancelsForwarded, 0),
              withoutEffect: live.cancelsWithoutEffect
            },
            draining: live.draining
          }
        }
        const ready = Effect.suspend(() =>
          live.draining
            ? Effect.succeed(readiness(["shutting down"]))
            : Effect.map(auth.ready, (answers) => readiness(answers ? [] : ["the auth database does not answer"]))
        )
        return Status.of({ snapshot, ready })
      })
    )
}

const readiness = (reasons: ReadonlyArray<string>): Readiness => ({ ready: reasons.length === 0, reasons })
