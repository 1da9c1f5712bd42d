/**
 * What one pool has counted: plain numbers, turned into metrics when somebody scrapes (a live metric costs 0.1 to 0.9 µs, a
 * field one nanosecond).
 */

/** Upper bounds of the wait histogram's buckets, seconds. */
export const WAIT_BUCKETS: ReadonlyArray<number> = [
  0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30
]

export class PoolStatistics {
  /** Transactions that had a connection. */
  leases = 0
  /** Of those, how many had to wait, and how long in all. */
  waitCount = 0
  waitMillis = 0
  /** One count a bucket (not cumulative), the last for what is longer than all bounds. */
  readonly waitBuckets: Array<number> = Array.from({ length: WAIT_BUCKETS.length + 1 }, () => 0)
  maxIdleClosed = 0
  maxIdleTimeClosed = 0
  maxLifetimeClosed = 0
  opened = 0
  connectFailures = 0
  tenantSwitches = 0
  settingChanges = 0
  checks = 0
  inspections = 0
  cancelsForwarded = 0
  acquireTimeouts = 0
  discarded = 0

  waited(millis: number): void {
    this.waitCount++
    this.waitMillis += millis
    const seconds = millis / 1000
    let bucket = 0
    while (bucket < WAIT_BUCKETS.length && seconds > WAIT_BUCKETS[bucket]!) bucket++
    this.waitBuckets[bucket]!++
  }
}

/** A pool at one moment. */
export interface PoolSnapshot {
  readonly destHost: string
  readonly destDb: string
  readonly maxOpen: number
  /** open = idle + inUse + closing */
  readonly open: number
  readonly idle: number
  readonly inUse: number
  readonly closing: number
  readonly pinned: number
  readonly opening: number
  readonly waiting: number
  readonly statistics: PoolStatistics
}
