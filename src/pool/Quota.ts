/**
 * How much of a pool its tenants may hold: MaxServersPerTenant connections each, and of all connections MaxPinned between
 * transactions.
 *
 * Counts what is held: owns a connection's `holder` and `pinned`, and a tenant's `usage.leased`. Plain calls, made at every
 * lease. Lends and closes nothing.
 */
import type { PoolContext } from "./PoolContext.ts"
import type { Connection, PoolTenant } from "./PoolTenant.ts"

export class Quota {
  readonly #context: PoolContext
  #pinned = 0

  constructor(context: PoolContext) {
    this.#context = context
  }

  /** Connections that are pinned now. */
  get pinned(): number {
    return this.#pinned
  }

  allows(tenant: PoolTenant): boolean {
    const limit = this.#context.limits.MaxServersPerTenant
    return limit <= 0 || tenant.usage.leased < limit
  }

  hold(connection: Connection, tenant: PoolTenant): void {
    connection.holder = tenant
    tenant.usage.leased++
  }

  /** The connection stays with its client between transactions. False where no more may. */
  pin(connection: Connection): boolean {
    if (connection.pinned) return true
    const { MaxPinned, MaxOpen } = this.#context.settings
    const limit = MaxPinned >= 0 ? MaxPinned : MaxOpen > 0 ? Math.floor(MaxOpen / 2) : Number.POSITIVE_INFINITY
    if (this.#pinned >= limit) return false
    this.#pinned++
    connection.pinned = true
    return true
  }

  /** Nobody's any more, and not pinned; it may have been so before. */
  release(connection: Connection): void {
    if (connection.pinned) {
      connection.pinned = false
      this.#pinned--
    }
    if (connection.holder === null) return
    connection.holder.usage.leased--
    connection.holder = null
  }
}
