/**
 * TLS for either end of a connection: from the texts of PEM files to handshakes on a socket.
 *
 * Reads no file, decides for nobody whether TLS is wanted, and speaks no PostgreSQL but the name of its protocol in ALPN. What
 * cannot be used is refused in words before any handshake; a handshake that fails says why by a code, never by what the peer
 * sent. Sessions are not resumed and connections not renegotiated, as PostgreSQL has it.
 */
import * as Result from "effect/Result"
import { constants, createHash, createPrivateKey, X509Certificate } from "node:crypto"
import { isIP, type Socket } from "node:net"
import * as NodeTls from "node:tls"
import type { TlsState } from "./Transport.ts"

/** How it ended. "Failed": the socket is of no more use, and `reason` is a code or a few words. */
export type HandshakeEnd =
  | { readonly _tag: "Secured"; readonly socket: NodeTls.TLSSocket; readonly state: TlsState }
  | { readonly _tag: "Failed"; readonly reason: string }

/** Takes a connected socket over that nobody else listens to. `done` is called once, also where the socket is destroyed. */
export type Handshake = (socket: Socket, done: (end: HandshakeEnd) => void) => void

/** Texts in PEM. */
export interface KeyPair {
  readonly cert: string
  readonly key: string
}

export type Part = "certificate" | "key" | "authorities"

/** Which of them cannot be used, and why. */
export interface Unusable {
  readonly part: Part
  readonly why: string
}

const PROTOCOL = "postgresql"

const common: NodeTls.SecureContextOptions = {
  minVersion: "TLSv1.2",
  secureOptions: constants.SSL_OP_NO_TICKET | constants.SSL_OP_NO_RENEGOTIATION
}

// ---------------------------------------------------------------------------------------------------------------------
// Where clients connect to us
// ---------------------------------------------------------------------------------------------------------------------

/** Servers of Node's that wait for their next handshake: more than ever shake hands at once on a machine at rest. */
const MAX_IDLE_SERVERS = 32

/**
 * The server's end. Node's own `tls.Server` shakes hands, since it alone says whether a client's certificate holds; but its
 * events do not name the socket that was put in. So each handshake has one for itself, which then serves the next.
 */
export class Acceptor {
  readonly #options: NodeTls.TlsOptions
  readonly #serverEndPoint: Buffer | null
  readonly #idle: Array<NodeTls.Server> = []

  private constructor(options: NodeTls.TlsOptions, certificate: X509Certificate) {
    this.#options = options
    this.#serverEndPoint = serverEndPoint(certificate)
  }

  /** `clientCa`: who may vouch for clients, which are asked for certificates then; null: they are not. */
  static make(pair: KeyPair, clientCa: string | null): Result.Result<Acceptor, Unusable> {
    return Result.gen(function* () {
      const certificate = yield* checkPair(pair)
      if (clientCa !== null) yield* certificatesIn("authorities", clientCa)
      const options: NodeTls.TlsOptions = {
        ...common,
        ...pair,
        ALPNProtocols: [PROTOCOL],
        requestCert: clientCa !== null,
        rejectUnauthorized: false,
        ...(clientCa === null ? {} : { ca: clientCa })
      }
      const acceptor = new Acceptor(options, certificate)
      acceptor.#idle.push(yield* attempt(() => NodeTls.createServer(options)))
      return acceptor
    })
  }

  /** `alpn`: whether the client must have named PostgreSQL's protocol, or may. Another protocol than that never will do. */
  handshake(alpn: "required" | "optional"): Handshake {
    return (socket, done) => {
      const server = this.#idle.pop() ?? NodeTls.createServer(this.#options)
      const finish = (end: HandshakeEnd) => {
        server.removeAllListeners("secureConnection").removeAllListeners("tlsClientError")
        if (this.#idle.length < MAX_IDLE_SERVERS) this.#idle.push(server)
        done(end)
      }
      server.once("secureConnection", (secured) => {
        if (alpn === "required" && secured.alpnProtocol !== PROTOCOL) {
          secured.destroy()
          return finish({ _tag: "Failed", reason: `direct TLS without ALPN (${PROTOCOL})` })
        }
        finish({
          _tag: "Secured",
          socket: secured,
          state: {
            peerVerified: secured.authorized,
            peerCommonName: secured.authorized ? commonNameOf(secured.getPeerCertificate()) : null,
            serverEndPoint: this.#serverEndPoint
          }
        })
      })
      server.once("tlsClientError", (error) => finish({ _tag: "Failed", reason: codeOf(error) }))
      // How a socket that others accepted is put into a server of Node's.
      server.emit("connection", socket)
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Where we connect to servers
// ---------------------------------------------------------------------------------------------------------------------

/** What of a server's certificate is looked at. */
export type Verification = "nothing" | "chain" | "chain and name"

/** The client's end. */
export class Connector {
  readonly #context: NodeTls.SecureContext
  readonly #verification: Verification

  private constructor(context: NodeTls.SecureContext, verification: Verification) {
    this.#context = context
    this.#verification = verification
  }

  /** `ca`: a bundle of those who may vouch for a server; null where nothing is verified. `pair`: what we show, if asked. */
  static make(verification: Verification, ca: string | null, pair: KeyPair | null): Result.Result<Connector, Unusable> {
    return Result.gen(function* () {
      if (ca !== null) yield* certificatesIn("authorities", ca)
      if (pair !== null) yield* checkPair(pair)
      const options = { ...common, ...pair, ...(ca === null ? {} : { ca }) }
      return new Connector(yield* attempt(() => NodeTls.createSecureContext(options)), verification)
    })
  }

  /** `host`: the name or address that was dialled. */
  handshake(host: string): Handshake {
    return (socket, done) => {
      const verifies = this.#verification !== "nothing"
      const secured = NodeTls.connect({
        socket,
        secureContext: this.#context,
        ALPNProtocols: [PROTOCOL],
        rejectUnauthorized: verifies,
        checkServerIdentity: (_, certificate) =>
          this.#verification === "chain and name" ? NodeTls.checkServerIdentity(host, certificate) : undefined,
        // An address is no server name (RFC 6066 §3).
        ...(isIP(host) === 0 ? { servername: host } : {})
      })
      let finished = false
      const finish = (end: HandshakeEnd) => {
        if (finished) return
        finished = true
        secured.off("error", onError).off("close", onClose)
        // Node tells of an error once more where it is told of it while it destroys.
        if (end._tag === "Failed") secured.on("error", () => {})
        done(end)
      }
      const onError = (error: Error) => finish({ _tag: "Failed", reason: codeOf(error) })
      const onClose = () => finish({ _tag: "Failed", reason: "ECONNRESET" })
      secured.on("error", onError).on("close", onClose)
      secured.once("secureConnect", () => {
        const certificate = secured.getPeerX509Certificate()
        finish({
          _tag: "Secured",
          socket: secured,
          state: {
            peerVerified: verifies && secured.authorized,
            peerCommonName: verifies ? commonNameOf(secured.getPeerCertificate()) : null,
            serverEndPoint: certificate === undefined ? null : serverEndPoint(certificate)
          }
        })
      })
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Certificates
// ---------------------------------------------------------------------------------------------------------------------

/**
 * `tls-server-end-point` (RFC 5929 §4.1): the certificate's hash by its own signature's hash function, by SHA-256 where that is
 * MD5 or SHA-1. Null where the signature's name tells of none (Ed25519, RSA-PSS).
 */
export const serverEndPoint = (certificate: X509Certificate): Buffer | null => {
  const name = /^(?:ecdsa-with-|dsa_with_)?(MD5|SHA1|SHA224|SHA256|SHA384|SHA512)(?:WithRSAEncryption)?$/i
  const hash = name.exec(certificate.signatureAlgorithm ?? "")?.[1]?.toLowerCase()
  if (hash === undefined) return null
  return createHash(hash === "md5" || hash === "sha1" ? "sha256" : hash)
    .update(certificate.raw)
    .digest()
}

/** Null where there is none, or more than one: which of them would be the user? */
const commonNameOf = (certificate: NodeTls.PeerCertificate): string | null => {
  const name: unknown = certificate.subject?.CN
  return typeof name === "string" ? name : null
}

const PEM_CERTIFICATE = /-----BEGIN CERTIFICATE-----[^]*?-----END CERTIFICATE-----/g

/** All of them, at least one. Node would pass over what it cannot read in a bundle, and trust nobody or too few. */
const certificatesIn = (
  part: Part,
  pem: string
): Result.Result<readonly [X509Certificate, ...Array<X509Certificate>], Unusable> => {
  const [first, ...rest] = pem.match(PEM_CERTIFICATE) ?? []
  if (first === undefined) return Result.fail({ part, why: "there is no certificate in PEM format" })
  return Result.try({
    try: () => [new X509Certificate(first), ...rest.map((text) => new X509Certificate(text))] as const,
    catch: () => ({ part, why: "a certificate cannot be read" })
  })
}

const checkPair = ({ cert, key }: KeyPair): Result.Result<X509Certificate, Unusable> =>
  Result.gen(function* () {
    const [certificate] = yield* certificatesIn("certificate", cert)
    const privateKey = yield* Result.try({
      try: () => createPrivateKey(key),
      catch: (): Unusable => ({ part: "key", why: "there is no private key in PEM format, without a passphrase" })
    })
    return certificate.checkPrivateKey(privateKey)
      ? certificate
      : yield* Result.fail<Unusable>({ part: "key", why: "the key is not that of the certificate" })
  })

/** What only OpenSSL finds: a key that is too short, for one. */
const attempt = <A>(make: () => A): Result.Result<A, Unusable> =>
  Result.try({ try: make, catch: (error) => ({ part: "certificate", why: `cannot be used (${codeOf(error)})` }) })

const codeOf = (error: unknown): string => {
  const { code } = Object(error) as { readonly code?: unknown }
  return typeof code === "string" ? code : "ERR_TLS"
}
