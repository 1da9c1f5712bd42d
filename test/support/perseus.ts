/**
 * The whole service for a test: databases and roles of its own on a real PostgreSQL, rows with real hashes and ciphertexts, a
 * KMS on loopback, and Perseus listening on a free port. All of it ends with the scope.
 *
 * What a test asks of PostgreSQL behind the pooler's back goes through `destination` and `auth`, as superuser.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import { randomUUID } from "node:crypto"
import { mkdtemp, readFile, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { Client } from "pg"
import * as LocalKms from "../../src/cli/LocalKms.ts"
import { decode } from "../../src/config/Decode.ts"
import { LiveConfig } from "../../src/config/LiveConfig.ts"
import { ConfigInvalid } from "../../src/errors.ts"
import { Perseus } from "../../src/Perseus.ts"
import type { PoolSnapshot } from "../../src/pool/PoolStatistics.ts"
import { encrypt } from "../../src/tenant/KmsDecrypt.ts"
import { PasswordHash } from "../../src/tenant/PasswordHash.ts"
import { connection, databaseOn, freshDatabase, type Server, type TestDatabase } from "./postgres.ts"
import { RawClient, type Address, type Message } from "./rawClient.ts"

export interface TenantOptions {
  readonly schema: string
  /** `app` unless told otherwise. */
  readonly user?: string | undefined
  readonly password?: string | undefined
  /** A name of the test's own; the role behind it has a longer one. All tenants share one unless told otherwise. */
  readonly destUser?: string | undefined
  /** The row's `pool_mode`; the table has no such column unless a test asks for it. */
  readonly poolMode?: string | undefined
}

/** Keys of config.json, by section. */
export interface Overrides {
  readonly PoolSettings?: Readonly<Record<string, unknown>> | undefined
  readonly LimitSettings?: Readonly<Record<string, unknown>> | undefined
  readonly LoginSettings?: Readonly<Record<string, unknown>> | undefined
  readonly AuthDBSettings?: Readonly<Record<string, unknown>> | undefined
  readonly TLSSettings?: Readonly<Record<string, unknown>> | undefined
}

export interface Options {
  readonly tenants: ReadonlyArray<string | TenantOptions>
  readonly config?: Overrides | undefined
  /** Another than the one that all tests share. */
  readonly server?: Server | undefined
  /** Where the rows say that it is, if that is not where it is: a `faultyServer` before it. */
  readonly through?: Address | undefined
}

export interface TestTenant {
  readonly schema: string
  readonly user: string
  readonly password: string
  /** Of the role that serves it, and what that role logs in with. */
  readonly role: string
  readonly rolePassword: string
  /** What a StartupMessage names. */
  readonly startup: Readonly<Record<string, string>>
  /** As Go drivers and postgres.js take it. */
  readonly dsn: string
  /** `-c schema_search_path=…` with blanks and backslashes escaped, as libpq and pg take it. */
  readonly options: string
}

export interface TestPerseus {
  readonly host: string
  readonly port: number
  /** The database that clients name; every tenant's `source_db`. */
  readonly sourceDb: string
  readonly auth: TestDatabase
  readonly destination: TestDatabase
  readonly kms: LocalKms.LocalKms
  readonly tenant: (schema: string) => TestTenant
  /** node-postgres, connected; ended with the scope. A connection that is ended from the other side is no failure. */
  readonly connect: (schema: string, extra?: { readonly options?: string }) => Effect.Effect<Client, never, Scope.Scope>
  /** One statement on a connection of its own. */
  readonly query: (schema: string, sql: string) => Effect.Effect<ReadonlyArray<Readonly<Record<string, unknown>>>>
  /** Connected, nothing sent. */
  readonly raw: Effect.Effect<RawClient, never, Scope.Scope>
  /** Connected and logged in. */
  readonly login: (
    schema: string,
    parameters?: Readonly<Record<string, string>>
  ) => Effect.Effect<RawClient, never, Scope.Scope>
  /** What a login that is refused is told; its parameters may be anything. */
  readonly refusal: (
    parameters: Readonly<Record<string, string>>,
    password?: string
  ) => Effect.Effect<ReadonlyArray<Message>>
  readonly service: Perseus["Service"]
  /** Of the destination; fails where there is none yet. */
  readonly pool: () => PoolSnapshot
  /** Connections to the destination that are not the test's own. */
  readonly backends: Effect.Effect<ReadonlyArray<Backend>>
  /** Ends when the service has heard of it. */
  readonly updateRow: (schema: string, column: string, value: string) => Effect.Effect<void>
  readonly encrypt: (secret: string) => Effect.Effect<string>
  readonly hash: (password: string) => Effect.Effect<string>
  /** Loads other settings over those it was started with, as SIGHUP does. */
  readonly reload: (overrides: Overrides) => Effect.Effect<void>
  /** Ends when the service has drained. */
  readonly stop: Effect.Effect<void>
  readonly log: ReadonlyArray<string>
}

export interface Backend {
  readonly pid: number
  readonly user: string
  readonly state: string
  readonly query: string
}

const defaults = {
  ListenAddress: "127.0.0.1:0",
  PoolSettings: { MaxIdle: 5, MaxOpen: 5, ConnCreateTimeoutSecs: 5, ConnCloseTimeoutSecs: 2, SchemaExecTimeoutSecs: 5 },
  LimitSettings: { AcquireTimeoutSecs: 10, ShutdownTimeoutSecs: 5 }
}

/** Of all that a test waits for without an event. */
const POLL_MS = 10
const POLL_LIMIT_MS = 10_000

export const quoteIdentifier = (name: string): string => `"${name.replaceAll('"', '""')}"`

/** Looks every few milliseconds until it is so; dies after ten seconds with what was seen last. */
export const eventually = <A, E, R>(
  look: Effect.Effect<A, E, R>,
  holds: (seen: A) => boolean
): Effect.Effect<A, E, R> =>
  Effect.gen(function* () {
    for (let waited = 0; waited < POLL_LIMIT_MS; waited += POLL_MS) {
      const seen = yield* look
      if (holds(seen)) return seen
      yield* Effect.sleep(POLL_MS)
    }
    return yield* Effect.die(new Error(`never came about; last seen: ${JSON.stringify(yield* look)}`))
  })

/** A hash takes 40 ms by design: one for each password is enough. */
const hashes = new Map<string, Promise<string>>()

const hashOf = (password: string): Effect.Effect<string> =>
  Effect.promise(() => {
    const known = hashes.get(password)
    if (known !== undefined) return known
    const hash = Effect.runPromise(
      Effect.flatMap(PasswordHash, (passwords) => passwords.hash(Redacted.make(password))).pipe(
        Effect.provide(PasswordHash.layer())
      )
    )
    hashes.set(password, hash)
    return hash
  })

const localKms = Effect.gen(function* () {
  const directory = yield* Effect.acquireRelease(
    Effect.promise(() => mkdtemp(path.join(tmpdir(), "perseus-kms-"))),
    (directory) => Effect.promise(() => rm(directory, { recursive: true }))
  )
  return yield* LocalKms.start({ keyFile: path.join(directory, "keys.json") })
})

/** A role that may log in; dropped at the end, when the databases it owns things in have been. */
const freshRole = (server: Server, password: string): Effect.Effect<string, never, Scope.Scope> => {
  const maintenance = databaseOn(server, "postgres")
  const role = `role_${randomUUID().replaceAll("-", "")}`
  return Effect.acquireRelease(
    Effect.as(maintenance.query(`CREATE ROLE ${role} LOGIN PASSWORD '${password}'`), role),
    // Ignored: the test may have stopped a server of its own.
    () => Effect.ignoreCause(maintenance.query(`DROP ROLE ${role}`))
  )
}

const authTable = Effect.promise(() => readFile(new URL("../../config/perseus_auth.sql", import.meta.url), "utf8"))

export const startPerseus = Effect.fnUntraced(function* (
  options: Options
): Effect.fn.Return<TestPerseus, never, Scope.Scope> {
  const server = options.server ?? connection()
  const asked = options.tenants.map((tenant): TenantOptions =>
    typeof tenant === "string" ? { schema: tenant } : tenant
  )
  const { host: destHost, port: destPort } = options.through ?? server
  const sourceDb = "shop"
  const rolePassword = "p@ss/w#rd%"

  const roles = new Map<string, string>()
  for (const { destUser = "app" } of asked) {
    if (!roles.has(destUser)) roles.set(destUser, yield* freshRole(server, rolePassword))
  }
  const [destination, auth] = yield* Effect.all([freshDatabase(server), freshDatabase(server)], {
    concurrency: "unbounded"
  })
  yield* auth.script(yield* authTable)
  const kms = yield* Effect.orDie(localKms)
  const encrypted = (secret: string) => Effect.orDie(encrypt(kms.settings, Redacted.make(secret)))
  const ciphertext = yield* encrypted(rolePassword)
  const tenants = new Map<string, Omit<TestTenant, "dsn">>()
  const schemas: Array<string> = []
  for (const { schema, user = "app", password = "sesame", destUser = "app" } of asked) {
    const role = roles.get(destUser)!
    schemas.push(`CREATE SCHEMA ${quoteIdentifier(schema)} AUTHORIZATION ${role}`)
    tenants.set(schema, {
      schema,
      user,
      password,
      role,
      rolePassword,
      startup: { user, database: sourceDb, schema_search_path: schema },
      options: `-c schema_search_path=${schema.replaceAll(/[\\\s]/g, "\\$&")}`
    })
    yield* auth.query(
      `INSERT INTO perseus_auth (source_db, source_schema, source_user, source_pass_hashed, dest_host, dest_db,
        dest_pass_enc, dest_user) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
      [
        sourceDb,
        schema,
        user,
        yield* hashOf(password),
        `${destHost}:${destPort}`,
        destination.database,
        ciphertext,
        role
      ]
    )
  }
  yield* destination.script(schemas.join(";"))
  for (const { schema, poolMode } of asked) {
    if (poolMode === undefined) continue
    yield* auth.script("ALTER TABLE perseus_auth ADD COLUMN IF NOT EXISTS pool_mode text")
    yield* auth.query("UPDATE perseus_auth SET pool_mode = $1 WHERE source_schema = $2", [poolMode, schema])
  }

  let overrides = options.config ?? {}
  const load = Effect.suspend(() => {
    const config = decode({
      ...defaults,
      AuthDBSettings: {
        AuthDBDSN: Redacted.value(auth.dsn()),
        AuthQueryTimeoutSecs: 5,
        ...overrides.AuthDBSettings
      },
      AWSSettings: {
        AccessKeyId: "key",
        SecretAccessKey: "secret",
        Region: "us-east-1",
        Endpoint: kms.endpoint,
        KMSKeyARN: kms.keyArn
      },
      PoolSettings: { ...defaults.PoolSettings, ...overrides.PoolSettings },
      LimitSettings: { ...defaults.LimitSettings, ...overrides.LimitSettings },
      // What stands in between speaks no TLS.
      TLSSettings: overrides.TLSSettings ?? (options.through === undefined ? undefined : { ServerMode: "disable" }),
      LoginSettings: overrides.LoginSettings ?? {}
    })
    return Result.isSuccess(config)
      ? Effect.succeed(config.success)
      : Effect.fail(new ConfigInvalid({ source: "the test", problems: config.failure }))
  })

  const log: Array<string> = []
  const recorder = Logger.make(({ logLevel, message }) => {
    log.push(`${logLevel} ${Array.isArray(message) ? message.map(String).join(" ") : String(message)}`)
  })
  const scope = yield* Scope.fork(yield* Effect.scope)
  const services = yield* Layer.buildWithScope(
    Perseus.layer.pipe(Layer.provideMerge(LiveConfig.layer(load)), Layer.provideMerge(Logger.layer([recorder]))),
    scope
  ).pipe(Effect.orDie)
  const service = Context.get(services, Perseus)
  const { host, port } = service.address

  const tenant = (schema: string): TestTenant => {
    const known = tenants.get(schema)
    if (known === undefined) throw new Error(`the test has no tenant ${schema}`)
    const search = new URLSearchParams({ schema_search_path: schema, sslmode: "disable" })
    return { ...known, dsn: `postgres://${known.user}:${known.password}@${host}:${port}/${sourceDb}?${search}` }
  }
  const connect: TestPerseus["connect"] = (schema, extra = {}) =>
    Effect.acquireRelease(
      Effect.promise(async () => {
        const { user, password, options } = tenant(schema)
        const given = { host, port, user, password, database: sourceDb }
        const client = new Client({ ...given, options: `${options} ${extra.options ?? ""}` })
        client.on("error", () => undefined)
        await client.connect()
        return client
      }),
      (client) => Effect.promise(() => client.end())
    )
  const raw = RawClient.connect({ host, port })

  return {
    host,
    port,
    sourceDb,
    auth,
    destination,
    kms,
    tenant,
    connect,
    query: (schema, sql) =>
      Effect.scoped(
        Effect.flatMap(connect(schema), (client) =>
          Effect.map(
            Effect.promise(() => client.query(sql)),
            ({ rows }) => rows
          )
        )
      ),
    raw,
    login: (schema, parameters = {}) =>
      Effect.gen(function* () {
        const { startup, password } = tenant(schema)
        const client = yield* raw
        const greeting = yield* client.logIn({ ...startup, ...parameters }, password)
        if (greeting.at(-1)?.type !== "Z") {
          return yield* Effect.die(new Error(`login refused: ${greeting.at(-1)?.body.toString()}`))
        }
        return client
      }),
    refusal: (parameters, password = "sesame") =>
      Effect.scoped(
        Effect.gen(function* () {
          const client = yield* raw
          const answers = yield* client.logIn(parameters, password)
          return [...answers, ...(answers.at(-1)?.type === "Z" ? [] : yield* client.closed())]
        })
      ),
    service,
    pool: () => {
      const found = service.pools().find(({ destDb }) => destDb === destination.database)
      if (found === undefined) throw new Error("the destination has no pool yet")
      return found
    },
    backends: Effect.map(
      destination.query(
        `SELECT pid, usename AS user, coalesce(state, '') AS state, query FROM pg_stat_activity
          WHERE datname = current_database() AND pid <> pg_backend_pid() AND usename LIKE 'role\\_%' ORDER BY pid`
      ),
      (rows) =>
        rows.map((row) => ({
          pid: Number(row["pid"]),
          user: String(row["user"]),
          state: String(row["state"]),
          query: String(row["query"])
        }))
    ),
    updateRow: (schema, column, value) =>
      Effect.gen(function* () {
        const before = service.live.rowChanges
        yield* auth.query(`UPDATE perseus_auth SET ${column} = $1 WHERE source_schema = $2`, [value, schema])
        yield* eventually(
          Effect.sync(() => service.live.rowChanges),
          (now) => now > before
        )
      }),
    encrypt: encrypted,
    hash: hashOf,
    reload: (next) =>
      Effect.suspend(() => {
        overrides = next
        return Effect.provide(Context.get(services, LiveConfig).reload, services)
      }),
    stop: Scope.close(scope, Exit.void),
    log
  }
})

/** Nothing is lent, nobody waits, and every connection that is open lies idle. */
export const isWhole = ({ open, idle, inUse, opening, waiting }: PoolSnapshot): boolean =>
  open === idle && inUse === 0 && opening === 0 && waiting === 0

/** The pool when it is whole again. */
export const whole = (perseus: TestPerseus): Effect.Effect<PoolSnapshot> =>
  eventually(Effect.sync(perseus.pool), isWhole)

/** One service for several tests that do not meet. Give its layer `excludeTestServices`: its time is the real one. */
export class SharedPerseus extends Context.Service<SharedPerseus, TestPerseus>()("test/SharedPerseus") {
  static readonly with = (options: Options): Layer.Layer<SharedPerseus> =>
    Layer.effect(SharedPerseus, startPerseus(options))
}
