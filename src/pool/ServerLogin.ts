/**
 * Opens a connection to PostgreSQL and logs in: dial (with TLS), startup packet, proof of the password, until ReadyForQuery.
 *
 * Trust, clear text, MD5, SCRAM-SHA-256 and SCRAM-SHA-256-PLUS. One attempt, no retries and no timeout of its own (the
 * pool's). Interruption at any moment closes the socket. The server is not trusted with the password before it has shown what
 * it may have: see `Policy`.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { createHash, randomBytes } from "node:crypto"
import type { TlsToServers } from "../config/LiveTls.ts"
import { ByteReader } from "../net/ByteReader.ts"
import type { Network } from "../net/Network.ts"
import type { Transport } from "../net/Transport.ts"
import {
  decodeAuthentication,
  decodeBackendKeyData,
  decodeError,
  decodeParameterStatus,
  type AuthenticationRequest
} from "../protocol/Backend.ts"
import { Backend } from "../protocol/Frame.ts"
import { passwordMessage, saslInitialResponse, saslResponse, startupMessage } from "../protocol/Frontend.ts"
import * as Scram from "../protocol/Scram.ts"
import { ConnectFailure, lost, refused } from "./ConnectFailure.ts"
import type { Credential } from "./Credential.ts"
import { dial } from "./Dial.ts"
import { safeFloor, type Floor } from "./Reset.ts"
import type { LoggedIn } from "./ServerConnection.ts"

/** Messages during a login are short; PostgreSQL's own clients take up to 30 000 bytes. */
const LOGIN_FRAME_LIMIT = 64 * 1024
/** As PostgreSQL's SCRAM_RAW_NONCE_LEN. */
const NONCE_LENGTH = 18

/** What a server may ask for. */
export interface Policy {
  /** No password at all, although one is configured: it might be anyone's server. */
  readonly allowTrust: boolean
  /** The password in clear text over a connection that others may read: without TLS, or with whoever it is at its other end. */
  readonly allowClearText: boolean
}

/** Classes of SQLSTATE that only an operator can mend: authorization, no such database or role's setting, configuration. */
const lasting = /^(28|3D|42|22|0A)/

export interface Target {
  readonly host: string
  readonly port: number
  readonly database: string
}

export const openAndLogIn = (
  network: Network["Service"],
  target: Target,
  credential: Credential,
  policy: Policy,
  tls: TlsToServers,
  floor: Floor = safeFloor
): Effect.Effect<LoggedIn, ConnectFailure> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(restore(dial(network, target, tls)), (transport) =>
      restore(logIn(transport, target.database, credential, policy, floor)).pipe(
        Effect.onError(() => Effect.sync(() => transport.destroy()))
      )
    )
  )

const logIn = Effect.fnUntraced(function* (
  transport: Transport,
  database: string,
  credential: Credential,
  policy: Policy,
  floor: Floor
): Effect.fn.Return<LoggedIn, ConnectFailure> {
  const reader = new ByteReader(transport)
  transport.write(startupMessage([["user", credential.user], ["database", database], ...floor]))
  yield* authenticate(reader, transport, credential, policy)
  return yield* untilReady(reader, transport)
})

/** The next message that belongs to the login; notices are passed over, an error ends it. */
const nextFrame = Effect.fnUntraced(function* (reader: ByteReader) {
  while (true) {
    const frame = yield* Effect.mapError(reader.frame(LOGIN_FRAME_LIMIT), lost)
    if (frame.type === Backend.noticeResponse) continue
    if (frame.type !== Backend.errorResponse) return frame
    const error = decodeError(frame.body)
    return yield* new ConnectFailure({
      kind: lasting.test(error.sqlState) ? "refused" : "unreachable",
      detail: `${error.sqlState} ${error.message}`,
      error
    })
  }
})

const nextAuthentication = Effect.fnUntraced(function* (
  reader: ByteReader
): Effect.fn.Return<AuthenticationRequest, ConnectFailure> {
  const frame = yield* nextFrame(reader)
  const request = frame.type === Backend.authentication ? decodeAuthentication(frame.body) : null
  return request ?? (yield* refused("what answers there does not speak PostgreSQL's protocol"))
})

const authenticate = Effect.fnUntraced(function* (
  reader: ByteReader,
  transport: Transport,
  credential: Credential,
  policy: Policy
): Effect.fn.Return<void, ConnectFailure> {
  const request = yield* nextAuthentication(reader)
  const password = Redacted.value(credential.password)
  if (password.includes("\0")) return yield* refused("the password holds a NUL, which no message can carry")
  switch (request._tag) {
    case "Ok":
      if (policy.allowTrust) return
      return yield* refused(
        "the server asked for no password although one is configured (ServerSettings.AllowTrust is false)"
      )
    case "CleartextPassword":
      if (!isConfidential(transport) && !policy.allowClearText) {
        return yield* refused(
          "the server asked for the password in clear text over an open connection, or did not prove whose it is " +
            "(ServerSettings.AllowClearText is false)"
        )
      }
      transport.write(passwordMessage(password))
      break
    case "Md5Password":
      transport.write(passwordMessage(md5Response(credential.user, password, request.salt)))
      break
    case "Sasl":
      yield* scram(reader, transport, credential, request.mechanisms)
      break
    default:
      return yield* refused("the server asks for a kind of authentication that is not supported")
  }
  const answer = yield* nextAuthentication(reader)
  if (answer._tag !== "Ok") return yield* refused("the server did not end the authentication as it should")
})

/** Nobody else reads along, and whoever reads is who we mean. */
const isConfidential = (transport: Transport): boolean => transport.local || transport.tls?.peerVerified === true

/** Chapter "Authentication": "md5" and the hash of (hash of password and user) and salt. */
const md5Response = (user: string, password: string, salt: Buffer): string => {
  const md5 = (...parts: ReadonlyArray<string | Buffer>) => {
    const hash = createHash("md5")
    for (const part of parts) hash.update(part)
    return hash.digest("hex")
  }
  return `md5${md5(md5(password, user), salt)}`
}

/**
 * With channel binding where server and transport have it. Where only the transport has, the server is told so: had somebody
 * between us struck it from the offer, the server would refuse.
 */
const scram = Effect.fnUntraced(function* (
  reader: ByteReader,
  transport: Transport,
  credential: Credential,
  mechanisms: ReadonlyArray<string>
): Effect.fn.Return<void, ConnectFailure> {
  const hash = transport.tls?.serverEndPoint ?? null
  const isBound = hash !== null && mechanisms.includes(Scram.Mechanism.plus)
  const mechanism = isBound ? Scram.Mechanism.plus : Scram.Mechanism.plain
  if (!mechanisms.includes(mechanism)) {
    return yield* refused(`the server offers no SASL mechanism that can be used here: ${mechanisms.join(", ")}`)
  }
  const binding: Scram.ChannelBinding = isBound
    ? { _tag: "ServerEndPoint", hash }
    : { _tag: hash === null ? "Unsupported" : "NotOffered" }
  const nonce = randomBytes(NONCE_LENGTH).toString("base64")
  transport.write(saslInitialResponse(mechanism, Scram.clientFirst(nonce, binding)))
  const challenge = yield* nextAuthentication(reader)
  const first = challenge._tag === "SaslContinue" ? Scram.decodeServerFirst(nonce, challenge.data) : null
  if (first === null) return yield* refused("the server's SCRAM challenge is malformed or asks for too much work")
  const salted = yield* credential.saltedPassword(first.salt, first.iterations)
  const final = Scram.clientFinal(nonce, first, salted, binding)
  transport.write(saslResponse(final.message))
  const outcome = yield* nextAuthentication(reader)
  if (outcome._tag !== "SaslFinal" || !Scram.verifyServerFinal(final.serverSignature, outcome.data)) {
    return yield* refused("the server did not prove that it knows the password (SCRAM signature)")
  }
})

const untilReady = Effect.fnUntraced(function* (
  reader: ByteReader,
  transport: Transport
): Effect.fn.Return<LoggedIn, ConnectFailure> {
  const parameters = new Map<string, string>()
  let key: { readonly processId: number; readonly secretKey: Buffer } | null = null
  while (true) {
    const frame = yield* nextFrame(reader)
    if (frame.type === Backend.parameterStatus) {
      const parameter = decodeParameterStatus(frame.body)
      if (parameter !== null) parameters.set(parameter[0], parameter[1])
    } else if (frame.type === Backend.backendKeyData) {
      key = decodeBackendKeyData(frame.body)
    } else if (frame.type === Backend.readyForQuery) {
      const { processId, secretKey } = key ?? { processId: 0, secretKey: Buffer.alloc(4) }
      return { transport, processId, secretKey, parameters, rest: reader.takeRest() }
    }
  }
})
