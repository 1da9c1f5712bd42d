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

describe("channel binding in the client's half", () => {
  const hash = Buffer.from("0123456789abcdef0123456789abcdef")
  const cases = [
    [{ _tag: "Unsupported" }, "n,,", Buffer.from("n,,")],
    [{ _tag: "NotOffered" }, "y,,", Buffer.from("y,,")],
    [
      { _tag: "ServerEndPoint", hash },
      "p=tls-server-end-point,,",
      Buffer.concat([Buffer.from("p=tls-server-end-point,,"), hash])
    ]
  ] as const
  for (const [binding, header, data] of cases) {
    it(`begins with ${header} and repeats that, with what it binds to, under the proof`, () => {
      assert.strictEqual(Scram.clientFirst("abc", binding), `${header}n=,r=abc`)
      const final = Scram.clientFinal(clientNonce, decoded(), salted, binding)
      const withoutProof = `c=${data.toString("base64")},r=${decoded().nonce}`
      assert.isTrue(final.message.startsWith(`${withoutProof},p=`))
      const authMessage = `n=,r=${clientNonce},${serverFirst},${withoutProof}`
      assert.deepStrictEqual(final.serverSignature, hmac(hmac(salted, "Server Key"), authMessage))
    })
  }
})

describe("a verifier", () => {
  const verifier = Scram.verifierFor(salted, Buffer.from("W22ZaJ0SNY7soEsUEjb6gQ==", "base64"), 4096)
  const text = Scram.encodeVerifier(verifier)

  it("is written as PostgreSQL writes it, and read back", () => {
    assert.strictEqual(
      text,
      "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )
    assert.deepStrictEqual(Scram.decodeVerifier(text), verifier)
  })

  it("may have any salt and as many iterations as PostgreSQL lets it have", () => {
    const salt = Buffer.from("s")
    const other = Scram.encodeVerifier({ ...verifier, salt, iterations: 2_147_483_647 })
    assert.deepStrictEqual(Scram.decodeVerifier(other), { ...verifier, salt, iterations: 2_147_483_647 })
  })

  it("is none where anything is missing, too much, or not canonical base64; nor when it is cut at any byte", () => {
    const [head = "", tail = ""] = text.split(":W22Z")
    for (const wrong of [
      "",
      "SCRAM-SHA-256$",
      text.toLowerCase(),
      ` ${text}`,
      `${text}\n`,
      `${text}:`,
      `${text}$`,
      text.replace("4096", "0"),
      text.replace("4096", "04096"),
      text.replace("4096", "2147483648"),
      text.replace("W22ZaJ0SNY7soEsUEjb6gQ==", ""),
      text.replace("gQ==", "gR=="),
      text.replace("gQ==", "gQ"),
      text.replace("4qY=", "4qY"),
      text.replace("SCRAM-SHA-256", "SCRAM-SHA-1"),
      `${head}:${"A".repeat(2000)}${tail}`
    ]) {
      assert.isNull(Scram.decodeVerifier(wrong), wrong)
    }
    for (let length = 0; length < text.length; length++) assert.isNull(Scram.decodeVerifier(text.slice(0, length)))
  })
})

describe("the server's half", () => {
  const salt = Buffer.from("0123456789abcdef")
  const verifier = Scram.verifierFor(salted, salt, 4096)
  const hash = Buffer.from("the hash of a certificate")

  /** A login from end to end, and what each end makes of the other's last message. */
  const exchange = (binding: Scram.ChannelBinding, change: (final: string) => string = (final) => final) => {
    const client = Scram.decodeClientFirst(Scram.clientFirst("client", binding))
    assert.isNotNull(client)
    const sentFirst = Scram.serverFirst(client, "server", verifier)
    const challenge = Scram.decodeServerFirst("client", sentFirst)
    assert.isNotNull(challenge)
    const sent = Scram.clientFinal("client", challenge, salted, binding)
    const final = Scram.decodeClientFinal(sentFirst, change(sent.message))
    const answer = final === null ? null : Scram.serverFinal(client, sentFirst, final, verifier)
    return { final, believed: answer !== null && Scram.verifyServerFinal(sent.serverSignature, answer) }
  }

  it("proves RFC 7677's example right, and signs it as the RFC does", () => {
    const client = Scram.decodeClientFirst(`n,,n=user,r=${clientNonce}`)
    assert.isNotNull(client)
    const published = Scram.verifierFor(salted, decoded().salt, 4096)
    const sentFirst = Scram.serverFirst(client, "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", published)
    assert.strictEqual(sentFirst, serverFirst)
    const message = `c=biws,r=${decoded().nonce},p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=`
    const final = Scram.decodeClientFinal(sentFirst, message)
    assert.isNotNull(final)
    assert.strictEqual(
      Scram.serverFinal(client, sentFirst, final, published),
      "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    )
    assert.isTrue(Scram.isBoundTo(final, { _tag: "Unsupported" }))
  })

  it("and the client's believe each other, whatever they bind to", () => {
    for (const binding of [
      { _tag: "Unsupported" },
      { _tag: "NotOffered" },
      { _tag: "ServerEndPoint", hash }
    ] as const) {
      const { believed, final } = exchange(binding)
      assert.isTrue(believed)
      assert.isTrue(final !== null && Scram.isBoundTo(final, binding))
    }
  })

  it("sees another channel, and another header than at first", () => {
    const { final } = exchange({ _tag: "ServerEndPoint", hash })
    assert.isNotNull(final)
    assert.isFalse(Scram.isBoundTo(final, { _tag: "ServerEndPoint", hash: Buffer.from("another certificate") }))
    assert.isFalse(Scram.isBoundTo(final, { _tag: "ServerEndPoint", hash: hash.subarray(1) }))
    assert.isFalse(Scram.isBoundTo(final, { _tag: "Unsupported" }))
    const unbound = exchange({ _tag: "NotOffered" }).final
    assert.isTrue(unbound !== null && !Scram.isBoundTo(unbound, { _tag: "Unsupported" }))
  })

  it("believes no proof that differs in one bit, and none for another verifier", () => {
    for (let bit = 0; bit < 256; bit++) {
      const { believed, final } = exchange({ _tag: "Unsupported" }, (message) => {
        const [before = "", proof = ""] = message.split(",p=")
        const wrong = Buffer.from(proof, "base64")
        wrong[bit >> 3] = wrong[bit >> 3]! ^ (1 << (bit & 7))
        return `${before},p=${wrong.toString("base64")}`
      })
      assert.isNotNull(final)
      assert.isFalse(believed, `bit ${bit}`)
    }
  })

  it("reads a first message with any name, and passes over optional extensions", () => {
    for (const message of ["n,,n=,r=abc", "n,,n=*,r=abc", "n,,n=jürgen=2C,r=abc", "n,,n=,r=abc,x=1,y=2"]) {
      const first = Scram.decodeClientFirst(message)
      assert.deepStrictEqual(first, { binding: "Unsupported", bare: message.slice(3), nonce: "abc" }, message)
    }
    assert.strictEqual(Scram.decodeClientFirst("y,,n=,r=abc")?.binding, "NotOffered")
    assert.strictEqual(Scram.decodeClientFirst("p=tls-server-end-point,,n=,r=abc")?.binding, "ServerEndPoint")
  })

  it("refuses any other first message", () => {
    for (const message of [
      "",
      "n",
      "n,,",
      "n,,n=",
      "n,,n=,r=",
      "n,,r=abc",
      "n,,r=abc,n=",
      "n,,m=x,n=,r=abc",
      "n,,n=,r=abc,m=x",
      "n,,n=,r=abc,",
      "n,,n=,r=abc,x",
      "n,,n=,r=a c",
      "n,,n=,r=abcä",
      "n,,n=\0,r=abc",
      "n,,n=,r=abc\0",
      "n,,n=,r=abc\n",
      "n,a=admin,n=,r=abc",
      "x,,n=,r=abc",
      "N,,n=,r=abc",
      "p,,n=,r=abc",
      "p=,,n=,r=abc",
      "p=tls-unique,,n=,r=abc",
      "p=tls-exporter,,n=,r=abc",
      "p=TLS-SERVER-END-POINT,,n=,r=abc",
      `n,,n=,r=${"a".repeat(1024)}`,
      `n,,n=${"a".repeat(65_536)},r=abc`
    ]) {
      assert.isNull(Scram.decodeClientFirst(message), JSON.stringify(message.slice(0, 80)))
    }
  })

  const sentFirst = `r=abcdef,s=${salt.toString("base64")},i=4096`
  const proof = Buffer.alloc(32, 1).toString("base64")

  it("reads a last message, extensions passed over", () => {
    for (const withoutProof of ["c=biws,r=abcdef", "c=biws,r=abcdef,x=1"]) {
      assert.deepStrictEqual(Scram.decodeClientFinal(sentFirst, `${withoutProof},p=${proof}`), {
        channelBinding: "biws",
        withoutProof,
        proof: Buffer.alloc(32, 1)
      })
    }
  })

  it("refuses any other last message: another nonce, a proof that is too short, too long, or not base64", () => {
    for (const message of [
      "",
      `c=biws,r=abcdef`,
      `c=biws,r=abcdef,p=`,
      `c=biws,r=abcde,p=${proof}`,
      `c=biws,r=abcdefg,p=${proof}`,
      `c=biws,r=abc,p=${proof}`,
      `c=biws,r=,p=${proof}`,
      `r=abcdef,c=biws,p=${proof}`,
      `r=abcdef,p=${proof}`,
      `c=,r=abcdef,p=${proof}`,
      `c=bi ws,r=abcdef,p=${proof}`,
      `c=biws,r=abcdef,p=${proof},x=1`,
      `c=biws,r=abcdef,p=${proof}\n`,
      `c=biws,r=abcdef,p=${proof},p=${proof}`,
      `c=biws,r=abcdef,p=${proof.replace("=", "")}`,
      `c=biws,r=abcdef,p=${Buffer.alloc(31).toString("base64")}`,
      `c=biws,r=abcdef,p=${Buffer.alloc(33).toString("base64")}`,
      `c=${"A".repeat(1024)},r=abcdef,p=${proof}`
    ]) {
      assert.isNull(Scram.decodeClientFinal(sentFirst, message), JSON.stringify(message.slice(0, 80)))
    }
  })

  it("answers 50 000 changed messages with null or with what stands in them, and believes none of the proofs", () => {
    const random = seeded(2)
    const client = Scram.decodeClientFirst(Scram.clientFirst("client"))!
    const first = Scram.serverFirst(client, "server", verifier)
    const right = Scram.clientFinal("client", Scram.decodeServerFirst("client", first)!, salted).message
    for (let run = 0; run < 50_000; run++) {
      const bytes = Buffer.from(run % 2 === 0 ? Scram.clientFirst("client") : right)
      for (let change = 0; change <= random.below(3); change++) bytes[random.below(bytes.length)] = random.below(128)
      const message = bytes.toString("latin1")
      if (run % 2 === 0) Scram.decodeClientFirst(message)
      else if (message !== right) {
        const final = Scram.decodeClientFinal(first, message)
        if (final !== null && Scram.serverFinal(client, first, final, verifier) !== null) assert.fail(message)
      }
    }
  })
})
