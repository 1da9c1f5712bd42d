/**
 * What `config.json` may say: every key, its type, what is allowed, its default, and whether a reload applies it. The
 * rest of Perseus reads the decoded `PerseusConfig`, whose keys keep the file's own spelling; `Decode.ts` makes one.
 *
 * Types and data only: nothing is read here, and no secret is in it unwrapped (`AuthDBDSN` and `SecretAccessKey` are
 * `Redacted` from the moment they are decoded).
 */
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SchemaTransformation from "effect/SchemaTransformation"
import * as Struct from "effect/Struct"
import { parseListenAddress } from "../net/Address.ts"

// ---------------------------------------------------------------------------------------------------------------------
// What a key says of itself
// ---------------------------------------------------------------------------------------------------------------------

/** What an annotated key says of itself. */
export interface Note {
  /** What stands in the file; only the first three can come from an environment variable. */
  readonly kind: "string" | "integer" | "boolean" | "list" | "object"
  /** Ends the sentence "expected …". */
  readonly allowed: string
  /** What the setting does, in one line. */
  readonly about: string
}

declare module "effect/Schema" {
  namespace Annotations {
    interface Annotations {
      readonly note?: Note | undefined
      /** What an absent key means, written as in the file. */
      readonly fallback?: unknown
    }
  }
}

/** PostgreSQL's own bound for an integer setting; in seconds it is 68 years. */
const MAX_INTEGER = 2_147_483_647

const integer = (about: string, from = -MAX_INTEGER) =>
  Schema.Number.check(
    Schema.makeFilter((value: number) => Number.isInteger(value) && value >= from && value <= MAX_INTEGER)
  ).annotate({
    note: { kind: "integer", allowed: from < 0 ? "an integer" : `an integer from ${from} to ${MAX_INTEGER}`, about }
  })

const boolean = (about: string) =>
  Schema.Boolean.annotate({ note: { kind: "boolean", allowed: "true or false", about } })

/** What config.sample.json has where only the site knows what belongs there. */
const PLACEHOLDER = "<>"

/** `rule` answers true, false ("expected …" is said then), or what is wrong in words of its own. */
const string = (about: string, allowed = "a string", rule: (value: string) => boolean | string = () => true) =>
  Schema.String.check(
    Schema.makeFilter((value: string) =>
      value === PLACEHOLDER ? `still says "${PLACEHOLDER}", as in the sample: fill it in` : rule(value)
    )
  ).annotate({ note: { kind: "string", allowed, about } })

const secret = <S extends Schema.Top>(schema: S) =>
  Schema.RedactedFromValue(schema).annotate({ note: Schema.resolveAnnotations(schema)?.note })

const orElse = <S extends Schema.Top>(schema: S, fallback: S["Encoded"]) =>
  schema.pipe(Schema.withDecodingDefaultKey<S>(Effect.succeed(fallback))).annotate({ fallback })

const notBlank = (value: string) => value.trim() !== ""

const addressRule = (value: string) =>
  Result.match(parseListenAddress(value), { onFailure: (why) => why, onSuccess: () => true })

// ---------------------------------------------------------------------------------------------------------------------
// The sections
// ---------------------------------------------------------------------------------------------------------------------

const AuthDBSettings = Schema.Struct({
  AuthDBDSN: secret(
    string("The database that holds perseus_auth.", "a URL postgres://user:password@host:port/database", (value) =>
      /^postgres(?:ql)?:\/\/./.test(value)
    )
  ),
  AuthQueryTimeoutSecs: integer("How long the look-up of a tenant's row may take.", 1),
  AuthCacheTtlSecs: orElse(integer("How long a tenant's row is remembered; 0: not at all.", 0), 5)
})

/** Go's AWS SDK put https:// before an endpoint without a scheme; the one for JavaScript refuses it. */
const withScheme = (endpoint: string) =>
  endpoint === "" || /^https?:\/\//.test(endpoint) ? endpoint : `https://${endpoint}`

const AWSSettings = Schema.Struct({
  AccessKeyId: orElse(string("Blank, as its secret: the AWS SDK's default chain of credentials."), ""),
  SecretAccessKey: orElse(secret(string("The secret of AccessKeyId.")), ""),
  Region: string("The region of the KMS key.", "the name of a region", notBlank),
  Endpoint: orElse(
    string(
      "Where KMS answers; blank: the region's own endpoint.",
      "a URL https://host:port, or blank",
      (value) => value === "" || URL.canParse(withScheme(value))
    ).pipe(Schema.decode(SchemaTransformation.transform({ decode: withScheme, encode: (url) => url }))),
    ""
  ),
  KMSKeyARN: string("The key under which dest_pass_enc was encrypted.", "the ARN of a KMS key", notBlank)
})

/** A name longer than this is cut by PostgreSQL (NAMEDATALEN - 1), and then is another schema's. */
const MAX_NAME_BYTES = 63

const isSchemaName = (name: string) =>
  name !== "" &&
  name !== "$user" &&
  name.isWellFormed() &&
  !name.includes("\0") &&
  Buffer.byteLength(name) <= MAX_NAME_BYTES

const PoolKeys = {
  MaxIdle: integer("Server connections kept open while idle; at most MaxOpen.", 1),
  MaxOpen: integer("Server connections in all; 0 or less: no limit."),
  MaxLifetimeSecs: integer("Age at which a server connection is closed; 0 or less: never."),
  MaxIdletimeSecs: integer("Idle time after which a server connection is closed; 0 or less: never."),
  ConnCreateTimeoutSecs: integer("How long a connect and login to a server may take.", 1),
  ConnCloseTimeoutSecs: integer("How long the farewell to a server may take.", 1),
  SchemaExecTimeoutSecs: integer("How long a tenant switch may take.", 1),
  ExtraSchemas: Schema.Array(
    Schema.String.check(
      Schema.makeFilter((name: string) => isSchemaName(name) || "a schema's name has 1 to 63 bytes and is not $user")
    )
  ).annotate({
    note: { kind: "list", allowed: "a list of schema names", about: "Searched behind the tenant's own schema." }
  }),
  TenantSwitch: Schema.Literals(["discard", "always", "reconnect"]).annotate({
    note: {
      kind: "string",
      allowed: '"discard", "always" or "reconnect"',
      about: "How a server connection forgets: DISCARD ALL before another tenant, or always, or a new connection."
    }
  }),
  Mode: Schema.Literals(["transaction", "session", "statement"]).annotate({
    note: {
      kind: "string",
      allowed: '"transaction", "session" or "statement"',
      about: "For how long a client keeps a server connection. A tenant's own: the column pool_mode of perseus_auth."
    }
  }),
  Pinning: Schema.Literals(["auto", "off"]).annotate({
    note: {
      kind: "string",
      allowed: '"auto" or "off"',
      about: "Whether a client keeps its connection while it has LISTEN, temporary tables and the like; off: refused."
    }
  }),
  PinningNotice: boolean("A client whose connection is pinned is told so by a NOTICE."),
  MaxPinned: integer("Server connections that may be pinned at once; -1: half of MaxOpen.", -1),
  MaxPreparedStatements: integer("Prepared statements kept on a server connection; 0: they are not followed.", 0)
}

const PoolSettings = Schema.Struct({
  ...PoolKeys,
  MaxOpen: orElse(PoolKeys.MaxOpen, 0),
  MaxLifetimeSecs: orElse(PoolKeys.MaxLifetimeSecs, 0),
  MaxIdletimeSecs: orElse(PoolKeys.MaxIdletimeSecs, 0),
  ExtraSchemas: orElse(PoolKeys.ExtraSchemas, []),
  TenantSwitch: orElse(PoolKeys.TenantSwitch, "discard"),
  Mode: orElse(PoolKeys.Mode, "transaction"),
  Pinning: orElse(PoolKeys.Pinning, "auto"),
  PinningNotice: orElse(PoolKeys.PinningNotice, false),
  MaxPinned: orElse(PoolKeys.MaxPinned, -1),
  MaxPreparedStatements: orElse(PoolKeys.MaxPreparedStatements, 200)
})

const OverrideSettings = Schema.Record(
  Schema.String,
  Schema.Struct(PoolKeys).mapFields(Struct.map(Schema.optionalKey))
).annotate({
  note: {
    kind: "object",
    allowed: 'an object of "dest_host/dest_db" or "dest_db" to PoolSettings',
    about: "What differs from PoolSettings for some destinations; what an entry leaves out comes from PoolSettings."
  },
  fallback: {}
})

const LimitSettings = Schema.Struct({
  ClientLoginTimeoutSecs: orElse(integer("How long a client's login may take.", 1), 60),
  AcquireTimeoutSecs: orElse(integer("How long a transaction may wait for a server connection.", 1), 30),
  CancelTimeoutSecs: orElse(integer("How long a cancel request to a server may take.", 1), 10),
  ShutdownTimeoutSecs: orElse(integer("How long transactions may go on after SIGTERM.", 1), 30),
  IdleInTransactionTimeoutSecs: orElse(integer("Idle time within a transaction; 0: no limit.", 0), 0),
  QueryTimeoutSecs: orElse(integer("How long one query may run; 0: no limit.", 0), 0),
  MaxClients: orElse(integer("Client connections in all; 0: no limit.", 0), 10_000),
  MaxClientsPerTenant: orElse(integer("Client connections of one tenant; 0: no limit.", 0), 0),
  MaxServersPerTenant: orElse(
    integer("Server connections lent to one tenant at once; 0: no limit; -1: what other active tenants leave.", -1),
    -1
  ),
  ServerCheckDelaySecs: orElse(integer("Idle time after which a server connection is tested before use; 0: never.", 0), 30)
})

const LoginSettings = Schema.Struct({
  RequireTLS: orElse(boolean("Clients whose connection is not encrypted are refused."), false),
  UnknownTenant: orElse(
    Schema.Literals(["clear", "scram"]).annotate({
      note: {
        kind: "string",
        allowed: '"clear" or "scram"',
        about: "What a tenant without a row is asked for, so that it looks like others: the password, or SCRAM."
      }
    }),
    "clear"
  ),
  FailuresBeforeDelay: orElse(
    integer("Failed logins of an address or a tenant after which its further ones are delayed; 0: never.", 0),
    10
  ),
  FailuresBeforeBlock: orElse(
    integer("Failed logins of an address or a tenant after which its further ones are refused; 0: never.", 0),
    100
  ),
  FailureWindowSecs: orElse(integer("How long failed logins are counted together.", 1), 300),
  BlockSecs: orElse(integer("How long logins are refused then.", 1), 60)
})

const ServerSettings = Schema.Struct({
  AllowTrust: orElse(boolean("A server may let us in without asking for the password that the row has."), false),
  AllowClearText: orElse(
    boolean("A server may ask for the password in clear text although TLS has not verified it."),
    false
  )
})

const literals = <const A extends ReadonlyArray<string>>(allowed: A, about: string) =>
  Schema.Literals(allowed).annotate({
    note: { kind: "string", allowed: allowed.map((name) => `"${name}"`).join(", ").replace(/, (?=[^,]*$)/, " or "), about }
  })

const TLSSettings = Schema.Struct({
  ClientMode: orElse(
    literals(
      ["disable", "allow", "require", "verify-full"],
      "TLS from clients; verify-full: with a certificate whose CN is the user."
    ),
    "disable"
  ),
  ClientCertFile: orElse(string("PEM file with the certificate that clients are shown, and its chain."), ""),
  ClientKeyFile: orElse(string("PEM file with the private key of ClientCertFile."), ""),
  ClientCAFile: orElse(string("PEM file with the authorities that vouch for clients' certificates."), ""),
  ServerMode: orElse(
    literals(
      ["disable", "prefer", "require", "verify-ca", "verify-full"],
      "TLS to servers, as libpq's sslmode has it; only verify-… look at the certificate."
    ),
    "prefer"
  ),
  ServerCAFile: orElse(string("PEM file with the authorities that vouch for servers, such as RDS's bundle."), ""),
  ServerCertFile: orElse(string("PEM file with the certificate that a server is shown if it asks."), ""),
  ServerKeyFile: orElse(string("PEM file with the private key of ServerCertFile."), "")
})

const LogSettings = Schema.Struct({
  Level: orElse(
    Schema.String.pipe(
      Schema.decode(SchemaTransformation.toUpperCase()),
      Schema.decodeTo(Schema.Literals(["DEBUG", "INFO", "WARN", "ERROR"]))
    ).annotate({
      note: { kind: "string", allowed: "DEBUG, INFO, WARN or ERROR", about: "The least that is logged, in any case." }
    }),
    "INFO"
  ),
  Json: orElse(boolean("JSON lines instead of lines for people."), false)
})

/** The whole of config.json. A section that is absent from a file is an empty one: `decode` adds it. */
export const PerseusConfig = Schema.Struct({
  ListenAddress: string(
    "Where clients connect.",
    'an address such as ":5433", "127.0.0.1:5433" or "[::1]:5433"',
    addressRule
  ),
  MetricsAddress: orElse(
    string(
      "Where /metrics and /health are served; blank: nowhere.",
      'an address such as ":9090", or blank',
      (value) => value === "" || addressRule(value)
    ),
    ""
  ),
  AuthDBSettings,
  AWSSettings,
  PoolSettings,
  OverrideSettings,
  LimitSettings,
  LoginSettings,
  ServerSettings,
  TLSSettings,
  LogSettings
})

export type PerseusConfig = typeof PerseusConfig.Type
export type AuthDBSettings = PerseusConfig["AuthDBSettings"]
export type AWSSettings = PerseusConfig["AWSSettings"]
export type PoolSettings = PerseusConfig["PoolSettings"]
export type OverrideSettings = PerseusConfig["OverrideSettings"]
export type LimitSettings = PerseusConfig["LimitSettings"]
export type LoginSettings = PerseusConfig["LoginSettings"]
export type ServerSettings = PerseusConfig["ServerSettings"]
export type TLSSettings = PerseusConfig["TLSSettings"]
export type LogSettings = PerseusConfig["LogSettings"]

/**
 * The settings of one destination's pool: the override named `destHost/destDb`, else the one named `destDb`, over
 * PoolSettings. `destHost` is the row's `dest_host` as it stands there, with or without a port.
 */
export const poolSettingsFor = (config: PerseusConfig, destHost: string, destDb: string): PoolSettings => {
  const override = (name: string) =>
    // A database may well be called "constructor".
    Object.hasOwn(config.OverrideSettings, name) ? config.OverrideSettings[name] : undefined
  return { ...config.PoolSettings, ...(override(`${destHost}/${destDb}`) ?? override(destDb)) }
}

// ---------------------------------------------------------------------------------------------------------------------
// The keys as a table
// ---------------------------------------------------------------------------------------------------------------------

/** A section, or a single key, that is read once at start; `keepReadAtStart` holds on to the same ones. */
const READ_AT_START = new Set(["ListenAddress", "MetricsAddress", "AuthDBSettings", "AWSSettings", "LogSettings.Json"])

/** `next`, but with everything that is read once at start as it is in `running`. */
export const keepReadAtStart = (running: PerseusConfig, next: PerseusConfig): PerseusConfig => ({
  ...next,
  ListenAddress: running.ListenAddress,
  MetricsAddress: running.MetricsAddress,
  AuthDBSettings: running.AuthDBSettings,
  AWSSettings: running.AWSSettings,
  LogSettings: { ...next.LogSettings, Json: running.LogSettings.Json }
})

/** One row of the settings' reference. */
export interface Setting extends Note {
  readonly path: ReadonlyArray<string>
  /** The path with dots, as messages print it. */
  readonly key: string
  /** What an absent key means; undefined: the key must be given. */
  readonly fallback: unknown
  readonly needsRestart: boolean
  /** What overrides the file, for a string, an integer or a boolean. */
  readonly variable: string | undefined
}

/** A section's keys; undefined for anything else. */
export const fieldsOf = (schema: Schema.Constraint): Schema.Struct.Fields | undefined =>
  "fields" in schema ? (schema.fields as Schema.Struct.Fields) : undefined

const settingsOf = (schema: Schema.Constraint, path: ReadonlyArray<string>): ReadonlyArray<Setting> => {
  const fields = fieldsOf(schema)
  if (fields !== undefined) return Object.entries(fields).flatMap(([key, field]) => settingsOf(field, [...path, key]))
  const annotations = Schema.resolveAnnotations(schema)
  if (annotations?.note === undefined) return []
  const { note, fallback } = annotations
  const key = path.join(".")
  return [
    {
      ...note,
      path,
      key,
      fallback,
      needsRestart: READ_AT_START.has(key) || READ_AT_START.has(path[0] ?? ""),
      variable: note.kind === "list" || note.kind === "object" ? undefined : `PERSEUS_${path.join("_").toUpperCase()}`
    }
  ]
}

/** Every key of config.json in the file's order; OverrideSettings is one of them. */
export const settings: ReadonlyArray<Setting> = settingsOf(PerseusConfig, [])

/** What stands at `path` in a configuration, decoded or not; undefined where the path leads nowhere. */
export const valueAt = (tree: unknown, path: ReadonlyArray<PropertyKey>): unknown =>
  path.reduce((value, key): unknown => Reflect.get(Object(value), key), tree)
