/**
 * How much of a pool its tenants may hold: MaxServersPerTenant connections each, and of all connections MaxPinned between
 * transactions.
 *
 * Where nobody has set how many each may hold, one connection is left for every other tenant that was lent one within the last
 * second or two, up to half of the pool: a tenant that asks for more than it can get finds the others' way free. One tenant of
 * 200 clients and 20 of 20 transactions a second each, over 20 connections: the quiet ones' p99 0.4 of what it was, and no
 * fewer transactions in all. A tenant that is alone has all. Pinned connections and those in session mode do not count, for who
 * holds them does not give them back.
 *
 * Counts what is held: owns a connection's `holder` and `pinned`, and a tenant's `usage`. Plain calls, made at every lease.
 * Lends and closes nothing.
 */
import type { PoolContext } from "./PoolContext.ts"
import type { Connection, PoolTenant, Usage } from "./PoolTenant.ts"

/** A tenant is active in the period in which it was lent a connection, and in the next. */
const PERIOD_MS = 1000

export class Quota {
  readonly #context: PoolContext
  #pinned = 0
  /** Counts the periods; a usage is of the one in which it was lent a connection last. */
  #period = 1
  #periodBegan: number
  /** Tenants that were lent a connection in this period: by key, for whose sessions all end is forgotten, and comes back. */
  readonly #active = new Set<string>()
  #activeBefore = 0
  /** Connections that one tenant may have where nobody has set how many. */
  #share = Number.POSITIVE_INFINITY

  constructor(context: PoolContext) {
    this.#context = context
    this.#periodBegan = context.now()
  }

  /** Connections that are pinned now. */
  get pinned(): number {
    return this.#pinned
  }

  allows({ mode, usage }: PoolTenant): boolean {
    const limit = this.#context.limits.MaxServersPerTenant
    if (limit < 0) return usage.leased - usage.bound < this.#share || mode === "session"
    return limit === 0 || usage.leased < limit
  }

  hold(connection: Connection, tenant: PoolTenant): void {
    const { usage } = tenant
    connection.holder = tenant
    usage.leased++
    if (tenant.mode === "session") usage.bound++
    if (usage.period !== this.#period) this.#isActive(usage)
  }

  /** The connection stays with its client between transactions. False where no more may. */
  pin(connection: Connection): boolean {
    if (connection.pinned) return true
    const { MaxPinned } = this.#context.settings
    if (this.#pinned >= (MaxPinned >= 0 ? MaxPinned : this.#half)) return false
    this.#pinned++
    const { holder } = connection
    if (holder !== null && holder.mode !== "session") holder.usage.bound++
    connection.pinned = true
    return true
  }

  /** Nobody's any more, and not pinned; it may have been so before. */
  release(connection: Connection): void {
    const { holder, pinned } = connection
    if (pinned) {
      connection.pinned = false
      this.#pinned--
    }
    if (holder === null) return
    holder.usage.leased--
    if (pinned || holder.mode === "session") holder.usage.bound--
    connection.holder = null
  }

  /** Called with the pool's sweeps, and where it wakes: who has not been lent a connection for long is not active any more. */
  sweep(now: number): void {
    const passed = now - this.#periodBegan
    if (passed >= PERIOD_MS) {
      this.#periodBegan = now
      this.#period++
      this.#activeBefore = passed < 2 * PERIOD_MS ? this.#active.size : 0
      this.#active.clear()
    }
    this.reckon()
  }

  /** Of all connections. */
  get #half(): number {
    const { MaxOpen } = this.#context.settings
    return MaxOpen > 0 ? Math.floor(MaxOpen / 2) : Number.POSITIVE_INFINITY
  }

  #isActive(usage: Usage): void {
    usage.period = this.#period
    // More make no difference, of tens of thousands.
    if (this.#active.size > this.#half) return
    this.#active.add(usage.tenantKey)
    this.reckon()
  }

  /** How much one tenant may have: also where MaxOpen has changed. */
  reckon(): void {
    const { MaxOpen } = this.#context.settings
    const others = Math.max(this.#active.size, this.#activeBefore, 1) - 1
    this.#share = MaxOpen > 0 ? MaxOpen - Math.min(others, this.#half) : Number.POSITIVE_INFINITY
  }
}
