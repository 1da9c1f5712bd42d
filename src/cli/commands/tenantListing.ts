/**
 * What `tenant list` prints: the rows, what keeps a row's clients out, and which tenants share a role.
 *
 * Pure. The rows' values are somebody's input: a control character in one cannot reach the terminal.
 */
import * as Result from "effect/Result"
import { displayWidth } from "effect/cli/CliOutput"
import * as Address from "../../net/Address.ts"
import * as SchemaName from "../../tenant/SchemaName.ts"
import type { ListedRow } from "./AuthTable.ts"

export type Listing = "json" | "text"

/** Tenants that log in to the same destination as the same role: PostgreSQL takes them for one. */
export interface SharedRole {
  readonly destHost: string
  readonly destDb: string
  readonly destUser: string
  /** Two or more. */
  readonly tenants: number
}

export const sharedRoles = (rows: ReadonlyArray<ListedRow>): ReadonlyArray<SharedRole> => {
  const roles = new Map<string, SharedRole>()
  for (const { destDb, destHost, destUser } of rows) {
    if (destHost === null || destDb === null || destUser === null) continue
    const key = JSON.stringify([destHost, destDb, destUser])
    roles.set(key, { destHost, destDb, destUser, tenants: (roles.get(key)?.tenants ?? 0) + 1 })
  }
  return Array.from(roles.values()).filter(({ tenants }) => tenants > 1)
}

/** Why nobody can log in by this row; empty for a row that is complete. */
const problemsOf = (row: ListedRow): ReadonlyArray<string> => {
  const schema = row.sourceSchema === null ? null : SchemaName.check(row.sourceSchema)
  const host = row.destHost === null ? undefined : Result.getFailure(Address.parseDestHost(row.destHost))
  return [
    ...row.nullColumns.map((column) => `${column} is NULL`),
    ...(schema === null ? [] : [`source_schema: ${schema}`]),
    ...(host?._tag === "Some" ? [`dest_host: ${host.value}`] : [])
  ]
}

/** All rows, as a table for people or as JSON. */
export const listing = (rows: ReadonlyArray<ListedRow>, format: Listing): string =>
  format === "json" ? asJson(rows) : asText(rows)

const asJson = (rows: ReadonlyArray<ListedRow>): string =>
  JSON.stringify(
    {
      tenants: rows.map((row) => ({
        id: row.id,
        source_db: row.sourceDb,
        source_schema: row.sourceSchema,
        source_user: row.sourceUser,
        dest_host: row.destHost,
        dest_db: row.destDb,
        dest_user: row.destUser,
        problems: problemsOf(row)
      })),
      shared_roles: sharedRoles(rows).map((role) => ({
        dest_host: role.destHost,
        dest_db: role.destDb,
        dest_user: role.destUser,
        tenants: role.tenants
      }))
    },
    null,
    2
  )

const headings = ["source_db", "source_schema", "source_user", "dest_host", "dest_db", "dest_user", "problems"]

const asText = (rows: ReadonlyArray<ListedRow>): string => {
  if (rows.length === 0) return "no tenants"
  const cells = rows.map((row) =>
    [
      row.sourceDb,
      row.sourceSchema,
      row.sourceUser,
      row.destHost,
      row.destDb,
      row.destUser,
      problemsOf(row).join("; ")
    ].map((value) => printable(value ?? "NULL"))
  )
  const shared = sharedRoles(rows)
  return [
    ...align([headings, ...cells]),
    ...(shared.length === 0 ? [] : ["", "Tenants that share a role; inside PostgreSQL nothing keeps them apart:"]),
    ...shared.map(
      ({ destDb, destHost, destUser, tenants }) =>
        `  ${printable(`${destUser} on ${destHost}/${destDb}`)}: ${tenants} tenants`
    )
  ].join("\n")
}

const printable = (text: string): string =>
  text.replaceAll(/\p{Cc}/gu, (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, "0")}`)

const align = (lines: ReadonlyArray<ReadonlyArray<string>>): ReadonlyArray<string> => {
  const widths = headings.map((_, column) => Math.max(...lines.map((line) => displayWidth(line[column] ?? ""))))
  const pad = (cell: string, column: number) => cell + " ".repeat((widths[column] ?? 0) - displayWidth(cell))
  return lines.map((line) => line.map(pad).join("  ").trimEnd())
}
