import { assert, describe, it } from "@effect/vitest"
import { median, medianOf, only, quantile, ratioOf } from "../../bench/Sample.ts"

describe("quantile", () => {
  it("lies between two values where none is at its place", () => {
    assert.strictEqual(quantile([1, 2, 3, 4], 0.5), 2.5)
    assert.strictEqual(quantile([10, 20], 0.75), 17.5)
  })

  it("of one value is that value, at every place", () => {
    assert.deepStrictEqual(
      [0, 0.5, 0.99, 1].map((q) => quantile([7], q)),
      [7, 7, 7, 7]
    )
  })

  it("is no number where there are no values", () => {
    assert.isNaN(quantile([], 0.5))
  })
})

describe("median", () => {
  it("does not depend on the order, and leaves it as it is", () => {
    const values = [9, 1, 5]
    assert.strictEqual(median(values), 5)
    assert.deepStrictEqual(values, [9, 1, 5])
  })

  it("sorts numbers as numbers", () => {
    assert.strictEqual(median([100, 20, 3]), 20)
  })
})

describe("medianOf", () => {
  it("takes each measure by itself, and of those rounds alone that have it", () => {
    assert.deepStrictEqual(medianOf([{ tps: 1, p50: 9 }, { tps: 3 }, { tps: 2, p50: 5 }]), { tps: 2, p50: 7 })
  })

  it("leaves out what nobody measured, and what is no number", () => {
    assert.deepStrictEqual(medianOf([{ p99: Number.NaN }]), {})
    assert.deepStrictEqual(medianOf([]), {})
  })
})

describe("ratioOf", () => {
  it("is the median of the rounds' ratios, not the ratio of the medians", () => {
    // In the second round the machine was three times as slow, for both.
    const ours = [{ cpuPerTx: 20 }, { cpuPerTx: 60 }, { cpuPerTx: 22 }]
    const theirs = [{ cpuPerTx: 10 }, { cpuPerTx: 30 }, { cpuPerTx: 10 }]
    assert.deepStrictEqual(ratioOf(ours, theirs), { cpuPerTx: 2 })
  })

  it("leaves out a measure that one of the two does not have, or that is 0 in the other", () => {
    assert.deepStrictEqual(ratioOf([{ tps: 5, p50: 1, growthMb: 3 }], [{ p50: 2, growthMb: 0 }]), { p50: 0.5 })
  })

  it("leaves out a round that the other does not have", () => {
    assert.deepStrictEqual(ratioOf([{ tps: 6 }, { tps: 100 }], [{ tps: 3 }]), { tps: 2 })
  })
})

describe("only", () => {
  it("keeps the measures that are named and has none that was not there", () => {
    assert.deepStrictEqual(only({ tps: 1, p50: 2, cpuPerTx: 3 }, "tps", "p99"), { tps: 1 })
  })
})
