import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { ByteReader } from "../../src/net/ByteReader.ts"
import { int32, untyped } from "../../src/protocol/Encoder.ts"
import { cancelRequest, startupMessage, terminate } from "../../src/protocol/Frontend.ts"
import type { TlsToClients } from "../../src/config/LiveTls.ts"
import type { TlsState } from "../../src/net/Transport.ts"
import { negotiate, type LoginRequest } from "../../src/session/Negotiation.ts"
import { RecordedTransport } from "../support/RecordedTransport.ts"

const sslRequest = untyped(int32(80877103))
const gssEncRequest = untyped(int32(80877104))

type Parameters = Readonly<Record<string, string>>

const startup = (parameters: Parameters) => startupMessage(Object.entries(parameters))

const who = { user: "app", database: "shop" }
const login = startup({ ...who, schema_search_path: "tenant" })

/** What the client's certificate says where it shows one; or why the handshake failed. */
type Handshaken = Pick<TlsState, "peerVerified" | "peerCommonName"> | string

const anonymous: Handshaken = { peerVerified: false, peerCommonName: null }

/** A client that waits for the answer to each of these before it sends the next. */
const talk = (...said: ReadonlyArray<Buffer>) => talkTo("disable", anonymous, ...said)

const talkTo = (mode: TlsToClients["mode"], handshaken: Handshaken, ...said: ReadonlyArray<Buffer>) =>
  Effect.gen(function* () {
    const transport = new RecordedTransport()
    transport.handshake = typeof handshaken === "string" ? handshaken : { ...handshaken, serverEndPoint: null }
    const reader = new ByteReader(transport)
    // The handshake is the transport's, and this one knows how it ends.
    const tls: TlsToClients = mode === "disable" ? { mode } : { mode, accept: () => () => {} }
    const negotiating = yield* Effect.forkChild(negotiate(reader, transport, tls), { startImmediately: true })
    for (const bytes of said) transport.say(bytes)
    transport.leave()
    return { negotiated: Fiber.join(negotiating), transport, reader }
  })

const outcome = (...said: ReadonlyArray<Buffer>) => Effect.flatMap(talk(...said), ({ negotiated }) => negotiated)

const fault = (...said: ReadonlyArray<Buffer>) => Effect.flip(outcome(...said))

const logIn = (parameters: Parameters) =>
  Effect.map(outcome(startup(parameters)), (request): LoginRequest => {
    assert.strictEqual(request._tag, "Login")
    return request as LoginRequest
  })

const refused = (parameters: Parameters) =>
  Effect.map(Effect.flip(logIn(parameters)), (failure) =>
    failure._tag === "StartupParameterMissing" ? failure.parameter : failure._tag
  )

describe("a request for encryption", () => {
  it.effect("is refused once for each kind, and the client goes on in clear", () =>
    Effect.gen(function* () {
      for (const [requests, answer] of [
        [[], ""],
        [[sslRequest], "N"],
        [[gssEncRequest], "N"],
        [[gssEncRequest, sslRequest], "NN"],
        [[sslRequest, gssEncRequest], "NN"]
      ] as const) {
        const { negotiated, transport } = yield* talk(...requests, login)
        assert.strictEqual((yield* negotiated)._tag, "Login")
        assert.strictEqual(transport.written.toString(), answer)
      }
    })
  )

  it.effect("ends the session when it comes twice", () =>
    Effect.gen(function* () {
      for (const again of [
        [sslRequest, sslRequest],
        [gssEncRequest, sslRequest, gssEncRequest]
      ]) {
        assert.strictEqual((yield* fault(...again, login))._tag, "ProtocolViolation")
      }
    })
  )

  it.effect("ends the session when anything came in the same breath, and that is never read", () =>
    Effect.gen(function* () {
      for (const request of [sslRequest, gssEncRequest]) {
        for (const behind of [login, Buffer.of(0), sslRequest]) {
          const { negotiated, transport } = yield* talk(Buffer.concat([request, behind]))
          assert.strictEqual((yield* Effect.flip(negotiated))._tag, "ProtocolViolation")
          assert.strictEqual(transport.written.length, 0)
        }
      }
    })
  )
})

describe("a request for TLS", () => {
  const modes = ["allow", "require", "verify-full"] as const
  const named = startup({ ...who, schema_search_path: "tenant" })

  it.effect("is agreed to once and in one byte, and the client names itself behind the handshake", () =>
    Effect.gen(function* () {
      for (const mode of modes) {
        for (const [requests, answer] of [
          [[sslRequest], "S"],
          [[gssEncRequest, sslRequest], "NS"]
        ] as const) {
          const certificate = { peerVerified: true, peerCommonName: "app" }
          const { negotiated, transport } = yield* talkTo(mode, certificate, ...requests, named)
          assert.strictEqual((yield* negotiated)._tag, "Login")
          assert.strictEqual(transport.written.toString(), answer)
          assert.deepStrictEqual(transport.received, Buffer.alloc(0), "nothing that came in clear is read after it")
        }
      }
    })
  )

  it.effect("ends the session when anything came in the same breath, before any handshake", () =>
    Effect.gen(function* () {
      for (const mode of modes) {
        for (const behind of [named, Buffer.of(0), Buffer.of(0x16, 3, 1), sslRequest]) {
          const { negotiated, transport } = yield* talkTo(mode, anonymous, Buffer.concat([sslRequest, behind]))
          assert.strictEqual((yield* Effect.flip(negotiated))._tag, "ProtocolViolation")
          assert.deepStrictEqual([transport.written.length, transport.received], [0, null])
        }
      }
    })
  )

  it.effect("is none within TLS, nor is one for GSS encryption", () =>
    Effect.gen(function* () {
      for (const again of [sslRequest, gssEncRequest]) {
        const { negotiated } = yield* talkTo("allow", anonymous, sslRequest, again, named)
        assert.strictEqual((yield* Effect.flip(negotiated))._tag, "ProtocolViolation")
      }
    })
  )

  it.effect("that ends in a failed handshake ends the session, and says why", () =>
    Effect.gen(function* () {
      const { negotiated, transport } = yield* talkTo("allow", "ERR_SSL_UNSUPPORTED_PROTOCOL", sslRequest)
      const failure = yield* Effect.flip(negotiated)
      assert.strictEqual(failure._tag === "TlsHandshakeFailed" && failure.reason, "ERR_SSL_UNSUPPORTED_PROTOCOL")
      assert.strictEqual(transport.written.toString(), "S")
    })
  )

  it.effect("need not be made by a client that begins a handshake by itself, which gets all that has come", () =>
    Effect.gen(function* () {
      const hello = Buffer.of(0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5)
      for (const mode of modes) {
        const certificate = { peerVerified: true, peerCommonName: "app" }
        const { negotiated, transport } = yield* talkTo(mode, certificate, hello, named)
        assert.strictEqual((yield* negotiated)._tag, "Login")
        assert.deepStrictEqual([transport.written.length, transport.received], [0, hello])
      }
      assert.strictEqual((yield* fault(hello))._tag, "BadLength", "where there is no TLS that is no startup packet")
    })
  )

  it.effect("must be made where TLS is required, but not by a CancelRequest", () =>
    Effect.gen(function* () {
      for (const mode of ["require", "verify-full"] as const) {
        for (const before of [[], [gssEncRequest]]) {
          const { negotiated } = yield* talkTo(mode, anonymous, ...before, named)
          assert.strictEqual((yield* Effect.flip(negotiated))._tag, "TlsRequired")
        }
        const { negotiated } = yield* talkTo(mode, anonymous, cancelRequest(7, Buffer.of(1, 2, 3, 4)))
        assert.strictEqual((yield* negotiated)._tag, "Cancel")
      }
      const { negotiated } = yield* talkTo("allow", anonymous, named)
      assert.strictEqual((yield* negotiated)._tag, "Login")
    })
  )

  it.effect("with verify-full makes a client be who its certificate says, and does not in other modes", () =>
    Effect.gen(function* () {
      for (const [certificate, expected] of [
        [{ peerVerified: true, peerCommonName: "app" }, "Login"],
        [{ peerVerified: true, peerCommonName: "App" }, "ClientCertificateRefused"],
        [{ peerVerified: true, peerCommonName: null }, "ClientCertificateRefused"],
        [{ peerVerified: false, peerCommonName: "app" }, "ClientCertificateRefused"],
        [anonymous, "ClientCertificateRefused"]
      ] as const) {
        for (const [mode, outcome] of [
          ["verify-full", expected],
          ["require", "Login"]
        ] as const) {
          const { negotiated } = yield* talkTo(mode, certificate, sslRequest, named)
          const ended = yield* Effect.result(negotiated)
          assert.strictEqual(ended._tag === "Success" ? ended.success._tag : ended.failure._tag, outcome)
        }
      }
      const cancel = yield* talkTo("verify-full", anonymous, sslRequest, cancelRequest(7, Buffer.of(1, 2, 3, 4)))
      assert.strictEqual((yield* cancel.negotiated)._tag, "Cancel")
    })
  )
})

describe("a CancelRequest", () => {
  it.effect("is handed on as it is, with or without a request for encryption before it", () =>
    Effect.gen(function* () {
      const key = Buffer.of(1, 2, 3, 4)
      for (const before of [[], [sslRequest]]) {
        assert.deepStrictEqual(yield* outcome(...before, cancelRequest(7, key)), {
          _tag: "Cancel",
          processId: 7,
          secretKey: key
        })
      }
    })
  )
})

describe("a startup packet", () => {
  it.effect("says who wants to go where, and with which settings", () =>
    Effect.gen(function* () {
      const request = yield* logIn({
        ...who,
        schema_search_path: "tenant",
        application_name: "it's",
        client_encoding: "UTF8",
        TimeZone: "Europe/Berlin"
      })
      assert.deepStrictEqual([request.user, request.key], ["app", { sourceDb: "shop", sourceSchema: "tenant" }])
      assert.deepStrictEqual(request.settings.list, [
        ["application_name", "it's"],
        ["timezone", "Europe/Berlin"],
        ["client_encoding", "UTF8"]
      ])
      assert.deepInclude(request, { minor: 0, askedMinor: 0, unknownProtocolOptions: [] })
    })
  )

  it.effect("leaves what comes behind it to the next reader", () =>
    Effect.gen(function* () {
      const { negotiated, reader } = yield* talk(Buffer.concat([login, Buffer.from("password")]))
      yield* negotiated
      assert.strictEqual(reader.takeRest().toString(), "password")
    })
  )

  it.effect("is read split at every byte, behind a request for encryption too", () =>
    Effect.gen(function* () {
      for (let at = 1; at < login.length; at++) {
        const request = yield* outcome(sslRequest, login.subarray(0, at), login.subarray(at))
        assert.strictEqual(request._tag, "Login", `split at ${at}`)
      }
    })
  )

  it.effect("must name a user, a database and a schema", () =>
    Effect.gen(function* () {
      const path = { schema_search_path: "tenant" }
      for (const [parameters, missing] of [
        [{ database: "shop", ...path }, "user"],
        [{ user: "", database: "shop", ...path }, "user"],
        [{ user: "app", ...path }, "database"],
        [{ user: "app", database: "", ...path }, "database"],
        [who, "schema_search_path"],
        [{}, "user"]
      ] as const) {
        assert.strictEqual(yield* refused(parameters), missing)
      }
    })
  )

  it.effect("names its tenant by schema_search_path, and by search_path only where that is absent", () =>
    Effect.gen(function* () {
      for (const [parameters, schema] of [
        [{ schema_search_path: "a" }, "a"],
        [{ search_path: "b" }, "b"],
        [{ search_path: "b", schema_search_path: "a" }, "a"],
        [{ schema_search_path: "a", search_path: "b" }, "a"],
        [{ options: "-c schema_search_path=a" }, "a"],
        [{ options: "-c search_path=b" }, "b"],
        [{ options: "-c schema_search_path=a", search_path: "b" }, "a"],
        [{ options: "-c search_path=b", schema_search_path: "a" }, "a"],
        [{ options: "-c search_path=b -c schema_search_path=a" }, "a"],
        [{ options: "-c schema_search_path=x", schema_search_path: "a" }, "a"],
        [{ options: "-c schema-search-path=a" }, "a"],
        [{ SCHEMA_SEARCH_PATH: "a" }, "a"]
      ] as const) {
        const request = yield* logIn({ ...who, ...parameters })
        assert.strictEqual(request.key.sourceSchema, schema, JSON.stringify(parameters))
        assert.deepStrictEqual(request.settings.list, [], "a path is never applied as a setting")
      }
    })
  )

  it.effect("that names a schema which can be none is refused, even where a search_path would do", () =>
    Effect.gen(function* () {
      for (const schema of ["", "$user", "pg_catalog", "x".repeat(64), "ä".repeat(32)]) {
        const parameters = { ...who, schema_search_path: schema, search_path: "tenant" }
        assert.strictEqual(yield* refused(parameters), "SchemaNameRefused", schema)
      }
      const odd = 'a, "b"; DROP'
      assert.strictEqual((yield* logIn({ ...who, schema_search_path: odd })).key.sourceSchema, odd)
    })
  )

  it.effect("takes settings from options too, those of its own before those", () =>
    Effect.gen(function* () {
      const request = yield* logIn({
        ...who,
        schema_search_path: "tenant",
        options: "-c DateStyle=ISO\\,\\ DMY --application-name=from_options -c statement_timeout=5",
        application_name: "from_packet"
      })
      assert.deepStrictEqual(request.settings.list, [
        ["application_name", "from_packet"],
        ["datestyle", "ISO, DMY"],
        ["statement_timeout", "5"]
      ])
    })
  )

  it.effect("with a switch in its options that is no setting is refused", () =>
    Effect.gen(function* () {
      for (const options of ["-e", "-c", "-d 5", "x"]) {
        assert.strictEqual(yield* refused({ ...who, schema_search_path: "tenant", options }), "FeatureNotSupported")
      }
    })
  )

  it.effect("that asks for replication is refused, however it spells yes", () =>
    Effect.gen(function* () {
      const path = { ...who, schema_search_path: "tenant" }
      for (const replication of ["database", "DATABASE", "true", "t", "on", "yes", "1", "maybe", " false", "fals\n"]) {
        assert.strictEqual(yield* refused({ ...path, replication }), "FeatureNotSupported", replication)
        const options = `-c replication=${replication.replaceAll(/\s/g, "\\$&")}`
        assert.strictEqual(yield* refused({ ...path, options }), "FeatureNotSupported", options)
      }
      for (const replication of ["false", "f", "OFF", "no", "0"]) {
        assert.deepStrictEqual((yield* logIn({ ...path, replication })).settings.list, [], replication)
      }
    })
  )

  it.effect("of a newer minor version, or with protocol options, is told what it gets", () =>
    Effect.gen(function* () {
      for (const [asked, spoken] of [
        [0, 0],
        [1, 1],
        [2, 2],
        [3, 2],
        [9999, 2]
      ] as const) {
        const newer = Buffer.from(login)
        newer.writeUInt16BE(asked, 6)
        const request = yield* outcome(newer)
        assert.deepInclude(request, { minor: spoken, askedMinor: asked, unknownProtocolOptions: [] })
      }
      const parameters = { ...who, schema_search_path: "tenant", "_pq_.x": "1" }
      const withOption = yield* logIn(parameters)
      assert.deepStrictEqual([withOption.unknownProtocolOptions, withOption.settings.list], [["_pq_.x"], []])
    })
  )
})

describe("DateStyle said twice", () => {
  for (const [what, options, given, composed] of [
    ["a style behind an order", "-c DateStyle=ISO,DMY", "ISO", "ISO, DMY"],
    ["a style and then an order", "-c DateStyle=SQL -c DateStyle=DMY", undefined, "DMY, SQL"],
    ["another style", "-c DateStyle=German", "ISO, MDY", "ISO, MDY"],
    ["what is neither, which is the server's to refuse", "-c DateStyle=ISO", "nonsense", "nonsense"]
  ] as const) {
    it.effect(`is composed as PostgreSQL takes one value after the other: ${what}`, () =>
      Effect.gen(function* () {
        const parameters = { ...who, schema_search_path: "tenant", options }
        const request = yield* logIn(given === undefined ? parameters : { ...parameters, DateStyle: given })
        assert.deepStrictEqual(request.settings.list, [["datestyle", composed]])
      })
    )
  }
})

describe("a startup packet that is as long as it may be", () => {
  const orders = "us,".repeat(1600)
  const styles = "a,".repeat(1600)
  for (const [what, options, DateStyle] of [
    ["words of a DateStyle", `-c DateStyle=${orders}`, styles],
    ["DateStyles", `-c DateStyle=${orders} ${"-c DateStyle=a ".repeat(300)}`, "b"],
    ["settings", "-c a=b ".repeat(1300), "ISO"],
    ["blanks", " ".repeat(9000), "ISO"]
  ] as const) {
    it.effect(`is read as fast as any, whoever sent it: ${what}`, () =>
      Effect.gen(function* () {
        const send = (parameters: Parameters) => logIn({ ...who, schema_search_path: "tenant", ...parameters })
        const timed = (parameters: Parameters) =>
          Effect.gen(function* () {
            const from = performance.now()
            yield* send(parameters)
            return performance.now() - from
          })
        const usual = { options: `-c application_name=${"x".repeat(9000)}`, DateStyle: "ISO" }
        const times = { usual: Infinity, hostile: Infinity }
        for (let round = 0; round < 5; round++) {
          times.usual = Math.min(times.usual, yield* timed(usual))
          times.hostile = Math.min(times.hostile, yield* timed({ options, DateStyle }))
        }
        assert.isBelow(times.hostile, 20 * times.usual)
      })
    )
  }
})

describe("what is no startup packet", () => {
  it.effect("is refused by its length before anything is kept for it", () =>
    Effect.gen(function* () {
      for (const length of [0, 4, 7, 10_001, 0x7fffffff]) {
        const header = int32(length)
        assert.strictEqual((yield* fault(header))._tag, "BadLength", `${length}`)
      }
      assert.strictEqual((yield* fault(Buffer.from("GET / HTTP/1.1\r\n\r\n")))._tag, "BadLength")
      assert.strictEqual((yield* fault(Buffer.of(0xff, 0xff, 0xff, 0xff)))._tag, "BadLength")
    })
  )

  it.effect("is listened to no further where it is a Terminate: its client is not told anything", () =>
    Effect.gen(function* () {
      for (const behind of [Buffer.alloc(0), login]) {
        for (const [before, answer] of [
          [[], ""],
          [[sslRequest], "N"]
        ] as const) {
          const { negotiated, transport } = yield* talk(...before, Buffer.concat([terminate, behind]))
          assert.deepStrictEqual(yield* Effect.flip(negotiated), { _tag: "PeerGone", reason: null })
          assert.strictEqual(transport.written.toString(), answer)
        }
      }
    })
  )

  it.effect("is refused by its version or its content as a violation", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* fault(untyped(int32(0x00020000), Buffer.of(0))))._tag, "ProtocolViolation")
      assert.strictEqual((yield* fault(untyped(int32(0x00030000), Buffer.from("user"))))._tag, "ProtocolViolation")
    })
  )

  it.effect("ends in nothing where the client goes before it is whole", () =>
    Effect.gen(function* () {
      for (let length = 0; length < login.length; length++) {
        assert.deepStrictEqual(yield* fault(login.subarray(0, length)), { _tag: "PeerGone", reason: null })
      }
      assert.deepStrictEqual(yield* fault(sslRequest), { _tag: "PeerGone", reason: null })
    })
  )
})
