import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { ByteReader, type ReadFailure } from "../../src/net/ByteReader.ts"
import { frame, untyped } from "../../src/protocol/Encoder.ts"
import { RecordedTransport } from "../support/RecordedTransport.ts"
import { seeded } from "../support/random.ts"

const HIGH_WATER = 32 * 1024
const LIMIT = 1000

const fixture = () => {
  const transport = new RecordedTransport()
  return { transport, reader: new ByteReader(transport) }
}

const begin = <A, E>(effect: Effect.Effect<A, E>) => Effect.forkChild(effect, { startImmediately: true })

const packet = untyped(Buffer.from("startup"))
const frames = [frame(0x70, Buffer.from("hello")), frame(0x53), frame(0x64, Buffer.alloc(500, 7))]
const stream = Buffer.concat([packet, ...frames])

/** A packet, a frame for each of `frames`, and what follows, as hex. */
const readAll = (reader: ByteReader) =>
  Effect.gen(function* () {
    const read = [(yield* reader.packet(LIMIT)).toString("hex")]
    for (const _ of frames) {
      const { type, body } = yield* reader.frame(LIMIT)
      read.push(frame(type, body).toString("hex"))
    }
    return read
  })

const expected = [packet, ...frames].map((bytes) => bytes.toString("hex"))

const gone = (reader: ByteReader) =>
  Effect.callback<never, ReadFailure>((resume) => {
    reader.watch((failure) => resume(Effect.fail(failure)))
    return Effect.sync(() => reader.watch(null))
  })

describe("reading", () => {
  it.effect("finds packets and frames split at every byte, whether they were waited for or not", () =>
    Effect.gen(function* () {
      for (let at = 0; at <= stream.length; at++) {
        for (const early of [false, true]) {
          const { reader, transport } = fixture()
          if (early) transport.say(stream.subarray(0, at))
          const reading = yield* begin(readAll(reader))
          if (!early) transport.say(stream.subarray(0, at))
          transport.say(stream.subarray(at))
          assert.deepStrictEqual(yield* Fiber.join(reading), expected, `split at ${at}`)
        }
      }
    })
  )

  it.effect("finds them in any pieces, and hands over what is left", () =>
    Effect.gen(function* () {
      const random = seeded(1)
      for (let run = 0; run < 200; run++) {
        const { reader, transport } = fixture()
        const reading = yield* begin(readAll(reader))
        transport.say(...random.pieces(Buffer.concat([stream, Buffer.from("rest")])))
        assert.deepStrictEqual(yield* Fiber.join(reading), expected)
        assert.strictEqual(reader.pendingLength, 4)
        assert.strictEqual(reader.takeRest().toString(), "rest")
        assert.strictEqual(reader.pendingLength, 0)
      }
    })
  )

  it.effect("reads nothing from nothing at once", () =>
    Effect.gen(function* () {
      assert.lengthOf(yield* fixture().reader.read(0), 0)
    })
  )

  it.effect("refuses an impossible length before anything is kept for it", () =>
    Effect.gen(function* () {
      for (const length of [0, 3, LIMIT + 1, 0x80000000, 0xffffffff]) {
        const header = Buffer.alloc(5, 0x70)
        header.writeUInt32BE(length, 1)
        const framed = fixture()
        framed.transport.say(header)
        assert.strictEqual((yield* Effect.flip(framed.reader.frame(LIMIT)))._tag, "BadLength", `${length}`)
        const packed = fixture()
        packed.transport.say(header.subarray(1))
        assert.strictEqual((yield* Effect.flip(packed.reader.packet(LIMIT)))._tag, "BadLength", `${length}`)
      }
    })
  )

  it.effect("takes a length that is the limit, and the shortest of each kind", () =>
    Effect.gen(function* () {
      const { reader, transport } = fixture()
      transport.say(frame(0x70, Buffer.alloc(LIMIT - 4)), frame(0x53), untyped(Buffer.alloc(LIMIT - 4)))
      assert.lengthOf((yield* reader.frame(LIMIT)).body, LIMIT - 4)
      assert.lengthOf((yield* reader.frame(4)).body, 0)
      assert.lengthOf(yield* reader.packet(LIMIT), LIMIT)
      for (const [length, ok] of [
        [7, false],
        [8, true]
      ] as const) {
        const shortest = fixture()
        const bytes = Buffer.alloc(8)
        bytes.writeUInt32BE(length)
        shortest.transport.say(bytes)
        const read = Effect.match(shortest.reader.packet(LIMIT), { onSuccess: () => true, onFailure: () => false })
        assert.strictEqual(yield* read, ok, `${length}`)
      }
    })
  )
})

describe("a client that sends more than is asked for", () => {
  it.effect("is stopped over the high-water mark, and goes on when somebody reads", () =>
    Effect.gen(function* () {
      const { reader, transport } = fixture()
      transport.say(Buffer.alloc(HIGH_WATER))
      assert.isFalse(transport.paused)
      transport.say(Buffer.of(1))
      assert.isTrue(transport.paused)
      transport.say(Buffer.alloc(100), Buffer.alloc(100))
      assert.strictEqual(reader.pendingLength, HIGH_WATER + 1)
      yield* reader.read(HIGH_WATER)
      assert.isTrue(transport.paused)
      assert.lengthOf(yield* reader.read(201), 201)
      assert.deepStrictEqual([transport.paused, transport.pauses], [false, 1])
    })
  )

  it.effect("is not left stopped when the transport goes to another owner", () =>
    Effect.sync(() => {
      const { reader, transport } = fixture()
      transport.say(Buffer.alloc(HIGH_WATER + 1), Buffer.alloc(10))
      assert.isTrue(transport.paused)
      assert.lengthOf(reader.takeRest(), HIGH_WATER + 1)
      assert.isFalse(transport.paused)
    })
  )

  it.effect("loses no byte that comes while the transport changes hands", () =>
    Effect.sync(() => {
      const { reader, transport } = fixture()
      transport.say(Buffer.alloc(HIGH_WATER + 1), Buffer.from("later"))
      const seen: Array<Buffer> = []
      const handler = {
        onData: (chunk: Buffer) => void seen.push(Buffer.from(chunk)),
        onDrain: () => {},
        onClose: () => {}
      }
      transport.handler = handler
      const rest = reader.takeRest()
      assert.strictEqual(Buffer.concat([rest, ...seen]).length, HIGH_WATER + 6)
    })
  )
})

describe("a peer that goes", () => {
  it.effect("ends a reading with the reason, and those that come later", () =>
    Effect.gen(function* () {
      for (const reason of [null, "ECONNRESET"]) {
        const { reader, transport } = fixture()
        const reading = yield* begin(Effect.flip(reader.frame(LIMIT)))
        transport.say(Buffer.of(1, 2))
        transport.leave(reason)
        assert.deepStrictEqual(yield* Fiber.join(reading), { _tag: "PeerGone", reason })
        assert.deepStrictEqual(yield* Effect.flip(reader.read(3)), { _tag: "PeerGone", reason })
      }
    })
  )

  it.effect("leaves what it had sent to be read", () =>
    Effect.gen(function* () {
      const { reader, transport } = fixture()
      transport.say(stream)
      transport.leave()
      assert.deepStrictEqual(yield* readAll(reader), expected)
      assert.strictEqual((yield* Effect.flip(reader.read(1)))._tag, "PeerGone")
    })
  )

  it.effect("is noticed while nobody reads, before and after it is asked for", () =>
    Effect.gen(function* () {
      const { reader, transport } = fixture()
      const watching = yield* begin(Effect.flip(gone(reader)))
      transport.say(Buffer.from("x"))
      assert.isUndefined(watching.pollUnsafe())
      transport.leave("ECONNRESET")
      assert.deepStrictEqual(yield* Fiber.join(watching), { _tag: "PeerGone", reason: "ECONNRESET" })
      assert.deepStrictEqual(yield* Effect.flip(gone(reader)), { _tag: "PeerGone", reason: "ECONNRESET" })
      assert.strictEqual(reader.pendingLength, 1)
    })
  )

  it.effect("is noticed by a reader and a watcher alike", () =>
    Effect.gen(function* () {
      const { reader, transport } = fixture()
      const watching = yield* begin(Effect.flip(gone(reader)))
      const reading = yield* begin(Effect.flip(reader.read(1)))
      transport.leave()
      assert.strictEqual((yield* Fiber.join(watching))._tag, "PeerGone")
      assert.strictEqual((yield* Fiber.join(reading))._tag, "PeerGone")
    })
  )
})

describe("interruption", () => {
  it.effect("of a reading leaves the bytes to the next one", () =>
    Effect.gen(function* () {
      const { reader, transport } = fixture()
      const reading = yield* begin(reader.read(4))
      transport.say(Buffer.from("ab"))
      yield* Fiber.interrupt(reading)
      transport.say(Buffer.from("cd"))
      assert.strictEqual((yield* reader.read(4)).toString(), "abcd")
    })
  )

  it.effect("of a watcher is final: nobody hears the peer go", () =>
    Effect.gen(function* () {
      const { reader, transport } = fixture()
      const watching = yield* begin(gone(reader))
      yield* Fiber.interrupt(watching)
      transport.leave()
      assert.strictEqual((yield* Effect.flip(gone(reader)))._tag, "PeerGone")
    })
  )
})
