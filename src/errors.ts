/**
 * Every failure that Perseus itself can report: what happened, the SQLSTATE and words that a client gets, how loud
 * the log is, and whether the client may simply try again.
 *
 * The classes carry only what may be logged: never a password, a key, a plaintext, a DSN or a row's content.
 * `detail` is for the log alone; `clientMessage` and `hint` are all that reaches the wire.
 *
 * @see https://www.postgresql.org/docs/current/protocol-error-fields.html
 */
import * as Data from "effect/Data"
import type { LogLevel } from "effect/LogLevel"
import type { ReceivedError } from "./protocol/Backend.ts"
import { SqlState } from "./protocol/SqlState.ts"

/** What a client is told of a failure, and what the operator's log says. */
export interface ClientFault {
  readonly _tag: string
  /** FATAL closes the session; ERROR leaves it usable. */
  readonly severity: "FATAL" | "ERROR"
  /** Five characters, chapter "PostgreSQL Error Codes". */
  readonly sqlState: string
  readonly clientMessage: string
  /** What the client's owner can do, or null. */
  readonly hint: string | null
  readonly logLevel: LogLevel
  /** True where nothing that the client sent has reached a server. */
  readonly retrySafe: boolean
}

/** No database, user or schema was named in the startup packet. */
export class StartupParameterMissing
  extends Data.TaggedError("StartupParameterMissing")<{
    readonly parameter: "database" | "user" | "schema_search_path"
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.protocolViolation
  readonly logLevel = "Info"
  readonly retrySafe = true
  get clientMessage() {
    return `no ${this.parameter} was named at startup`
  }
  get hint() {
    return this.parameter === "schema_search_path"
      ? "Add schema_search_path=<tenant> to the DSN, or set PGOPTIONS='-c schema_search_path=<tenant>'."
      : `Name the ${this.parameter} in the DSN.`
  }
  override get message() {
    return this.clientMessage
  }
}

/** The client broke the protocol: malformed, oversized or out of order. `detail` may be sent, it holds no input. */
export class ProtocolViolation
  extends Data.TaggedError("ProtocolViolation")<{
    readonly detail: string
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.protocolViolation
  readonly logLevel = "Info"
  readonly retrySafe = false
  readonly hint = null
  get clientMessage() {
    return `protocol violation: ${this.detail}`
  }
  override get message() {
    return this.clientMessage
  }
}

/** A startup value that can never name a tenant (empty, over 63 bytes, `$user`, `pg_…`, NUL, invalid UTF-8). */
export class SchemaNameRefused
  extends Data.TaggedError("SchemaNameRefused")<{
    readonly why: string
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.invalidName
  readonly logLevel = "Info"
  readonly retrySafe = true
  readonly hint = "schema_search_path takes the name of one schema, as perseus_auth.source_schema has it."
  get clientMessage() {
    return `schema_search_path cannot be used: ${this.why}`
  }
  override get message() {
    return this.clientMessage
  }
}

/** Something that PostgreSQL offers and a pooler does not. */
export class FeatureNotSupported
  extends Data.TaggedError("FeatureNotSupported")<{
    readonly feature: string
    readonly advice: string
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.featureNotSupported
  readonly logLevel = "Info"
  readonly retrySafe = true
  get clientMessage() {
    return `${this.feature} is not supported through Perseus`
  }
  get hint() {
    return this.advice
  }
  override get message() {
    return this.clientMessage
  }
}

/** `TLSSettings.ClientMode` or `LoginSettings.RequireTLS` asks for TLS, and the client speaks without. */
export class TlsRequired extends Data.TaggedError("TlsRequired") implements ClientFault {
  readonly severity = "FATAL"
  readonly sqlState = SqlState.invalidAuthorization
  readonly logLevel = "Info"
  readonly retrySafe = true
  readonly hint = "Connect with sslmode=require, or better sslmode=verify-full."
  readonly clientMessage = "this pooler requires TLS"
  override get message() {
    return this.clientMessage
  }
}

/** `TLSSettings.ClientMode` is `verify-full`, and the client's certificate does not make it the user that it names. */
export class ClientCertificateRefused
  extends Data.TaggedError("ClientCertificateRefused")<{
    /** For the log. */
    readonly detail: string
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.invalidAuthorization
  readonly logLevel = "Warn"
  readonly retrySafe = true
  readonly hint =
    "Set sslcert and sslkey: an authority that this pooler trusts must have issued it, with the user as its CN."
  readonly clientMessage = "a valid client certificate for this user is required"
  override get message() {
    return `client certificate refused: ${this.detail}`
  }
}

/** A TLS handshake with a client failed: nobody is there who could be told. */
export class TlsHandshakeFailed extends Data.TaggedError("TlsHandshakeFailed")<{
  /** A code or a few words; nothing that the peer sent. */
  readonly reason: string
}> {
  override get message() {
    return `TLS handshake failed: ${this.reason}`
  }
}

/** Why a login was refused. Only the log learns which. */
export type LoginRefusal =
  | "unknown tenant"
  | "wrong user"
  | "wrong password"
  | "row has a NULL column"
  | "hash is malformed"
  | "dest_host is malformed"
  | "pool_mode is malformed"
  | "no password sent"

/** Wrong tenant, user or password: the same words for all three. */
export class LoginRefused
  extends Data.TaggedError("LoginRefused")<{
    readonly why: LoginRefusal
    /** For the log: the column's name, or the like. Never a value. */
    readonly detail?: string | undefined
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.invalidPassword
  readonly logLevel = "Warn"
  readonly retrySafe = true
  readonly hint = null
  readonly clientMessage = "password authentication failed"
  override get message() {
    return this.detail === undefined ? `login refused: ${this.why}` : `login refused: ${this.why} (${this.detail})`
  }
}

/** The client's SCRAM exchange is bound to another channel than this one: somebody may stand between. */
export class ChannelBindingFailed
  extends Data.TaggedError("ChannelBindingFailed")<{
    readonly detail: string
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.invalidAuthorization
  readonly logLevel = "Warn"
  readonly retrySafe = true
  readonly hint = "Something between the client and Perseus may end TLS, or change what is said."
  get clientMessage() {
    return `SCRAM channel binding failed: ${this.detail}`
  }
  override get message() {
    return this.clientMessage
  }
}

/** `LoginSettings.FailuresBeforeBlock` was reached. Says nothing about whether the password was right. */
export class LoginBlocked
  extends Data.TaggedError("LoginBlocked")<{
    readonly scope: "from this address" | "to this tenant" | "at once"
    readonly seconds: number
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.invalidAuthorization
  /** The block itself was logged louder, once. */
  readonly logLevel = "Info"
  readonly retrySafe = true
  get hint() {
    return `Try again in ${this.seconds} s, with the right password.`
  }
  get clientMessage() {
    return `too many failed logins ${this.scope}`
  }
  override get message() {
    return this.clientMessage
  }
}

/** The login was not finished within `LimitSettings.ClientLoginTimeoutSecs`. */
export class LoginTimedOut
  extends Data.TaggedError("LoginTimedOut")<{
    readonly seconds: number
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.protocolViolation
  readonly logLevel = "Info"
  readonly retrySafe = true
  readonly hint = null
  get clientMessage() {
    return `login was not finished within ${this.seconds} s`
  }
  override get message() {
    return this.clientMessage
  }
}

/** The auth database did not answer, or not within `AuthDBSettings.AuthQueryTimeoutSecs`. */
export class AuthUnavailable
  extends Data.TaggedError("AuthUnavailable")<{
    readonly detail: string
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.connectionFailure
  readonly logLevel = "Error"
  readonly retrySafe = true
  readonly hint = "This is a fault of the service, not of your password: try again shortly."
  readonly clientMessage = "the authentication database is not available"
  override get message() {
    return `auth database: ${this.detail}`
  }
}

/** KMS did not answer, refused the ciphertext, or took too long. `detail` is the KMS error's name, never a value. */
export class KmsUnavailable
  extends Data.TaggedError("KmsUnavailable")<{
    readonly detail: string
    readonly retryable: boolean
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.systemError
  readonly logLevel = "Error"
  readonly retrySafe = true
  readonly hint = "This is a fault of the service, not of your password: try again shortly."
  readonly clientMessage = "the destination's password could not be decrypted"
  override get message() {
    return `KMS: ${this.detail}`
  }
}

/** The destination refused, could not be reached, or did not finish its login within ConnCreateTimeoutSecs. */
export class DestinationUnreachable
  extends Data.TaggedError("DestinationUnreachable")<{
    /** "host/db", as the metrics' labels say. */
    readonly destination: string
    readonly detail: string
  }>
  implements ClientFault
{
  /** At login every fault is FATAL, whatever stands here. */
  readonly severity = "ERROR"
  readonly sqlState = SqlState.unableToConnect
  readonly logLevel = "Warn"
  readonly retrySafe = true
  readonly hint = "The database behind this tenant is down or refuses connections: try again shortly."
  readonly clientMessage = "the destination database cannot be reached"
  override get message() {
    return `destination ${this.destination}: ${this.detail}`
  }
}

/** No server connection came free within `LimitSettings.AcquireTimeoutSecs`. */
export class AcquireTimedOut
  extends Data.TaggedError("AcquireTimedOut")<{
    readonly destination: string
    readonly seconds: number
    readonly waiting: number
    /** Connections that its tenant has, where MaxServersPerTenant allows it no more; null: the pool has none to give. */
    readonly tenantHolds: number | null
  }>
  implements ClientFault
{
  readonly severity = "ERROR"
  readonly sqlState = SqlState.tooManyConnections
  readonly logLevel = "Warn"
  readonly retrySafe = true
  get hint() {
    return `Nothing was sent to the server: it is safe to try again.${this.#limit}`
  }
  get clientMessage() {
    return `no server connection came free within ${this.seconds} s (${this.waiting} waiting)`
  }
  override get message() {
    return `destination ${this.destination}: ${this.clientMessage}.${this.#limit}`
  }
  get #limit() {
    return this.tenantHolds === null
      ? ""
      : ` This tenant holds ${this.tenantHolds}, as many as MaxServersPerTenant allows.`
  }
}

/** `MaxClients` or `MaxClientsPerTenant` is reached. */
export class TooManyClients
  extends Data.TaggedError("TooManyClients")<{
    readonly scope: "this pooler" | "this tenant"
    readonly limit: number
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.tooManyConnections
  readonly logLevel = "Warn"
  readonly retrySafe = true
  readonly hint = "Close idle client connections, or ask for a higher limit."
  get clientMessage() {
    return `too many clients: ${this.scope} has its limit of ${this.limit}`
  }
  override get message() {
    return this.clientMessage
  }
}

/** A CancelRequest met the query while it still waited for a server connection. */
export class CancelledWhileWaiting extends Data.TaggedError("CancelledWhileWaiting") implements ClientFault {
  readonly severity = "ERROR"
  readonly sqlState = SqlState.queryCanceled
  readonly logLevel = "Debug"
  readonly retrySafe = true
  readonly hint = null
  readonly clientMessage = "canceling statement due to user request"
  override get message() {
    return this.clientMessage
  }
}

/** The server connection was lost while this client held it. */
export class ServerConnectionLost
  extends Data.TaggedError("ServerConnectionLost")<{
    readonly destination: string
    readonly detail: string
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.adminShutdown
  readonly logLevel = "Warn"
  readonly retrySafe = false
  readonly hint = "Whether the transaction was committed is not known."
  readonly clientMessage = "the server closed the connection during the transaction"
  override get message() {
    return `destination ${this.destination}: server connection lost: ${this.detail}`
  }
}

/** `LimitSettings.IdleInTransactionTimeoutSecs` passed while a server connection was held and nothing was asked. */
export class IdleInTransactionTimedOut
  extends Data.TaggedError("IdleInTransactionTimedOut")<{
    readonly seconds: number
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.idleInTransactionTimeout
  readonly logLevel = "Info"
  readonly retrySafe = false
  readonly hint = null
  get clientMessage() {
    return `terminating connection: idle in transaction for more than ${this.seconds} s`
  }
  override get message() {
    return this.clientMessage
  }
}

/** `LimitSettings.QueryTimeoutSecs` passed before the server had answered. */
export class QueryTimedOut
  extends Data.TaggedError("QueryTimedOut")<{
    readonly seconds: number
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.queryCanceled
  readonly logLevel = "Info"
  readonly retrySafe = false
  readonly hint = null
  get clientMessage() {
    return `terminating connection: the query was not answered within ${this.seconds} s`
  }
  override get message() {
    return this.clientMessage
  }
}

/** A client may not keep its connection: `PoolSettings.MaxPinned` are kept already. What it had made there is gone. */
export class TooManyPinned
  extends Data.TaggedError("TooManyPinned")<{
    readonly holds: ReadonlyArray<string>
  }>
  implements ClientFault
{
  readonly severity = "FATAL"
  readonly sqlState = SqlState.tooManyConnections
  readonly logLevel = "Warn"
  readonly retrySafe = true
  readonly hint = "Undo what binds a session to its connection, use session mode for this tenant, or raise MaxPinned."
  get clientMessage() {
    return `too many connections are bound to one client already; this one has: ${this.holds.join(", ")}`
  }
  override get message() {
    return this.clientMessage
  }
}

/** With `Pinning: "off"`: a statement that needs a connection of its client's own. */
export class NeedsSession
  extends Data.TaggedError("NeedsSession")<{
    readonly need: string
  }>
  implements ClientFault
{
  readonly severity = "ERROR"
  readonly sqlState = SqlState.featureNotSupported
  readonly logLevel = "Info"
  readonly retrySafe = false
  readonly hint = 'Use pool mode session for this tenant, or let connections be pinned (PoolSettings.Pinning "auto").'
  get clientMessage() {
    return `not available on a connection that is shared between transactions: ${this.need}`
  }
  override get message() {
    return this.clientMessage
  }
}

/** A transaction block in statement mode. */
export class TransactionRefused extends Data.TaggedError("TransactionRefused") implements ClientFault {
  readonly severity = "FATAL"
  readonly sqlState = SqlState.featureNotSupported
  readonly logLevel = "Info"
  readonly retrySafe = false
  readonly hint = "Use pool mode transaction for clients that need transactions of several statements."
  readonly clientMessage = "transaction blocks are not allowed in pool mode statement"
  override get message() {
    return this.clientMessage
  }
}

/** The service is going down. */
export class ShuttingDown extends Data.TaggedError("ShuttingDown") implements ClientFault {
  readonly severity = "FATAL"
  readonly sqlState = SqlState.adminShutdown
  readonly logLevel = "Debug"
  readonly retrySafe = true
  readonly hint = null
  readonly clientMessage = "terminating connection due to administrator command: the pooler is shutting down"
  override get message() {
    return this.clientMessage
  }
}

/** The tenant's row was deleted, or its password changed, while this client was connected. */
export class TenantRevoked extends Data.TaggedError("TenantRevoked") implements ClientFault {
  readonly severity = "FATAL"
  readonly sqlState = SqlState.adminShutdown
  readonly logLevel = "Info"
  readonly retrySafe = true
  readonly hint = null
  readonly clientMessage = "terminating connection due to administrator command: this tenant's login has changed"
  override get message() {
    return this.clientMessage
  }
}

/** The server refused something that the client set at startup: its own error goes to the client. */
export class SettingRefused
  extends Data.TaggedError("SettingRefused")<{
    readonly sqlState: string
    readonly clientMessage: string
  }>
  implements ClientFault
{
  static of({ sqlState, message }: ReceivedError): SettingRefused {
    return new SettingRefused({ sqlState, clientMessage: message })
  }

  readonly severity = "FATAL"
  readonly logLevel = "Info"
  readonly retrySafe = true
  readonly hint = null
  override get message() {
    return `the server refused a startup setting (${this.sqlState})`
  }
}

/** Every failure that ends a session, or answers one of its requests. */
export type SessionFault =
  | StartupParameterMissing
  | ProtocolViolation
  | SchemaNameRefused
  | FeatureNotSupported
  | TlsRequired
  | ClientCertificateRefused
  | LoginRefused
  | LoginBlocked
  | ChannelBindingFailed
  | LoginTimedOut
  | AuthUnavailable
  | KmsUnavailable
  | DestinationUnreachable
  | AcquireTimedOut
  | TooManyClients
  | CancelledWhileWaiting
  | ServerConnectionLost
  | IdleInTransactionTimedOut
  | QueryTimedOut
  | NeedsSession
  | TooManyPinned
  | TransactionRefused
  | ShuttingDown
  | TenantRevoked
  | SettingRefused

/** The configuration cannot be used. `problems` has one line each, with the key's path and what is allowed. */
export class ConfigInvalid extends Data.TaggedError("ConfigInvalid")<{
  readonly source: string
  readonly problems: ReadonlyArray<string>
}> {
  override get message() {
    return this.problems.length === 1
      ? `${this.source}: ${this.problems[0]}`
      : `${this.source}: ${this.problems.length} problems\n${this.problems.map((problem) => `  ${problem}`).join("\n")}`
  }
}

/** An address could not be listened on. */
export class ListenFailed extends Data.TaggedError("ListenFailed")<{
  /** The configuration key that named it. */
  readonly key: "ListenAddress" | "MetricsAddress"
  readonly address: string
  readonly detail: string
}> {
  override get message() {
    return `${this.key} ${this.address}: ${this.detail}`
  }
}

/** The table `perseus_auth` lacks something: `detail` names it and has the statement that makes it. */
export class AuthTableInvalid extends Data.TaggedError("AuthTableInvalid")<{
  readonly detail: string
}> {
  override get message() {
    return this.detail
  }
}
