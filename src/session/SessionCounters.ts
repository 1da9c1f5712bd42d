/**
 * What all sessions together have counted: plain numbers, turned into metrics when somebody scrapes.
 */

import type { Hold } from "../pool/Inspection.ts"

/** PostgreSQL has some 260 SQLSTATEs, but a tenant's RAISE may invent 60 million: each would be a series for ever. */
const MAX_SQLSTATES = 500

export class SessionCounters {
  transactions = 0
  readonly errorsBySqlState = new Map<string, number>()
  /** Times that a connection stayed with its client, by what it had there. */
  readonly pinnedBy = new Map<Hold, number>()

  countPinned(holds: ReadonlyArray<Hold>): void {
    for (const hold of holds) this.pinnedBy.set(hold, (this.pinnedBy.get(hold) ?? 0) + 1)
  }

  countError(sqlState: string): void {
    const counts = this.errorsBySqlState
    const key = counts.has(sqlState) || counts.size < MAX_SQLSTATES ? sqlState : "other"
    counts.set(key, (counts.get(key) ?? 0) + 1)
  }
}
