/**
 * Results as a picture: each ratio that has a bar, and each ratio of CPU, as a beam that begins at 0 and should end near 1 or
 * before, a line at its limit; below, what a transaction costs with more and more of something.
 *
 * Pure: results in, SVG out. No script, no font of its own, and legible on white and on black.
 */
import type { Result } from "./Report.ts"
import { measures, type Measure } from "./Sample.ts"

export type Charted = Pick<Result, "scenario" | "variant" | "clients" | "of" | "ours" | "baselines" | "ratio" | "bars">

const WIDTH = 1080
const MARGIN = 20
const LABEL_WIDTH = 580
const ROW = 18
/** A beam that would be longer ends here, and a limit beyond is not drawn. */
const LONGEST_RATIO = 2.5
const BEAM_WIDTH = WIDTH - LABEL_WIDTH - 2 * MARGIN - 50

const CURVE_HEIGHT = 220
const CURVE_LEFT = 60

const colours = { met: "#2a9d5c", missed: "#d1495b", plain: "#7d8597", text: "#7d8597", line: "#a5acb8" }
const curveColours = ["#2a78c2", "#d1495b", "#2a9d5c", "#b8860b"]

export const chartOf = (results: ReadonlyArray<Charted>): string => {
  const blocks = [...ratioBlocks(results), ...curveBlock(results)]
  const placed: Array<string> = []
  let y = MARGIN
  for (const { height, draw } of blocks) {
    placed.push(draw(y))
    y += height
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${y + MARGIN}" viewBox="0 0 ${WIDTH} ${y + MARGIN}" font-family="sans-serif" font-size="12" fill="${colours.text}">
${placed.join("\n")}
</svg>
`
}

interface Block {
  readonly height: number
  readonly draw: (y: number) => string
}

const escape = (text: string): string =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;")

const text = (x: number, y: number, content: string, attributes = ""): string =>
  `<text x="${round(x)}" y="${round(y)}"${attributes === "" ? "" : ` ${attributes}`}>${escape(content)}</text>`

const line = (x1: number, y1: number, x2: number, y2: number, attributes: string): string =>
  `<line x1="${round(x1)}" y1="${round(y1)}" x2="${round(x2)}" y2="${round(y2)}" ${attributes}/>`

const round = (value: number): number => Math.round(value * 10) / 10

const titleOf = (measure: Measure): string => measures.find(({ key }) => key === measure)?.title ?? measure

// ---- ratios

interface Beam {
  readonly label: string
  readonly ratio: number
  readonly limit: number | null
  readonly colour: string
}

/** Ratios with a bar, then those of CPU without one. */
const beamsOf = ({ variant, clients, of = "clients", ratio, bars }: Charted): ReadonlyArray<Beam> => {
  const label = (measure: Measure, against: string) =>
    `${variant}, ${clients} ${of}: ${titleOf(measure)} against ${against}`
  const barred = bars.flatMap(({ measure, against, atMost, atLeast, value, met }): ReadonlyArray<Beam> => {
    if (against === undefined) return []
    const colour = met ? colours.met : colours.missed
    return [{ label: label(measure, against), ratio: value, limit: atMost ?? atLeast ?? null, colour }]
  })
  const others = Object.entries(ratio).flatMap(([against, { cpuPerTx }]): ReadonlyArray<Beam> => {
    if (cpuPerTx === undefined || bars.some((bar) => bar.measure === "cpuPerTx" && bar.against === against)) return []
    return [{ label: label("cpuPerTx", against), ratio: cpuPerTx, limit: null, colour: colours.plain }]
  })
  return [...barred, ...others]
}

const at = (ratio: number): number =>
  MARGIN + LABEL_WIDTH + (Math.min(ratio, LONGEST_RATIO) / LONGEST_RATIO) * BEAM_WIDTH

const ratioBlocks = (results: ReadonlyArray<Charted>): ReadonlyArray<Block> =>
  [...new Set(results.map(({ scenario }) => scenario))].flatMap((scenario) => {
    const beams = results.filter((result) => result.scenario === scenario).flatMap(beamsOf)
    if (beams.length === 0) return []
    const height = (beams.length + 1) * ROW + MARGIN
    const draw = (top: number) =>
      [
        text(MARGIN, top + ROW - 5, scenario, 'font-weight="bold" font-size="14"'),
        text(at(1), top + ROW - 5, "1.0 ×", 'text-anchor="middle"'),
        ...beams.map((beam, index) => drawBeam(beam, top + (index + 1) * ROW)),
        line(at(1), top + ROW, at(1), top + height - MARGIN, `stroke="${colours.line}" stroke-dasharray="3 3"`)
      ].join("\n")
    return [{ height, draw }]
  })

const drawBeam = ({ label, ratio, limit, colour }: Beam, top: number): string =>
  [
    text(MARGIN, top + ROW - 5, label),
    `<rect x="${at(0)}" y="${top + 3}" width="${round(at(ratio) - at(0))}" height="${ROW - 6}" fill="${colour}"/>`,
    text(WIDTH - MARGIN, top + ROW - 5, ratio.toFixed(2), 'text-anchor="end"'),
    ...(limit === null || limit > LONGEST_RATIO
      ? []
      : [line(at(limit), top + 1, at(limit), top + ROW - 1, `stroke="${colours.text}" stroke-width="2"`)])
  ].join("\n")

// ---- growth

interface Curve {
  readonly of: string
  readonly points: ReadonlyArray<readonly [count: number, cpu: number]>
}

/** Cases whose baselines are counts: the same pooler with less of something. */
const curvesOf = (results: ReadonlyArray<Charted>): ReadonlyArray<Curve> =>
  results.flatMap(({ variant, clients, ours, baselines }) => {
    const entries = [...Object.entries(baselines), [`${clients}`, ours] as const]
    if (!Object.keys(baselines).some((name) => /^\d+$/.test(name))) return []
    const points = entries.flatMap(([name, { cpuPerTx }]) =>
      /^\d+$/.test(name) && cpuPerTx !== undefined ? [[Number(name), cpuPerTx] as const] : []
    )
    return [{ of: variant, points: points.toSorted(([a], [b]) => a - b) }]
  })

const curveBlock = (results: ReadonlyArray<Charted>): ReadonlyArray<Block> => {
  const curves = curvesOf(results).filter(({ points }) => points.length > 0)
  if (curves.length === 0) return []
  const most = Math.max(...curves.flatMap(({ points }) => points.map(([, cpu]) => cpu)))
  const decades = Math.ceil(Math.log10(Math.max(10, ...curves.flatMap(({ points }) => points.map(([count]) => count)))))
  const draw = (top: number) => {
    const [left, right, floor, ceiling] = [
      MARGIN + CURVE_LEFT,
      WIDTH - MARGIN - 130,
      top + ROW + CURVE_HEIGHT,
      top + ROW + 10
    ]
    const x = (count: number) => left + (Math.log10(count) / decades) * (right - left)
    const y = (cpu: number) => floor - (cpu / most) * (floor - ceiling)
    return [
      text(
        MARGIN,
        top + ROW - 5,
        "CPU/tx µs of the pooler, by how many there are",
        'font-weight="bold" font-size="14"'
      ),
      ...[0, 0.5, 1].flatMap((part) => [
        line(left, y(most * part), right, y(most * part), `stroke="${colours.line}" stroke-dasharray="1 3"`),
        text(left - 6, y(most * part) + 4, (most * part).toFixed(1), 'text-anchor="end"')
      ]),
      ...Array.from({ length: decades + 1 }, (_, decade) =>
        text(x(10 ** decade), floor + ROW, `${10 ** decade}`, 'text-anchor="middle"')
      ),
      ...curves.flatMap(({ of, points }, index) => {
        const colour = curveColours[index % curveColours.length]!
        const path = points.map(([count, cpu]) => `${round(x(count))},${round(y(cpu))}`).join(" ")
        return [
          `<polyline points="${path}" fill="none" stroke="${colour}" stroke-width="2"/>`,
          line(
            right + 20,
            ceiling + index * ROW,
            right + 40,
            ceiling + index * ROW,
            `stroke="${colour}" stroke-width="2"`
          ),
          text(right + 46, ceiling + index * ROW + 4, of)
        ]
      })
    ].join("\n")
  }
  return [{ height: CURVE_HEIGHT + 3 * ROW, draw }]
}
