import { assert, describe, it } from "@effect/vitest"
import { didYouMean, nearest } from "../../src/config/Spelling.ts"

describe("nearest", () => {
  const known = ["MaxIdle", "MaxOpen", "MaxIdletimeSecs", "MaxLifetimeSecs"]

  it("finds the name that was mistyped, whatever its case", () => {
    assert.strictEqual(nearest("MaxOpne", known), "MaxOpen")
    assert.strictEqual(nearest("maxidel", known), "MaxIdle")
    assert.strictEqual(nearest("MaxIdleTimeoutSecs", known), "MaxIdletimeSecs")
    assert.strictEqual(nearest("MaxLifetime", known), "MaxLifetimeSecs")
  })

  it("finds nothing where nothing is near", () => {
    assert.isUndefined(nearest("Colour", known))
    assert.isUndefined(nearest("", known))
    assert.strictEqual(didYouMean("Colour", known), "")
  })
})
