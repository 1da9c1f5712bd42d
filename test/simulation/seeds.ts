/**
 * Runs the simulation for a range of seeds. A seed that fails is printed and replays alone: `PERSEUS_SEED=123 npx vitest run
 * test/simulation`.
 */
import { assert } from "@effect/vitest"
import { simulate } from "./Simulation.ts"

export const runSeeds = (from: number, count: number): void => {
  const alone = process.env["PERSEUS_SEED"]
  const seeds = alone === undefined ? Array.from({ length: count }, (_, index) => from + index) : [Number(alone)]
  let answered = 0
  for (const seed of seeds) {
    const outcome = simulate(seed)
    answered += outcome.answered
    assert.deepStrictEqual(outcome.violations, [], `seed ${seed}`)
  }
  // A simulation in which nobody is ever answered would prove nothing.
  assert.isAbove(answered, seeds.length, "answers in all runs together")
}
