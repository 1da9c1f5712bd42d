import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { createHash } from "node:crypto"
import * as EasyScrypt from "../../src/tenant/EasyScrypt.ts"
import vectors from "../vectors/easy-scrypt.json" with { type: "json" }

const genhashVectors = vectors.filter((vector) => vector.verifies)
const someHash = () => genhashVectors[0]?.hash ?? ""

/** A text whose digest is right, whatever is before it. */
const digested = (bytes: Uint8Array) =>
  Buffer.concat([bytes, createHash("sha256").update(bytes).digest()]).toString("base64")

const withParameters = (N: number, r: number, p: number, keyLength = 32) =>
  EasyScrypt.encode({ key: Buffer.alloc(keyLength, 7), salt: Buffer.alloc(EasyScrypt.saltLength, 9), N, r, p })

const reason = (text: string) => Result.getOrElse(Result.flip(EasyScrypt.decode(text)), () => "accepted")

describe("decode", () => {
  it("reads what the Go genhash wrote, and encode writes the same bytes", () => {
    assert.isAbove(genhashVectors.length, 5)
    for (const vector of genhashVectors) {
      const hash = Result.getOrThrow(EasyScrypt.decode(vector.hash))
      assert.deepStrictEqual(
        [hash.N, hash.r, hash.p, hash.key.length],
        [vector.N, vector.r, vector.p, vector.keyLength]
      )
      assert.strictEqual(hash.salt.length, 16)
      assert.strictEqual(EasyScrypt.encode(hash), vector.hash)
    }
  })

  it("takes line ends within the base64, as Go does", () => {
    const text = someHash()
    assert.isTrue(Result.isSuccess(EasyScrypt.decode(`${text.slice(0, 40)}\r\n${text.slice(40)}\n`)))
  })

  it("refuses a hash in which any single bit was flipped", () => {
    const bytes = Buffer.from(someHash(), "base64")
    for (let bit = 0; bit < bytes.length * 8; bit++) {
      const flipped = Buffer.from(bytes)
      flipped.writeUInt8(flipped.readUInt8(bit >> 3) ^ (1 << (bit & 7)), bit >> 3)
      assert.strictEqual(reason(flipped.toString("base64")), "its digest does not match")
    }
  })

  it("refuses every proper prefix", () => {
    const text = someHash()
    for (let length = 0; length < text.length; length++)
      assert.notStrictEqual(reason(text.slice(0, length)), "accepted")
  })

  it("refuses what is not base64", () => {
    for (const text of ["not base64!", "YWJ", "YWJj=", "Y===", "YW=j", "_-_-", "pässwörd", `${someHash()} `]) {
      assert.strictEqual(reason(text), "it is not base64")
    }
  })

  it("refuses a hash with no byte for the key, and takes one with a single byte", () => {
    assert.strictEqual(reason(digested(Buffer.alloc(28))), "it has 60 bytes, and needs more than 60")
    assert.isTrue(Result.isSuccess(EasyScrypt.decode(withParameters(16384, 8, 1, 1))))
  })

  it("refuses parameters that scrypt does not have", () => {
    for (const N of [-16384, -2147483648, 0, 1, 3, 16383]) {
      assert.strictEqual(reason(withParameters(N, 8, 1)), "its N is not a power of two above 1")
    }
    for (const r of [-1, -2147483648, 0]) assert.strictEqual(reason(withParameters(16384, r, 1)), "its r is below 1")
    for (const p of [-1, -2147483648, 0]) assert.strictEqual(reason(withParameters(16384, 8, p)), "its p is below 1")
  })

  it("refuses what would need more than 256 MiB, and takes what needs just less", () => {
    const tooMuch = "its parameters need more than 256 MiB"
    assert.strictEqual(reason(withParameters(2 ** 30, 8, 1)), tooMuch)
    assert.strictEqual(reason(withParameters(2 ** 18, 8, 1)), tooMuch)
    assert.strictEqual(reason(withParameters(2, 2 ** 30, 2 ** 30)), tooMuch)
    assert.strictEqual(reason(withParameters(2, 1, 2 ** 21)), tooMuch)
    assert.strictEqual(reason(withParameters(2 ** 17, 15, 1)), "accepted")
  })

  it("refuses little memory for a very long time", () => {
    assert.strictEqual(reason(withParameters(2 ** 20, 1, 2 ** 20)), "its parameters take too long")
    assert.strictEqual(reason(withParameters(16384, 8, 128)), "accepted")
    assert.strictEqual(reason(withParameters(16384, 8, 129)), "its parameters take too long")
  })

  it.prop(
    "never throws, and accepts only what encode can give back",
    { text: Schema.String, bytes: Schema.Array(Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 255 }))) },
    ({ text, bytes }) => {
      EasyScrypt.decode(text)
      const sealed = digested(Buffer.from(bytes))
      const decoded = EasyScrypt.decode(sealed)
      if (Result.isSuccess(decoded)) assert.strictEqual(EasyScrypt.encode(decoded.success), sealed)
    }
  )
})
