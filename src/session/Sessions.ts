/**
 * All sessions: takes what the listener accepts, gives each a fiber of its own, has changed rows followed into living sessions,
 * and drains when the service goes down.
 *
 * Owns the session fibers; what a session does is Session's, what a changed row means is RowFollower's.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import * as Stream from "effect/Stream"
import { LiveConfig } from "../config/LiveConfig.ts"
import { LiveTls } from "../config/LiveTls.ts"
import type { SessionFault } from "../errors.ts"
import { ByteReader } from "../net/ByteReader.ts"
import type { Transport } from "../net/Transport.ts"
import { SWEEP_PERIOD_MS } from "../pool/PoolContext.ts"
import { Pools } from "../pool/Pools.ts"
import { AuthRepo } from "../tenant/AuthRepo.ts"
import { Authenticator } from "../tenant/Authenticator.ts"
import { LiveSessions } from "./LiveSessions.ts"
import * as RowFollower from "./RowFollower.ts"
import { serve, type House } from "./Session.ts"

/** Connections beyond MaxClients that may be there to be told so, or to cancel. More are closed without a word. */
const SPARE_CONNECTIONS = 1_000

type Needs = LiveConfig | LiveTls | Pools | Authenticator | AuthRepo

export class Sessions extends Context.Service<
  Sessions,
  {
    /** A new connection; called in the event loop. */
    readonly accept: (transport: Transport) => void
    /** Ends when no session is left: idle ones at once, others at their transaction's border or after the timeout. */
    readonly drain: Effect.Effect<void>
    /** Whoever is left is cut off now. */
    readonly cut: Effect.Effect<void>
    readonly live: LiveSessions
  }
>()("perseus/session/Sessions") {
  static readonly layer: Layer.Layer<Sessions, never, Needs> = Layer.effect(
    Sessions,
    Effect.gen(function* () {
      const config = yield* LiveConfig
      const repo = yield* AuthRepo
      const clock = yield* Clock.Clock
      const authenticator = yield* Authenticator
      const pools = yield* Pools
      const live = new LiveSessions()
      const rows = yield* RowFollower.make({ live, repo, authenticator, pools })
      const runBeside = yield* FiberSet.runtime(yield* FiberSet.make<void>())()
      const house: House = {
        config,
        tls: yield* LiveTls,
        authenticator,
        pools,
        live,
        limits: () => config.current().LimitSettings,
        onPinned: (client, holds) =>
          void runBeside(
            Effect.logInfo(`a server connection is pinned to its client: ${holds.join(", ")}`).pipe(
              Effect.annotateLogs({ tenant: live.find(client)?.identity.placement.tenantKey, remote: client.remote })
            )
          ),
        recheck: ({ identity }) => rows.recheck(identity.placement.tenantKey)
      }
      const fibers = yield* FiberSet.make<SessionFault | null>()
      const fork = yield* FiberSet.runtime(fibers)()
      const cutNow = yield* Deferred.make<void>()

      yield* Effect.sleep(SWEEP_PERIOD_MS).pipe(
        Effect.andThen(Effect.sync(() => live.sweep(clock.currentTimeMillisUnsafe()))),
        Effect.forever,
        Effect.forkScoped({ startImmediately: true })
      )
      yield* Stream.runForEach(repo.changes, (change) => Effect.sync(() => rows.follow(change))).pipe(
        Effect.forkScoped({ startImmediately: true })
      )

      const drain = Effect.suspend(() => {
        live.drain()
        const { ShutdownTimeoutSecs } = config.current().LimitSettings
        return FiberSet.awaitEmpty(fibers).pipe(
          Effect.raceFirst(Deferred.await(cutNow)),
          Effect.timeoutOption(`${ShutdownTimeoutSecs} seconds`),
          Effect.interruptible,
          Effect.andThen(Effect.suspend(() => warnOfCut(live.count))),
          Effect.andThen(FiberSet.clear(fibers))
        )
      })

      return Sessions.of({
        accept: (transport) => {
          const { MaxClients } = config.current().LimitSettings
          if (MaxClients > 0 && live.count > MaxClients + SPARE_CONNECTIONS) return transport.destroy()
          // Made here, so that it hears the first byte.
          const reader = new ByteReader(transport)
          fork(serve(house, reader, transport))
        },
        drain,
        cut: Effect.asVoid(Deferred.succeed(cutNow, undefined)),
        live
      })
    })
  )
}

const warnOfCut = (count: number): Effect.Effect<void> =>
  count === 0 ? Effect.void : Effect.logWarning(`cutting off ${count} clients that did not end in time`)
