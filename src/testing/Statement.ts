/**
 * The SQL that the in-memory server understands: a text to one of a few kinds of statement. Nothing is executed here.
 *
 * | statement | what it does |
 * | --- | --- |
 * | `BEGIN`, `COMMIT`, `ROLLBACK` and their synonyms | as in PostgreSQL |
 * | `SET [SESSION \| LOCAL] name = value`, `SET … TO`, `RESET name`, `RESET ALL`, `SHOW name` | as in PostgreSQL |
 * | `DISCARD ALL`, `DEALLOCATE name`, `DEALLOCATE ALL` | as in PostgreSQL |
 * | `LISTEN`, `UNLISTEN`, `NOTIFY` | as in PostgreSQL, but LISTEN does not wait for a commit |
 * | `WITH known AS …`, `SELECT 'hold', …` | what the pool asks between two leases: rows of kind, name and value |
 * | `SELECT whoami` | one row: search_path, user, process id of the connection |
 * | `SELECT 'text'`, `SELECT 1`, `SELECT $1` | one row of one column |
 * | `SELECT error`, `SELECT 1/0` | fails with 22012 |
 * | `SELECT pg_sleep(seconds)` | waits; can be cancelled |
 * | `SELECT rows(n, size)` | n rows of one column of that many bytes |
 * | `COPY t FROM STDIN` | reads the data and counts its messages |
 * | `INSERT …`, `UPDATE …`, `DELETE …` | "one row" |
 *
 * Comments between slashes and asterisks are skipped, wherever they stand.
 */
import * as Result from "effect/Result"
import { error, type ServerError } from "./ServerError.ts"

export type Statement =
  | { readonly _tag: "Empty" }
  | { readonly _tag: "Begin" }
  | { readonly _tag: "Commit" }
  | { readonly _tag: "Rollback" }
  | {
      readonly _tag: "Set"
      readonly name: string
      readonly value: string | null
      readonly local: boolean
      readonly reset: boolean
    }
  | { readonly _tag: "ResetAll" }
  | { readonly _tag: "DiscardAll" }
  | { readonly _tag: "Deallocate"; readonly name: string | null }
  | { readonly _tag: "Listen"; readonly channel: string }
  | { readonly _tag: "Unlisten"; readonly channel: string | null }
  | { readonly _tag: "Notify"; readonly channel: string; readonly payload: string }
  | { readonly _tag: "CopyIn" }
  | { readonly _tag: "Write"; readonly commandTag: string }
  | Query

/** Those that answer with rows. */
export type Query =
  | { readonly _tag: "Show"; readonly name: string }
  | { readonly _tag: "Whoami" }
  | { readonly _tag: "Inspection"; readonly settings: boolean; readonly holds: boolean }
  | { readonly _tag: "Value"; readonly value: string }
  | { readonly _tag: "Parameter"; readonly index: number }
  | { readonly _tag: "Failure" }
  | { readonly _tag: "Sleep"; readonly seconds: number }
  | { readonly _tag: "Rows"; readonly count: number; readonly size: number }

/** The names of the columns that it answers with; null for no rows at all. */
export const columnsOf = (statement: Statement): ReadonlyArray<string> | null => {
  switch (statement._tag) {
    case "Show":
      return [statement.name]
    case "Inspection":
      return ["kind", "name", "value"]
    case "Whoami":
      return ["search_path", "user", "process_id"]
    case "Sleep":
      return ["pg_sleep"]
    case "Rows":
      return ["rows"]
    case "Value":
    case "Parameter":
    case "Failure":
      return ["?column?"]
    default:
      return null
  }
}

export const parameterCountOf = (statement: Statement): number =>
  statement._tag === "Parameter" ? statement.index + 1 : 0

/** The statements of one text, split at each `;` outside of quotes. */
export const split = (sql: string): ReadonlyArray<string> => {
  const pieces = sql.match(/(?:'[^']*'|"[^"]*"|[^;'"]+|['"])+/g) ?? []
  return pieces.map((piece) => piece.trim()).filter((piece) => piece !== "")
}

const NAME = String.raw`("(?:[^"]|"")*"|[A-Za-z_][\w$.]*)`

type Rule = readonly [pattern: RegExp, statement: (...groups: ReadonlyArray<string | undefined>) => Statement]

const rule = (pattern: string, statement: Rule[1]): Rule => [
  new RegExp(`^${pattern.replaceAll("NAME", NAME).replaceAll(" ", String.raw`\s+`)}$`, "is"),
  statement
]

const rules: ReadonlyArray<Rule> = [
  rule("SELECT WHOAMI", () => ({ _tag: "Whoami" })),
  rule("WITH known AS.+ UNION ALL SELECT 'hold',.+", () => ({ _tag: "Inspection", settings: true, holds: true })),
  rule("WITH known AS.+", () => ({ _tag: "Inspection", settings: true, holds: false })),
  rule("SELECT 'hold',.+", () => ({ _tag: "Inspection", settings: false, holds: true })),
  rule("SELECT (?:ERROR|1/0)", () => ({ _tag: "Failure" })),
  rule(String.raw`SELECT \$(\d+)`, (index) => ({ _tag: "Parameter", index: Number(index) - 1 })),
  rule(String.raw`SELECT (-?\d+(?:\.\d+)?)`, (value) => ({ _tag: "Value", value: value! })),
  rule(String.raw`SELECT '((?:[^']|'')*)'`, (text) => ({ _tag: "Value", value: text!.replaceAll("''", "'") })),
  rule(String.raw`SELECT PG_SLEEP\(\s*([\d.]+)\s*\)`, (seconds) => ({ _tag: "Sleep", seconds: Number(seconds) })),
  rule(String.raw`SELECT ROWS\(\s*(\d+)\s*,\s*(\d+)\s*\)`, (count, size) => ({
    _tag: "Rows",
    count: Number(count),
    size: Number(size)
  })),
  rule(String.raw`(?:BEGIN|START TRANSACTION)\b.*`, () => ({ _tag: "Begin" })),
  rule(String.raw`(?:COMMIT|END)\b.*`, () => ({ _tag: "Commit" })),
  rule(String.raw`(?:ROLLBACK|ABORT)\b.*`, () => ({ _tag: "Rollback" })),
  rule(String.raw`SET (?:(SESSION|LOCAL) )?TIME ZONE (.+)`, (scope, value) => setting("TimeZone", value!, scope)),
  rule(String.raw`SET (?:(SESSION|LOCAL) )?NAME(?:\s*=\s*|\s+TO\s+)(.+)`, (scope, name, value) =>
    setting(identifier(name!), value!, scope)
  ),
  rule("RESET ALL", () => ({ _tag: "ResetAll" })),
  rule("RESET NAME", (name) => ({ _tag: "Set", name: identifier(name!), value: null, local: false, reset: true })),
  rule("SHOW NAME", (name) => ({ _tag: "Show", name: identifier(name!) })),
  rule("DISCARD ALL", () => ({ _tag: "DiscardAll" })),
  rule("DEALLOCATE (?:PREPARE )?ALL", () => ({ _tag: "Deallocate", name: null })),
  rule("DEALLOCATE (?:PREPARE )?NAME", (name) => ({ _tag: "Deallocate", name: identifier(name!) })),
  rule("LISTEN NAME", (channel) => ({ _tag: "Listen", channel: identifier(channel!) })),
  rule(String.raw`UNLISTEN \*`, () => ({ _tag: "Unlisten", channel: null })),
  rule("UNLISTEN NAME", (channel) => ({ _tag: "Unlisten", channel: identifier(channel!) })),
  rule(String.raw`NOTIFY NAME(?:\s*,\s*'([^']*)')?`, (channel, payload) => ({
    _tag: "Notify",
    channel: identifier(channel!),
    payload: payload ?? ""
  })),
  rule(String.raw`COPY .+ FROM STDIN\b.*`, () => ({ _tag: "CopyIn" })),
  rule("INSERT .+", () => ({ _tag: "Write", commandTag: "INSERT 0 1" })),
  rule("(UPDATE|DELETE) .+", (verb) => ({ _tag: "Write", commandTag: `${verb!.toUpperCase()} 1` }))
]

/** One statement, without its `;`. */
export const parse = (sql: string): Result.Result<Statement, ServerError> => {
  const text = sql
    .replaceAll(/\/\*.*?\*\//gs, " ")
    .trim()
    .replace(/;$/, "")
    .trim()
  if (text === "") return Result.succeed({ _tag: "Empty" })
  for (const [pattern, statement] of rules) {
    const match = pattern.exec(text)
    if (match !== null) return Result.succeed(statement(...match.slice(1)))
  }
  return Result.fail(error("42601", `syntax error at or near "${/^\S*/.exec(text)![0]}"`))
}

/** Unquoted names are folded to lower case. */
const identifier = (text: string): string =>
  text.startsWith('"') ? text.slice(1, -1).replaceAll('""', '"') : text.toLowerCase()

const setting = (name: string, written: string, scope: string | undefined): Statement => {
  const local = scope?.toUpperCase() === "LOCAL"
  if (/^DEFAULT$/i.test(written)) return { _tag: "Set", name, value: null, local, reset: false }
  const values = (written.match(/'(?:[^']|'')*'|"(?:[^"]|"")*"|[^,\s'"]+/g) ?? []).map((value) =>
    value.startsWith("'") ? value.slice(1, -1).replaceAll("''", "'") : identifier(value)
  )
  // The one setting here whose value is a list of names: PostgreSQL quotes each, whichever quotes it came in.
  const quote = name.toLowerCase() === "search_path" ? quoteWhereNeeded : (value: string) => value
  return { _tag: "Set", name, value: values.map(quote).join(", "), local, reset: false }
}

const quoteWhereNeeded = (name: string): string =>
  /^[a-z_][a-z0-9_]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`
