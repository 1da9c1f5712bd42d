import { assert, describe, it } from "@effect/vitest"
import { FrameCollector } from "../../src/protocol/Frame.ts"
import * as Frontend from "../../src/protocol/Frontend.ts"
import { decode } from "../../src/protocol/Startup.ts"
import { seeded } from "../support/random.ts"

const hex = (bytes: Buffer) => bytes.toString("hex")

describe("what servers are sent", () => {
  it("is byte for byte what libpq sends", () => {
    assert.strictEqual(hex(Frontend.terminate), "5800000004")
    assert.strictEqual(hex(Frontend.sync), "5300000004")
    assert.strictEqual(hex(Frontend.flush), "4800000004")
    assert.strictEqual(hex(Frontend.emptyQuery), "510000000500")
    assert.strictEqual(hex(Frontend.query("SELECT 1")), "510000000d53454c454354203100")
    assert.strictEqual(hex(Frontend.passwordMessage("pw")), "7000000007707700")
    assert.strictEqual(hex(Frontend.cancelRequest(-2, Buffer.of(1, 2, 3, 4))), "0000001004d2162efffffffe01020304")
    assert.strictEqual(hex(Frontend.closeStatement("s")), "4300000007537300")
    assert.strictEqual(hex(Frontend.describeStatement("s")), "4400000007537300")
    assert.strictEqual(hex(Frontend.saslInitialResponse("M", "n,,ä")), "700000000f4d00000000056e2c2cc3a4")
    assert.strictEqual(hex(Frontend.saslResponse("c=")), "7000000006633d")
  })

  it("runs a statement as Parse, Bind and Execute of unnamed ones, the Sync not among them", () => {
    const frames = new FrameCollector(1000).push(Frontend.runUnnamed("RESET ALL")) ?? []
    assert.deepStrictEqual(
      frames.map(({ type, body }) => [String.fromCharCode(type), hex(body)]),
      [
        ["P", `00${hex(Buffer.from("RESET ALL"))}000000`],
        ["B", "0000000000000000"],
        ["E", "0000000000"]
      ]
    )
  })

  it("opens with a message that our own decoder reads back", () => {
    const decoded = decode(
      Frontend.startupMessage([
        ["user", "a"],
        ["search_path", ""]
      ])
    )
    assert.deepStrictEqual(
      decoded._tag === "StartupMessage" && [decoded.message.major, [...decoded.message.parameters]],
      [
        3,
        [
          ["user", "a"],
          ["search_path", ""]
        ]
      ]
    )
  })

  it("refuses a NUL in a statement, a password or a name", () => {
    for (const build of [
      () => Frontend.query("SELECT 1\0"),
      () => Frontend.passwordMessage("a\0b"),
      () => Frontend.parse("s\0", Buffer.alloc(0)),
      () => Frontend.startupMessage([["user", "a\0database\0b"]])
    ]) {
      assert.throws(build, RangeError)
    }
  })
})

describe("decodePassword", () => {
  it("reads one NUL-terminated string of UTF-8", () => {
    assert.strictEqual(Frontend.decodePassword(Buffer.from("pässword\0")), "pässword")
    assert.strictEqual(Frontend.decodePassword(Buffer.of(0)), "")
    assert.strictEqual(Frontend.decodePassword(Buffer.from("\uFEFFa\0")), "\uFEFFa")
  })

  it("answers null for no terminator, two of them, or what is not UTF-8", () => {
    for (const bytes of ["", "61", "610062", "610000", "000000", "ff00", "c300"]) {
      assert.isNull(Frontend.decodePassword(Buffer.from(bytes, "hex")), bytes)
    }
  })

  it("answers 50 000 bodies of noise with null or with the very same bytes", () => {
    const random = seeded(1)
    for (let run = 0; run < 50_000; run++) {
      const body = random.bytes(random.below(6))
      if (body.length > 0 && random.chance(0.7)) body[body.length - 1] = 0
      const password = Frontend.decodePassword(body)
      if (password !== null && !Buffer.from(`${password}\0`).equals(body)) assert.fail(hex(body))
    }
  })
})

describe("decodeSaslInitialResponse", () => {
  const body = (mechanism: string, length: number, data: string) => {
    const word = Buffer.alloc(4)
    word.writeInt32BE(length)
    return Buffer.concat([Buffer.from(`${mechanism}\0`), word, Buffer.from(data)])
  }

  it("reads the mechanism and what the client says first", () => {
    assert.deepStrictEqual(Frontend.decodeSaslInitialResponse(body("SCRAM-SHA-256", 11, "n,,n=,r=abc")), {
      mechanism: "SCRAM-SHA-256",
      data: "n,,n=,r=abc"
    })
    assert.deepStrictEqual(Frontend.decodeSaslInitialResponse(Frontend.saslInitialResponse("X", "ä").subarray(5)), {
      mechanism: "X",
      data: "ä"
    })
  })

  it("believes no inner length but that of the rest of the message", () => {
    for (const length of [-2147483648, -12, -1, 0, 1, 10, 12, 65_535, 0x3fffffff, 0x7fffffff]) {
      assert.isNull(Frontend.decodeSaslInitialResponse(body("SCRAM-SHA-256", length, "n,,n=,r=abc")), `${length}`)
    }
    for (const length of [-1, 0, 1])
      assert.isNull(Frontend.decodeSaslInitialResponse(body("SCRAM-SHA-256", length, "")))
  })

  it("refuses a message that is cut at any byte, and one without a mechanism, with a NUL or with no UTF-8", () => {
    const whole = body("SCRAM-SHA-256", 11, "n,,n=,r=abc")
    for (let length = 0; length < whole.length; length++) {
      assert.isNull(Frontend.decodeSaslInitialResponse(whole.subarray(0, length)), `${length}`)
    }
    assert.isNull(Frontend.decodeSaslInitialResponse(body("", 1, "n")))
    assert.isNull(Frontend.decodeSaslInitialResponse(body("X", 2, "n\0")))
    assert.isNull(Frontend.decodeSaslInitialResponse(Buffer.from("X\0\0\0\0\x01\xff", "latin1")))
    assert.isNull(Frontend.decodeSaslInitialResponse(Buffer.from("\xff\0\0\0\0\x01n", "latin1")))
  })

  it("answers random bodies with null or with no more than they hold", () => {
    const random = seeded(3)
    for (let run = 0; run < 50_000; run++) {
      const bytes = body("SCRAM-SHA-256", 11, "n,,n=,r=abc")
      for (let change = 0; change <= random.below(3); change++) bytes[random.below(bytes.length)] = random.below(256)
      const message = Frontend.decodeSaslInitialResponse(
        bytes.subarray(0, random.below(4) === 0 ? random.below(30) : undefined)
      )
      if (message === null) continue
      const length = Buffer.byteLength(message.mechanism) + Buffer.byteLength(message.data)
      if (length > bytes.length - 5) assert.fail(bytes.toString("latin1"))
    }
  })
})

describe("decodeSaslResponse", () => {
  it("takes all of the body, but no NUL, nothing empty and nothing that is no UTF-8", () => {
    assert.strictEqual(Frontend.decodeSaslResponse(Buffer.from("c=biws,r=ä")), "c=biws,r=ä")
    for (const bytes of ["", "a\0", "\0", "\xff"])
      assert.isNull(Frontend.decodeSaslResponse(Buffer.from(bytes, "latin1")))
  })
})
