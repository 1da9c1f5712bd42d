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
