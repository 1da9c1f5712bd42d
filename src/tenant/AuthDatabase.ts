/**
 * The connections to the auth database: a pool for look-ups, and connections that listen, each of its own.
 *
 * A statement is fixed text; what varies goes as a parameter. Nothing is prepared under a name, so that a transaction
 * pooler may stand in between. The connections belong to the scope that made them.
 *
 * `sslmode` is what libpq means by it, not what `@effect/sql-pg` does: `require` encrypts without verifying (as
 * `verify-ca` where `sslrootcert` is given), and `prefer` and `allow` try the other way when the first is refused.
 */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Arr from "effect/Array"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import { readFile } from "node:fs/promises"
import type { ConnectionOptions } from "node:tls"
import { ConfigInvalid } from "../errors.ts"
import * as AuthConnections from "./AuthConnections.ts"
import type { AuthDsn } from "./AuthDsn.ts"

/** A connection could not be had, or a statement failed. */
export class AuthDatabaseError extends Data.TaggedError("AuthDatabaseError")<{
  /** The server's words, or the system's; neither has a password in it. */
  readonly detail: string
  /** The server's, or undefined where no server answered. */
  readonly sqlState: string | undefined
}> {
  override get message() {
    return this.sqlState === undefined ? this.detail : `${this.detail} (${this.sqlState})`
  }
}

export interface AuthDatabase {
  /** Runs one statement; an interruption returns at once, and cancels it and ends its connection behind the scenes. */
  readonly query: (
    sql: string,
    parameters?: ReadonlyArray<string>
  ) => Effect.Effect<ReadonlyArray<PgConnection.Row>, AuthDatabaseError>
  /** Listens on a connection beside the pool, until the scope closes; the queue fails when that connection is lost. */
  readonly listen: (
    channel: string
  ) => Effect.Effect<Queue.Dequeue<PgConnection.Notification, SqlError>, AuthDatabaseError, Scope.Scope>
}

/** Opens nothing before the first query. Fails where a certificate's file cannot be read. */
export const make = Effect.fnUntraced(function* (
  dsn: AuthDsn
): Effect.fn.Return<AuthDatabase, ConfigInvalid, Scope.Scope> {
  const scope = yield* Effect.scope
  const ways = Arr.map(yield* encryptions(dsn), (ssl) => connectionConfig(dsn, ssl))
  // Made when first needed: a way that the server refuses must not open pool_min_conns over and over.
  const pools = yield* Effect.forEach(ways, (config) =>
    AuthConnections.make(PgConnection.make(config), dsn.pool).pipe(
      Scope.provide(scope),
      Effect.uninterruptible,
      Effect.cached
    )
  )
  const query = firstThatConnects(pools, (pool, sql: string, parameters: ReadonlyArray<string>) =>
    Effect.flatMap(pool, (connections) => connections.query(sql, parameters))
  )
  const connect = firstThatConnects(ways, (config) => PgConnection.make(config))

  return {
    query: (sql, parameters = []) =>
      inBackground(scope, query(sql, parameters)).pipe(
        Effect.map((result) => result.rows),
        Effect.mapError(toAuthDatabaseError)
      ),
    listen: (channel) =>
      connect().pipe(
        Effect.flatMap((connection) => connection.listen(channel)),
        Effect.mapError(toAuthDatabaseError)
      )
  }
})

/**
 * Tries the way that last worked and, if it is the connecting that fails, the other one. When both fail the first
 * failure is reported: the second was an attempt to save it.
 */
const firstThatConnects = <Way, Input extends ReadonlyArray<unknown>, A, R>(
  ways: Ways<Way>,
  attempt: (way: Way, ...input: Input) => Effect.Effect<A, SqlError, R>
) => {
  let order = ways
  return (...input: Input): Effect.Effect<A, SqlError, R> =>
    Effect.suspend(() => {
      const [first, second] = order
      if (second === undefined) return attempt(first, ...input)
      return Effect.catchIf(attempt(first, ...input), isConnectError, (failure) =>
        attempt(second, ...input).pipe(
          Effect.tap(() => Effect.sync(() => (order = [second, first]))),
          Effect.mapError((error) => (isConnectError(error) ? failure : error))
        )
      )
    })
}

/** In the order of trying; one or two. */
type Ways<Way> = Arr.NonEmptyReadonlyArray<Way>

const isConnectError = (error: SqlError) => error.reason.operation === "connect"

/**
 * Runs it in a fiber of the scope, so that an interruption need not wait: a cancelled query first has to be drained,
 * which takes five seconds where the server no longer answers.
 */
const inBackground = <A, E>(scope: Scope.Scope, effect: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(Effect.forkIn(effect, scope, { startImmediately: true }), (fiber) =>
      Effect.onInterrupt(restore(Fiber.join(fiber)), () => Effect.sync(() => fiber.interruptUnsafe()))
    )
  )

const toAuthDatabaseError = ({ reason }: SqlError): AuthDatabaseError => {
  const { cause } = reason
  const code = typeof cause === "object" && cause !== null && "code" in cause ? String(cause.code) : undefined
  // An AggregateError of several addresses has a code and no words.
  const words = cause instanceof Error && cause.message !== "" ? cause.message : (code ?? reason.message)
  return new AuthDatabaseError({
    detail: words,
    sqlState:
      code !== undefined && /^[0-9A-Z]{5}$/.test(code) && cause instanceof Error && "severity" in cause
        ? code
        : undefined
  })
}

const connectionConfig = (dsn: AuthDsn, ssl: false | ConnectionOptions): PgConnection.Config => ({
  host: dsn.host,
  port: dsn.port,
  username: dsn.user,
  password: dsn.password,
  database: dsn.database,
  ssl,
  connectTimeout: dsn.connectTimeout,
  // A listener sends nothing: without it a connection that a firewall has forgotten would stay silent for ever.
  keepAlive: "30 seconds",
  applicationName: dsn.applicationName,
  startupOptions: dsn.options,
  startupParameters: dsn.startupParameters
})

const encryptions = (dsn: AuthDsn): Effect.Effect<Ways<false | ConnectionOptions>, ConfigInvalid> =>
  Effect.gen(function* () {
    if (dsn.sslMode === "disable" || dsn.host.startsWith("/")) return [false]
    const ca = yield* readPem("sslrootcert", dsn.sslRootCert)
    const client = { cert: yield* readPem("sslcert", dsn.sslCert), key: yield* readPem("sslkey", dsn.sslKey) }
    const unverified = { ...client, rejectUnauthorized: false }
    const chainOnly = { ...client, ca, checkServerIdentity: () => undefined }
    switch (dsn.sslMode) {
      case "allow":
        return [false, unverified]
      case "prefer":
        return [unverified, false]
      case "require":
        return [ca === undefined ? unverified : chainOnly]
      case "verify-ca":
        return [chainOnly]
      case "verify-full":
        return [{ ...client, ca }]
    }
  })

const readPem = (parameter: string, path: string | undefined): Effect.Effect<Buffer | undefined, ConfigInvalid> =>
  path === undefined
    ? Effect.succeed(undefined)
    : Effect.tryPromise({
        try: () => readFile(path),
        catch: (cause) => invalidDsn(`${parameter}: ${cause instanceof Error ? cause.message : "cannot be read"}`)
      })

/** A fault of `AuthDBDSN` itself. */
export const invalidDsn = (problem: string): ConfigInvalid =>
  new ConfigInvalid({ source: "AuthDBSettings.AuthDBDSN", problems: [problem] })
