import { assert, describe, it } from "@effect/vitest"
import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto"
import * as Scram from "../../src/protocol/Scram.ts"
import { seeded } from "../support/random.ts"

const hmac = (key: Uint8Array, text: string) => createHmac("sha256", key).update(text).digest()

/** RFC 5802 section 3, line for line, with a user's name: what RFC 7677's example can be checked against. */
const reference = (user: string, clientNonce: string, serverFirst: string, salted: Buffer) => {
  const nonce = serverFirst.slice(2, serverFirst.indexOf(","))
  const authMessage = `n=${user},r=${clientNonce},${serverFirst},c=biws,r=${nonce}`
  const clientKey = hmac(salted, "Client Key")
  const signature = hmac(createHash("sha256").update(clientKey).digest(), authMessage)
  return {
    proof: Buffer.from(clientKey.map((byte, index) => byte ^ signature[index]!)).toString("base64"),
    serverSignature: hmac(hmac(salted, "Server Key"), authMessage).toString("base64")
  }
}

/** RFC 7677, section 3. */
const clientNonce = "rOprNGfwEbeRWgbNEkqO"
const serverFirst = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
const salted = pbkdf2Sync("pencil", Buffer.from("W22ZaJ0SNY7soEsUEjb6gQ==", "base64"), 4096, 32, "sha256")

const decoded = (): Scram.ServerFirst => {
  const first = Scram.decodeServerFirst(clientNonce, serverFirst)
  assert.isNotNull(first)
  return first
}

describe("the client's half", () => {
  it("computes what RFC 7677's example does, but for the user's name, which PostgreSQL takes from the startup packet", () => {
    const published = reference("user", clientNonce, serverFirst, salted)
    assert.strictEqual(published.proof, "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    assert.strictEqual(published.serverSignature, "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=")

    const ours = Scram.clientFinal(clientNonce, decoded(), salted)
    const expected = reference("", clientNonce, serverFirst, salted)
    assert.strictEqual(ours.message, `c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=${expected.proof}`)
    assert.strictEqual(ours.serverSignature.toString("base64"), expected.serverSignature)
  })

  it("begins without channel binding and without a name", () => {
    assert.strictEqual(Scram.clientFirst("abc"), "n,,n=,r=abc")
  })

  it("agrees with the RFC's formulas for any nonce, salt and key", () => {
    for (let run = 0; run < 200; run++) {
      const ourNonce = randomBytes(18).toString("base64")
      const message = `r=${ourNonce}${randomBytes(9).toString("base64")},s=${randomBytes(16).toString("base64")},i=4096`
      const key = randomBytes(32)
      const first = Scram.decodeServerFirst(ourNonce, message)
      assert.isNotNull(first)
      const final = Scram.clientFinal(ourNonce, first, key)
      const expected = reference("", ourNonce, message, key)
      assert.isTrue(final.message.endsWith(`,p=${expected.proof}`))
      assert.isTrue(Scram.verifyServerFinal(final.serverSignature, `v=${expected.serverSignature}`))
    }
  })
})

describe("decodeServerFirst", () => {
  it("reads the nonce, the salt and the iterations", () => {
    assert.deepStrictEqual(decoded(), {
      message: serverFirst,
      nonce: "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0",
      salt: Buffer.from("5b6d99689d12358eeca04b141236fa81", "hex"),
      iterations: 4096
    })
  })

  it("refuses a nonce that does not continue ours", () => {
    for (const nonce of ["", "b", "aB", "xabc", "ab", "abc"]) {
      assert.isNull(Scram.decodeServerFirst("abc", `r=${nonce},s=AAAA,i=4096`), nonce)
    }
    assert.isNotNull(Scram.decodeServerFirst("abc", "r=abcd,s=AAAA,i=4096"))
  })

  it("refuses a nonce of 64 kB", () => {
    assert.isNull(Scram.decodeServerFirst("abc", `r=abc${"d".repeat(65_536)},s=AAAA,i=4096`))
  })

  it("refuses an empty salt and one that is not base64", () => {
    for (const salt of ["", "=", "A", "A=", "AA=", "AAAAA", "A=A", "AA AA", "AAA=\n", "A,A"]) {
      assert.isNull(Scram.decodeServerFirst("abc", `r=abcd,s=${salt},i=4096`), JSON.stringify(salt))
    }
  })

  it("refuses iteration counts that would hold a core, and those that are none", () => {
    for (const count of [
      "2147483648",
      "200001",
      "9999999999",
      "99999999999999999999",
      "0",
      "-1",
      "+1",
      "01",
      "1e3",
      " 1",
      ""
    ]) {
      assert.isNull(Scram.decodeServerFirst("abc", `r=abcd,s=AAAA,i=${count}`), count)
    }
    assert.strictEqual(
      Scram.decodeServerFirst("abc", `r=abcd,s=AAAA,i=${Scram.MAX_ITERATIONS}`)?.iterations,
      Scram.MAX_ITERATIONS
    )
  })

  it("refuses whatever else stands in the message, and the message cut at every byte", () => {
    for (const message of [
      "",
      "m=x,r=abcd,s=AAAA,i=4096",
      "r=abcd,s=AAAA,i=4096\n",
      "\nr=abcd,s=AAAA,i=4096",
      "s=AAAA,r=abcd,i=4096",
      "r=abcd\0,s=AAAA,i=4096",
      "r=abcdä,s=AAAA,i=4096",
      "e=other-error"
    ]) {
      assert.isNull(Scram.decodeServerFirst("abc", message), JSON.stringify(message))
    }
    // Behind "i=4" the rest is a smaller count, which is PostgreSQL's to ask for.
    const upToCount = serverFirst.indexOf("i=") + 2
    for (let length = 0; length <= upToCount; length++) {
      assert.isNull(Scram.decodeServerFirst(clientNonce, serverFirst.slice(0, length)), `${length}`)
    }
  })

  it("answers 50 000 changed messages with null or with a nonce that continues ours", () => {
    const random = seeded(1)
    for (let run = 0; run < 50_000; run++) {
      const bytes = Buffer.from(serverFirst)
      for (let change = 0; change <= random.below(3); change++) bytes[random.below(bytes.length)] = random.below(128)
      const first = Scram.decodeServerFirst(clientNonce, bytes.toString("latin1"))
      if (first === null) continue
      const sound =
        first.nonce.startsWith(clientNonce) &&
        first.nonce.length > clientNonce.length &&
        first.iterations >= 1 &&
        first.iterations <= Scram.MAX_ITERATIONS
      if (!sound) assert.fail(bytes.toString("latin1"))
    }
  })
})

describe("verifyServerFinal", () => {
  const expected = randomBytes(32)
  const right = `v=${expected.toString("base64")}`

  it("takes the signature, and nothing that differs in one bit", () => {
    assert.isTrue(Scram.verifyServerFinal(expected, right))
    assert.isTrue(Scram.verifyServerFinal(expected, `${right},x=extension`))
    for (let bit = 0; bit < 256; bit++) {
      const wrong = Buffer.from(expected)
      wrong[bit >> 3] = wrong[bit >> 3]! ^ (1 << (bit & 7))
      assert.isFalse(Scram.verifyServerFinal(expected, `v=${wrong.toString("base64")}`), `bit ${bit}`)
    }
  })

  it("takes nothing shorter, longer, empty, or another message", () => {
    for (const message of [
      "",
      "v=",
      "v==",
      "e=invalid-proof",
      right.slice(2),
      ` ${right}`,
      `${right}\n`,
      `v=${expected.subarray(1).toString("base64")}`,
      `v=${Buffer.concat([expected, Buffer.of(0)]).toString("base64")}`,
      `v=${"A".repeat(65_536)}`
    ]) {
      assert.isFalse(Scram.verifyServerFinal(expected, message), JSON.stringify(message.slice(0, 80)))
    }
  })
})
