/**
 * The comparison itself: what a driver says directly and pooled is the same, and is what it should be.
 */
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { expected, type Scenario, type Transcript } from "./scenarios.ts"
import { Targets, type Target } from "./targets.ts"

/** A program's whole transcript at once. */
export const compareTranscripts = Effect.fnUntraced(function* (
  does: ReadonlyArray<Scenario>,
  play: (target: Target) => Effect.Effect<Transcript>
) {
  const { both, perseus } = yield* Targets
  const { directly, pooled } = yield* both(play)
  assert.deepStrictEqual(pooled, directly)
  // Its transactions did meet connections that had been another tenant's meanwhile.
  assert.isAbove(perseus.pool().statistics.tenantSwitches, 100)
  assert.deepStrictEqual(directly, Object.fromEntries(does.map((scenario) => [scenario, expected[scenario]])))
})

/** Of a driver of Node's. Gives what came of it, as `expected` has it. Whatever it opens it closes. */
export type Plays = Partial<Record<Scenario, (target: Target) => Promise<unknown>>>

/** A transcript is JSON, so that one of ours can be told from one of a program's by nothing. */
const plain = (value: unknown): unknown => JSON.parse(JSON.stringify(value))

/** A driver of Node's: a test for each scenario. */
export const compare = (driver: string, plays: Plays): void => {
  layer(Targets.layer, { excludeTestServices: true })(`${driver} gets the same, directly and pooled:`, (it) => {
    for (const [scenario, play] of Object.entries(plays)) {
      it.effect(scenario, () =>
        Effect.gen(function* () {
          const { both } = yield* Targets
          const answer = (target: Target) =>
            Effect.map(
              Effect.promise(() => play(target)),
              plain
            )
          const { directly, pooled } = yield* both(answer)
          assert.deepStrictEqual(pooled, directly)
          assert.deepStrictEqual(directly, expected[scenario as Scenario])
        })
      )
    }
  })
}

/** The SQLSTATE of what a driver threw; the error itself may stand behind the one that was thrown. */
export const sqlStateOf = (error: unknown): string | null => {
  if (typeof error !== "object" || error === null) return null
  const code: unknown = Reflect.get(error, "code")
  return typeof code === "string" ? code : sqlStateOf(Reflect.get(error, "cause"))
}

/** Null where there was none. */
export const errorOf = (work: PromiseLike<unknown>): Promise<string | null> =>
  Promise.resolve(work).then(
    () => null,
    (error: unknown) => {
      const state = sqlStateOf(error)
      if (state === null) throw error
      return state
    }
  )
