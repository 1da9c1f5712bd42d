/**
 * Results as a person reads them and as a file keeps them.
 */
import * as Effect from "effect/Effect"
import { writeFile } from "node:fs/promises"
import { cpus, totalmem } from "node:os"
import { version as nodeVersion } from "node:process"
import type { Measured } from "./Rounds.ts"
import { measures, medianOf, ratioOf, type Sample } from "./Sample.ts"
import { BenchFailed, OURS, type Bar, type Scenario } from "./Scenario.ts"
import type { Installed } from "./stage/Pgbouncer.ts"
import type { Stage } from "./stage/Stage.ts"

/** One case, as it is written. Medians; ratios are the medians of the rounds' own. */
export interface Result {
  readonly scenario: string
  readonly variant: string
  readonly clients: number
  readonly ours: Sample
  readonly baselines: Readonly<Record<string, Sample>>
  readonly ratio: Readonly<Record<string, Sample>>
  readonly bars: ReadonlyArray<Bar & { readonly value: number; readonly met: boolean }>
  /** Rounds that somebody else disturbed. */
  readonly disturbed: number
}

export const resultOf = ({ name }: Scenario, { case: measured, samples, disturbed }: Measured): Result => {
  const { [OURS]: _, ...rest } = measured.runs
  const baselineNames = Object.keys(rest)
  const oursByRound = samples.get(OURS) ?? []
  const ours = medianOf(oursByRound)
  const ratio = Object.fromEntries(baselineNames.map((of) => [of, ratioOf(oursByRound, samples.get(of)!)]))
  return {
    scenario: name,
    variant: measured.variant,
    clients: measured.clients,
    ours,
    baselines: Object.fromEntries(baselineNames.map((of) => [of, medianOf(samples.get(of)!)])),
    ratio,
    bars: (measured.bars ?? []).flatMap((bar) => {
      const value = (bar.against === undefined ? ours : ratio[bar.against])?.[bar.measure]
      if (value === undefined) return []
      return [{ ...bar, value, met: value <= (bar.atMost ?? Infinity) && value >= (bar.atLeast ?? -Infinity) }]
    }),
    disturbed
  }
}

export const heading = (
  stage: Stage,
  pgbouncer: Installed | null,
  { rounds, seconds }: { readonly rounds: number; readonly seconds: number }
): string =>
  [
    "",
    `${cpus().length} × ${cpus()[0]?.model ?? "?"}, ${Math.round(totalmem() / 2 ** 30)} GB, Node ${nodeVersion}, PostgreSQL ${stage.version}, ` +
      (pgbouncer === null ? "no pgbouncer" : `pgbouncer ${pgbouncer.version}`),
    `${rounds} rounds of ${seconds} s for each target; medians, and medians of each round's ratios`
  ].join("\n")

const figure = (value: number | undefined): string => {
  if (value === undefined) return ""
  const digits = Math.abs(value) >= 1000 ? 0 : Math.abs(value) >= 100 ? 1 : Math.abs(value) >= 1 ? 2 : 3
  return value.toFixed(digits)
}

/** A line for each target; behind a baseline's figure how ours stands to it. */
export const tableOf = (result: Result): string => {
  const shown = measures.filter(({ key }) =>
    [result.ours, ...Object.values(result.baselines)].some((sample) => sample[key] !== undefined)
  )
  const rows = [
    [`${result.variant}, ${result.clients} clients`, ...shown.map(({ title }) => title)],
    [`  ${OURS}`, ...shown.map(({ key }) => figure(result.ours[key]))],
    ...Object.entries(result.baselines).map(([name, sample]) =>
      [`  ${name}`].concat(
        shown.map(({ key }) => {
          const ratio = result.ratio[name]?.[key]
          return figure(sample[key]) + (ratio === undefined ? "" : ` (${ratio.toFixed(2)}×)`)
        })
      )
    )
  ]
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  const lines = rows.map((row) =>
    row.map((cell, column) => (column === 0 ? cell.padEnd(widths[0]!) : cell.padStart(widths[column]!))).join("  ")
  )
  return [
    ...lines,
    ...result.bars.map(barLine),
    ...(result.disturbed > 0 ? [`  disturbed: ${result.disturbed} rounds`] : [])
  ].join("\n")
}

const barLine = ({ measure, against, atMost, atLeast, value, met }: Result["bars"][number]): string => {
  const title = measures.find(({ key }) => key === measure)?.title ?? measure
  const limit = atMost === undefined ? `≥ ${atLeast}` : `≤ ${atMost}`
  return `  ${met ? "met " : "MISSED"} ${title}${against === undefined ? "" : ` against ${against}`} ${limit}: ${value.toFixed(2)}`
}

export const write = (file: string, results: ReadonlyArray<Result>): Effect.Effect<void, BenchFailed> =>
  Effect.tryPromise({
    try: () => writeFile(file, `${JSON.stringify(results, null, 2)}\n`),
    catch: (cause) => new BenchFailed({ message: `${file} cannot be written: ${String(cause)}` })
  })
