import { assert, describe, it } from "@effect/vitest"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { parseJsonc } from "../../src/config/Jsonc.ts"
import { formatAddress, parseDestHost, parseListenAddress } from "../../src/net/Address.ts"
import { quoteIdentifier } from "../../src/pool/Reset.ts"
import {
  decodeAuthentication,
  decodeBackendKeyData,
  decodeDataRow,
  decodeError,
  decodeParameterStatus,
  errorResponse,
  isFatal
} from "../../src/protocol/Backend.ts"
import { cString, int32 } from "../../src/protocol/Encoder.ts"
import { FrameCollector, HEADER_LENGTH, lengthAt, type Frame } from "../../src/protocol/Frame.ts"
import { decodePassword, decodeSaslInitialResponse, startupMessage } from "../../src/protocol/Frontend.ts"
import * as Scram from "../../src/protocol/Scram.ts"
import { decode, parseOptions } from "../../src/protocol/Startup.ts"
import { CommandTags } from "../../src/session/CommandTags.ts"
import { HeldAllowance, HeldBytes } from "../../src/session/HeldBytes.ts"
import { INCOMPLETE, mayBeNamed, namedPart, statementNameAt } from "../../src/session/NamedMessages.ts"
import { needsSession } from "../../src/session/NeedsSession.ts"
import { bare, deallocated } from "../../src/session/SqlText.ts"
import { hintOf } from "../../src/session/Traces.ts"
import * as AuthDsn from "../../src/tenant/AuthDsn.ts"
import * as EasyScrypt from "../../src/tenant/EasyScrypt.ts"
import * as SchemaName from "../../src/tenant/SchemaName.ts"
import { cancelRequest, gssEncRequest, sslRequest } from "../support/rawClient.ts"
import { bodiesFromClients, bodiesFromServers, clientTurns, serverTurns, startupPackets } from "./captures.ts"
import { fuzz, inputsFrom, isReplay, TIMEOUT, watch } from "./fuzz.ts"
import type { Mutator } from "./Mutator.ts"

const texts = (...lines: ReadonlyArray<string>): ReadonlyArray<Buffer> => lines.map((line) => Buffer.from(line))

/** Inputs of each decoder. */
const counts = {
  frames: 60_000,
  heldBytes: 30_000,
  startupPackets: 120_000,
  options: 80_000,
  passwords: 60_000,
  namedMessages: 100_000,
  errors: 80_000,
  parameterStatuses: 60_000,
  keys: 30_000,
  authentication: 80_000,
  scram: 100_000,
  commandTags: 60_000,
  saslInitialResponses: 60_000,
  scramOfClients: 80_000,
  sql: 60_000,
  dataRows: 80_000,
  dsns: 50_000,
  hashes: 50_000,
  jsonc: 60_000,
  addresses: 80_000,
  schemaNames: 50_000
}

watch()

describe("frames", () => {
  const LIMIT = 64 * 1024

  const plain = (frames: ReadonlyArray<Frame>) => frames.map(({ type, body }) => `${type} ${body.toString("base64")}`)

  for (const [from, corpus] of [
    ["clients", clientTurns],
    ["servers", serverTurns]
  ] as const) {
    it(`of any stream of ${from} are found or the stream given up, the same in pieces as whole`, TIMEOUT, () => {
      fuzz({
        from,
        corpus,
        count: counts.frames,
        check: (input, random) => {
          const whole = new FrameCollector(LIMIT)
          const frames = whole.push(input)
          const inPieces = new FrameCollector(LIMIT)
          const collected: Array<string> = []
          let lost = false
          for (const piece of random.pieces(input)) {
            const found = lost ? null : inPieces.push(piece)
            if (found === null) lost = true
            else collected.push(...plain(found))
          }
          assert.strictEqual(lost, frames === null)
          if (frames === null) return
          assert.deepStrictEqual(collected, plain(frames))
          const rest = whole.takePending()?.length ?? 0
          assert.strictEqual(
            frames.reduce((sum, { body }) => sum + HEADER_LENGTH + body.length, rest),
            input.length
          )
        }
      })
    })
  }

  it("that are held come out as they went in", TIMEOUT, () => {
    fuzz({
      from: "clients",
      corpus: clientTurns,
      count: counts.heldBytes,
      check: (input, random) => {
        const held = new HeldBytes(new HeldAllowance())
        const out: Array<Buffer> = []
        for (const piece of random.pieces(input)) {
          held.append(piece)
          const count = random.below(held.length + 1)
          out.push(Buffer.from(held.peek().subarray(0, count)))
          held.drop(count)
        }
        out.push(held.length === 0 ? Buffer.alloc(0) : held.peek())
        assert.isTrue(Buffer.concat(out).equals(input))
      }
    })
  })
})

describe("what clients send", () => {
  it("first is one of four packets or malformed, and no value holds a NUL", TIMEOUT, () => {
    const key = { processId: 4711, secretKey: Buffer.from([1, 2, 3, 4]) }
    fuzz({
      from: "clients",
      corpus: [...startupPackets, sslRequest, gssEncRequest, cancelRequest(key)],
      count: counts.startupPackets,
      check: (input) => {
        const packet = decode(input)
        if (packet._tag === "Malformed") return assert.notStrictEqual(packet.why, "")
        if (packet._tag !== "StartupMessage") return
        const { parameters, protocolOptions } = packet.message
        // Written again it is read as the same: nothing in it can begin a field of its own.
        const again = decode(startupMessage([...parameters]))
        assert.deepStrictEqual(again._tag === "StartupMessage" ? again.message.parameters : null, parameters)
        for (const option of protocolOptions) assert.isTrue(option.startsWith("_pq_."))
      }
    })
  })

  it("as options is settings with names, or refused", TIMEOUT, () => {
    fuzz({
      from: "clients",
      corpus: texts(
        "-c schema_search_path=red -c statement_timeout=5s",
        "--schema-search-path=a\\ b\\\\c -cwork_mem=4MB",
        "-c search_path=red,public --TimeZone=UTC"
      ),
      count: counts.options,
      check: (input) => {
        for (const [name] of parseOptions(input.toString("utf8")) ?? []) assert.isNotEmpty(name)
      }
    })
  })

  it("as a password is text without a NUL, or refused", TIMEOUT, () => {
    fuzz({
      from: "clients",
      corpus: [...texts("pencil\0", "päßwort 🔑\0", "\ufeffbom\0"), ...bodiesFromClients("p")],
      count: counts.passwords,
      check: (input) => {
        const password = decodePassword(input)
        if (password === null) return
        assert.isTrue(Buffer.from(`${password}\0`).equals(input))
        assert.notInclude(password, "\0")
      }
    })
  })

  it("names a statement or does not, and no look goes beyond what has come", TIMEOUT, () => {
    fuzz({
      from: "clients",
      corpus: clientTurns.filter((turn) => /^[PBDC]/.test(turn.toString("latin1"))),
      count: counts.namedMessages,
      check: (input) => {
        for (let at = 0; input.length - at >= HEADER_LENGTH;) {
          const type = input[at]!
          const length = lengthAt(input, at + 1)
          if (length < 4) return
          const next = at + 1 + length
          if (mayBeNamed(type)) {
            const end = Math.min(next, input.length)
            const name = statementNameAt(type, input, at, end)
            assert.isBelow(name, end)
            const named = name >= 0 && input[name] !== 0
            // What is whole can be told, and what is told as named has its part.
            if (next <= input.length) assert.notStrictEqual(name, INCOMPLETE)
            const part = named ? namedPart(type, input, at, next) : null
            if (named && next <= input.length) assert.isNotNull(part)
            if (part !== null) assert.isAtMost(part.length, end - at)
          }
          at = next
        }
      }
    })
  })

  it("first by SASL is a mechanism and what it says, or refused", TIMEOUT, () => {
    const said = (mechanism: string, data: string) =>
      Buffer.concat([cString(mechanism), int32(data.length), Buffer.from(data)])
    fuzz({
      from: "clients",
      corpus: [said("SCRAM-SHA-256", "n,,n=,r=rOprNGfwEbeRWgbNEkqO"), said("SCRAM-SHA-256-PLUS", "y,,n=u,r=x")],
      count: counts.saslInitialResponses,
      check: (input) => {
        const response = decodeSaslInitialResponse(input)
        if (response === null) return
        const { mechanism, data } = response
        assert.isNotEmpty(mechanism)
        assert.isTrue(
          said(mechanism, "")
            .subarray(0, -4)
            .equals(input.subarray(0, Buffer.byteLength(mechanism) + 1))
        )
        assert.notInclude(mechanism + data, "\0")
      }
    })
  })

  it("in SCRAM is believed only where it names a nonce, continues ours and brings a proof", TIMEOUT, () => {
    const sentFirst = "r=rOprNGfwEbeRWgbNEkqOserver,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    const proof = Buffer.alloc(32, 7).toString("base64")
    fuzz({
      from: "clients",
      corpus: texts(
        "n,,n=,r=rOprNGfwEbeRWgbNEkqO",
        "p=tls-server-end-point,,n=u,r=x,a=optional",
        `c=biws,r=rOprNGfwEbeRWgbNEkqOserver,p=${proof}`,
        `c=biws,r=rOprNGfwEbeRWgbNEkqOserver,x=y,p=${proof}`
      ),
      count: counts.scramOfClients,
      check: (input) => {
        const message = input.toString("utf8")
        const first = Scram.decodeClientFirst(message)
        if (first !== null) {
          assert.match(first.nonce, /^[!-+\--~]+$/)
          assert.isTrue(message.endsWith(`,,${first.bare}`))
        }
        const final = Scram.decodeClientFinal(sentFirst, message)
        if (final === null) return
        assert.strictEqual(final.proof.length, 32)
        assert.isTrue(message.startsWith(`${final.withoutProof},p=`))
      }
    })
  })

  it("as SQL is looked through to its end, and no more is made of it", TIMEOUT, () => {
    fuzz({
      from: "clients",
      corpus: texts(
        "/* a /* b */ */ SET LOCAL work_mem = E'\\'9MB' -- c\n; SELECT $a$ ' $a$, \"x\"\"y\"",
        "SELECT set_config('my.mark', $1, false), pg_advisory_lock(1)",
        "CREATE TEMP TABLE t (a int) ON COMMIT DROP; DECLARE c CURSOR WITH HOLD FOR SELECT 'it''s'",
        'DEALLOCATE PREPARE "a""b" ;'
      ),
      count: counts.sql,
      check: (input) => {
        const text = input.toString("latin1")
        // A quote that ends the text is an empty literal.
        assert.isAtMost(bare(text, "without literals").length, text.length + 1)
        assert.isAtMost(bare(text, "with literals").length, text.length)
        for (const name of hintOf(text).customNames) assert.include(name, ".")
        needsSession(text)
        const name = deallocated(text)
        if (name !== null) assert.isNotEmpty(name)
      }
    })
  })
})

describe("what servers send", () => {
  it("as an error is words, whatever is missing, and can be told to a client", TIMEOUT, () => {
    fuzz({
      from: "servers",
      corpus: bodiesFromServers("EN"),
      count: counts.errors,
      check: (input) => {
        const error = decodeError(input)
        isFatal(error)
        for (const field of [error.severity, error.sqlState, error.message]) assert.notInclude(field, "\0")
        errorResponse({ severity: "ERROR", sqlState: error.sqlState, message: error.message })
      }
    })
  })

  it("as a parameter is a name and a value, or nothing", TIMEOUT, () => {
    fuzz({
      from: "servers",
      corpus: bodiesFromServers("S"),
      count: counts.parameterStatuses,
      check: (input) => {
        const parameter = decodeParameterStatus(input)
        if (parameter === null) return
        assert.isNotEmpty(parameter[0])
        assert.notInclude(parameter.join(""), "\0")
      }
    })
  })

  it("as a key is a process id and 4 to 256 bytes, or nothing", TIMEOUT, () => {
    fuzz({
      from: "servers",
      corpus: bodiesFromServers("K"),
      count: counts.keys,
      check: (input) => {
        const key = decodeBackendKeyData(input)
        assert.strictEqual(key !== null, input.length >= 8 && input.length <= 260)
      }
    })
  })

  it("as a request for authentication is one of the known kinds, unsupported, or nothing", TIMEOUT, () => {
    fuzz({
      from: "servers",
      corpus: [...bodiesFromServers("R"), Buffer.from("00000005a1b2c3d4", "hex"), Buffer.from("00000003", "hex")],
      count: counts.authentication,
      check: (input) => {
        const request = decodeAuthentication(input)
        if (request?._tag === "Md5Password") assert.strictEqual(request.salt.length, 4)
        if (request?._tag === "Sasl") for (const name of request.mechanisms) assert.isNotEmpty(name)
      }
    })
  })

  it("in SCRAM is believed only where it continues our nonce and asks for bounded work", TIMEOUT, () => {
    const nonce = "rOprNGfwEbeRWgbNEkqO"
    const expected = Buffer.alloc(32, 7)
    fuzz({
      from: "servers",
      corpus: texts(
        `r=${nonce}%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096`,
        `r=${nonce}x,s=AA==,i=1`,
        `v=${expected.toString("base64")}`
      ),
      count: counts.scram,
      check: (input) => {
        const message = input.toString("utf8")
        const first = Scram.decodeServerFirst(nonce, message)
        if (first !== null) {
          assert.isTrue(first.nonce.startsWith(nonce) && first.nonce !== nonce)
          assert.isAtMost(first.iterations, Scram.MAX_ITERATIONS)
          assert.isAtLeast(first.salt.length, 1)
          Scram.clientFinal(nonce, first, Buffer.alloc(32))
        }
        if (Scram.verifyServerFinal(expected, message))
          assert.include(message, expected.toString("base64").slice(0, 40))
      }
    })
  })

  it("as a command's tag says what it left behind, and only a harmless one says that it is harmless", TIMEOUT, () => {
    const harmless = /^(SEL|INS|UPD|DEL|MER|BEG|STA|COM|ROL|SAV|REL|COP|FET|MOV|EXP|SHO|VAC|ANA|NOT|LOC|TRU)/
    fuzz({
      from: "servers",
      corpus: [...bodiesFromServers("C"), ...texts("DISCARD ALL\0", "DEALLOCATE ALL\0", "SET\0", "RESET\0")],
      count: counts.commandTags,
      check: (input) => {
        const tag = CommandTags.read(input, 0, input.length)
        const text = input.toString("latin1")
        if (tag === CommandTags.harmless) assert.match(text, harmless)
        assert.strictEqual(
          CommandTags.dropsStatements(input, 0, input.length),
          /^(DISCARD|DEALLOCATE) ALL\0$/.test(text)
        )
      }
    })
  })

  it("as a row is as many columns as it says, whose lengths are its own, or refused", TIMEOUT, () => {
    fuzz({
      from: "servers",
      corpus: bodiesFromServers("D"),
      count: counts.dataRows,
      check: (input) => {
        const columns = decodeDataRow(input)
        if (columns === null) return
        assert.strictEqual(columns.length, input.readUInt16BE(0))
        assert.isAtMost(2 + 4 * columns.length, input.length)
        // Bytes that are no UTF-8 become one character each.
        const characters = columns.reduce((sum, column) => sum + (column?.length ?? 0), 0)
        assert.isAtMost(characters, input.length - 2 - 4 * columns.length)
      }
    })
  })
})

describe("what operators write", () => {
  it("as a DSN of the auth database is read, or refused without a word of it", TIMEOUT, () => {
    fuzz({
      from: "operators",
      corpus: texts(
        "postgres://user:pass%2Fw0rd@db.internal:5433/auth?sslmode=verify-full&pool_max_conns=7&application_name=x",
        "postgresql://u@[::1]/a?host=/run/pg&connect_timeout=0&pool_max_conn_lifetime=1h30m&search_path=a",
        "postgres:///?user=u&password=s3cret&dbname=d&options=-c%20a%3Db",
        "postgres:///d?user=u&pool_%3As3cret@h=1"
      ),
      count: counts.dsns,
      check: (input) => {
        const dsn = input.toString("utf8")
        const parsed = AuthDsn.parse(Redacted.make(dsn))
        if (Result.isFailure(parsed)) {
          // The name of a parameter is told where a setting can have it.
          const why = parsed.failure.replace(/^[\w.]+(?=: )/, "")
          return assert.notMatch(why, /w0rd|s3cret/)
        }
        const { port, user, pool } = parsed.success
        assert.isTrue(port >= 1 && port <= 65_535 && user !== "" && pool.minConnections <= pool.maxConnections)
      }
    })
  })

  it("as a hash is decoded only where its derivation is affordable", TIMEOUT, () => {
    const hash = { key: Buffer.alloc(32, 1), salt: Buffer.alloc(16, 2), N: 16384, r: 8, p: 1 }
    const raw = (encoded: string) => Buffer.from(encoded, "base64")
    // With a digest that is right, so that what lies behind it is looked at.
    const bytes = [raw(EasyScrypt.encode(hash)), raw(EasyScrypt.encode({ ...hash, N: 2, r: 1, p: 1 }))]
    fuzz({
      from: "operators",
      corpus: bytes.map((whole) => whole.subarray(0, -32)),
      count: counts.hashes,
      check: (input, random) => {
        const at = input.length - 12
        const encoded =
          at >= EasyScrypt.saltLength && random.chance(0.9)
            ? EasyScrypt.encode({
                key: input.subarray(0, at - EasyScrypt.saltLength),
                salt: input.subarray(at - EasyScrypt.saltLength, at),
                N: input.readInt32LE(at),
                r: input.readInt32LE(at + 4),
                p: input.readInt32LE(at + 8)
              })
            : input.toString(random.pick(["base64", "latin1"]))
        const decoded = EasyScrypt.decode(encoded)
        if (Result.isFailure(decoded)) return assert.isNotEmpty(decoded.failure)
        const { N, r, p, key } = decoded.success
        assert.isAtMost(N * r * p, EasyScrypt.maxWork)
        assert.isAtMost(EasyScrypt.memoryBytes(decoded.success), EasyScrypt.maxMemoryBytes)
        assert.isAtLeast(key.length, 1)
      }
    })
  })

  it(
    "as JSON with comments agrees with JSON.parse on what is JSON, and is refused with a place on what is not",
    TIMEOUT,
    () => {
      fuzz({
        from: "operators",
        corpus: texts(
          '{"a": [1, -2.5e3, true, null, "x\\u00e9\\n"], "b": {"c": {}}}',
          '{ // comment\n "a": 1, /* more */ "b": [1, 2,], }',
          "[".repeat(80)
        ),
        count: counts.jsonc,
        check: (input) => {
          const text = input.toString("utf8")
          const read = parseJsonc(text)
          if (Result.isFailure(read)) assert.match(read.failure, /^line \d+, column \d+: /)
          const json = plainJson(text)
          if (json === undefined || Result.isFailure(read)) return
          assert.deepStrictEqual(read.success, json.value)
        }
      })
    }
  )

  it("as an address is read and reads back as the same, or is refused", TIMEOUT, () => {
    fuzz({
      from: "operators",
      corpus: texts(":5433", "127.0.0.1:5433", "[::1]:5433", "db-1.internal:65535", "fe80::1", "[2001:db8::7]", "höst"),
      count: counts.addresses,
      check: (input) => {
        const text = input.toString("utf8")
        const listen = parseListenAddress(text)
        if (Result.isSuccess(listen)) {
          assert.deepStrictEqual(Result.getOrThrow(parseListenAddress(formatAddress(listen.success))), listen.success)
        }
        const host = parseDestHost(text)
        if (Result.isSuccess(host)) {
          assert.notMatch(host.success.host, /[\s/,@\0]/)
          assert.deepStrictEqual(Result.getOrThrow(parseDestHost(formatAddress(host.success))), host.success)
        }
      }
    })
  })

  it("as a schema's name is one identifier when it is quoted, or refused", TIMEOUT, () => {
    fuzz({
      from: "operators",
      corpus: texts("red", 'a"b; drop schema x --', "$user", "pg_x", "größe, $user", "\\'"),
      count: counts.schemaNames,
      check: (input, random: Mutator) => {
        const name = input.toString(random.pick(["utf8", "latin1"]))
        if (SchemaName.check(name) !== null) return
        assert.isAtMost(Buffer.byteLength(name), 63)
        assert.match(quoteIdentifier(name), /^"(?:[^"\0]|"")+"$/)
      }
    })
  })
})

const plainJson = (text: string): { readonly value: unknown } | undefined => {
  try {
    return { value: JSON.parse(text) as unknown }
  } catch {
    return undefined
  }
}

describe("all decoders together", () => {
  it.skipIf(isReplay)("are given a million inputs from both sides of the wire, from each a good part of them", () => {
    const [clients, servers] = [inputsFrom("clients"), inputsFrom("servers")]
    assert.isAtLeast(Math.min(clients, servers), 400_000)
    assert.isAtLeast(clients + servers, 1_000_000)
  })
})
