/**
 * All sessions: takes what the listener accepts, gives each a fiber of its own, follows changed rows into living sessions, and
 * drains when the service goes down.
 *
 * Owns the session fibers; what a session does is Session's.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { LiveConfig } from "../config/LiveConfig.ts"
import { LiveTls } from "../config/LiveTls.ts"
import { TenantRevoked } from "../errors.ts"
import { ByteReader } from "../net/ByteReader.ts"
import type { Transport } from "../net/Transport.ts"
import { Pools, SWEEP_PERIOD_MS } from "../pool/Pools.ts"
import { AuthRepo, type AuthChange, type AuthRow } from "../tenant/AuthRepo.ts"
import { Authenticator, tenantName } from "../tenant/Authenticator.ts"
import { LiveSession, LiveSessions } from "./LiveSessions.ts"
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
      const runBeside = yield* FiberSet.runtime(yield* FiberSet.make<void>())()
      const house: House = {
        config,
        tls: yield* LiveTls,
        authenticator: yield* Authenticator,
        pools: yield* Pools,
        clock,
        live: new LiveSessions(),
        fork: (effect) => void runBeside(effect),
        recheck: (session) => house.fork(followTenant(house, repo, new Set([session])))
      }
      const { live } = house
      const fibers = yield* FiberSet.make<void>()
      const fork = yield* FiberSet.runtime(fibers)()
      const cutNow = yield* Deferred.make<void>()

      yield* Effect.sleep(SWEEP_PERIOD_MS).pipe(
        Effect.andThen(Effect.sync(() => live.sweep(clock.currentTimeMillisUnsafe()))),
        Effect.forever,
        Effect.forkScoped({ startImmediately: true })
      )
      yield* Stream.runForEach(repo.changes, (change) => follow(house, repo, change)).pipe(
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

/** A row has changed: what that means for the sessions that live by it. */
const follow = (house: House, repo: AuthRepo["Service"], change: AuthChange): Effect.Effect<void> => {
  house.live.rowChanges++
  const tenants = change._tag === "Row" ? [house.live.ofTenant(tenantName(change.key))] : house.live.byTenant()
  return Effect.forEach(tenants, (sessions) => followTenant(house, repo, sessions), { discard: true })
}

const followTenant = Effect.fnUntraced(
  function* (house: House, repo: AuthRepo["Service"], sessions: ReadonlySet<LiveSession>) {
    const [first] = sessions
    if (first === undefined) return
    const row = yield* repo.find(first.identity.row)
    for (const session of Array.from(sessions)) {
      const before = session.identity.row
      if (Option.isNone(row) || loginDiffers(before, row.value)) session.relay.endAtBorder(new TenantRevoked())
      else if (placeDiffers(before, row.value)) yield* move(house, session, row.value)
    }
  },
  Effect.catch((failure) => Effect.logWarning("a changed row could not be followed", failure.message))
)

const move = Effect.fnUntraced(function* (house: House, session: LiveSession, row: AuthRow) {
  const placement = yield* house.authenticator.locate(row)
  const placeScope = yield* Scope.fork(session.scope)
  const place = yield* Scope.provide(house.pools.place(placement, session.relay.settings), placeScope)
  const old = session.place
  const oldScope = session.placeScope
  if (old.pool !== place.pool) old.pool.retire(old.tenant.group)
  session.identity = { row, placement }
  session.place = place
  session.placeScope = placeScope
  // The old place is given back once nothing is leased there any more; the session's end gives back both.
  yield* Effect.callback<void>((resume) =>
    session.relay.moveTo(place.pool, place.tenant, () => resume(Effect.void))
  ).pipe(Effect.andThen(Scope.close(oldScope, Exit.void)), Effect.forkIn(session.scope, { startImmediately: true }))
})

const loginDiffers = (before: AuthRow, after: AuthRow): boolean =>
  before.sourceUser !== after.sourceUser || secretOf(before.sourcePassHashed) !== secretOf(after.sourcePassHashed)

const secretOf = (secret: Redacted.Redacted<string> | null): string | null =>
  secret === null ? null : Redacted.value(secret)

const placeDiffers = (before: AuthRow, after: AuthRow): boolean =>
  before.destHost !== after.destHost ||
  before.destDb !== after.destDb ||
  before.destUser !== after.destUser ||
  before.destPassEnc !== after.destPassEnc ||
  before.poolMode !== after.poolMode
