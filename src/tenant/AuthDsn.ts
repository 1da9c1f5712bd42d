/**
 * The URL in `AuthDBSettings.AuthDBDSN`, read as pgx and its pool read it: a site's DSN keeps its meaning.
 *
 * Pure: it opens nothing and reads no file. What is wrong is told by the parameter's name and what it may be, never by
 * any part of the URL, since a mistyped one can have its password anywhere. What pgx takes from the machine (PGHOST,
 * service files, ~/.pgpass) is not looked at.
 *
 * @see https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS
 */
import * as Duration from "effect/Duration"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"

export const sslModes = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] as const
export type SslMode = (typeof sslModes)[number]

export interface AuthDsn {
  /** A name, an address, or the directory of a Unix socket (begins with `/`). */
  readonly host: string
  readonly port: number
  readonly user: string
  readonly password: Redacted.Redacted<string> | undefined
  readonly database: string
  readonly sslMode: SslMode
  /** Paths of PEM files: whom to trust, and what to show when the server asks who we are. */
  readonly sslRootCert: string | undefined
  readonly sslCert: string | undefined
  readonly sslKey: string | undefined
  /** Infinite for 0, as in libpq. */
  readonly connectTimeout: Duration.Duration
  readonly applicationName: string
  /** As `PGOPTIONS`. */
  readonly options: string | undefined
  /** What is none of the above goes to the server as it stands: `search_path`, `statement_timeout`, … */
  readonly startupParameters: Readonly<Record<string, string>>
  readonly pool: {
    readonly maxConnections: number
    readonly minConnections: number
    readonly maxConnectionLifetime: Duration.Duration
    readonly maxConnectionLifetimeJitter: Duration.Duration
    readonly maxConnectionIdleTime: Duration.Duration
    /** How often they are looked through. */
    readonly healthCheckPeriod: Duration.Duration
  }
}

/** The connection that a DSN describes, or the reason why it describes none. */
export const parse = (dsn: Redacted.Redacted<string>): Result.Result<AuthDsn, string> =>
  Result.gen(function* () {
    const url = yield* parseUrl(Redacted.value(dsn))
    const parameters = new Parameters(url.searchParams)
    yield* parameters.refuse(unsupportedParameters)
    parameters.drop(pgxOnlyParameters)

    const user = parameters.text("user") ?? (yield* decode("user", url.username))
    if (user === "") return yield* Result.fail("it names no user: postgres://user:password@host:port/database")
    const password = parameters.text("password") ?? (yield* decode("password", url.password))
    const database = parameters.text("dbname") ?? (yield* decode("database", url.pathname.slice(1)))
    const host = parameters.text("host") ?? (yield* decode("host", url.hostname.replace(/^\[(.*)\]$/, "$1")))
    if (host.includes(",")) return yield* Result.fail("it names several hosts: one is supported")
    const port = yield* parameters.integer("port", url.port === "" ? 5432 : Number(url.port), { min: 1, max: 65535 })

    const minConnections = yield* parameters.integer("pool_min_conns", 0, { min: 0 })
    const maxConnections = yield* parameters.integer("pool_max_conns", 4, { min: 1 })
    if (minConnections > maxConnections) return yield* Result.fail("pool_min_conns: must not be above pool_max_conns")
    const healthCheckPeriod = yield* parameters.duration("pool_health_check_period", Duration.minutes(1))
    if (Duration.isZero(healthCheckPeriod)) return yield* Result.fail("pool_health_check_period: must be above 0")

    return {
      host: host === "" ? "localhost" : host,
      port,
      user,
      password: password === "" ? undefined : Redacted.make(password),
      database: database === "" ? user : database,
      sslMode: yield* parameters.oneOf("sslmode", sslModes, "prefer"),
      sslRootCert: parameters.text("sslrootcert"),
      sslCert: parameters.text("sslcert"),
      sslKey: parameters.text("sslkey"),
      connectTimeout: yield* parameters.connectTimeout(),
      applicationName: parameters.text("application_name") ?? "perseus",
      options: parameters.text("options"),
      pool: {
        maxConnections,
        minConnections,
        maxConnectionLifetime: yield* parameters.duration("pool_max_conn_lifetime", Duration.hours(1)),
        maxConnectionLifetimeJitter: yield* parameters.duration("pool_max_conn_lifetime_jitter", Duration.zero),
        maxConnectionIdleTime: yield* parameters.duration("pool_max_conn_idle_time", Duration.minutes(30)),
        healthCheckPeriod
      },
      startupParameters: yield* parameters.rest()
    }
  })

/** Would change where or how is connected, and cannot be followed here: passing them over would be worse than an error. */
const unsupportedParameters = [
  "krbspn",
  "krbsrvname",
  "passfile",
  "replication",
  "service",
  "servicefile",
  "sslnegotiation",
  "sslpassword",
  "sslsni",
  "target_session_attrs"
]

/** How pgx prepares statements. Nothing is prepared here, which is what works behind every pooler. */
const pgxOnlyParameters = ["default_query_exec_mode", "description_cache_capacity", "statement_cache_capacity"]

const parseUrl = (text: string): Result.Result<URL, string> => {
  if (!/^postgres(ql)?:\/\//.test(text)) return Result.fail("it must begin with postgres:// or postgresql://")
  // An unescaped # cuts a password in two, and leaves a URL of another meaning.
  const url = text.includes("#") ? null : URL.parse(text)
  return url === null
    ? Result.fail("it is not a URL; in user and password, write / as %2F, : as %3A, # as %23, ? as %3F and % as %25")
    : Result.succeed(url)
}

const decode = (part: string, encoded: string): Result.Result<string, string> =>
  Result.try({
    try: () => decodeURIComponent(encoded),
    catch: () => `its ${part} has a % that begins no escape; write it as %25`
  })

/** Hands out each parameter once; what nobody asked for is the rest. Of a repeated one the first counts, as in Go. */
class Parameters {
  private readonly values = new Map<string, string>()

  constructor(parameters: URLSearchParams) {
    for (const [name, value] of parameters) if (!this.values.has(name)) this.values.set(name, value)
  }

  /** An empty one is an absent one. */
  text(name: string): string | undefined {
    const value = this.values.get(name)
    this.values.delete(name)
    return value === "" ? undefined : value
  }

  drop(names: ReadonlyArray<string>) {
    for (const name of names) this.values.delete(name)
  }

  refuse(names: ReadonlyArray<string>): Result.Result<void, string> {
    const found = names.find((name) => this.values.has(name))
    return found === undefined ? Result.succeed(undefined) : Result.fail(`${found}: is not supported`)
  }

  integer(name: string, fallback: number, allowed: { min: number; max?: number }): Result.Result<number, string> {
    const text = this.text(name)
    if (text === undefined) return Result.succeed(fallback)
    const { min, max = 2 ** 31 - 1 } = allowed
    const value = Number(text)
    return /^\d+$/.test(text) && value >= min && value <= max
      ? Result.succeed(value)
      : Result.fail(`${name}: must be an integer from ${min} to ${max}`)
  }

  duration(name: string, fallback: Duration.Duration): Result.Result<Duration.Duration, string> {
    const text = this.text(name)
    if (text === undefined) return Result.succeed(fallback)
    const duration = parseGoDuration(text)
    return duration === undefined
      ? Result.fail(`${name}: must be a duration such as 1h30m, 90s or 500ms`)
      : Result.succeed(duration)
  }

  connectTimeout(): Result.Result<Duration.Duration, string> {
    return Result.map(this.integer("connect_timeout", 5, { min: 0 }), (seconds) =>
      seconds === 0 ? Duration.infinity : Duration.seconds(seconds)
    )
  }

  oneOf<A extends string>(name: string, allowed: ReadonlyArray<A>, fallback: A): Result.Result<A, string> {
    const text = this.text(name)
    if (text === undefined) return Result.succeed(fallback)
    const value = allowed.find((value) => value === text)
    return value === undefined ? Result.fail(`${name}: must be one of ${allowed.join(", ")}`) : Result.succeed(value)
  }

  rest(): Result.Result<Readonly<Record<string, string>>, string> {
    for (const [name, value] of this.values) {
      if (!/^[A-Za-z_][A-Za-z0-9_.]*$/.test(name)) return Result.fail("a parameter has a name that no setting has")
      if (name.startsWith("pool_")) return Result.fail(`${name}: is not a setting of the pool`)
      if (value.includes("\0")) return Result.fail(`${name}: must not have a NUL`)
      if (name.toLowerCase() === "client_encoding" && !/^utf-?8$/i.test(value)) {
        return Result.fail("client_encoding: must be UTF8")
      }
    }
    return Result.succeed(Object.fromEntries(this.values))
  }
}

const goUnits: ReadonlyMap<string, number> = new Map([
  ["ns", 1e-6],
  ["us", 1e-3],
  ["µs", 1e-3],
  ["μs", 1e-3],
  ["ms", 1],
  ["s", 1_000],
  ["m", 60_000],
  ["h", 3_600_000]
])

/** What Go's `time.ParseDuration` takes, but for negative ones: "1h30m", "1.5h", "500ms", "0". */
const parseGoDuration = (text: string): Duration.Duration | undefined => {
  if (text === "0") return Duration.zero
  if (!/^((\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h))+$/.test(text)) return undefined
  const parts = text.matchAll(/([\d.]+)([a-zµμ]+)/g)
  let millis = 0
  for (const [, count = "", unit = ""] of parts) millis += Number(count) * (goUnits.get(unit) ?? Number.NaN)
  return Duration.millis(millis)
}
