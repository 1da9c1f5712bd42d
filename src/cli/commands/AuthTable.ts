/**
 * The table `perseus_auth` as the commands change it. The daemon's own look-ups are `tenant/AuthRepo.ts`.
 *
 * One statement each, none prepared, every value a parameter. The table's name is left to the connection's search_path,
 * as the daemon finds it.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type { PerseusConfig } from "../../config/PerseusConfig.ts"
import * as AuthDatabase from "../../tenant/AuthDatabase.ts"
import * as AuthDsn from "../../tenant/AuthDsn.ts"
import { CommandFailed, fromConfigInvalid } from "./CommandFailed.ts"

export interface Key {
  readonly sourceDb: string
  readonly sourceSchema: string
}

export interface Row extends Key {
  readonly sourceUser: string
  readonly sourcePassHashed: string
  readonly destHost: string
  readonly destDb: string
  readonly destUser: string
  readonly destPassEnc: string
}

/** A row without its secrets; whatever is NULL in it is null. */
export interface ListedRow {
  readonly id: number
  readonly sourceDb: string | null
  readonly sourceSchema: string | null
  readonly sourceUser: string | null
  readonly destHost: string | null
  readonly destDb: string | null
  readonly destUser: string | null
  readonly nullColumns: ReadonlyArray<string>
}

export interface AuthTable {
  /** Characters that each limited column holds. Fails where there is no table. */
  readonly maxLengths: Effect.Effect<ReadonlyMap<string, number>, CommandFailed>
  readonly exists: (key: Key) => Effect.Effect<boolean, CommandFailed>
  /** Inserts the row; one that exists is overwritten if `replace`, and left alone otherwise. */
  readonly put: (row: Row, replace: boolean) => Effect.Effect<"added" | "replaced" | "exists", CommandFailed>
  /** In the order of source_db and source_schema. */
  readonly list: Effect.Effect<ReadonlyArray<ListedRow>, CommandFailed>
  /** False where there was no such row. */
  readonly remove: (key: Key) => Effect.Effect<boolean, CommandFailed>
}

const maxLengthsSql = `
  SELECT attname::text AS column, (CASE WHEN atttypid = 'varchar'::regtype THEN atttypmod - 4 END)::text AS length
    FROM pg_catalog.pg_attribute
   WHERE attrelid = 'perseus_auth'::regclass AND attnum > 0 AND NOT attisdropped AND atttypmod > 0`

/** The key's columns first: their parameters are those of `keyIs`. */
const columns = [
  "source_db",
  "source_schema",
  "source_user",
  "source_pass_hashed",
  "dest_host",
  "dest_db",
  "dest_user",
  "dest_pass_enc"
] as const

const insert =
  `INSERT INTO perseus_auth (${columns.join(", ")}) VALUES (${columns.map((_, index) => `$${index + 1}`).join(", ")}) ` +
  "ON CONFLICT (source_db, source_schema) DO"

const insertOnlySql = `${insert} NOTHING RETURNING 'added' AS outcome`

/** `xmax` is 0 in a row that was inserted, and the updating transaction's id in one that was there. */
const insertOrUpdateSql = `${insert} UPDATE SET ${columns.map((column) => `${column} = EXCLUDED.${column}`).join(", ")}
  RETURNING CASE WHEN xmax = 0 THEN 'added' ELSE 'replaced' END AS outcome`

const keyIs = "source_db = $1 AND source_schema = $2"
const existsSql = `SELECT 1 AS found FROM perseus_auth WHERE ${keyIs}`
const removeSql = `DELETE FROM perseus_auth WHERE ${keyIs} RETURNING 1 AS found`

const secretColumns: ReadonlySet<string> = new Set(["source_pass_hashed", "dest_pass_enc"])

const listSql = `
  SELECT id::text, ${columns
    .map((column) => (secretColumns.has(column) ? `${column} IS NULL AS ${column}` : `${column}::text`))
    .join(", ")}
    FROM perseus_auth ORDER BY source_db, source_schema, perseus_auth.id`

/** Connects when first asked, and disconnects with the scope. */
export const open = Effect.fnUntraced(function* ({
  AuthDBSettings
}: PerseusConfig): Effect.fn.Return<AuthTable, CommandFailed, Scope.Scope> {
  const dsn = AuthDsn.parse(AuthDBSettings.AuthDBDSN)
  if (Result.isFailure(dsn)) return yield* fromConfigInvalid(AuthDatabase.invalidDsn(dsn.failure))
  const { pool } = dsn.success
  const database = yield* Effect.mapError(
    AuthDatabase.make({ ...dsn.success, pool: { ...pool, minConnections: 0, maxConnections: 1 } }),
    fromConfigInvalid
  )
  const seconds = AuthDBSettings.AuthQueryTimeoutSecs
  const query = (sql: string, parameters: ReadonlyArray<string> = []) =>
    database.query(sql, parameters).pipe(
      Effect.mapError(explain),
      Effect.timeoutOrElse({
        duration: Duration.seconds(seconds),
        orElse: () =>
          Effect.fail(
            new CommandFailed({
              message: `auth database: no answer within ${seconds} s (AuthDBSettings.AuthQueryTimeoutSecs)`
            })
          )
      })
    )
  const found = (rows: ReadonlyArray<unknown>) => rows.length > 0

  return {
    maxLengths: Effect.map(
      query(maxLengthsSql),
      (rows) => new Map(rows.map((row) => [text(row, "column") ?? "", Number(text(row, "length") ?? Infinity)]))
    ),
    exists: (key) => Effect.map(query(existsSql, keyParameters(key)), found),
    put: (row, replace) =>
      Effect.map(query(replace ? insertOrUpdateSql : insertOnlySql, rowParameters(row)), ([first]) => {
        const outcome = first && text(first, "outcome")
        return outcome === "added" || outcome === "replaced" ? outcome : "exists"
      }),
    list: Effect.map(query(listSql), (rows) => rows.map(toListedRow)),
    remove: (key) => Effect.map(query(removeSql, keyParameters(key)), found)
  }
})

const keyParameters = (key: Key): ReadonlyArray<string> => [key.sourceDb, key.sourceSchema]

/** In the order of `columns`. */
const rowParameters = (row: Row): ReadonlyArray<string> => [
  ...keyParameters(row),
  row.sourceUser,
  row.sourcePassHashed,
  row.destHost,
  row.destDb,
  row.destUser,
  row.destPassEnc
]

type ResultRow = Readonly<Record<string, unknown>>

const text = (row: ResultRow, column: string): string | null => {
  const value = row[column]
  return typeof value === "string" ? value : null
}

const toListedRow = (row: ResultRow): ListedRow => ({
  id: Number(text(row, "id")),
  sourceDb: text(row, "source_db"),
  sourceSchema: text(row, "source_schema"),
  sourceUser: text(row, "source_user"),
  destHost: text(row, "dest_host"),
  destDb: text(row, "dest_db"),
  destUser: text(row, "dest_user"),
  nullColumns: columns.filter((column) => row[column] === (secretColumns.has(column) ? true : null))
})

const explain = (error: AuthDatabase.AuthDatabaseError): CommandFailed => {
  switch (error.sqlState) {
    case "42P01":
      return new CommandFailed({
        message:
          "auth database: there is no table perseus_auth in the search_path of AuthDBDSN's user; " +
          "config/perseus_auth.sql makes it"
      })
    case "42P10":
      return new CommandFailed({
        message:
          "auth database: perseus_auth has no unique constraint on (source_db, source_schema); add it with " +
          "ALTER TABLE perseus_auth ADD UNIQUE (source_db, source_schema)"
      })
    default:
      return new CommandFailed({ message: `auth database: ${error.message}` })
  }
}
