import { assert, describe, it } from "@effect/vitest"
import { Frontend } from "../../src/protocol/Frame.ts"
import { Outgoing } from "../../src/session/Outgoing.ts"

const chunk = Buffer.from("0123456789")
const begin = () => {
  const out = new Outgoing()
  out.begin()
  return out
}

describe("what goes in place of a client's chunk", () => {
  it("is the chunk, but for what was replaced", () => {
    const out = begin()
    out.replace(chunk, 2, 3)
    out.add(Buffer.from("-ab-"), 1, 3)
    out.replace(chunk, 7, 1)
    out.addName("c")
    assert.strictEqual(out.finish(chunk, 9).bytes.toString(), "01ab56c\x008")
    assert.deepStrictEqual([out.changed, out.added], [true, 4])
  })

  it("begins anew with each chunk, and a chunk in which nothing is replaced goes as it came", () => {
    const out = begin()
    out.replace(chunk, 0, 10)
    out.add(chunk)
    out.begin()
    assert.deepStrictEqual([out.changed, out.added], [false, 0])
    out.replace(chunk, 0, 9)
    assert.strictEqual(out.finish(chunk, 10).bytes.toString(), "9")
  })

  it("has length words of all four bytes", () => {
    const out = begin()
    out.replace(chunk, 0, 10)
    out.addHeader(Frontend.bind, 0x3ffffffe)
    assert.deepStrictEqual(out.finish(chunk, 10).bytes, Buffer.of(0x42, 0x3f, 0xff, 0xff, 0xfe))
  })

  it("is lent where it is short, and has a buffer of its own where it is long, however it grows", () => {
    for (const [count, lent] of [
      [1, true],
      [400, false]
    ] as const) {
      const out = begin()
      out.replace(chunk, 5, 0)
      const part = Buffer.alloc(1000, 1)
      for (let index = 0; index < count; index++) out.add(part)
      const finished = out.finish(chunk, 10)
      assert.strictEqual(finished.lent, lent)
      assert.isTrue(
        finished.bytes.equals(Buffer.concat([chunk.subarray(0, 5), Buffer.alloc(count * 1000, 1), chunk.subarray(5)]))
      )
    }
  })
})
