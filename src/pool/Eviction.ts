/**
 * Which connections are too many or too old, or take too long: MaxOpen, MaxIdle, MaxLifetimeSecs, MaxIdletimeSecs, and the
 * deadline of what a connection is at.
 *
 * Of connections without a deadline it closes idle ones only; of one that is in use it says, when it comes back, whether it is
 * to be closed. Opens and lends nothing, and keeps no account of its own.
 */
import type { Cancels } from "./Cancels.ts"
import type { Connections } from "./Connections.ts"
import type { PoolContext } from "./PoolContext.ts"
import type { Connection } from "./PoolTenant.ts"

const isExpired = (since: number, seconds: number, now: number): boolean => seconds > 0 && now - since >= seconds * 1000

export class Eviction {
  readonly #context: PoolContext
  readonly #connections: Connections
  readonly #cancels: Cancels

  constructor(context: PoolContext, connections: Connections, cancels: Cancels) {
    this.#context = context
    this.#connections = connections
    this.#cancels = cancels
  }

  /** A connection that has become free is not to be lent again. */
  isDue(connection: Connection): boolean {
    if (this.#context.closing || connection.retired || this.#isAboveMaxOpen()) return true
    const { settings, sweptAt } = this.#context
    if (!isExpired(connection.openedAt, settings.MaxLifetimeSecs, sweptAt)) return false
    this.#context.statistics.maxLifetimeClosed++
    return true
  }

  /** What is overdue is ended. */
  sweep(now: number): void {
    for (const connection of this.#connections.all) {
      if (connection.deadline <= now) {
        if (connection.state === "closing") this.#connections.closeByForce(connection)
        else connection.giveUpConversation()
      } else if (connection.state === "closing") {
        // A cancel between two queries of one pipeline is in vain, and the second would run on with nobody there.
        if (connection.stopQuery) this.#cancels.send(connection)
      } else if (connection.state === "idle") this.#closeIfExpired(connection, now)
    }
  }

  /** When the next of them is too old, where all are idle and stay so; Infinity: none ever is. */
  nextDue(): number {
    const { MaxLifetimeSecs, MaxIdletimeSecs } = this.#context.settings
    let next = Number.POSITIVE_INFINITY
    for (const { openedAt, idleSince } of this.#connections.all) {
      if (MaxLifetimeSecs > 0) next = Math.min(next, openedAt + MaxLifetimeSecs * 1000)
      if (MaxIdletimeSecs > 0) next = Math.min(next, idleSince + MaxIdletimeSecs * 1000)
    }
    return next
  }

  /** What is idle beyond MaxOpen, where that has become less. */
  closeAboveMaxOpen(): void {
    while (this.#isAboveMaxOpen()) {
      const longest = this.#connections.longestIdle()
      if (longest === null) return
      this.#connections.close(longest)
    }
  }

  /** No more than MaxIdle are kept; those idle longest go first, for the last used are likely to fit again. */
  closeAboveMaxIdle(): void {
    let surplus = this.#connections.idle - this.#context.settings.MaxIdle
    // One that is kept for a moment is in use.
    if (surplus > 0) for (const { keptUntil } of this.#connections.all) if (keptUntil !== 0) surplus--
    for (; surplus > 0; surplus--) {
      const longest = this.#connections.longestIdle()
      if (longest === null) return
      this.#context.statistics.maxIdleClosed++
      this.#connections.close(longest)
    }
  }

  #closeIfExpired(idle: Connection, now: number): void {
    const { settings, statistics } = this.#context
    if (isExpired(idle.openedAt, settings.MaxLifetimeSecs, now)) statistics.maxLifetimeClosed++
    else if (isExpired(idle.idleSince, settings.MaxIdletimeSecs, now)) statistics.maxIdleTimeClosed++
    else return
    this.#connections.close(idle)
  }

  #isAboveMaxOpen(): boolean {
    const { MaxOpen } = this.#context.settings
    return MaxOpen > 0 && this.#connections.live > MaxOpen
  }
}
