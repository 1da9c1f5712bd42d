import { assert, describe, it } from "@effect/vitest"
import { slowdowns, type Compared } from "../../bench/Comparison.ts"

const result = (
  ratio: Readonly<Record<string, number>>,
  { variant = "simple", clients = 8 }: { readonly variant?: string; readonly clients?: number } = {}
): Compared => ({
  scenario: "select",
  variant,
  clients,
  ratio: Object.fromEntries(Object.entries(ratio).map(([name, cpuPerTx]) => [name, { cpuPerTx }]))
})

describe("slowdowns", () => {
  it("is more than a tenth more CPU beside pgbouncer", () => {
    assert.deepStrictEqual(slowdowns([result({ pgbouncer: 1.09 })], [result({ pgbouncer: 1 })]), [])
    assert.deepStrictEqual(slowdowns([result({ pgbouncer: 1.12 })], [result({ pgbouncer: 1 })]), [
      { scenario: "select", variant: "simple", clients: 8, against: "pgbouncer", before: 1, now: 1.12 }
    ])
  })

  it("is told beside the relay where one of the two runs had no pgbouncer", () => {
    const found = slowdowns([result({ relay: 2 })], [result({ pgbouncer: 1, relay: 1 })])
    assert.deepStrictEqual(
      found.map(({ against }) => against),
      ["relay"]
    )
  })

  it("is told once for a case, beside pgbouncer where both had it", () => {
    assert.deepStrictEqual(slowdowns([result({ pgbouncer: 1, relay: 2 })], [result({ pgbouncer: 1, relay: 1 })]), [])
  })

  it("is nothing where that case was not measured before", () => {
    const committed = [result({ pgbouncer: 1 }, { clients: 64 }), result({ pgbouncer: 1 }, { variant: "extended" })]
    assert.deepStrictEqual(slowdowns([result({ pgbouncer: 9 })], committed), [])
    assert.deepStrictEqual(slowdowns([result({ pgbouncer: 9 })], []), [])
  })

  it("is nothing where it has become faster", () => {
    assert.deepStrictEqual(slowdowns([result({ pgbouncer: 0.5 })], [result({ pgbouncer: 1 })]), [])
  })
})
