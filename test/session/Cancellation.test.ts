import { assert, describe, it } from "@effect/vitest"
import { Cancellation } from "../../src/session/Cancellation.ts"

describe("a key for protocol 3.2", () => {
  it("has a secret of 32 bytes, and for an older one of 4", () => {
    const keys = new Cancellation<string>()
    assert.deepStrictEqual(
      [0, 1, 2].map((minor) => keys.issue("x", minor).secretKey.length),
      [4, 4, 32]
    )
    const key = keys.issue("mine", 2)
    assert.strictEqual(keys.find(key.processId, key.secretKey), "mine")
    assert.isNull(keys.find(key.processId, key.secretKey.subarray(0, 4)))
  })
})

describe("Cancellation", () => {
  it("finds whose key it is, until the key is revoked", () => {
    const keys = new Cancellation<string>()
    const one = keys.issue("one", 0)
    const other = keys.issue("other", 0)
    assert.strictEqual(keys.find(one.processId, one.secretKey), "one")
    assert.strictEqual(keys.find(other.processId, other.secretKey), "other")
    keys.revoke(one)
    assert.isNull(keys.find(one.processId, one.secretKey))
    assert.strictEqual(keys.find(other.processId, other.secretKey), "other")
    keys.revoke(one)
  })

  it("finds nobody for a guess: another's secret, one bit less, none, more, or a number that was never given", () => {
    const keys = new Cancellation<string>()
    const one = keys.issue("one", 0)
    const other = keys.issue("other", 0)
    const almost = Buffer.from(one.secretKey)
    almost[3] = almost[3]! ^ 1
    for (const guess of [
      other.secretKey,
      almost,
      Buffer.alloc(0),
      one.secretKey.subarray(0, 3),
      Buffer.concat([one.secretKey, Buffer.of(0)]),
      Buffer.concat([one.secretKey, Buffer.alloc(252)])
    ]) {
      assert.isNull(keys.find(one.processId, guess))
    }
    for (const processId of [0, -1, 0xffffffff, other.processId + 1]) {
      assert.isNull(keys.find(processId, one.secretKey))
    }
  })

  it("gives process ids that are positive and never twice at a time, and secrets of four bytes that differ", () => {
    const keys = new Cancellation<number>()
    const given = Array.from({ length: 10_000 }, (_, target) => keys.issue(target, 0))
    assert.strictEqual(new Set(given.map(({ processId }) => processId)).size, given.length)
    for (const { processId, secretKey } of given) {
      if (processId <= 0 || processId > 0xffffff || secretKey.length !== 4) assert.fail(`${processId}`)
    }
    assert.isAbove(new Set(given.map(({ secretKey }) => secretKey.readUInt32BE(0))).size, 9_990)
  })

  it("carries the number of the process above the session's 24 bits, still positive for the last one", () => {
    for (const process of [0, 1, 127]) {
      const { processId, secretKey } = new Cancellation<string>(process).issue("x", 0)
      assert.strictEqual(processId >>> 24, process)
      assert.isAbove(processId, 0)
      assert.isNull(new Cancellation<string>((process + 1) % 128).find(processId, secretKey))
    }
  })
})
