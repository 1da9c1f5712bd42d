/**
 * What a server connection must forget and what it must take on before it serves somebody else: the tenant switch.
 *
 * Pure: builds bytes. Nothing of a tenant reaches SQL but as a quoted identifier or a literal without escapes, and every
 * literal is read under `standard_conforming_strings=on`, which the startup packet has fixed as what RESET returns to.
 *
 * Why these messages in this order (each seen on a real server):
 * - `RESET ALL` has a Sync of its own: a tenant's leftover `statement_timeout=1` must not be able to break what follows.
 * - `DISCARD ALL` is the first of its batch: elsewhere it "cannot be executed within a pipeline".
 * - all else shares its batch, so that a failure skips the rest; separate Query messages would go on.
 * - `client_encoding` comes last, for all before it is written in UTF-8.
 */
import { runUnnamed, sync } from "../protocol/Frontend.ts"

/** What a client asked for at startup, beside its path: canonical, so that two equal ones have one key. */
export interface ClientSettings {
  readonly key: string
  /** Lower-case names, sorted, `client_encoding` last. */
  readonly list: ReadonlyArray<readonly [name: string, value: string]>
}

export const noSettings: ClientSettings = { key: "", list: [] }

/** Parameter names are not case-sensitive; of two values for one name the later holds. */
export const clientSettings = (given: Iterable<readonly [name: string, value: string]>): ClientSettings => {
  const byName = new Map<string, string>()
  for (const [name, value] of given) byName.set(name.toLowerCase(), value)
  if (byName.size === 0) return noSettings
  const rank = (name: string) => (name === "client_encoding" ? 1 : 0)
  const list = [...byName].sort(([a], [b]) => rank(a) - rank(b) || (a < b ? -1 : 1))
  return { key: JSON.stringify(list), list }
}

/** A schema's name as SQL: always quoted, so that no name can be a keyword, a list or anything else. */
export const quoteIdentifier = (name: string): string => `"${name.replaceAll('"', '""')}"`

/** Correct only under `standard_conforming_strings=on`, where a backslash is a backslash. */
const quoteLiteral = (value: string): string => `'${value.replaceAll("'", "''")}'`

const setPath = (schemas: ReadonlyArray<string>): Buffer =>
  runUnnamed(`SET search_path = ${schemas.map(quoteIdentifier).join(", ")}`)

const set = ([name, value]: readonly [string, string]): Buffer =>
  runUnnamed(`SET ${quoteIdentifier(name)} = ${quoteLiteral(value)}`)

const reset = (name: string): Buffer => runUnnamed(`RESET ${quoteIdentifier(name)}`)

/** One conversation with the server: bytes to write, and how many ReadyForQuery end it. */
export interface Conversation {
  readonly bytes: Buffer
  readonly readyForQueries: number
}

const forget = Buffer.concat([runUnnamed("RESET ALL"), sync, runUnnamed("DISCARD ALL")])

/** All of it, from whatever state: for another tenant, or where the state is not known. `path` has at least one schema. */
export const switchTo = (path: ReadonlyArray<string>, settings: ClientSettings): Conversation => ({
  bytes: Buffer.concat([forget, setPath(path), ...settings.list.map(set), sync]),
  readyForQueries: 2
})

/** Only what differs, for a connection of this tenant whose state is known. */
export const differences = (from: ClientSettings, to: ClientSettings): Conversation => {
  const before = new Map(from.list)
  const wanted = new Set(to.list.map(([name]) => name))
  const resets = from.list.filter(([name]) => !wanted.has(name)).map(([name]) => reset(name))
  const sets = to.list.filter(([name, value]) => before.get(name) !== value).map(set)
  return { bytes: Buffer.concat([...resets, ...sets, sync]), readyForQueries: 1 }
}
