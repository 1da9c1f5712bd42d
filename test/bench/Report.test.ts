import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { resultOf, tableOf } from "../../bench/Report.ts"
import type { Sample } from "../../bench/Sample.ts"
import { OURS, type Bar } from "../../bench/Scenario.ts"

const measured = (
  bars: ReadonlyArray<Bar>,
  samples: Readonly<Record<string, ReadonlyArray<Sample>>>,
  unchecked: string | null = null
) =>
  resultOf(
    { name: "select" },
    {
      case: {
        variant: "simple",
        clients: 8,
        runs: Object.fromEntries(Object.keys(samples).map((name) => [name, Effect.succeed({})])),
        bars
      },
      samples: new Map(Object.entries(samples)),
      disturbed: 0
    },
    unchecked
  )

const samples = {
  [OURS]: [{ cpuPerTx: 12, tps: 90, growthMb: 40 }],
  pgbouncer: [{ cpuPerTx: 10, tps: 100 }]
}

describe("bars", () => {
  const metOf = (bar: Bar) => measured([bar], samples).bars.map(({ met, value }) => ({ met, value }))

  it("are met up to their limit and no further", () => {
    assert.deepStrictEqual(metOf({ measure: "cpuPerTx", against: "pgbouncer", atMost: 1.2 }), [
      { met: true, value: 1.2 }
    ])
    assert.deepStrictEqual(metOf({ measure: "cpuPerTx", against: "pgbouncer", atMost: 1.19 }), [
      { met: false, value: 1.2 }
    ])
  })

  it("may ask for at least so much", () => {
    assert.deepStrictEqual(metOf({ measure: "tps", against: "pgbouncer", atLeast: 0.9 }), [{ met: true, value: 0.9 }])
    assert.deepStrictEqual(metOf({ measure: "tps", against: "pgbouncer", atLeast: 0.91 }), [{ met: false, value: 0.9 }])
  })

  it("may be about our own figure", () => {
    assert.deepStrictEqual(metOf({ measure: "growthMb", atMost: 32 }), [{ met: false, value: 40 }])
  })

  it("say nothing where a baseline is not there, or has not measured it", () => {
    assert.deepStrictEqual(metOf({ measure: "cpuPerTx", against: "relay", atMost: 1.1 }), [])
    assert.deepStrictEqual(metOf({ measure: "growthMb", against: "pgbouncer", atMost: 1 }), [])
  })

  it("are not checked against a baseline that they are not about, whose figures are shown", () => {
    const bars: ReadonlyArray<Bar> = [
      { measure: "cpuPerTx", against: "pgbouncer", atMost: 1 },
      { measure: "growthMb", atMost: 50 }
    ]
    const result = measured(bars, samples, "pgbouncer")
    assert.deepStrictEqual(
      result.bars.map(({ measure }) => measure),
      ["growthMb"]
    )
    assert.strictEqual(result.ratio["pgbouncer"]?.cpuPerTx, 1.2)
  })
})

describe("tableOf", () => {
  const lines = tableOf(
    measured([{ measure: "cpuPerTx", against: "pgbouncer", atMost: 1.1 }], {
      [OURS]: [{ cpuPerTx: 12 }],
      pgbouncer: [{ cpuPerTx: 10 }]
    })
  ).split("\n")

  it("has a line for each target, with the ratio behind a baseline's figure", () => {
    assert.match(lines[0]!, /^simple, 8 clients +CPU\/tx µs$/)
    assert.match(lines[1]!, /^ {2}perseus +12\.00$/)
    assert.match(lines[2]!, /^ {2}pgbouncer +10\.00 \(1\.20×\)$/)
  })

  it("says what was missed", () => {
    assert.strictEqual(lines[3], "  MISSED CPU/tx µs against pgbouncer ≤ 1.1: 1.20")
  })
})
