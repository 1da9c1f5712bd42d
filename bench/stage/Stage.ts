/**
 * What is measured on: one PostgreSQL, which all targets stand before, with a schema for each of some tenants, and a KMS and
 * `perseus_auth` for Perseus. Nothing is measured here.
 *
 * PostgreSQL trusts loopback, so that no pooler pays for another way of logging in than the others.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { randomBytes } from "node:crypto"
import { mkdtemp, readFile, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { Client } from "pg"
import * as EmbeddedPostgres from "../../src/cli/demo/EmbeddedPostgres.ts"
import * as LocalKms from "../../src/cli/LocalKms.ts"
import { encrypt } from "../../src/tenant/KmsDecrypt.ts"
import { PasswordHash } from "../../src/tenant/PasswordHash.ts"
import { BenchFailed } from "../Scenario.ts"
import type { Target } from "./Target.ts"

export const DATABASE = "bench"
export const ROLE = "bench"
/** What clients of the poolers log in with. */
export const USER = "app"
export const PASSWORD = "bench"
export const TENANTS = 50
/** Rows of each tenant's pgbench_accounts; the first tenant has all that pgbench's own scripts ask for. */
const ROWS = 1_000
const ROWS_OF_FIRST = 100_000

export const tenantNames: ReadonlyArray<string> = Array.from({ length: TENANTS }, (_, index) => `t${index + 1}`)

/** Rows of `perseus_auth` beside those of the tenants: the same schemas, or others, under another database's name. */
export interface Rows {
  /** What clients ask for; the tenants' own is `DATABASE`. */
  readonly database: string
  /** By schema: where it lives; in `DATABASE` where no other is named. */
  readonly places: ReadonlyArray<{ readonly schema: string; readonly host: string; readonly database?: string }>
  /** `source_pass_hashed` in place of the one that all others have, whose derivation takes as long as a real one. */
  readonly hash?: string
}

export interface Stage {
  /** PostgreSQL itself. */
  readonly direct: Target
  readonly kms: LocalKms.LocalKms
  /** Holds `perseus_auth`. */
  readonly authDsn: string
  readonly addRows: (rows: Rows) => Effect.Effect<void, BenchFailed>
  /** `source_pass_hashed` of the tenants: of `PASSWORD`, as genhash makes it. */
  readonly hash: string
  /** A directory of the bench's own, which goes with it. */
  readonly directory: string
  readonly version: string
  /** As a superuser, in the tenants' database. */
  readonly query: (
    sql: string,
    parameters?: ReadonlyArray<unknown>
  ) => Effect.Effect<ReadonlyArray<Record<string, unknown>>, BenchFailed>
}

type Tell = (step: string) => Effect.Effect<void>

export const build = Effect.fnUntraced(
  function* (tell: Tell): Effect.fn.Return<Stage, { readonly message: string }, Scope.Scope | PasswordHash> {
    const directory = yield* Effect.acquireRelease(
      Effect.promise(() => mkdtemp(path.join(tmpdir(), "perseus-bench-"))),
      (name) => Effect.promise(() => rm(name, { recursive: true, force: true }))
    )
    const postgres = yield* EmbeddedPostgres.start({
      password: Redacted.make(randomBytes(16).toString("hex")),
      onProgress: tell,
      settings: { max_connections: "1000", shared_buffers: "256MB" },
      files: { "pg_hba.conf": "host all all 127.0.0.1/32 trust\n" }
    })
    const kms = yield* LocalKms.start({ keyFile: path.join(directory, "kms-keys.json") })
    const { host, port, user } = postgres
    const admin = yield* connect({ host, port, user, database: "postgres" })
    yield* admin(`CREATE ROLE ${ROLE} LOGIN`)
    yield* admin(`CREATE DATABASE ${DATABASE} OWNER ${ROLE}`)
    const query = yield* connect({ host, port, user, database: DATABASE })
    yield* tell(`making ${TENANTS} tenants`)
    for (const tenant of tenantNames) yield* query(tenantScript(tenant))
    yield* query("VACUUM ANALYZE")
    const { addRows, hash } = yield* authTable(admin, kms)
    yield* addRows({ database: DATABASE, places: tenantNames.map((schema) => ({ schema, host: `${host}:${port}` })) })
    const serverPid = Number(
      (yield* Effect.promise(() => readFile(path.join(postgres.dataDir, "postmaster.pid"), "utf8"))).split("\n")[0]
    )
    return {
      direct: {
        name: "direct",
        host,
        port,
        pid: null,
        serverPid,
        serverPort: port,
        login: (tenant) => ({ user: ROLE, password: "", database: DATABASE, options: `-c search_path=${tenant}` })
      },
      kms,
      addRows,
      hash,
      authDsn: `postgres://${user}@${host}:${port}/postgres?sslmode=disable`,
      directory,
      version: postgres.version,
      query
    }
  },
  Effect.mapError((failure) => new BenchFailed({ message: failure.message }))
)

/** As pgbench would, but the tables are empty of all that its scripts do not read. */
const tenantScript = (tenant: string): string => `
  CREATE SCHEMA ${tenant} AUTHORIZATION ${ROLE};
  SET ROLE ${ROLE}; SET search_path = ${tenant};
  CREATE TABLE pgbench_branches (bid int PRIMARY KEY, bbalance int, filler char(88));
  CREATE TABLE pgbench_tellers (tid int PRIMARY KEY, bid int, tbalance int, filler char(84));
  CREATE TABLE pgbench_accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84));
  CREATE TABLE pgbench_history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
  INSERT INTO pgbench_branches VALUES (1, 0);
  INSERT INTO pgbench_tellers SELECT tid, 1, 0 FROM generate_series(1, 10) AS tid;
  INSERT INTO pgbench_accounts SELECT aid, 1, 0, '' FROM generate_series(1, ${tenant === "t1" ? ROWS_OF_FIRST : ROWS}) AS aid;
  RESET ROLE; RESET search_path`

const authTable = Effect.fnUntraced(function* (admin: Stage["query"], kms: LocalKms.LocalKms) {
  yield* admin(yield* Effect.promise(() => readFile(new URL("../../config/perseus_auth.sql", import.meta.url), "utf8")))
  const secret = yield* encrypt(kms.settings, Redacted.make("unused"))
  const hash = yield* PasswordHash.use((passwords) => passwords.hash(Redacted.make(PASSWORD)))
  const addRows = ({ database, places, hash: own = hash }: Rows) =>
    Effect.asVoid(
      admin(
        `INSERT INTO perseus_auth (source_db, source_schema, dest_host, dest_db, source_user, source_pass_hashed, dest_pass_enc,
          dest_user) SELECT $1, place.*, $2, $3, $4, $5
          FROM unnest($6::text[], $7::text[], $8::text[]) AS place (schema, host, database)`,
        [
          database,
          USER,
          own,
          secret,
          ROLE,
          places.map(({ schema }) => schema),
          places.map(({ host }) => host),
          places.map(({ database: other = DATABASE }) => other)
        ]
      )
    )
  return { addRows, hash }
})

interface Server {
  readonly host: string
  readonly port: number
  readonly user: string
  readonly database: string
}

const connect = (server: Server): Effect.Effect<Stage["query"], BenchFailed, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      attempt(async () => {
        const client = new Client(server)
        client.on("error", () => {})
        await client.connect()
        return client
      }),
      (client) => Effect.promise(() => client.end().catch(() => {}))
    ),
    (client) => (sql, parameters) => attempt(async () => (await client.query(sql, parameters?.slice())).rows)
  )

const attempt = <A>(evaluate: () => Promise<A>): Effect.Effect<A, BenchFailed> =>
  Effect.tryPromise({
    try: evaluate,
    catch: (cause) => new BenchFailed({ message: cause instanceof Error ? cause.message : String(cause) })
  })
