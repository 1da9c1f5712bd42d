/**
 * What a scenario is: cases, each measured at several targets in turn.
 */
import * as Data from "effect/Data"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Sample } from "./Sample.ts"
import type { Stage } from "./stage/Stage.ts"

/** Something that the bench needs did not work. */
export class BenchFailed extends Data.TaggedError("BenchFailed")<{ readonly message: string }> {}

/** One line of a table. */
export interface Case {
  readonly variant: string
  readonly clients: number
  /** What `clients` counts, where it is something else. */
  readonly of?: string
  /** By target. Perseus under `OURS`; the rest are the baselines. What they start may live until the case is measured. */
  readonly runs: Readonly<Record<string, Effect.Effect<Sample, BenchFailed, Scope.Scope>>>
  /** What was asked of this case, to be shown beside what came out. */
  readonly bars?: ReadonlyArray<Bar>
}

/** A ratio that must not be exceeded, or `atLeast`; against nothing where it is a figure of ours alone. */
export interface Bar {
  readonly measure: keyof Sample
  readonly against?: string
  readonly atMost?: number
  readonly atLeast?: number
}

export const OURS = "perseus"

export interface Scenario {
  readonly name: string
  readonly title: string
  /** What it starts lives as long as the scenario is measured. */
  readonly cases: (stage: Stage, options: Options) => Effect.Effect<ReadonlyArray<Case>, BenchFailed, Scope.Scope>
}

export interface Options {
  /** Length of one run. */
  readonly seconds: number
}
