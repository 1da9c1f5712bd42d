import { assert, describe, it } from "@effect/vitest"
import { isUtf8 } from "node:buffer"
import { decode, MAX_STARTUP_PACKET_LENGTH, parseOptions, type StartupPacket } from "../../src/protocol/Startup.ts"
import { seeded, type Chance } from "../support/random.ts"

const hex = (...words: ReadonlyArray<string>) => Buffer.from(words.join("").replaceAll(" ", ""), "hex")

/** A whole packet of protocol 3.0 around this body. */
const packet = (body: Uint8Array, version = 0x00030000): Buffer => {
  const header = Buffer.alloc(8)
  header.writeUInt32BE(8 + body.length, 0)
  header.writeUInt32BE(version, 4)
  return Buffer.concat([header, body])
}

const bodyOf = (...strings: ReadonlyArray<string>) => Buffer.from(`${strings.map((text) => `${text}\0`).join("")}\0`)

const why = (decoded: StartupPacket) => (decoded._tag === "Malformed" ? decoded.why : decoded._tag)

/** What psql 15.18 sent for `PGCLIENTENCODING=UTF8 psql "user=postgres dbname=shop sslmode=disable"`, byte for byte. */
const psqlStartup = hex(
  "00000050 00030000",
  "7573657200 706f73746772657300",
  "646174616261736500 73686f7000",
  "6170706c69636174696f6e5f6e616d6500 7073716c00",
  "636c69656e745f656e636f64696e6700 5554463800",
  "00"
)

describe("decode, on what clients send", () => {
  it("reads the golden bytes of the three requests without a body", () => {
    assert.deepStrictEqual(decode(hex("00000008 04d2162f")), { _tag: "SslRequest" })
    assert.deepStrictEqual(decode(hex("00000008 04d21630")), { _tag: "GssEncRequest" })
    assert.deepStrictEqual(decode(hex("00000010 04d2162e 0000cafe 01020304")), {
      _tag: "CancelRequest",
      processId: 0xcafe,
      secretKey: Buffer.of(1, 2, 3, 4)
    })
  })

  it("reads psql's startup message", () => {
    assert.deepStrictEqual(decode(psqlStartup), {
      _tag: "StartupMessage",
      message: {
        major: 3,
        minor: 0,
        parameters: new Map([
          ["user", "postgres"],
          ["database", "shop"],
          ["application_name", "psql"],
          ["client_encoding", "UTF8"]
        ]),
        protocolOptions: []
      }
    })
  })

  it("keeps the minor version, and protocol options apart from parameters", () => {
    const body = bodyOf("user", "a", "_pq_.x", "1", "_pq_.", "", "_pq_", "2")
    assert.deepStrictEqual(decode(packet(body, 0x00030002)), {
      _tag: "StartupMessage",
      message: {
        major: 3,
        minor: 2,
        parameters: new Map([
          ["user", "a"],
          ["_pq_", "2"]
        ]),
        protocolOptions: ["_pq_.x", "_pq_."]
      }
    })
  })

  it("takes the later of two values for one name", () => {
    const decoded = decode(packet(bodyOf("user", "a", "user", "b", "__proto__", "c")))
    assert.deepStrictEqual(decoded._tag === "StartupMessage" && [...decoded.message.parameters], [
      ["user", "b"],
      ["__proto__", "c"]
    ])
  })

  it("keeps a byte order mark, which is part of a name like any other character", () => {
    const decoded = decode(packet(bodyOf("user", "\uFEFFa")))
    assert.strictEqual(decoded._tag === "StartupMessage" && decoded.message.parameters.get("user"), "\uFEFFa")
  })

  it("keeps no view of the packet in a CancelRequest's key", () => {
    const bytes = hex("00000010 04d2162e 00000001 01020304")
    const decoded = decode(bytes)
    bytes.fill(0)
    assert.deepStrictEqual(decoded._tag === "CancelRequest" && decoded.secretKey, Buffer.of(1, 2, 3, 4))
  })

  it("takes keys of any length, for one that nobody has is not worth a word, and a process id of all 32 bits", () => {
    for (const length of [0, 3, 4, 32, 256, 257]) {
      const secretKey = Buffer.alloc(length, 0xff)
      const decoded = decode(packet(Buffer.alloc(4 + length, 0xff), 80877102))
      assert.deepStrictEqual(decoded, { _tag: "CancelRequest", processId: 0xffffffff, secretKey })
    }
    const cut = decode(packet(Buffer.alloc(3), 80877102))
    assert.deepStrictEqual(cut, { _tag: "CancelRequest", processId: 0, secretKey: Buffer.alloc(0) })
  })
})

describe("decode, on what nobody should send", () => {
  it("refuses psql's message cut at every byte", () => {
    for (let length = 0; length < psqlStartup.length; length++) {
      assert.strictEqual(decode(psqlStartup.subarray(0, length))._tag, "Malformed", `${length} bytes`)
    }
  })

  it("refuses a request for encryption that has a body", () => {
    assert.strictEqual(why(decode(packet(Buffer.alloc(1), 80877103))), "SSLRequest has a body")
    assert.strictEqual(why(decode(packet(Buffer.alloc(1), 80877104))), "GSSENCRequest has a body")
  })

  it("refuses every other major version by its number", () => {
    for (const [version, text] of [
      [0x00020000, "2.0"],
      [0x00040001, "4.1"],
      [0xffffffff, "65535.65535"],
      [0, "0.0"]
    ] as const) {
      assert.strictEqual(why(decode(packet(bodyOf("user", "a"), version))), `unsupported protocol version ${text}`)
    }
  })

  it("refuses bytes behind the terminator, where another parser might find a second user", () => {
    const body = Buffer.concat([bodyOf("user", "a"), bodyOf("user", "b")])
    assert.strictEqual(why(decode(packet(body))), "startup packet goes on behind its terminator")
    assert.strictEqual(why(decode(packet(Buffer.alloc(2)))), "startup packet goes on behind its terminator")
  })

  it("refuses a name without a value", () => {
    assert.strictEqual(why(decode(packet(Buffer.from("user")))), "startup packet has no terminator")
    assert.strictEqual(why(decode(packet(Buffer.from("user\0")))), "startup packet has a name without a value")
    assert.strictEqual(why(decode(packet(Buffer.from("user\0a")))), "startup packet has a name without a value")
  })

  it("refuses what is not UTF-8, in names and in values", () => {
    // A continuation alone, an overlong NUL, a surrogate, beyond U+10FFFF, cut off, Latin-1.
    for (const bytes of ["80", "c080", "eda080", "f4908080", "e282", "fc"]) {
      const text = hex(bytes)
      const nul = Buffer.of(0)
      const inValue = Buffer.concat([Buffer.from("user\0"), text, nul, nul])
      const inName = Buffer.concat([text, nul, Buffer.from("a\0"), nul])
      for (const body of [inValue, inName]) {
        assert.strictEqual(why(decode(packet(body))), "startup packet is not valid UTF-8", bytes)
      }
    }
    // And the one behind it is read as ever.
    assert.strictEqual(decode(psqlStartup)._tag, "StartupMessage")
  })

  it("reads a packet of the greatest length", () => {
    const value = "x".repeat(MAX_STARTUP_PACKET_LENGTH - 8 - "user\0".length - 2)
    const longest = packet(bodyOf("user", value))
    assert.strictEqual(longest.length, MAX_STARTUP_PACKET_LENGTH)
    const decoded = decode(longest)
    assert.strictEqual(decoded._tag === "StartupMessage" && decoded.message.parameters.get("user"), value)
  })
})

/** The grammar once more, by splitting at NULs: `(name NUL value NUL)* NUL`. */
const reference = (body: Buffer): ReadonlyArray<readonly [string, string]> | null => {
  const strings: Array<Buffer> = []
  let at = 0
  for (let end = body.indexOf(0); end !== -1; end = body.indexOf(0, at)) {
    strings.push(body.subarray(at, end))
    at = end + 1
  }
  const terminator = strings.pop()
  if (at !== body.length || terminator === undefined || terminator.length > 0 || strings.length % 2 !== 0) return null
  const pairs: Array<readonly [string, string]> = []
  for (let index = 0; index < strings.length; index += 2) {
    const [name, value] = [strings[index]!, strings[index + 1]!]
    if (name.length === 0 || !isUtf8(name) || !isUtf8(value)) return null
    pairs.push([name.toString("latin1"), value.toString("latin1")])
  }
  return pairs
}

const alphabet = Buffer.from([0, 0, 0, 0x61, 0x62, 0x5f, 0x80, 0xc3, 0xa4, 0xff])

/** Mostly valid bodies with something wrong; some are noise. */
const randomBody = (random: Chance): Buffer => {
  if (random.chance(0.2)) return random.bytes(random.below(40))
  if (random.chance(0.3)) return Buffer.from(Array.from({ length: random.below(12) }, () => random.pick([...alphabet])))
  const strings = Array.from({ length: 2 * random.below(4) }, () => random.pick(["user", "a", "ä", "_pq_.x", "b c"]))
  const body = bodyOf(...strings)
  if (random.chance(0.5)) body[random.below(body.length)] = random.below(256)
  return random.chance(0.2) ? body.subarray(0, random.below(body.length)) : body
}

describe("decode, on anything", () => {
  it("agrees with the grammar on 250 000 bodies", () => {
    const random = seeded(1)
    let accepted = 0
    for (let run = 0; run < 250_000; run++) {
      const body = randomBody(random)
      const decoded = decode(packet(body))
      const expected = reference(body)
      const message = decoded._tag === "StartupMessage" ? decoded.message : null
      if ((message === null) !== (expected === null)) assert.fail(`run ${run}: ${body.toString("hex")}`)
      if (message === null || expected === null) continue
      accepted++
      const parameters = new Map<string, string>()
      const options: Array<string> = []
      for (const [name, value] of expected) {
        if (name.startsWith("_pq_.")) options.push(name)
        else parameters.set(name, value)
      }
      const found = [...message.parameters].map((pair) => pair.map((text) => Buffer.from(text).toString("latin1")))
      const same = JSON.stringify(found) === JSON.stringify([...parameters])
      const sameOptions =
        JSON.stringify(message.protocolOptions.map((name) => Buffer.from(name).toString("latin1"))) ===
        JSON.stringify(options)
      if (!same || !sameOptions) assert.fail(`run ${run}: ${body.toString("hex")}`)
    }
    assert.isAbove(accepted, 50_000)
  })

  it("answers 50 000 packets of noise, whatever their code", () => {
    const random = seeded(2)
    const codes = [80877102, 80877103, 80877104, 0x00030000, 0x00030002]
    for (let run = 0; run < 50_000; run++) {
      const bytes = random.bytes(random.below(300))
      if (bytes.length >= 8 && random.chance(0.8)) bytes.writeUInt32BE(random.pick(codes), 4)
      const decoded = decode(bytes)
      if (decoded._tag === "CancelRequest") assert.isAtMost(decoded.secretKey.length, bytes.length)
    }
  })
})

describe("parseOptions", () => {
  it("reads the three spellings of a setting", () => {
    assert.deepStrictEqual(parseOptions("-c a=1 -cb=2 --c=3"), [
      ["a", "1"],
      ["b", "2"],
      ["c", "3"]
    ])
  })

  it("reads nothing from nothing", () => {
    assert.deepStrictEqual(parseOptions(""), [])
    assert.deepStrictEqual(parseOptions(" \t\n\v\f\r "), [])
  })

  it("splits at white space, and takes what a backslash precedes as it is", () => {
    assert.deepStrictEqual(parseOptions("\t-c  a=x\\ y\n-c b=\\\\ -c c=\\"), [
      ["a", "x y"],
      ["b", "\\"],
      ["c", ""]
    ])
    assert.deepStrictEqual(parseOptions("-c a=\\\u{1F600}\\'"), [["a", "\u{1F600}'"]])
  })

  it("splits at the first equals sign, and spells dashes in a name as underscores", () => {
    assert.deepStrictEqual(parseOptions("--date-style=a=b-c -c y="), [
      ["date_style", "a=b-c"],
      ["y", ""]
    ])
  })

  it("does not split at white space that is none to PostgreSQL's isspace", () => {
    for (const character of ["\u00a0", "\u3000", "\u2028", "\ufeff"]) {
      assert.deepStrictEqual(parseOptions(`-c a=x${character}y`), [["a", `x${character}y`]])
    }
  })

  it("refuses every other switch, and a setting without a name or a value", () => {
    for (const options of ["-e", "-d 5", "-W 1", "a=1", "-c", "-c a", "-c =1", "--", "--a", "--=1", "-", "-c -c a=1"]) {
      assert.isNull(parseOptions(options), options)
    }
  })

  it("reads back what was escaped, whatever the values are", () => {
    const random = seeded(3)
    const characters = [..." \\='\"\t\nabc-_ä\u{1F600}"]
    for (let run = 0; run < 20_000; run++) {
      const settings = Array.from({ length: random.below(4) }, (_, index) => {
        const value = Array.from({ length: random.below(6) }, () => random.pick(characters)).join("")
        return [`name_${index}`, value] as const
      })
      const text = settings
        .map(([name, value]) => {
          const escaped = value.replaceAll(/[\\\s]/g, (character) => `\\${character}`)
          return random.pick([`-c ${name}=${escaped}`, `-c${name}=${escaped}`, `--${name}=${escaped}`])
        })
        .join(random.pick([" ", "\t", "  \n"]))
      assert.deepStrictEqual(parseOptions(text), settings)
    }
  })

  it("answers 50 000 texts of noise with names that are not empty", () => {
    const random = seeded(4)
    const characters = [..."-c=\\ a_\0\t\u3000"]
    for (let run = 0; run < 50_000; run++) {
      const text = Array.from({ length: random.below(16) }, () => random.pick(characters)).join("")
      const settings = parseOptions(text)
      if (settings !== null && settings.some(([name]) => name === "" || name.includes("="))) assert.fail(text)
    }
  })
})
