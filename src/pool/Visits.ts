/**
 * How long a connection stays with one tenant while others wait for it.
 *
 * A visit is QUANTUM transactions of the tenant's. It goes on, to LONG_QUANTUM, where transactions are so short that the switches
 * between visits would be a large part of the work, and nobody waits who has had no visit for a round.
 *
 * A visit of which nobody waits just now is not over yet: a client in the middle of its work is back sooner than the connection
 * could be switched to another tenant and back again (disks know it as anticipatory scheduling). So the connection is kept for the
 * tenant, for about as long as these two switches take here (or up to a millisecond, where nothing else happens in the pool): what
 * a vain wait loses is not more than what it would have saved. Only for tenants whose clients have mostly come back in time. 250
 * clients of 50 tenants in bursts over 20 connections: 0.15 switches a transaction become 0.06, and 0.1 with those visits that a
 * fresh tenant cuts short.
 *
 * Owns a connection's `turns`, `visitBegan` and, while it is idle, `keptUntil`; and a tenant's `returns` and `leftAt`. A kept
 * connection is an idle one that only its own tenant may take until its time is over, of which `onOver` is told.
 */
import * as Effect from "effect/Effect"
import type { Connections } from "./Connections.ts"
import type { PoolContext } from "./PoolContext.ts"
import { NEVER_LEFT, RETURNS_MOST, type Connection, type PoolTenant } from "./PoolTenant.ts"
import { LONG_QUANTUM } from "./WaitQueue.ts"

/** Kept only where at least so many of the last returns, of RETURNS_MOST, were in time. */
const RETURNS_ENOUGH = 2

/** A connection is kept for so many switches. */
const KEPT_SWITCHES = 2

/** Where a server is far away, what is kept for long is missing elsewhere. */
const SWITCH_AT_MOST_MS = 5

/** A long visit may take as long as so many switches: behind it, one is 2 % of the connection's time. */
const LONG_VISIT_SWITCHES = 50

/** How often kept connections are looked at where nothing else happens in the pool. */
const LOOK_PERIOD = "1 millis"

export class Visits {
  readonly #context: PoolContext
  readonly #connections: Connections
  readonly #onOver: () => void
  /** What a tenant switch takes lately. */
  #switchMillis = 0
  #looks = false

  constructor(context: PoolContext, connections: Connections, onOver: () => void) {
    this.#context = context
    this.#connections = connections
    this.#onOver = onOver
  }

  /** A switch has taken so long. */
  switched(millis: number): void {
    this.#switchMillis += (Math.min(millis, SWITCH_AT_MOST_MS) - this.#switchMillis) / 8
  }

  /** It is the tenant's turn on this connection. */
  begin(connection: Connection, tenant: PoolTenant, now: number): void {
    connection.turns = 0
    connection.visitBegan = now
    tenant.group.queue.endTurn(tenant.lane)
  }

  /** Whether one more than QUANTUM of its tenant's transactions belongs to the same visit. */
  mayBeLong({ group, turns, visitBegan }: Connection): boolean {
    return (
      turns < LONG_QUANTUM &&
      !group.queue.somebodyIsFresh &&
      this.#context.now() - visitBegan < LONG_VISIT_SWITCHES * this.#switchMillis
    )
  }

  /** Nobody of its tenant waits, but others do: whether it is to become idle, kept for the tenant. */
  keeps(connection: Connection, tenant: PoolTenant): boolean {
    tenant.group.queue.visited(tenant.lane)
    if (!connection.stateKnown || this.#switchMillis === 0) return false
    const now = this.#context.preciseNow()
    if (tenant.returns < RETURNS_ENOUGH) {
      tenant.leftAt = now
      return false
    }
    connection.keptUntil = now + this.#keptMillis
    this.#look()
    return true
  }

  /** Whether it is its own tenant's alone. */
  isKept(connection: Connection): boolean {
    return connection.keptUntil !== 0 && !this.#isOver(connection, this.#context.preciseNow())
  }

  /** One of the tenant's clients wants a connection, and none of them has waited. */
  returned(tenant: PoolTenant, kept: Connection | null): void {
    const inTime =
      kept !== null || (tenant.leftAt !== NEVER_LEFT && this.#context.preciseNow() - tenant.leftAt < this.#keptMillis)
    if (inTime && tenant.returns < RETURNS_MOST) tenant.returns++
    tenant.leftAt = NEVER_LEFT
  }

  get #keptMillis(): number {
    return KEPT_SWITCHES * this.#switchMillis
  }

  /** One look is on its way while connections are kept. */
  #look(): void {
    if (this.#looks) return
    this.#looks = true
    this.#context.fork(Effect.andThen(Effect.sleep(LOOK_PERIOD), Effect.sync(this.#endThoseOver)))
  }

  readonly #endThoseOver = (): void => {
    this.#looks = false
    const now = this.#context.preciseNow()
    let over = false
    for (const connection of this.#connections.all) {
      if (connection.keptUntil === 0) continue
      if (this.#isOver(connection, now)) over = true
      else this.#look()
    }
    if (over) this.#onOver()
  }

  /** Its tenant has not come back in time. */
  #isOver(connection: Connection, now: number): boolean {
    if (now < connection.keptUntil) return false
    connection.keptUntil = 0
    const { tenant } = connection
    if (tenant !== null && tenant.returns > 0) tenant.returns--
    return true
  }
}
