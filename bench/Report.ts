/**
 * Results as a person reads them and as a file keeps them.
 */
import * as Effect from "effect/Effect"
import { existsSync } from "node:fs"
import { readFile, writeFile } from "node:fs/promises"
import { cpus, totalmem } from "node:os"
import { version as nodeVersion } from "node:process"
import { styleText } from "node:util"
import { chartOf } from "./Chart.ts"
import type { Compared, Slowdown } from "./Comparison.ts"
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
  /** What `clients` counts, where it is something else. */
  readonly of?: string
  readonly ours: Sample
  readonly baselines: Readonly<Record<string, Sample>>
  readonly ratio: Readonly<Record<string, Sample>>
  readonly bars: ReadonlyArray<Bar & { readonly value: number; readonly met: boolean }>
  /** Rounds that somebody else disturbed. */
  readonly disturbed: number
}

/** `unchecked`: a baseline that is not the one that bars are about. */
export const resultOf = (
  { name }: Pick<Scenario, "name">,
  { case: measured, samples, disturbed }: Measured,
  unchecked: string | null = null
): Result => {
  const { [OURS]: _, ...rest } = measured.runs
  const baselineNames = Object.keys(rest)
  const oursByRound = samples.get(OURS) ?? []
  const ours = medianOf(oursByRound)
  const ratio = Object.fromEntries(baselineNames.map((of) => [of, ratioOf(oursByRound, samples.get(of)!)]))
  return {
    scenario: name,
    variant: measured.variant,
    clients: measured.clients,
    ...(measured.of !== undefined && { of: measured.of }),
    ours,
    baselines: Object.fromEntries(baselineNames.map((of) => [of, medianOf(samples.get(of)!)])),
    ratio,
    bars: (measured.bars ?? []).flatMap((bar) => {
      const value = (bar.against === undefined ? ours : ratio[bar.against])?.[bar.measure]
      if (value === undefined || (unchecked !== null && bar.against === unchecked)) return []
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
    ...(pgbouncer?.isReference === false
      ? [
          `The bars are about pgbouncer 1.25 or later, and are not checked against ${pgbouncer.version}: see bench/README.md`
        ]
      : []),
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
    [`${result.variant}, ${result.clients} ${result.of ?? "clients"}`, ...shown.map(({ title }) => title)],
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

/** What the last committed results say is faster than now; null where there are none to compare with. */
export const comparison = (found: ReadonlyArray<Slowdown> | null): string => {
  if (found === null) return "\nno committed results to compare with"
  if (found.length === 0) return "\nnot slower than the committed results"
  const lines = found.map(
    ({ scenario, variant, clients, against, before, now }) =>
      `SLOWER ${scenario}: ${variant}, ${clients} clients: CPU/tx against ${against} was ${before.toFixed(2)}×, is ${now.toFixed(2)}×`
  )
  return `\n${styleText("red", lines.join("\n"))}`
}

/** The results, as JSON, and a chart beside them. */
export const write = (file: string, results: ReadonlyArray<Result>): Effect.Effect<void, BenchFailed> =>
  Effect.tryPromise({
    try: async () => {
      await writeFile(file, `${JSON.stringify(results, null, 2)}\n`)
      await writeFile(`${file.replace(/\.json$/, "")}.svg`, chartOf(results))
    },
    catch: (cause) => new BenchFailed({ message: `${file} cannot be written: ${String(cause)}` })
  })

const committedFile = new URL("results.json", import.meta.url)

/** Null where there are none. */
export const committed: Effect.Effect<ReadonlyArray<Compared> | null, BenchFailed> = Effect.tryPromise({
  try: async () => (existsSync(committedFile) ? JSON.parse(await readFile(committedFile, "utf8")) : null),
  catch: (cause) => new BenchFailed({ message: `bench/results.json cannot be read: ${String(cause)}` })
})
