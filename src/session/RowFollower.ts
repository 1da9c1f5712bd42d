/**
 * Follows changed rows of perseus_auth into the sessions that live by them: who has to leave, and who is served elsewhere.
 *
 * A fiber for each tenant whose row has changed, so that none waits for another's; a newer change of the same row begins
 * anew. And one for each session that is served elsewhere now, until its old place is given back. Who has to leave is told before KMS is asked for anything. What does not answer, auth database or KMS, is asked
 * again for as long as the tenant has sessions: nobody will tell of that change a second time.
 *
 * It never judges a login, and it ends no fiber of a session: the relay does, at its transaction's border.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as FiberHandle from "effect/FiberHandle"
import * as FiberMap from "effect/FiberMap"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { TenantRevoked } from "../errors.ts"
import type { Pools } from "../pool/Pools.ts"
import type { AuthChange, AuthRepo, AuthRow } from "../tenant/AuthRepo.ts"
import { type Authenticator, type Identity, tenantName } from "../tenant/Authenticator.ts"
import type { LiveSession, LiveSessions } from "./LiveSessions.ts"

/** When a thousand rows get a new secret at once, logins must find KMS free. */
const DECRYPTIONS_AT_ONCE = 8

/** Jitter adds a fifth at most: below 10 seconds in the end. */
const backoff = Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("8 seconds")]).pipe(Schedule.jittered)

export interface RowFollower {
  readonly follow: (change: AuthChange) => void
  /** Looks at this tenant's row again. */
  readonly recheck: (tenantKey: string) => void
}

export const make = Effect.fnUntraced(function* (needs: {
  readonly live: LiveSessions
  readonly repo: AuthRepo["Service"]
  readonly authenticator: Authenticator["Service"]
  readonly pools: Pools["Service"]
}): Effect.fn.Return<RowFollower, never, Scope.Scope> {
  const { live, repo, authenticator, pools } = needs
  const scope = yield* Effect.scope
  const run = yield* FiberMap.runtime(yield* FiberMap.make<string, void>())()
  const runForAll = yield* FiberHandle.runtime(yield* FiberHandle.make<void>())()
  /** What the fibers of those whose change is not followed to its end yet have found, by tenant. */
  const underWay = new Map<string, Option.Option<AuthRow>>()
  const decryptions = yield* Semaphore.make(DECRYPTIONS_AT_ONCE)

  const followOnce = Effect.fnUntraced(function* (tenantKey: string) {
    const [anyone] = live.ofTenant(tenantKey)
    if (anyone === undefined) return
    const found = yield* repo.find(anyone.identity.row)
    underWay.set(tenantKey, found)
    for (const session of Array.from(live.ofTenant(tenantKey))) {
      if (hasToLeave(session, found)) session.relay.endAtBorder(new TenantRevoked())
    }
    if (Option.isNone(found)) return
    const row = found.value
    const strayed = () => Array.from(live.ofTenant(tenantKey)).filter((session) => hasStrayed(session, row))
    if (strayed().length === 0) return
    const placement = yield* decryptions.withPermit(authenticator.locate(row))
    for (const session of strayed()) yield* move(pools, session, { row, placement }, scope)
  })

  const recheck = (tenantKey: string) => {
    underWay.delete(tenantKey)
    run(
      tenantKey,
      untilDone(followOnce(tenantKey)).pipe(
        Effect.ensuring(Effect.sync(() => underWay.delete(tenantKey))),
        Effect.annotateLogs({ tenant: tenantKey })
      )
    )
  }

  /** One look-up for all finds out whose row has to be looked up. */
  const followAll = Effect.gen(function* () {
    const rows = live.rows()
    if (rows.length === 0) return
    const found = new Map((yield* repo.findAll(rows)).map((row) => [tenantName(row), row]))
    for (const tenantKey of rows.map(tenantName)) {
      const row = Option.fromUndefinedOr(found.get(tenantKey))
      const before = underWay.get(tenantKey)
      const isNews = before === undefined ? concerns(live.ofTenant(tenantKey), row) : !sameRow(before, row)
      if (isNews) recheck(tenantKey)
    }
  })

  return {
    follow: (change) => {
      live.rowChanges++
      if (change._tag === "Row") recheck(tenantName(change.key))
      else runForAll(untilDone(followAll))
    },
    recheck
  }
})

type Failure = Effect.Error<ReturnType<AuthRepo["Service"]["find"] | Authenticator["Service"]["locate"]>>

/** The log has each reason once, not each try. */
const untilDone = (once: Effect.Effect<void, Failure>): Effect.Effect<void> =>
  Effect.suspend(() => {
    let reported: string | undefined
    const report = ({ message }: Failure) => {
      if (message === reported) return Effect.void
      reported = message
      return Effect.logWarning("a changed row could not be followed", message)
    }
    return once.pipe(Effect.tapError(report), Effect.retry(backoff), Effect.ignore)
  })

/**
 * Not interrupted between the new place and the end of the old one, or the session would hold both until its end. `scope`:
 * where the old place is waited for.
 */
const move = (
  pools: Pools["Service"],
  session: LiveSession,
  identity: Identity,
  scope: Scope.Scope
): Effect.Effect<void> =>
  Effect.uninterruptible(
    Effect.gen(function* () {
      const placeScope = Scope.makeUnsafe()
      const place = yield* Scope.provide(pools.place(identity.placement, session.relay.settings), placeScope)
      // It has given back its place meanwhile, and would never give back this one.
      if (session.relay.state === "ended") return yield* Scope.close(placeScope, Exit.void)
      const old = session.place
      const oldScope = session.placeScope
      if (old.pool !== place.pool) old.pool.retire(old.tenant.group)
      session.identity = identity
      session.place = place
      session.placeScope = placeScope
      // The old place is given back once nothing is leased there any more.
      yield* Effect.callback<void>((resume) =>
        session.relay.moveTo(place.pool, place.tenant, () => resume(Effect.void))
      ).pipe(
        Effect.interruptible,
        Effect.ensuring(Scope.close(oldScope, Exit.void)),
        Effect.forkIn(scope, { startImmediately: true })
      )
    })
  )

const hasToLeave = ({ identity }: LiveSession, row: Option.Option<AuthRow>): boolean =>
  Option.isNone(row) || loginDiffers(identity.row, row.value)

/** It may stay, and is not served where the row says. */
const hasStrayed = ({ identity }: LiveSession, row: AuthRow): boolean =>
  !loginDiffers(identity.row, row) && placeDiffers(identity.row, row)

/** One of them has to leave, or is not served where the row says. */
const concerns = (sessions: ReadonlySet<LiveSession>, row: Option.Option<AuthRow>): boolean =>
  Array.from(sessions).some(({ identity }) => !sameRow(Option.some(identity.row), row))

const sameRow = (before: Option.Option<AuthRow>, after: Option.Option<AuthRow>): boolean =>
  Option.isSome(before) && Option.isSome(after)
    ? !loginDiffers(before.value, after.value) && !placeDiffers(before.value, after.value)
    : Option.isNone(before) && Option.isNone(after)

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
