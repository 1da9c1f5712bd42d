/**
 * The rows of `perseus_auth`: who a tenant is and where it lives.
 *
 * Rows are cached for a short time. A connection of its own listens on the channel `perseus_auth`, where the triggers of
 * `config/perseus_auth.sql` tell of every change: the changed row is dropped at once, and all rows when something may
 * have been missed. Without the triggers, or where nothing can be listened to, any row may have changed each time that the
 * cache's time has passed.
 *
 * The table's schema is found once, by the connection's search_path, and named in the query. What a client sent reaches
 * the auth database as a parameter of that query and in no other way.
 *
 * It never judges a row: columns may be NULL, hashes and hosts may be nonsense.
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Cache from "effect/Cache"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as PubSub from "effect/PubSub"
import * as Queue from "effect/Queue"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { AuthTableInvalid, AuthUnavailable, type ConfigInvalid } from "../errors.ts"
import * as AuthDatabase from "./AuthDatabase.ts"
import * as AuthDsn from "./AuthDsn.ts"
import * as RowCache from "./RowCache.ts"

/** What a tenant is found by: startup's `database` and `schema_search_path`. */
export interface TenantKey {
  readonly sourceDb: string
  readonly sourceSchema: string
}

/** One row; whatever is NULL in it is null. */
export interface AuthRow extends TenantKey {
  readonly id: number
  readonly sourceUser: string | null
  readonly sourcePassHashed: Redacted.Redacted<string> | null
  readonly destHost: string | null
  readonly destDb: string | null
  readonly destUser: string | null
  readonly destPassEnc: string | null
  /** A column that a site may add; null: the pool's mode. */
  readonly poolMode: string | null
}

/** What to look at again: one tenant's row was made, changed or deleted, or any may have been. */
export type AuthChange = { readonly _tag: "Row"; readonly key: TenantKey } | { readonly _tag: "All" }

export interface Settings {
  /** `AuthDBSettings.AuthDBDSN` */
  readonly dsn: Redacted.Redacted<string>
  /** `AuthDBSettings.AuthQueryTimeoutSecs`, for all that a look-up takes: connecting, waiting, asking. */
  readonly queryTimeoutSecs: number
  /** `AuthDBSettings.AuthCacheTtlSecs`; 0 for no cache. */
  readonly cacheTtlSecs: number
}

export class AuthRepo extends Context.Service<
  AuthRepo,
  {
    readonly find: (key: TenantKey) => Effect.Effect<Option.Option<AuthRow>, AuthUnavailable>
    /** The rows of all these as they are now, whatever `find` remembers, at the price of one look-up. */
    readonly findAll: (keys: ReadonlyArray<TenantKey>) => Effect.Effect<ReadonlyArray<AuthRow>, AuthUnavailable>
    /** What happens from the subscription on. When it is told, `find` no longer gives the old row. */
    readonly changes: Stream.Stream<AuthChange>
    /** Whether the auth database can be asked now; false after `queryTimeoutSecs`. */
    readonly ready: Effect.Effect<boolean>
  }
>()("perseus/tenant/AuthRepo") {
  /** Starts without an auth database that is down; does not start with a DSN or a table that cannot be used. */
  static readonly layer = (settings: Settings): Layer.Layer<AuthRepo, AuthTableInvalid | ConfigInvalid> =>
    Layer.effect(AuthRepo, make(settings))
}

const channel = "perseus_auth"
const cachedRows = 10_000
/** Where nothing is cached, whoever lives by a row need not be as quick as who logs in by it. */
const leastPollSecs = 1

const make = Effect.fnUntraced(function* (
  settings: Settings
): Effect.fn.Return<AuthRepo["Service"], AuthTableInvalid | ConfigInvalid, Scope.Scope> {
  const parsed = AuthDsn.parse(settings.dsn)
  if (Result.isFailure(parsed)) return yield* AuthDatabase.invalidDsn(parsed.failure)
  const database = yield* AuthDatabase.make(parsed.success)
  const timed = withinSeconds(settings.queryTimeoutSecs)
  const table = yield* locatedTable(database)

  const cache = yield* RowCache.make({
    lookup: (key: string) => Effect.mapError(timed(lookUp(database, table, decodeKey(key))), toAuthUnavailable),
    timeToLive: Duration.seconds(settings.cacheTtlSecs),
    capacity: cachedRows
  })
  const changes = yield* Effect.acquireRelease(PubSub.unbounded<AuthChange>(), PubSub.shutdown)

  const answers = yield* answersAtStart(timed(table.located))
  const listening = yield* keepListening({
    ready: timed(table.located),
    listen: database.listen(channel),
    hasTriggers: timed(hasTriggers(database, table)),
    pollSecs: Math.max(settings.cacheTtlSecs, leastPollSecs),
    onChange: (change) =>
      Effect.andThen(
        "key" in change ? cache.invalidate(encodeKey(change.key)) : cache.invalidateAll,
        PubSub.publish(changes, change)
      ),
    onLost: cache.invalidateAll
  })
  // From here on no change is missed, where there is something to listen to.
  if (answers) yield* Effect.ignore(timed(listening))
  if (answers) yield* Effect.ignore(timed(reportSharedRoles(database, table)))

  return AuthRepo.of({
    find: (key) =>
      // No row can hold a NUL, and no server takes one.
      key.sourceDb.includes("\0") || key.sourceSchema.includes("\0") ? Effect.succeedNone : cache.get(encodeKey(key)),
    findAll: (keys) => Effect.mapError(timed(lookUpAll(database, table, keys)), toAuthUnavailable),
    changes: Stream.fromPubSub(changes),
    ready: Effect.isSuccess(timed(Effect.andThen(table.located, database.query("SELECT 1"))))
  })
})

/** One string for the cache: an object would be hashed letter by letter for each login, 3 % of one. */
const encodeKey = ({ sourceDb, sourceSchema }: TenantKey): string => `${sourceDb}\0${sourceSchema}`

const decodeKey = (key: string): TenantKey => {
  const [sourceDb = "", sourceSchema = ""] = key.split("\0")
  return { sourceDb, sourceSchema }
}

type Failure = AuthDatabase.AuthDatabaseError | AuthTableInvalid

const withinSeconds =
  (seconds: number) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E | AuthDatabase.AuthDatabaseError, R> =>
    Effect.timeoutOrElse(effect, {
      duration: Duration.seconds(seconds),
      orElse: () =>
        Effect.fail(new AuthDatabase.AuthDatabaseError({ detail: `timed out after ${seconds} s`, sqlState: undefined }))
    })

const toAuthUnavailable = (failure: Failure): AuthUnavailable =>
  // The first line says what is wrong with the table; the log at start has the rest.
  new AuthUnavailable({ detail: `look-up failed: ${failure.message.split("\n", 1).join()}` })

/** True if the auth database answers. One that is down may come back; one that refuses this login for good will not. */
const answersAtStart = (
  check: Effect.Effect<unknown, Failure>
): Effect.Effect<boolean, AuthTableInvalid | ConfigInvalid> =>
  check.pipe(
    Effect.as(true),
    Effect.catchTag("AuthDatabaseError", (error) =>
      error.sqlState?.startsWith("28") === true || error.sqlState === "3D000"
        ? Effect.fail(AuthDatabase.invalidDsn(`the server refuses it: ${error.message}`))
        : Effect.as(
            Effect.logWarning(`auth database: ${error.message}; starting without it, logins fail until it answers`),
            false
          )
    )
  )

// ---- the table ---------------------------------------------------------------------------------------------------

/** As `config/perseus_auth.sql` has it. */
export const createTable = `CREATE TABLE IF NOT EXISTS perseus_auth (
    id serial PRIMARY KEY,
    source_db character varying(1024),
    source_schema character varying(64),
    source_user character varying(64),
    source_pass_hashed character varying(1024),
    dest_host character varying(64),
    dest_db character varying(1024),
    dest_pass_enc character varying(1024),
    dest_user character varying(64),
    UNIQUE (source_db, source_schema)
);`

const columns = [
  "id",
  "source_db",
  "source_schema",
  "source_user",
  "source_pass_hashed",
  "dest_host",
  "dest_db",
  "dest_pass_enc",
  "dest_user"
] as const

/** Used where the table has them. */
const optionalColumns = ["pool_mode"]

interface Located {
  /** Schema-qualified and quoted. */
  readonly name: string
  /** Those that are read. */
  readonly columns: ReadonlyArray<string>
}

interface Table {
  /** Found once, and again if it was not there. */
  readonly located: Effect.Effect<Located, Failure>
  readonly forget: Effect.Effect<void>
}

const locatedTable = (database: AuthDatabase.AuthDatabase): Effect.Effect<Table> =>
  Effect.map(
    Cache.makeWith(() => locate(database), {
      capacity: 1,
      timeToLive: (exit) => (Exit.isSuccess(exit) ? Duration.infinity : Duration.zero)
    }),
    (cache) => ({ located: Cache.get(cache, channel), forget: Cache.invalidateAll(cache) })
  )

const locateSql = `
  SELECT n.nspname::text AS schema, a.attname::text AS column,
         pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT') AS readable
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
   WHERE c.oid = pg_catalog.to_regclass('perseus_auth')`

/** Finds the table by the connection's search_path, and checks that all its columns are there and may be read. */
const locate = Effect.fnUntraced(function* (database: AuthDatabase.AuthDatabase): Effect.fn.Return<Located, Failure> {
  const found = yield* database.query(locateSql)
  const schema = found[0] && text(found[0], "schema")
  if (!schema) return yield* tableInvalid("there is no table perseus_auth in the search_path of AuthDBDSN's user")
  const missing = columns.filter((column) => !found.some((row) => row.column === column))
  if (missing.length > 0) return yield* tableInvalid(`${schema}.perseus_auth has no column ${missing.join(", ")}`)
  const unreadable = columns.filter((column) => found.some((row) => row.column === column && row.readable !== true))
  if (unreadable.length > 0) {
    return yield* tableInvalid(`AuthDBDSN's user may not SELECT ${unreadable.join(", ")} from ${schema}.perseus_auth`)
  }
  const readable = optionalColumns.filter((column) =>
    found.some((row) => row.column === column && row.readable === true)
  )
  return { name: `"${schema.replaceAll('"', '""')}".perseus_auth`, columns: [...columns, ...readable] }
})

const tableInvalid = (what: string) =>
  new AuthTableInvalid({ detail: `${what}. config/perseus_auth.sql makes it:\n\n${createTable}` })

// ---- look-ups ----------------------------------------------------------------------------------------------------

const lookUp = (
  database: AuthDatabase.AuthDatabase,
  table: Table,
  key: TenantKey
): Effect.Effect<Option.Option<AuthRow>, Failure> =>
  Effect.map(select(database, table, selectOne, [key.sourceDb, key.sourceSchema]), (rows) =>
    Option.map(Option.fromUndefinedOr(rows[0]), (row) => toAuthRow(key, row))
  )

const lookUpAll = (
  database: AuthDatabase.AuthDatabase,
  table: Table,
  keys: ReadonlyArray<TenantKey>
): Effect.Effect<ReadonlyArray<AuthRow>, Failure> => {
  const asked = keys.map(({ sourceDb, sourceSchema }) => ({ db: sourceDb, schema: sourceSchema }))
  return Effect.map(select(database, table, selectAsked, [JSON.stringify(asked)]), (rows) =>
    rows.map((row) =>
      toAuthRow({ sourceDb: text(row, "source_db") ?? "", sourceSchema: text(row, "source_schema") ?? "" }, row)
    )
  )
}

/** Of several rows of one tenant, in a table without its UNIQUE constraint, the first is the one. */
const selectOne = (columns: string, table: string) =>
  `SELECT ${columns} FROM ${table} WHERE source_db = $1 AND source_schema = $2 ORDER BY perseus_auth.id LIMIT 1`

const selectAsked = (columns: string, table: string) =>
  `SELECT DISTINCT ON (source_db, source_schema) ${columns} FROM ${table}
    WHERE (source_db::text, source_schema::text) IN
          (SELECT db, schema FROM pg_catalog.json_to_recordset($1::json) AS asked(db text, schema text))
    ORDER BY source_db, source_schema, perseus_auth.id`

const select = (
  database: AuthDatabase.AuthDatabase,
  table: Table,
  statement: (columns: string, table: string) => string,
  parameters: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<PgConnection.Row>, Failure> =>
  table.located.pipe(
    // Texts, so that a site whose columns are of type text, name or citext is served too.
    Effect.flatMap(({ columns, name }) =>
      database.query(statement(columns.map((column) => `${column}::text`).join(", "), name), parameters)
    ),
    // The table was dropped, renamed or moved since it was found.
    Effect.tapErrorTag("AuthDatabaseError", (error) =>
      error.sqlState === "42P01" || error.sqlState === "42703" ? table.forget : Effect.void
    )
  )

const toAuthRow = (key: TenantKey, row: PgConnection.Row): AuthRow => {
  const hash = text(row, "source_pass_hashed")
  return {
    ...key,
    id: Number(text(row, "id")),
    sourceUser: text(row, "source_user"),
    sourcePassHashed: hash === null ? null : Redacted.make(hash),
    destHost: text(row, "dest_host"),
    destDb: text(row, "dest_db"),
    destUser: text(row, "dest_user"),
    destPassEnc: text(row, "dest_pass_enc"),
    poolMode: text(row, "pool_mode")
  }
}

const text = (row: PgConnection.Row, column: string): string | null => {
  const value = row[column]
  return typeof value === "string" ? value : null
}

// ---- roles that tenants share ------------------------------------------------------------------------------------

/** Named in the log; a thousand lines would tell no more than that it is the rule here. */
const reportedRoles = 10

/** Inside PostgreSQL nothing keeps tenants of one role apart: whoever operates this should know where that is so. */
const reportSharedRoles = Effect.fnUntraced(function* (database: AuthDatabase.AuthDatabase, table: Table) {
  const rows = yield* database.query(sharedRolesFrom((yield* table.located).name))
  if (rows.length === 0) return
  const roles = rows
    .slice(0, reportedRoles)
    .map(
      (row) =>
        `${text(row, "tenants")} as ${text(row, "dest_user")} on ${text(row, "dest_host")}/${text(row, "dest_db")}`
    )
  const others = rows.length > reportedRoles ? ` and ${rows.length - reportedRoles} roles more` : ""
  yield* Effect.logInfo(
    `tenants that share a role, so that inside PostgreSQL nothing keeps them apart: ${roles.join("; ")}${others}`
  )
})

const sharedRolesFrom = (table: string) =>
  `SELECT dest_host::text, dest_db::text, dest_user::text, count(*)::text AS tenants FROM ${table} ` +
  "WHERE dest_host IS NOT NULL AND dest_db IS NOT NULL AND dest_user IS NOT NULL " +
  "GROUP BY 1, 2, 3 HAVING count(*) > 1 ORDER BY count(*) DESC, 1, 2, 3"

// ---- notifications -----------------------------------------------------------------------------------------------

/** What a notification's payload says; everything that the trigger does not send means that any row may have changed. */
const changeOf = (payload: string): AuthChange =>
  Option.match(decodePayload(payload), {
    onNone: () => ({ _tag: "All" }),
    onSome: ({ db, schema }) => ({ _tag: "Row", key: { sourceDb: db, sourceSchema: schema } })
  })

const decodePayload = Schema.decodeUnknownOption(
  Schema.fromJsonString(Schema.Struct({ db: Schema.String, schema: Schema.String }))
)

/** True if `config/perseus_auth.sql` has been run for the table, and nobody has disabled what it made. */
const hasTriggers = (database: AuthDatabase.AuthDatabase, table: Table): Effect.Effect<boolean, Failure> =>
  Effect.flatMap(table.located, ({ name }) => database.query(triggersSql, [name])).pipe(
    Effect.map((rows) => rows.length === 2)
  )

const triggersSql = `
  SELECT tgname::text FROM pg_catalog.pg_trigger
   WHERE tgrelid = pg_catalog.to_regclass($1) AND tgname IN ('perseus_auth_changed', 'perseus_auth_truncated')
     AND tgenabled IN ('O', 'A')`

/**
 * Listens as long as the scope lives, and returns an effect that ends after the first attempt, successful or not.
 * After each beginning everything counts as changed: nobody was told of what happened before. As long as there is nothing to
 * hear, because of the table or of the listening, everything counts as changed every `pollSecs`.
 */
const keepListening = Effect.fnUntraced(function* (options: {
  readonly ready: Effect.Effect<unknown, Failure>
  readonly listen: Effect.Effect<
    Queue.Dequeue<PgConnection.Notification, { readonly message: string }>,
    AuthDatabase.AuthDatabaseError,
    Scope.Scope
  >
  readonly hasTriggers: Effect.Effect<boolean, Failure>
  readonly pollSecs: number
  readonly onChange: (change: AuthChange) => Effect.Effect<unknown>
  readonly onLost: Effect.Effect<void>
}) {
  const attempted = yield* Deferred.make<void>()
  let failures = 0
  let reported: string | undefined
  let listening = false
  let triggers = true

  const lookForTriggers = Effect.flatMap(options.hasTriggers, (there) => {
    if (there === triggers) return Effect.void
    triggers = there
    return there
      ? Effect.logInfo("perseus_auth has its triggers: a change is noticed at once")
      : Effect.logWarning(
          "perseus_auth lacks the triggers of config/perseus_auth.sql: a change is noticed within about " +
            `${options.pollSecs} s; run that script, and it is at once`
        )
  })

  const listen = Effect.gen(function* () {
    yield* options.ready
    const notifications = yield* options.listen
    yield* lookForTriggers
    listening = true
    yield* Effect.addFinalizer(() => Effect.sync(() => (listening = false)))
    if (failures > 0) yield* Effect.logInfo("auth database: listening for changes again")
    failures = 0
    reported = undefined
    yield* options.onChange({ _tag: "All" })
    yield* Deferred.succeed(attempted, undefined)
    return yield* Effect.forever(
      Effect.flatMap(Queue.take(notifications), ({ payload }) => options.onChange(changeOf(payload)))
    )
  }).pipe(Effect.scoped)

  /** Once for each way to fail, not for each attempt. */
  const report = (error: { readonly message: string }) => {
    if (error.message === reported) return Effect.void
    reported = error.message
    return error instanceof AuthTableInvalid
      ? Effect.logError(`auth database: ${error.message}`)
      : Effect.logWarning(`auth database: changes are not listened for: ${error.message}`)
  }

  const pause = Effect.flatMap(Random.nextBetween(0.5, 1), (jitter) =>
    Effect.sleep(Duration.millis(Math.min(100 * 2 ** failures++, 10_000) * jitter))
  )

  yield* listen.pipe(
    Effect.catch((error) => Effect.andThen(options.onLost, report(error))),
    Effect.andThen(Deferred.succeed(attempted, undefined)),
    Effect.andThen(pause),
    Effect.forever,
    Effect.forkScoped({ startImmediately: true })
  )
  // Looks first: what happens once the triggers are there is told.
  const poll = Effect.andThen(lookForTriggers, options.onChange({ _tag: "All" }))
  yield* Effect.sleep(Duration.seconds(options.pollSecs)).pipe(
    Effect.andThen(Effect.suspend(() => (listening && triggers ? Effect.void : Effect.ignore(poll)))),
    Effect.forever,
    Effect.forkScoped({ startImmediately: true })
  )
  return Deferred.await(attempted)
})
