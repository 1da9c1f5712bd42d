/**
 * Measures the cases of a scenario in rounds: every target once a round, in an order that turns, so that whatever slows the
 * machine down for a while slows all of them. A round in which somebody else used the machine is repeated.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { watchOthers } from "./Machine.ts"
import type { Sample } from "./Sample.ts"
import type { BenchFailed, Case } from "./Scenario.ts"

/** Of the CPU time of one core: more than this by others, and a round does not count. */
const MAX_FOREIGN_SHARE = 0.1

export interface Measured {
  readonly case: Case
  /** By target, one a round. */
  readonly samples: ReadonlyMap<string, ReadonlyArray<Sample>>
  /** Rounds that had to be taken although others used the machine. */
  readonly disturbed: number
}

type Tell = (line: string) => Effect.Effect<void>

export const measure = Effect.fnUntraced(function* (
  measured: Case,
  { rounds, repeats }: { readonly rounds: number; readonly repeats: number },
  tell: Tell
): Effect.fn.Return<Measured, BenchFailed, Scope.Scope> {
  const targets = Object.keys(measured.runs)
  const samples = new Map<string, Array<Sample>>(targets.map((name) => [name, []]))
  let disturbed = 0
  for (let round = 0; round < rounds; round++) {
    const order = targets.map((_, index) => targets[(index + round) % targets.length]!)
    const { taken, share } = yield* calmRound(measured, order, repeats, tell)
    if (share > MAX_FOREIGN_SHARE) disturbed++
    for (const [name, sample] of taken) samples.get(name)!.push(sample)
  }
  return { case: measured, samples, disturbed }
})

interface Round {
  readonly taken: ReadonlyMap<string, Sample>
  readonly share: number
}

const calmRound = Effect.fnUntraced(function* (
  { runs, variant, clients }: Case,
  order: ReadonlyArray<string>,
  repeats: number,
  tell: Tell
): Effect.fn.Return<Round, BenchFailed, Scope.Scope> {
  for (let attempt = 0; ; attempt++) {
    const others = watchOthers()
    const startedAt = performance.now()
    const taken = new Map<string, Sample>()
    for (const name of order) taken.set(name, yield* runs[name]!)
    const share = others() / ((performance.now() - startedAt) * 1000)
    if (share <= MAX_FOREIGN_SHARE || attempt >= repeats) return { taken, share }
    const percent = Math.round(share * 100)
    yield* tell(`${variant}, ${clients} clients: something else used ${percent} % of a core; this round is repeated`)
  }
})
