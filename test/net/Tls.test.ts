import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import { createHash, X509Certificate } from "node:crypto"
import * as Net from "node:net"
import * as NodeTls from "node:tls"
import {
  Acceptor,
  Connector,
  type Handshake,
  type HandshakeEnd,
  serverEndPoint,
  type Unusable
} from "../../src/net/Tls.ts"
import { authority, signedBy } from "../support/certificates.ts"

const LOOPBACK = "127.0.0.1"
const ca = authority()
const stranger = authority("Another CA")
const server = signedBy(ca, "localhost", LOOPBACK)

/** Two sockets of Node's, connected to each other. */
const sockets: Effect.Effect<readonly [Net.Socket, Net.Socket], never, Scope.Scope> = Effect.acquireRelease(
  Effect.promise(async () => {
    const listener = Net.createServer()
    await new Promise<void>((done) => listener.listen(0, LOOPBACK, done))
    const accepting = new Promise<Net.Socket>((done) => listener.once("connection", done))
    const dialled = Net.connect((listener.address() as Net.AddressInfo).port, LOOPBACK)
    const both = [dialled, await accepting] as const
    listener.close()
    for (const socket of both) socket.on("error", () => {})
    return both
  }),
  (both) => Effect.sync(() => both.forEach((socket) => socket.destroy()))
)

const shakeHands = (socket: Net.Socket, handshake: Handshake): Effect.Effect<HandshakeEnd> =>
  Effect.callback<HandshakeEnd>((resume) => handshake(socket, (end) => resume(Effect.succeed(end)))).pipe(
    Effect.timeout("10 seconds"),
    Effect.orDie
  )

/** Both of ours with each other: how it ended for the client and for the server. */
const meet = (client: Handshake, ours: Handshake) =>
  Effect.gen(function* () {
    const [dialled, accepted] = yield* sockets
    return yield* Effect.all([shakeHands(dialled, client), shakeHands(accepted, ours)], { concurrency: "unbounded" })
  })

/** A client of Node's at our end: how that ended. */
const accept = (handshake: Handshake, options: NodeTls.ConnectionOptions) =>
  Effect.gen(function* () {
    const [dialled, accepted] = yield* sockets
    NodeTls.connect({ socket: dialled, rejectUnauthorized: false, ...options }).on("error", () => {})
    return yield* shakeHands(accepted, handshake)
  })

const words = (end: HandshakeEnd): string => (end._tag === "Failed" ? end.reason : "secured")
const acceptor = (clientCa: string | null = null) => Result.getOrThrow(Acceptor.make(server, clientCa))
const connector = (...args: Parameters<typeof Connector.make>) => Result.getOrThrow(Connector.make(...args))

describe("to a server", () => {
  it.live("a handshake looks at the certificate as far as it is told to", () =>
    Effect.gen(function* () {
      for (const [verification, bundle, host, expected] of [
        ["nothing", null, "elsewhere", "secured"],
        ["chain", ca.cert, "elsewhere", "secured"],
        ["chain", stranger.cert, "localhost", "UNABLE_TO_VERIFY_LEAF_SIGNATURE"],
        ["chain and name", ca.cert, "localhost", "secured"],
        ["chain and name", ca.cert, LOOPBACK, "secured"],
        ["chain and name", ca.cert, "elsewhere", "ERR_TLS_CERT_ALTNAME_INVALID"],
        ["chain and name", ca.cert, "127.0.0.2", "ERR_TLS_CERT_ALTNAME_INVALID"],
        ["chain and name", stranger.cert, "localhost", "UNABLE_TO_VERIFY_LEAF_SIGNATURE"]
      ] as const) {
        const client = connector(verification, bundle, null).handshake(host)
        const [end] = yield* meet(client, acceptor().handshake("required"))
        assert.strictEqual(words(end), expected, `${verification} ${host}`)
        if (end._tag !== "Secured") continue
        assert.strictEqual(end.state.peerVerified, verification !== "nothing")
        assert.deepStrictEqual(end.state.serverEndPoint, serverEndPoint(new X509Certificate(server.cert)))
      }
    })
  )

  it.live("takes the authorities from a bundle with words between them, as RDS ships it", () =>
    Effect.gen(function* () {
      const bundle = `# eu-west-1\n${stranger.cert}\nsome words\n${ca.cert}\n`
      const [end] = yield* meet(
        connector("chain and name", bundle, null).handshake("localhost"),
        acceptor().handshake("optional")
      )
      assert.strictEqual(words(end), "secured")
    })
  )

  it.live("ends with a reason where the server hangs up, talks something else, or is destroyed meanwhile", () =>
    Effect.gen(function* () {
      for (const [disturb, reason] of [
        [(theirs: Net.Socket) => theirs.end(), /^ECONNRESET$/],
        [(theirs: Net.Socket) => theirs.write("E no TLS here, FATAL: secret\0"), /^ERR_SSL_[A-Z_]+$/],
        [(_: Net.Socket, ours: Net.Socket) => ours.destroy(), /^ECONNRESET$/]
      ] as const) {
        const [ours, theirs] = yield* sockets
        theirs.resume()
        disturb(theirs, ours)
        assert.match(words(yield* shakeHands(ours, connector("nothing", null, null).handshake("db"))), reason)
      }
    })
  )
})

describe("from a client", () => {
  it.live("a certificate counts where an authority of ours vouches for it, and tells who that is", () =>
    Effect.gen(function* () {
      for (const [pair, expected] of [
        [null, { peerVerified: false, peerCommonName: null }],
        [signedBy(ca, "app"), { peerVerified: true, peerCommonName: "app" }],
        [signedBy(stranger, "app"), { peerVerified: false, peerCommonName: null }]
      ] as const) {
        const [, end] = yield* meet(
          connector("nothing", null, pair).handshake("db"),
          acceptor(ca.cert).handshake("optional")
        )
        assert.deepInclude(end._tag === "Secured" ? end.state : end, expected)
      }
    })
  )

  it.live(
    "ALPN may be missing where it is optional, must be there where it is required, and must be PostgreSQL's",
    () =>
      Effect.gen(function* () {
        for (const [alpn, offered, expected] of [
          ["optional", undefined, "secured"],
          ["optional", ["postgresql"], "secured"],
          ["optional", ["http/1.1"], "ERR_SSL_NO_APPLICATION_PROTOCOL"],
          ["required", ["http/1.1", "postgresql"], "secured"],
          ["required", undefined, "direct TLS without ALPN (postgresql)"],
          ["required", ["http/1.1"], "ERR_SSL_NO_APPLICATION_PROTOCOL"]
        ] as const) {
          const end = yield* accept(
            acceptor().handshake(alpn),
            offered === undefined ? {} : { ALPNProtocols: [...offered] }
          )
          assert.strictEqual(words(end), expected, `${alpn} ${offered}`)
        }
      })
  )

  it.live("TLS 1.1 is too old", () =>
    Effect.gen(function* () {
      const old = { minVersion: "TLSv1", maxVersion: "TLSv1.1", ciphers: "ALL@SECLEVEL=0" } as const
      assert.strictEqual(words(yield* accept(acceptor().handshake("optional"), old)), "ERR_SSL_UNSUPPORTED_PROTOCOL")
    })
  )

  it.live("many handshakes at once end each for itself, and a failed one does not spoil the next", () =>
    Effect.gen(function* () {
      const many = <A>(kinds: ReadonlyArray<A>) => Array.from({ length: 20 }, () => kinds).flat()
      const ours = acceptor()
      const fine = accept(ours.handshake("optional"), {})
      const refused = accept(ours.handshake("optional"), { ALPNProtocols: ["http/1.1"] })
      const left = Effect.gen(function* () {
        const [dialled, accepted] = yield* sockets
        dialled.write(Buffer.of(0x16, 3, 1))
        dialled.end()
        return yield* shakeHands(accepted, ours.handshake("optional"))
      })
      for (let round = 0; round < 2; round++) {
        const ends = yield* Effect.all(many([fine, refused, left]), { concurrency: "unbounded" })
        const expected = ["secured", "ERR_SSL_NO_APPLICATION_PROTOCOL", "ECONNRESET"]
        assert.deepStrictEqual(ends.map(words), many(expected))
      }
    })
  )
})

describe("material that cannot be used", () => {
  const other = signedBy(ca, "other")
  const unusable = (result: Result.Result<unknown, Unusable>) =>
    Result.isFailure(result) ? `${result.failure.part}: ${result.failure.why}` : "usable"

  it("is refused in words that hold none of it", () => {
    const broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    for (const [pair, bundle, expected] of [
      [server, null, "usable"],
      [{ cert: "", key: server.key }, null, "certificate: there is no certificate in PEM format"],
      [{ cert: broken, key: server.key }, null, "certificate: a certificate cannot be read"],
      [{ cert: server.cert, key: "" }, null, "key: there is no private key in PEM format, without a passphrase"],
      [{ cert: server.cert, key: other.key }, null, "key: the key is not that of the certificate"],
      [server, "nothing", "authorities: there is no certificate in PEM format"],
      [server, ca.cert + broken, "authorities: a certificate cannot be read"]
    ] as const) {
      assert.strictEqual(unusable(Acceptor.make(pair, bundle)), expected)
      assert.strictEqual(unusable(Connector.make("chain", bundle ?? ca.cert, pair)), expected)
    }
  })
})

describe("tls-server-end-point", () => {
  it("is the certificate's hash by its signature's own hash function", () => {
    const certificate = new X509Certificate(server.cert)
    assert.deepStrictEqual(serverEndPoint(certificate), createHash("sha256").update(certificate.raw).digest())
  })

  it("is SHA-256 where that is MD5 or SHA-1, and nothing where the signature's name tells of none", () => {
    const raw = Buffer.from("a certificate")
    for (const [signatureAlgorithm, hash] of [
      ["md5WithRSAEncryption", "sha256"],
      ["sha1WithRSAEncryption", "sha256"],
      ["ecdsa-with-SHA1", "sha256"],
      ["sha256WithRSAEncryption", "sha256"],
      ["sha384WithRSAEncryption", "sha384"],
      ["ecdsa-with-SHA384", "sha384"],
      ["ecdsa-with-SHA512", "sha512"],
      ["sha224WithRSAEncryption", "sha224"],
      ["dsa_with_SHA256", "sha256"],
      ["ED25519", null],
      ["rsassaPss", null],
      [undefined, null]
    ] as const) {
      assert.deepStrictEqual(
        serverEndPoint({ signatureAlgorithm, raw } as X509Certificate),
        hash === null ? null : createHash(hash).update(raw).digest(),
        signatureAlgorithm
      )
    }
  })
})
