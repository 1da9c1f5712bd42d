/**
 * What the demo is played on: a PostgreSQL, a KMS, `perseus_auth`, one database with a schema for each of three tenants,
 * and the pooler in front of them. All of it lives in this process' scope and in one temporary directory.
 *
 * Everything listens on loopback only. The database's passwords are random; the clients' is not, so that it can be typed.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import { randomBytes } from "node:crypto"
import { readFile } from "node:fs/promises"
import * as path from "node:path"
import { decode } from "../../config/Decode.ts"
import { LiveConfig } from "../../config/LiveConfig.ts"
import type { PerseusConfig } from "../../config/PerseusConfig.ts"
import type { AuthTableInvalid, ConfigInvalid, ListenFailed } from "../../errors.ts"
import type { ListenAddress } from "../../net/Address.ts"
import { Perseus } from "../../Perseus.ts"
import { encrypt } from "../../tenant/KmsDecrypt.ts"
import { PasswordHash } from "../../tenant/PasswordHash.ts"
import * as LocalKms from "../LocalKms.ts"
import { DemoFailed } from "./DemoFailed.ts"
import type { Connection, Driver } from "./Driver.ts"
import * as EmbeddedPostgres from "./EmbeddedPostgres.ts"

export const DATABASE = "shop"
export const CLIENT_USER = "app"
export const CLIENT_PASSWORD = "demo"
export const SERVER_CONNECTIONS = 5

/** The one role that all tenants share on the server: only then can they share its connections. */
const ROLE = "shop_owner"

/** Each tenant's rows of the table that all have, `item`. */
export const TENANTS: Readonly<Record<string, ReadonlyArray<string>>> = {
  acme: ["anvil", "rocket skates", "portable hole"],
  globex: ["hammock", "weather machine"],
  initech: ["stapler", "printer", "cover sheet", "swim-up bar"]
}

export interface Stage {
  readonly perseus: Perseus["Service"]
  /** A superuser's connection to the tenants' database, past the pooler. */
  readonly direct: Connection
  /** Server connections that PostgreSQL itself counts for the tenants' role. */
  readonly backends: Effect.Effect<number, DemoFailed>
}

type Tell = (step: string) => Effect.Effect<void>

/** Fails with `DemoFailed`, whichever part it was. */
export const build = Effect.fnUntraced(
  function* (driver: Driver, tell: Tell) {
    const postgres = yield* EmbeddedPostgres.start({ password: randomPassword(), onProgress: tell })
    const connectTo = (database: string) =>
      driver.connect({
        host: postgres.host,
        port: postgres.port,
        user: postgres.user,
        password: Redacted.value(postgres.password),
        database
      })
    // In PostgreSQL's own directory, which is removed even if this process is killed.
    const kms = yield* LocalKms.start({ keyFile: path.join(path.dirname(postgres.dataDir), "kms-keys.json") })
    yield* tell(`a KMS listens on ${kms.endpoint}`)

    const auth = yield* connectTo("postgres")
    const role = { password: randomPassword(), host: `${postgres.host}:${postgres.port}` }
    yield* auth.query(`CREATE ROLE ${ROLE} LOGIN PASSWORD '${Redacted.value(role.password)}'`)
    yield* auth.query(`CREATE DATABASE ${DATABASE} OWNER ${ROLE}`)
    const direct = yield* connectTo(DATABASE)
    for (const [tenant, items] of Object.entries(TENANTS)) yield* createTenant(direct, tenant, items)
    yield* tell(`database ${DATABASE} has the schemas ${Object.keys(TENANTS).join(", ")}, each with a table item`)

    yield* auth.query(yield* Effect.promise(() => readFile(authTableScript, "utf8")))
    const destPassEnc = yield* encrypt(kms.settings, role.password)
    for (const tenant of Object.keys(TENANTS)) {
      const hash = yield* PasswordHash.use((passwords) => passwords.hash(Redacted.make(CLIENT_PASSWORD)))
      yield* auth.query(insertRow, [DATABASE, tenant, CLIENT_USER, hash, role.host, DATABASE, destPassEnc, ROLE])
    }
    yield* tell("perseus_auth has a row for each of them")

    const perseus = yield* startPerseus(postgres, kms, { ListenAddress: 5433, MetricsAddress: 9090 })
    yield* tell(`Perseus listens on ${perseus.address.host}:${perseus.address.port}`)
    const backends = Effect.map(direct.query(countBackends, [ROLE]), (rows) => Number(rows[0]?.count))
    return { perseus, direct, backends } satisfies Stage
  },
  Effect.provide(PasswordHash.layer()),
  Effect.mapError((failure) => new DemoFailed({ message: failure.message }))
)

const randomPassword = () => Redacted.make(randomBytes(16).toString("hex"))

/** `src` and `dist` are as deep. */
const authTableScript = new URL("../../../config/perseus_auth.sql", import.meta.url)

const insertRow = `
  INSERT INTO perseus_auth (source_db, source_schema, source_user, source_pass_hashed,
                            dest_host, dest_db, dest_pass_enc, dest_user)
  VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`

const countBackends = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1"

/** `item` is read and `visit` is written; `owner` says in whose schema a row was made. */
const createTenant = Effect.fnUntraced(function* (direct: Connection, tenant: string, items: ReadonlyArray<string>) {
  yield* direct.query(`CREATE SCHEMA ${tenant} AUTHORIZATION ${ROLE}`)
  yield* direct.query(`CREATE TABLE ${tenant}.item (owner text NOT NULL, name text NOT NULL)`)
  yield* direct.query(`CREATE TABLE ${tenant}.visit (owner text NOT NULL)`)
  yield* direct.query(`ALTER TABLE ${tenant}.item OWNER TO ${ROLE}`)
  yield* direct.query(`ALTER TABLE ${tenant}.visit OWNER TO ${ROLE}`)
  yield* direct.query(`INSERT INTO ${tenant}.item SELECT $1, unnest($2::text[])`, [tenant, items])
})

/** By the configuration key that names it. */
type Ports = Readonly<Record<ListenFailed["key"], number>>

/** On these ports, or where one is taken on a free one. */
const startPerseus = (
  postgres: EmbeddedPostgres.RunningPostgres,
  kms: LocalKms.LocalKms,
  ports: Ports
): Effect.Effect<Perseus["Service"], StartFailure, Scope.Scope> =>
  Effect.gen(function* () {
    const config = yield* configOf(postgres, kms, ports)
    const scope = yield* Scope.fork(yield* Effect.scope)
    const services = yield* Layer.buildWithScope(Layer.provide(Perseus.layer, LiveConfig.layerOf(config)), scope).pipe(
      // What the attempt had opened must not be in the next one's way.
      Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
    )
    return Context.get(services, Perseus)
  }).pipe(
    Effect.catchTag("ListenFailed", (failure) =>
      ports[failure.key] === 0 ? Effect.fail(failure) : startPerseus(postgres, kms, { ...ports, [failure.key]: 0 })
    )
  )

type StartFailure = DemoFailed | ListenFailed | AuthTableInvalid | ConfigInvalid

const configOf = Effect.fnUntraced(function* (
  postgres: EmbeddedPostgres.RunningPostgres,
  kms: LocalKms.LocalKms,
  ports: Ports
): Effect.fn.Return<PerseusConfig, DemoFailed> {
  const password = Redacted.value(postgres.password)
  const config = decode({
    ListenAddress: `127.0.0.1:${ports.ListenAddress}`,
    MetricsAddress: `127.0.0.1:${ports.MetricsAddress}`,
    AuthDBSettings: {
      AuthDBDSN: `postgres://${postgres.user}:${password}@${postgres.host}:${postgres.port}/postgres?sslmode=disable`,
      AuthQueryTimeoutSecs: 5
    },
    AWSSettings: {
      AccessKeyId: "demo",
      SecretAccessKey: "demo",
      Region: kms.settings.region,
      Endpoint: kms.endpoint,
      KMSKeyARN: kms.keyArn
    },
    PoolSettings: {
      MaxIdle: SERVER_CONNECTIONS,
      MaxOpen: SERVER_CONNECTIONS,
      ConnCreateTimeoutSecs: 5,
      ConnCloseTimeoutSecs: 1,
      SchemaExecTimeoutSecs: 5
    },
    // Whoever presses Ctrl-C does not want to wait for a psql in the next window.
    LimitSettings: { ShutdownTimeoutSecs: 2 }
  })
  if (Result.isFailure(config)) return yield* new DemoFailed({ message: config.failure.join("; ") })
  return config.success
})

/** As a URL has it. */
export const hostPort = ({ host = "127.0.0.1", port }: ListenAddress): string => `${host}:${port}`
