import { assert, describe, it } from "@effect/vitest"
import { frame } from "../../src/protocol/Encoder.ts"
import { FrameCollector, Frontend, frontendLimits, indexOfNul, lengthAt, type Frame } from "../../src/protocol/Frame.ts"
import { seeded } from "../support/random.ts"

const frames = [
  frame(0x53),
  frame(0x44, Buffer.from("hello")),
  frame(0x5a, Buffer.of(0x49)),
  frame(0x64, Buffer.alloc(300, 7)),
  frame(0, Buffer.of(0, 0, 0, 0))
]
const stream = Buffer.concat(frames)
const plain = ({ type, body }: Frame) => ({ type, body: body.toString("hex") })
const expected = frames.map((bytes) => plain({ type: bytes[0]!, body: bytes.subarray(5) }))

/** Pushes chunks that are overwritten behind the call, as a shared read buffer is. */
const collect = (chunks: Iterable<Buffer>, limit = 1000): ReadonlyArray<ReturnType<typeof plain>> | null => {
  const collector = new FrameCollector(limit)
  const collected: Array<Frame> = []
  for (const chunk of chunks) {
    const copy = Buffer.from(chunk)
    const whole = collector.push(copy)
    if (whole === null) return null
    collected.push(...whole)
    copy.fill(0xaa)
  }
  return collector.takePending() === null ? collected.map(plain) : null
}

describe("lengthAt", () => {
  it("is unsigned: what a peer means as -1 is four milliards", () => {
    assert.strictEqual(lengthAt(Buffer.from("ffffffff", "hex"), 0), 0xffffffff)
    assert.strictEqual(lengthAt(Buffer.from("80000000", "hex"), 0), 0x80000000)
  })

  it("agrees with readUInt32BE everywhere", () => {
    const random = seeded(1)
    for (let run = 0; run < 50_000; run++) {
      const bytes = random.bytes(8)
      const at = random.below(5)
      if (lengthAt(bytes, at) !== bytes.readUInt32BE(at)) assert.fail(bytes.toString("hex"))
    }
  })
})

describe("indexOfNul", () => {
  it("finds the first NUL from `from` to before `end`, and no other", () => {
    const bytes = Buffer.of(0, 1, 0, 1, 0)
    for (let from = 0; from <= 6; from++) {
      for (let end = 0; end <= 6; end++) {
        const naive = [...bytes].findIndex((byte, index) => byte === 0 && index >= from && index < end)
        assert.strictEqual(indexOfNul(bytes, from, end), naive, `${from} to ${end}`)
      }
    }
  })
})

describe("frontendLimits", () => {
  it("knows exactly the messages that a logged-in client may send", () => {
    const allowed = Object.entries(Frontend).flatMap(([name, type]) => (name === "password" ? [] : [type]))
    const known = [...frontendLimits.keys()].filter((type) => frontendLimits[type]! > 0)
    assert.deepStrictEqual(
      known,
      allowed.sort((a, b) => a - b)
    )
  })

  it("takes no message longer than PostgreSQL does", () => {
    assert.strictEqual(Math.max(...frontendLimits), 0x3ffffffe)
    assert.strictEqual(frontendLimits[Frontend.sync], 10_000)
  })
})

describe("FrameCollector", () => {
  it("finds the frames of a stream that comes whole", () => {
    assert.deepStrictEqual(collect([stream]), expected)
  })

  it("finds them split at every byte, and byte for byte", () => {
    for (let at = 0; at <= stream.length; at++) {
      assert.deepStrictEqual(collect([stream.subarray(0, at), stream.subarray(at)]), expected, `split at ${at}`)
    }
    assert.deepStrictEqual(collect(Array.from(stream, (byte) => Buffer.of(byte))), expected)
  })

  it("finds them in any pieces", () => {
    const random = seeded(2)
    for (let run = 0; run < 500; run++) assert.deepStrictEqual(collect(random.pieces(stream)), expected)
  })

  it("keeps the trailing partial message across pushes, and hands it to whoever goes on with it", () => {
    const bytes = frames[1]!
    for (let length = 0; length < bytes.length; length++) {
      const collector = new FrameCollector(1000)
      const partial = Buffer.from(bytes.subarray(0, length))
      assert.deepStrictEqual(collector.push(Buffer.concat([frames[0]!, partial])), [
        { type: 0x53, body: Buffer.alloc(0) }
      ])
      const pending = collector.takePending()
      assert.deepStrictEqual(pending, length === 0 ? null : partial)
      assert.isNull(collector.takePending())
      assert.deepStrictEqual(collector.push(bytes)?.map(plain), [expected[1]!])
    }
  })

  it("gives the stream up at an impossible length, as soon as the length is there", () => {
    for (const length of ["00000000", "00000003", "ffffffff", "80000000", "7fffffff", "000003e9"]) {
      const header = Buffer.from(`53${length}`, "hex")
      assert.isNull(new FrameCollector(1000).push(header), length)
      assert.isNull(new FrameCollector(1000).push(Buffer.concat([frames[0]!, header])), length)
      const collector = new FrameCollector(1000)
      assert.deepStrictEqual(collector.push(header.subarray(0, 4)), [])
      assert.isNull(collector.push(header.subarray(4)), length)
    }
  })

  it("takes a frame whose length word is the limit, and none that is longer", () => {
    assert.lengthOf(new FrameCollector(1000).push(frame(0x53, Buffer.alloc(996))) ?? [], 1)
    assert.isNull(new FrameCollector(1000).push(frame(0x53, Buffer.alloc(997))))
  })

  it("answers noise, and keeps no more of it than its limit", () => {
    const random = seeded(3)
    for (let run = 0; run < 20_000; run++) {
      const collector = new FrameCollector(100)
      for (let push = 0; push < 4; push++) {
        const noise = random.bytes(random.below(30))
        if (noise.length > 4) noise.fill(0, 1, 4)
        if (collector.push(noise) === null) break
        if (push === 3 && (collector.takePending()?.length ?? 0) > 100) assert.fail(`run ${run}`)
      }
    }
  })
})
