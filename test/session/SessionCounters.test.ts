import { assert, describe, it } from "@effect/vitest"
import { SessionCounters } from "../../src/session/SessionCounters.ts"

describe("the count of errors by SQLSTATE", () => {
  it("has 500 codes at the most: what a RAISE invents beyond them is counted as other, and the known go on", () => {
    const counters = new SessionCounters()
    const codes = Array.from({ length: 600 }, (_, index) => `P${String(index).padStart(4, "0")}`)
    for (const code of [...codes, ...codes]) counters.countError(code)
    const counts = counters.errorsBySqlState
    assert.strictEqual(counts.size, 501)
    assert.strictEqual(counts.get("P0499"), 2)
    assert.isUndefined(counts.get("P0500"))
    assert.strictEqual(counts.get("other"), 200)
  })
})
