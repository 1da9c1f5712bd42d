/**
 * All pools, one for each destination that has clients or had some lately.
 *
 * A session holds its pool by its own scope, so that a pool which nobody has used for a while is closed, and its metrics with
 * it; a session's end gives it back whatever way it ends. One fiber sweeps all pools for what is overdue, and tells them of new
 * settings. Does not know who tenants are or what they say.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as RcMap from "effect/RcMap"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { LiveConfig } from "../config/LiveConfig.ts"
import { LiveTls } from "../config/LiveTls.ts"
import { poolSettingsFor } from "../config/PerseusConfig.ts"
import { Network } from "../net/Network.ts"
import { Pool } from "./Pool.ts"
import { SWEEP_PERIOD_MS, type Destination, type PoolLimits } from "./PoolContext.ts"
import type { PoolSnapshot } from "./PoolStatistics.ts"
import type { PoolTenant } from "./PoolTenant.ts"
import type { ClientSettings } from "./Reset.ts"
import type { TenantPlacement } from "./Tenants.ts"

/** A pool without sessions is kept this long, for those that come back. */
const UNUSED_POOL_LIFETIME = "5 minutes"

/** Where a tenant is served, and as whom. */
export interface Placement extends TenantPlacement {
  readonly destination: Destination
}

export interface Place {
  readonly pool: Pool
  readonly tenant: PoolTenant
}

export class Pools extends Context.Service<
  Pools,
  {
    /** The tenant's place in its pool, for clients with these settings, until the scope is closed. */
    readonly place: (placement: Placement, settings: ClientSettings) => Effect.Effect<Place, never, Scope.Scope>
    readonly snapshots: () => ReadonlyArray<PoolSnapshot>
  }
>()("perseus/pool/Pools") {
  static readonly layer: Layer.Layer<Pools, never, LiveConfig | LiveTls | Network> = Layer.effect(
    Pools,
    Effect.gen(function* () {
      const config = yield* LiveConfig
      const network = yield* Network
      const tls = yield* LiveTls
      const pools = new Map<string, Pool>()

      const limitsOf = (destination: Destination): PoolLimits => {
        const current = config.current()
        return {
          pool: poolSettingsFor(current, destination.label, destination.database),
          limits: current.LimitSettings,
          server: current.ServerSettings
        }
      }

      const byDestination = yield* RcMap.make({
        lookup: (key: string) => {
          const destination = decodeKey(key)
          return Effect.acquireRelease(
            Effect.map(Pool.make(destination, limitsOf(destination), network, tls.toServers), (pool) => {
              pools.set(key, pool)
              return pool
            }),
            () => Effect.sync(() => pools.delete(key))
          )
        },
        idleTimeToLive: UNUSED_POOL_LIFETIME
      })

      let tlsInForce = tls.toServers()
      const sweep = (now: number): void => {
        const rules = tls.toServers()
        const hasChanged = rules !== tlsInForce
        tlsInForce = rules
        for (const pool of pools.values()) if (hasChanged || pool.isDue(now)) pool.sweep(now)
      }
      yield* Effect.sleep(SWEEP_PERIOD_MS).pipe(
        Effect.andThen(Clock.currentTimeMillis),
        Effect.map(sweep),
        Effect.forever,
        Effect.forkScoped({ startImmediately: true })
      )
      yield* SubscriptionRef.changes(config.ref).pipe(
        Stream.runForEach(() => Effect.sync(() => pools.forEach((pool) => pool.configure(limitsOf(pool.destination))))),
        Effect.forkScoped({ startImmediately: true })
      )

      return Pools.of({
        place: Effect.fnUntraced(function* (placement, settings) {
          const pool = yield* RcMap.get(byDestination, encodeKey(placement.destination))
          const tenant = pool.retain(placement, settings)
          yield* Scope.addFinalizer(yield* Effect.scope, releaseOf(pool, tenant))
          return { pool, tenant }
        }, Effect.uninterruptible),
        snapshots: () => [...pools.values()].map((pool) => pool.snapshot())
      })
    })
  )
}

const releaseOf = (pool: Pool, tenant: PoolTenant): Effect.Effect<void> => Effect.sync(() => pool.release(tenant))

/** A key of strings and numbers only, so that equal destinations have equal keys (and `a_b`+`c` is not `a`+`b_c`). */
const encodeKey = ({ label, host, port, database }: Destination): string =>
  JSON.stringify([label, host, port, database])

const decodeKey = (key: string): Destination => {
  const [label, host, port, database] = JSON.parse(key) as [string, string, number, string]
  return { label, host, port, database }
}
