/**
 * From a client's first byte to what it wants: a cancel, or a login as whom and with which settings.
 *
 * Reads startup packets and nothing else, and begins TLS where a client asks for it (SSLRequest) or begins it by itself
 * (`sslnegotiation=direct`, which is known by its first byte). Every length is checked before anything is kept for it, encryption
 * is asked for at most once of each kind and not within TLS, and nothing that came in the same breath as such a request is ever
 * read (CVE-2021-3935).
 */
import * as Effect from "effect/Effect"
import type { TlsToClients } from "../config/LiveTls.ts"
import {
  ClientCertificateRefused,
  FeatureNotSupported,
  ProtocolViolation,
  SchemaNameRefused,
  StartupParameterMissing,
  TlsHandshakeFailed,
  TlsRequired
} from "../errors.ts"
import type { ByteReader, ReadFailure, SecureFailure } from "../net/ByteReader.ts"
import type { TlsState, Transport } from "../net/Transport.ts"
import { clientSettings, type ClientSettings } from "../pool/Reset.ts"
import { Frontend } from "../protocol/Frame.ts"
import { decode, MAX_STARTUP_PACKET_LENGTH, parseOptions, type StartupMessage } from "../protocol/Startup.ts"
import type { TenantKey } from "../tenant/AuthRepo.ts"
import * as SchemaName from "../tenant/SchemaName.ts"

export interface LoginRequest {
  readonly _tag: "Login"
  readonly user: string
  readonly key: TenantKey
  readonly settings: ClientSettings
  /** The minor version of protocol 3 that is spoken from now on. */
  readonly minor: number
  /** Protocol options that nobody here knows. The client is told of them, and of the version where it asked for a newer one. */
  readonly unknownProtocolOptions: ReadonlyArray<string>
  readonly askedMinor: number
}

export interface CancelRequest {
  readonly _tag: "Cancel"
  readonly processId: number
  readonly secretKey: Buffer
}

export type NegotiationFault =
  | ProtocolViolation
  | StartupParameterMissing
  | SchemaNameRefused
  | FeatureNotSupported
  | TlsRequired
  | ClientCertificateRefused

/** 3.2: cancel keys of up to 256 bytes. */
const NEWEST_MINOR = 2

const willing = Buffer.from("S")
const unwilling = Buffer.from("N")

/** The first byte of TLS: a record that holds a handshake. A startup packet begins with a zero of its length. */
const TLS_HANDSHAKE_RECORD = 0x16

export const negotiate = Effect.fnUntraced(function* (
  reader: ByteReader,
  transport: Transport,
  tls: TlsToClients
): Effect.fn.Return<LoginRequest | CancelRequest, NegotiationFault | TlsHandshakeFailed | ReadFailure> {
  if (tls.mode !== "disable" && (yield* reader.firstByte) === TLS_HANDSHAKE_RECORD) {
    yield* Effect.mapError(reader.secure(tls.accept("required"), "is the handshake's"), faultOf)
  }
  const asked = new Set<string>()
  while (true) {
    // A client that is ended before it is connected (node-postgres) says goodbye here. As by PostgreSQL, it is told nothing.
    if ((yield* reader.firstByte) === Frontend.terminate) {
      return yield* Effect.fail<ReadFailure>({ _tag: "PeerGone", reason: null })
    }
    const packet = decode(yield* reader.packet(MAX_STARTUP_PACKET_LENGTH))
    switch (packet._tag) {
      case "Malformed":
        return yield* new ProtocolViolation({ detail: packet.why })
      case "CancelRequest":
        return { _tag: "Cancel", processId: packet.processId, secretKey: packet.secretKey }
      case "StartupMessage":
        if (transport.tls === null && (tls.mode === "require" || tls.mode === "verify-full")) {
          return yield* new TlsRequired()
        }
        return yield* readStartup(packet.message, tls.mode === "verify-full" ? transport.tls : null)
      case "SslRequest":
      case "GssEncRequest":
        if (asked.has(packet._tag) || transport.tls !== null) {
          return yield* new ProtocolViolation({ detail: "encryption was asked for twice" })
        }
        if (reader.pendingLength > 0) return yield* dataBehindRequest()
        asked.add(packet._tag)
        if (packet._tag === "SslRequest" && tls.mode !== "disable") {
          yield* Effect.mapError(reader.secure(tls.accept("optional"), "must not be", willing), faultOf)
        } else {
          transport.write(unwilling)
        }
    }
  }
})

const dataBehindRequest = () => new ProtocolViolation({ detail: "data came behind a request for encryption" })

const faultOf = (failure: SecureFailure): TlsHandshakeFailed | ProtocolViolation =>
  failure._tag === "UnreadBytes" ? dataBehindRequest() : new TlsHandshakeFailed({ reason: failure.reason })

/** `certified`: who the client has to be by its certificate; null: anyone. */
const readStartup = Effect.fnUntraced(function* (
  message: StartupMessage,
  certified: TlsState | null
): Effect.fn.Return<LoginRequest, NegotiationFault> {
  const options = parseOptions(message.parameters.get("options") ?? "")
  if (options === null) {
    return yield* new FeatureNotSupported({
      feature: "a switch in the startup parameter options other than -c name=value",
      advice: "Send options as PGOPTIONS='-c name=value -c other=value'."
    })
  }
  const asked = new Map<string, string>()
  const dateStyles: Array<string> = []
  for (const [name, value] of [...options, ...message.parameters]) {
    const key = name.toLowerCase()
    asked.set(key, value)
    if (key === "datestyle") dateStyles.push(value)
  }
  if (dateStyles.length > 1) asked.set("datestyle", composeDateStyles(dateStyles))

  const user = asked.get("user") ?? ""
  if (user === "") return yield* new StartupParameterMissing({ parameter: "user" })
  if (certified !== null) {
    if (!certified.peerVerified) return yield* new ClientCertificateRefused({ detail: "none, or not to be trusted" })
    if (certified.peerCommonName !== user)
      return yield* new ClientCertificateRefused({ detail: "its CN is not the user" })
  }
  const sourceDb = asked.get("database") ?? ""
  if (sourceDb === "") return yield* new StartupParameterMissing({ parameter: "database" })
  const sourceSchema = asked.get("schema_search_path") ?? asked.get("search_path")
  if (sourceSchema === undefined) return yield* new StartupParameterMissing({ parameter: "schema_search_path" })
  const why = SchemaName.check(sourceSchema)
  if (why !== null) return yield* new SchemaNameRefused({ why })
  if (asksForReplication(asked.get("replication"))) {
    return yield* new FeatureNotSupported({
      feature: "replication",
      advice: "Connect to the PostgreSQL server itself for replication."
    })
  }

  for (const name of notSettings) asked.delete(name)
  return {
    _tag: "Login",
    user,
    key: { sourceDb, sourceSchema },
    settings: clientSettings(asked),
    minor: Math.min(message.minor, NEWEST_MINOR),
    askedMinor: message.minor,
    unknownProtocolOptions: message.protocolOptions
  }
})

/**
 * Each value says a style, an order or both, and PostgreSQL takes them one after the other: pgjdbc always adds ISO. Nobody has
 * logged in yet, and a value can have thousands of words: each is looked at once.
 */
const composeDateStyles = (values: ReadonlyArray<string>): string => {
  const isOrder = (word: string) => /^(ymd|dmy|mdy|us|euro|european|noneuro)/i.test(word)
  const said = new Set<boolean>()
  const composed: Array<string> = []
  for (const value of values.toReversed()) {
    const kept = words(value).filter((word) => !said.has(isOrder(word)))
    for (const word of kept) said.add(isOrder(word))
    composed.push(...kept)
  }
  return composed.join(", ")
}

const words = (list: string): ReadonlyArray<string> =>
  list
    .split(",")
    .map((word) => word.trim())
    .filter((word) => word !== "")

/** Who and where, not how: never applied as a setting. */
const notSettings = ["user", "database", "options", "schema_search_path", "search_path", "replication"]

/** PostgreSQL takes a boolean or the word database. */
const asksForReplication = (value: string | undefined): boolean =>
  value !== undefined && !/^(|f|fa|fal|fals|false|of|off|n|no|0)$/i.test(value)
