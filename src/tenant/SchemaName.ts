/**
 * What can name a tenant's schema, and so may stand in `source_schema` and in a client's `schema_search_path`.
 *
 * The name ends up as one quoted identifier in `SET search_path`, so the rule keeps out what PostgreSQL would read as
 * something else than this one schema. Whether the schema exists is not asked.
 */

/** `NAMEDATALEN - 1`. PostgreSQL cuts a longer name, and two tenants would then have one schema. */
const maxBytes = 63

/** Null where `name` can name a tenant's schema, else why not, as the end of a sentence; `name` is not in it. */
export const check = (name: string): string | null => {
  if (name === "") return "it is empty"
  if (name.includes("\0")) return "it contains a NUL character"
  if (!name.isWellFormed()) return "it is not valid Unicode"
  const bytes = Buffer.byteLength(name)
  if (bytes > maxBytes) return `it has ${bytes} bytes in UTF-8, and PostgreSQL cuts names after ${maxBytes}`
  if (name === "$user") return "$user stands for the role's own schema, even when quoted"
  if (name.startsWith("pg_")) return "names that start with pg_ are PostgreSQL's own"
  return null
}
