import { assert, describe, it } from "@effect/vitest"
import * as Backend from "../../src/protocol/Backend.ts"
import { frame, int16, int32 } from "../../src/protocol/Encoder.ts"
import { FrameCollector, type Frame } from "../../src/protocol/Frame.ts"
import { seeded } from "../support/random.ts"

const theFrame = (bytes: Buffer): Frame => {
  const frames = new FrameCollector(100_000).push(bytes) ?? []
  assert.lengthOf(frames, 1)
  return frames[0]!
}

const texts = ["", "a", "it's", "ä\u{1F600}", "\n\t", "x".repeat(5000), "C42601", "\uFEFF"]

describe("what clients are sent", () => {
  it("is byte for byte what PostgreSQL sends", () => {
    const hex = (bytes: Buffer) => bytes.toString("hex")
    assert.strictEqual(hex(Backend.authenticationOk), "520000000800000000")
    assert.strictEqual(hex(Backend.authenticationCleartextPassword), "520000000800000003")
    assert.strictEqual(hex(Backend.parseComplete), "3100000004")
    assert.strictEqual(hex(Backend.closeComplete), "3300000004")
    assert.strictEqual(hex(Backend.readyForQueryIdle), "5a0000000549")
    assert.strictEqual(hex(Backend.backendKeyData(1, Buffer.of(1, 2, 3, 4))), "4b0000000c0000000101020304")
    assert.strictEqual(hex(Backend.parameterStatus("a", "b")), "530000000861006200")
    assert.strictEqual(
      hex(Backend.negotiateProtocolVersion(0x30000, ["_pq_.x"])),
      "760000001300030000000000015f70715f2e7800"
    )
    assert.strictEqual(
      Backend.errorResponse({ severity: "FATAL", sqlState: "28P01", message: "no", hint: "try" }).toString("latin1", 5),
      "SFATAL\0VFATAL\0C28P01\0Mno\0Htry\0\0"
    )
    assert.strictEqual(
      Backend.errorResponse({ severity: "ERROR", sqlState: "57014", message: "", hint: null }).toString("latin1", 5),
      "SERROR\0VERROR\0C57014\0M\0\0"
    )
  })

  it("refuses a NUL in any field", () => {
    const fields = { severity: "ERROR", sqlState: "XX000", message: "a" } as const
    assert.throws(() => Backend.errorResponse({ ...fields, message: "a\0Cxx" }), RangeError)
    assert.throws(() => Backend.errorResponse({ ...fields, hint: "\0" }), RangeError)
    assert.throws(() => Backend.parameterStatus("a\0b", ""), RangeError)
  })
})

describe("round trips", () => {
  it("read back every error that was written", () => {
    for (const message of texts) {
      for (const severity of ["FATAL", "ERROR"] as const) {
        for (const hint of [undefined, null, ...texts]) {
          const { type, body } = theFrame(Backend.errorResponse({ severity, sqlState: "53300", message, hint }))
          assert.strictEqual(type, 0x45)
          const error = Backend.decodeError(body)
          assert.deepStrictEqual(error, { severity, sqlState: "53300", message })
          assert.strictEqual(Backend.isFatal(error), severity === "FATAL")
        }
      }
    }
  })

  it("read back every parameter and key", () => {
    for (const value of texts) {
      const { body } = theFrame(Backend.parameterStatus("TimeZone", value))
      assert.deepStrictEqual(Backend.decodeParameterStatus(body), ["TimeZone", value])
    }
    for (const processId of [0, 1, -1, 0x7fffffff, -0x80000000]) {
      for (const length of [4, 32, 256]) {
        const secretKey = seeded(length).bytes(length)
        const { body } = theFrame(Backend.backendKeyData(processId, secretKey))
        assert.deepStrictEqual(Backend.decodeBackendKeyData(body), { processId, secretKey })
      }
    }
  })
})

describe("decodeError", () => {
  const decode = (text: string) => Backend.decodeError(Buffer.from(text, "latin1"))
  const nothing = { severity: "", sqlState: "XX000", message: "" }

  it("fills in what is missing", () => {
    assert.deepStrictEqual(decode(""), nothing)
    assert.deepStrictEqual(decode("\0"), nothing)
    assert.deepStrictEqual(decode("Mhello\0\0"), { ...nothing, message: "hello" })
    assert.deepStrictEqual(decode("C57P01\0\0"), { ...nothing, sqlState: "57P01" })
  })

  it("reads a body without a terminator, cut at every byte", () => {
    const whole = "SFATAL\0VFATAL\0C57P01\0Mbye\0\0"
    for (let length = 0; length <= whole.length; length++) {
      const { sqlState, message } = decode(whole.slice(0, length))
      assert.isTrue("57P01".startsWith(sqlState) || sqlState === "XX000", sqlState)
      assert.isTrue("bye".startsWith(message), message)
    }
    assert.strictEqual(decode("SFATAL\0C57P01").sqlState, "57P01")
    assert.strictEqual(decode("M").message, "")
  })

  it("believes the severity that is never translated, and the translated one where there is no other", () => {
    assert.isTrue(Backend.isFatal(decode("SFATALE\0VFATAL\0\0")))
    assert.isFalse(Backend.isFatal(decode("SFATAL\0VERROR\0\0")))
    assert.isTrue(Backend.isFatal(decode("SPANIC\0\0")))
  })

  it("stops at the terminator and passes over fields that it does not know", () => {
    assert.deepStrictEqual(decode("Zx\0Mone\0\0Mtwo\0"), { ...nothing, message: "one" })
  })

  it("never throws on noise", () => {
    const random = seeded(1)
    for (let run = 0; run < 50_000; run++) {
      const error = Backend.decodeError(random.bytes(random.below(24)))
      if (typeof error.sqlState !== "string") assert.fail(`run ${run}`)
    }
  })
})

describe("decodeParameterStatus and decodeBackendKeyData", () => {
  it("answer null for what is cut short", () => {
    for (const text of ["", "a", "a\0", "a\0b", "\0", "\0b\0"]) {
      assert.isNull(Backend.decodeParameterStatus(Buffer.from(text)), JSON.stringify(text))
    }
    for (const length of [0, 7, 261]) assert.isNull(Backend.decodeBackendKeyData(Buffer.alloc(length)), `${length}`)
  })

  it("keep no view of the body", () => {
    const body = Buffer.alloc(8, 1)
    const key = Backend.decodeBackendKeyData(body)
    body.fill(0)
    assert.deepStrictEqual(key?.secretKey, Buffer.alloc(4, 1))
  })
})

describe("decodeAuthentication", () => {
  const decode = (code: number, rest: Uint8Array = Buffer.alloc(0)) =>
    Backend.decodeAuthentication(theFrame(frame(0x52, int32(code), rest)).body)

  it("reads each kind of request", () => {
    assert.deepStrictEqual(decode(0), { _tag: "Ok" })
    assert.deepStrictEqual(decode(3), { _tag: "CleartextPassword" })
    assert.deepStrictEqual(decode(5, Buffer.of(1, 2, 3, 4)), { _tag: "Md5Password", salt: Buffer.of(1, 2, 3, 4) })
    assert.deepStrictEqual(decode(10, Buffer.from("SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")), {
      _tag: "Sasl",
      mechanisms: ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]
    })
    assert.deepStrictEqual(decode(11, Buffer.from("r=x")), { _tag: "SaslContinue", data: "r=x" })
    assert.deepStrictEqual(decode(12, Buffer.from("v=x")), { _tag: "SaslFinal", data: "v=x" })
  })

  it("answers Unsupported with the code for all other kinds", () => {
    for (const code of [1, 2, 4, 6, 7, 8, 9, 13, 0x7fffffff]) {
      assert.deepStrictEqual(decode(code), { _tag: "Unsupported", code })
    }
    assert.deepStrictEqual(decode(-1), { _tag: "Unsupported", code: 0xffffffff })
  })

  it("answers null for a body too short to say anything, and for a salt that is none", () => {
    for (let length = 0; length < 4; length++) assert.isNull(Backend.decodeAuthentication(Buffer.alloc(length)))
    for (const length of [0, 3, 5]) assert.isNull(decode(5, Buffer.alloc(length)), `${length} bytes of salt`)
  })

  it("reads mechanisms from a list that has no end or no members", () => {
    assert.deepStrictEqual(decode(10), { _tag: "Sasl", mechanisms: [] })
    assert.deepStrictEqual(decode(10, Buffer.from("\0\0\0")), { _tag: "Sasl", mechanisms: [] })
    assert.deepStrictEqual(decode(10, Buffer.from("X")), { _tag: "Sasl", mechanisms: ["X"] })
  })

  it("never throws on noise", () => {
    const random = seeded(2)
    for (let run = 0; run < 50_000; run++) {
      const bytes = random.bytes(random.below(16))
      bytes.fill(0, 0, Math.min(3, bytes.length))
      Backend.decodeAuthentication(bytes)
    }
  })
})

describe("a row", () => {
  const row = (count: number, ...parts: ReadonlyArray<Buffer>) => Buffer.concat([int16(count), ...parts])
  const field = (length: number, text = "") => Buffer.concat([int32(length), Buffer.from(text)])

  it("is read with its NULLs", () => {
    assert.deepStrictEqual(Backend.decodeDataRow(row(3, field(1, "a"), field(-1), field(0))), ["a", null, ""])
    assert.deepStrictEqual(Backend.decodeDataRow(row(0)), [])
  })

  const refused: ReadonlyArray<readonly [what: string, body: Buffer]> = [
    ["a length below that of NULL (CVE-2026-32286)", row(1, field(-2))],
    ["the least length there is", row(1, field(-0x80000000, "a"))],
    ["a length beyond the row", row(1, field(2, "a"))],
    ["the greatest length there is", row(1, field(0x7fffffff, "a"))],
    ["more columns than there are", row(2, field(1, "a"))],
    ["the greatest count there is", row(-1, field(1, "a"))],
    ["fewer columns than there are", row(1, field(1, "a"), field(1, "b"))],
    ["half a length", row(1, Buffer.alloc(3))],
    ["half a count", Buffer.alloc(1)]
  ]
  for (const [what, body] of refused) {
    it(`is refused for ${what}`, () => assert.isNull(Backend.decodeDataRow(body)))
  }
})
