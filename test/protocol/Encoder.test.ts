import { assert, describe, it } from "@effect/vitest"
import { cString, frame, int16, int32, untyped } from "../../src/protocol/Encoder.ts"
import { lengthAt } from "../../src/protocol/Frame.ts"
import { seeded } from "../support/random.ts"

/** 256 MiB that are reserved and never touched. */
const quarter = new Uint8Array(0x10000000)

describe("frame", () => {
  it("writes a length that counts itself and what is really there", () => {
    const random = seeded(1)
    for (let run = 0; run < 5_000; run++) {
      const type = random.below(256)
      const parts = Array.from({ length: random.below(5) }, () => random.bytes(random.below(50)))
      const body = Buffer.concat(parts)
      const bytes = frame(type, ...parts)
      assert.strictEqual(bytes[0], type)
      assert.strictEqual(lengthAt(bytes, 1), bytes.length - 1)
      assert.isTrue(body.equals(bytes.subarray(5)))
      assert.isTrue(untyped(...parts).equals(bytes.subarray(1)))
    }
  })

  it("copies its parts", () => {
    const part = Buffer.from("abc")
    const bytes = frame(0x51, part)
    part.fill(0)
    assert.strictEqual(bytes.toString("latin1", 5), "abc")
  })

  it("refuses a length that would not fit, and one that would wrap to a small one", () => {
    for (const parts of [
      [quarter, quarter, quarter, quarter],
      // 2^32 bytes: the length word would say 4.
      Array.from({ length: 16 }, () => quarter)
    ]) {
      assert.throws(() => frame(0x42, ...parts), RangeError)
      assert.throws(() => untyped(...parts), RangeError)
    }
  })

  it("refuses from the first byte that PostgreSQL would not take", () => {
    const last = new Uint8Array(0x10000000 - 4)
    assert.throws(() => frame(0x42, quarter, quarter, quarter, last), RangeError)
  })
})

describe("cString", () => {
  it("ends with the one NUL that it holds", () => {
    assert.deepStrictEqual(cString(""), Buffer.of(0))
    assert.deepStrictEqual(cString("ä"), Buffer.of(0xc3, 0xa4, 0))
  })

  it("refuses a NUL inside, which would begin a field of the sender's choosing", () => {
    for (const text of ["\0", "a\0", "\0a", "a\0b"]) assert.throws(() => cString(text), RangeError)
  })
})

describe("integers", () => {
  it("are big-endian, and refuse what does not fit", () => {
    assert.deepStrictEqual(int16(-2), Buffer.of(0xff, 0xfe))
    assert.deepStrictEqual(int32(0x01020304), Buffer.of(1, 2, 3, 4))
    assert.throws(() => int16(0x8000), RangeError)
    assert.throws(() => int32(0x80000000), RangeError)
  })
})
