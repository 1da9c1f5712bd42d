/**
 * PostgreSQL for tests: the run's common server, databases of one's own on it, and whole servers of one's own for tests
 * that restart theirs. Everything ends with the test's scope.
 *
 * The clients here are node-postgres, so that nothing is tested by means of itself.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { randomUUID } from "node:crypto"
import { Client } from "pg"
import { inject } from "vitest"
import {
  type Options,
  type PostgresStartFailed,
  type RunningPostgres,
  start
} from "../../src/cli/demo/EmbeddedPostgres.ts"

/** Where a server is, and its superuser. */
export interface Server {
  readonly host: string
  readonly port: number
  readonly user: string
  readonly password: Redacted.Redacted<string>
}

export type Row = Readonly<Record<string, unknown>>

export interface TestDatabase extends Server {
  readonly database: string
  /** `postgres://user:password@host:port/database?…`, `sslmode=disable` unless told otherwise. */
  readonly dsn: (parameters?: Readonly<Record<string, string>>) => Redacted.Redacted<string>
  /** One statement on a connection of its own. */
  readonly query: (sql: string, parameters?: ReadonlyArray<unknown>) => Effect.Effect<ReadonlyArray<Row>>
  /** Any number of statements in one simple Query, as `psql -f` would send them. */
  readonly script: (sql: string) => Effect.Effect<void>
  /** A connection until the scope closes: for locks, open transactions and LISTEN. */
  readonly client: Effect.Effect<Client, never, Scope.Scope>
}

/** The server that all integration tests share: restart nothing here, and change nothing that is not your database's. */
export const connection = (): Server => {
  const { password, ...server } = inject("postgres")
  return { ...server, password: Redacted.make(password) }
}

/** A server of one's own, which the test may stop, restart and configure. Takes about a second. */
export const ownPostgres = (
  options: Omit<Options, "password" | "databaseDir"> = {}
): Effect.Effect<RunningPostgres, PostgresStartFailed, Scope.Scope> =>
  start({ ...options, password: Redacted.make(randomUUID()) })

/** An empty database with a name that no other has; dropped at the end, with whoever is still connected to it. */
export const freshDatabase = (server: Server = connection()): Effect.Effect<TestDatabase, never, Scope.Scope> =>
  Effect.suspend(() => {
    const name = `test_${randomUUID().replaceAll("-", "")}`
    const maintenance = databaseOn(server, "postgres")
    return Effect.acquireRelease(
      Effect.as(maintenance.query(`CREATE DATABASE ${name}`), databaseOn(server, name)),
      // Ignored: the test may have stopped a server of its own, which takes its databases with it.
      () => Effect.ignoreCause(maintenance.query(`DROP DATABASE ${name} WITH (FORCE)`))
    )
  })

/** A database that exists. */
export const databaseOn = (server: Server, database: string): TestDatabase => {
  const { host, port, user, password } = server
  const client = Effect.acquireRelease(
    Effect.promise(async () => {
      const client = new Client({ host, port, user, password: Redacted.value(password), database })
      // A server that a test stops ends idle connections; without a listener that would end the process.
      client.on("error", () => undefined)
      await client.connect()
      return client
    }),
    (client) => Effect.promise(() => client.end())
  )
  const send = (sql: string, parameters?: ReadonlyArray<unknown>) =>
    Effect.scoped(Effect.flatMap(client, (client) => Effect.promise(() => client.query(sql, parameters?.slice()))))
  return {
    host,
    port,
    user,
    password,
    database,
    dsn: (parameters = {}) => {
      const query = new URLSearchParams({ sslmode: "disable", ...parameters })
      const login = `${encodeURIComponent(user)}:${encodeURIComponent(Redacted.value(password))}`
      return Redacted.make(`postgres://${login}@${host}:${port}/${encodeURIComponent(database)}?${query}`)
    },
    query: (sql, parameters) => Effect.map(send(sql, parameters), (result) => result.rows),
    script: (sql) => Effect.asVoid(send(sql)),
    client
  }
}
