import { assert, describe, it } from "@effect/vitest"
import { chartOf, type Charted } from "../../bench/Chart.ts"

/** As strict as an XML reader about what the chart has: elements, attributes, text and the five entities. */
const faultOf = (xml: string): string | null => {
  const open: Array<string> = []
  let at = 0
  const token =
    /<(?<name>[a-z]+)(?:\s+[\w:-]+="(?:[^<&"]|&(?:amp|lt|gt|quot|apos);)*")*\s*(?<alone>\/?)>|<\/(?<end>[a-z]+)>|(?:[^<&]|&(?:amp|lt|gt|quot|apos);)+/y
  while (at < xml.length) {
    token.lastIndex = at
    const found = token.exec(xml)
    if (found === null) return `unreadable: ${xml.slice(at, at + 80)}`
    const { name, alone, end } = found.groups!
    if (name !== undefined && alone === "") open.push(name)
    if (end !== undefined && open.pop() !== end) return `</${end}> ends nothing`
    at += found[0].length
  }
  return open.length === 0 ? null : `<${open.join("><")}> does not end`
}

const select: Charted = {
  scenario: "select",
  variant: 'a < b & "c"',
  clients: 8,
  ours: { cpuPerTx: 12 },
  baselines: { pgbouncer: { cpuPerTx: 10 }, relay: { cpuPerTx: 8 } },
  ratio: { pgbouncer: { cpuPerTx: 1.2 }, relay: { cpuPerTx: 40 } },
  bars: [
    { measure: "cpuPerTx", against: "pgbouncer", atMost: 1.35, value: 1.2, met: true },
    { measure: "growthMb", atMost: 32, value: 3, met: true }
  ]
}

const growth: Charted = {
  scenario: "growth",
  variant: "pools",
  clients: 9850,
  of: "pools",
  ours: { cpuPerTx: 30 },
  baselines: { "1000": { cpuPerTx: 28 }, "10": { cpuPerTx: 25 }, "1": { cpuPerTx: 26 } },
  ratio: { "10": { cpuPerTx: 1.2 } },
  bars: []
}

describe("chartOf", () => {
  it("is well-formed, whatever stands in a name", () => {
    assert.isNull(faultOf(chartOf([select, growth])))
    assert.isNotNull(faultOf("<svg><text>a & b</text></svg>"))
    assert.isNotNull(faultOf("<svg><text></svg>"))
  })

  it("is well-formed without results", () => {
    assert.isNull(faultOf(chartOf([])))
  })

  it("has no number that is none", () => {
    assert.notMatch(
      chartOf([select, growth, { ...growth, ours: {}, baselines: { "10": {} } }]),
      /NaN|Infinity|undefined/
    )
  })

  it("has a beam for each ratio with a bar and for each of CPU, and the figure of one that is too long to draw", () => {
    const chart = chartOf([select])
    assert.lengthOf(chart.match(/<rect /g)!, 2)
    assert.include(chart, ">40.00<")
    assert.notInclude(chart, "polyline")
  })

  it("draws what grows as a curve, from few to many", () => {
    const xs = /<polyline points="([^"]*)"/
      .exec(chartOf([growth]))![1]!
      .split(" ")
      .map((point) => parseFloat(point))
    assert.lengthOf(xs, 4)
    assert.deepStrictEqual(
      xs,
      xs.toSorted((a, b) => a - b)
    )
  })
})
