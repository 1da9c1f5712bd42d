/**
 * How long a lease's server has been at work, or its client idle in a transaction, and when that is too long.
 *
 * Has no timer and asks no clock: that is 2 % of a transaction. What changes is marked, and the next sweep over all leases says
 * since when it is so.
 */
import type { LimitSettings } from "../config/PerseusConfig.ts"
import { IdleInTransactionTimedOut, QueryTimedOut, type SessionFault } from "../errors.ts"

export class TransactionTimeouts {
  readonly #limits: () => LimitSettings
  /** Since which sweep; 0: since one that is still to come. */
  #busySince = 0
  #idleSince = 0

  constructor(limits: () => LimitSettings) {
    this.#limits = limits
  }

  /** The server begins with something else. */
  restartBusy(): void {
    this.#busySince = 0
  }

  /** The client was not idle. */
  restartIdle(): void {
    this.#idleSince = 0
  }

  /** What has gone on for too long. */
  sweep(now: number, serverBusy: boolean): SessionFault | null {
    const { QueryTimeoutSecs, IdleInTransactionTimeoutSecs } = this.#limits()
    if (serverBusy) {
      if (this.#busySince === 0) this.#busySince = now
      return QueryTimeoutSecs > 0 && now - this.#busySince >= QueryTimeoutSecs * 1000
        ? new QueryTimedOut({ seconds: QueryTimeoutSecs })
        : null
    }
    if (this.#idleSince === 0) this.#idleSince = now
    return IdleInTransactionTimeoutSecs > 0 && now - this.#idleSince >= IdleInTransactionTimeoutSecs * 1000
      ? new IdleInTransactionTimedOut({ seconds: IdleInTransactionTimeoutSecs })
      : null
  }
}
