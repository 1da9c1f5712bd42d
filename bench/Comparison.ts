/**
 * Results beside those that were committed last: what has become slower.
 *
 * Pure. Ratios are compared, never CPU times: those move with the machine, and a ratio to a baseline of the same round much less.
 */
import type { Result } from "./Report.ts"

/** Ours against a baseline, then and now. */
export interface Slowdown {
  readonly scenario: string
  readonly variant: string
  readonly clients: number
  readonly against: string
  readonly before: number
  readonly now: number
}

export type Compared = Pick<Result, "scenario" | "variant" | "clients" | "ratio">

/** More than this in CPU for a transaction is a slowdown. */
const TOLERANCE = 1.1

/** The first that a case has. */
const baselines = ["pgbouncer", "relay"]

/** Cases of which there are no earlier results, or none against the same baseline, are not slower than anything. */
export const slowdowns = (
  results: ReadonlyArray<Compared>,
  committed: ReadonlyArray<Compared>
): ReadonlyArray<Slowdown> =>
  results.flatMap((result) => {
    const { scenario, variant, clients, ratio } = result
    const earlier = committed.find(
      (other) => other.scenario === scenario && other.variant === variant && other.clients === clients
    )
    for (const against of baselines) {
      const now = ratio[against]?.cpuPerTx
      const before = earlier?.ratio[against]?.cpuPerTx
      if (now === undefined || before === undefined) continue
      return now > before * TOLERANCE ? [{ scenario, variant, clients, against, before, now }] : []
    }
    return []
  })
