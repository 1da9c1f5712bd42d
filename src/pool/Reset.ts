/**
 * What a server connection must forget and what it must take on before it serves somebody else: the tenant switch.
 *
 * Pure: builds bytes. Nothing of a tenant reaches SQL but as a quoted identifier, or as a literal that reads the same under any
 * `standard_conforming_strings`.
 *
 * Why these messages in this order (each seen on a real server):
 * - `RESET ALL` has a Sync of its own: a tenant's leftover `statement_timeout=1` must not be able to break what follows.
 * - `DISCARD ALL` is the first of its batch: elsewhere it "cannot be executed within a pipeline".
 * - all else shares its batch, so that a failure skips the rest; separate Query messages would go on.
 * - `client_encoding` comes near the end, for all before it is written in UTF-8.
 */
import { createHash } from "node:crypto"
import { runUnnamed, sync } from "../protocol/Frontend.ts"

/** What a client asked for at startup, beside its path: canonical, so that two equal ones have one key. */
export interface ClientSettings {
  readonly key: string
  /** Lower-case names, sorted, those at the end that are in the way of others. */
  readonly list: ReadonlyArray<readonly [name: string, value: string]>
}

export const noSettings: ClientSettings = { key: "", list: [] }

/**
 * In this order they are set: under another role the others may not be allowed, in another encoding not be read, and under a
 * timeout of 1 ms not be done.
 */
const rank = (name: string): number => setLast.indexOf(name)
const setLast = ["session_authorization", "role", "client_encoding", "statement_timeout"]

/** A setting may be of any length, and its key stands in many places. */
const keyOf = (text: string): string => (text.length < 128 ? text : createHash("sha256").update(text).digest("base64"))

/** Parameter names are not case-sensitive; of two values for one name the later holds. */
export const clientSettings = (given: Iterable<readonly [name: string, value: string]>): ClientSettings => {
  const byName = new Map<string, string>()
  for (const [name, value] of given) byName.set(name.toLowerCase(), value)
  if (byName.size === 0) return noSettings
  const list = [...byName].sort(([a], [b]) => rank(a) - rank(b) || (a < b ? -1 : 1))
  return { key: keyOf(JSON.stringify(list)), list }
}

/** A schema's name as SQL: always quoted, so that no name can be a keyword, a list or anything else. */
export const quoteIdentifier = (name: string): string => `"${name.replaceAll('"', '""')}"`

/** The same whatever `standard_conforming_strings` says, which is a client's to set: a backslash is always written as E'\\\\'. */
export const quoteLiteral = (value: string): string => {
  const quoted = `'${value.replaceAll("'", "''")}'`
  return value.includes("\\") ? `E${quoted.replaceAll("\\", "\\\\")}` : quoted
}

/** A path as one value: what the startup packet carries, and what the server reports. */
const pathList = (schemas: ReadonlyArray<string>): string => schemas.map(quoteIdentifier).join(", ")

/** What a connection's startup packet carries beside user and database: what RESET and DISCARD return to. */
export type Floor = ReadonlyArray<readonly [name: string, value: string]>

/**
 * Under every shared connection: startup values outrank `ALTER ROLE … SET`. Whatever goes wrong falls to no schema at all,
 * never to a neighbour's.
 */
export const safeFloor: Floor = [
  ["role", "none"],
  ["search_path", ""],
  ["standard_conforming_strings", "on"],
  ["client_encoding", "UTF8"]
]

/** Under the connection of a client in session mode: its own path and settings. */
export const sessionFloor = (path: ReadonlyArray<string>, settings: ClientSettings): Floor => [
  ["role", "none"],
  ["search_path", pathList(path)],
  ...settings.list
]

const setPath = (schemas: ReadonlyArray<string>): Buffer => runUnnamed(`SET search_path = ${pathList(schemas)}`)

/** A literal for one of these is one name; what a client gave for it at startup, and what the server shows, is a list. */
const namesLists = /^(search_path|temp_tablespaces|local_preload_libraries|session_preload_libraries)$/

const set = ([name, value]: readonly [string, string]): Buffer =>
  runUnnamed(
    namesLists.test(name)
      ? `SELECT pg_catalog.set_config(${quoteLiteral(name)}, ${quoteLiteral(value)}, false)`
      : `SET ${quoteIdentifier(name)} = ${quoteLiteral(value)}`
  )

const reset = (name: string): Buffer => runUnnamed(`RESET ${quoteIdentifier(name)}`)

/** One conversation with the server: bytes to write, and how many ReadyForQuery end it. */
export interface Conversation {
  readonly bytes: Buffer
  readonly readyForQueries: number
  /**
   * How many commands must be complete before each ReadyForQuery, where none failed. Answers that do not fit are another's:
   * one that was counted wrongly must not pass for the success of a switch.
   */
  readonly commands: ReadonlyArray<number>
  /** Behind so many commands in all come the client's own settings, which alone the server may refuse for reasons of its. */
  readonly settingsFrom?: number
  /** Behind it nothing of an earlier session is left. */
  readonly forgets?: true
  /** Told the body of each DataRow. */
  readonly onRow?: (row: Buffer) => void
  /** Told the body of each NotificationResponse. */
  readonly onNotification?: (body: Buffer) => void
}

const forget = Buffer.concat([runUnnamed("RESET ALL"), sync, runUnnamed("DISCARD ALL")])

/** For a connection that comes back with more on it than settings: its locks and channels must not outlive their client. */
export const forgetAll: Conversation = {
  bytes: Buffer.concat([forget, sync]),
  readyForQueries: 2,
  commands: [1, 1],
  forgets: true
}

/** What is written next must be read as UTF-8, and by a role that may do what it says. */
const asOurselves = ["SET client_encoding = 'UTF8'", "SET SESSION AUTHORIZATION DEFAULT", "SET ROLE NONE"].map(
  runUnnamed
)

/** The path and the settings again, on a connection that keeps all else: its client may have changed them. */
export const restore = (path: ReadonlyArray<string>, settings: ClientSettings): Conversation => ({
  bytes: Buffer.concat([...asOurselves, setPath(path), ...settings.list.map(set), sync]),
  readyForQueries: 1,
  commands: [asOurselves.length + 1 + settings.list.length]
})

/** All of it, from whatever state: for another tenant, or where the state is not known. `path` has at least one schema. */
export const switchTo = (path: ReadonlyArray<string>, settings: ClientSettings): Conversation => ({
  bytes: Buffer.concat([forget, setPath(path), ...settings.list.map(set), sync]),
  readyForQueries: 2,
  commands: [1, 2 + settings.list.length],
  settingsFrom: 3,
  forgets: true
})

/** Another role may not be allowed to set what the next one wants, and a path is not reset to the tenant's: all is set anew. */
export const needSwitch = (from: ClientSettings, to: ClientSettings): boolean =>
  roleAndPath(from) !== roleAndPath(to) || (roleAndPath(to) !== "[]" && from.key !== to.key)

const roleAndPath = ({ list }: ClientSettings): string =>
  JSON.stringify(list.filter(([name]) => name === "role" || name === "session_authorization" || name === "search_path"))

/**
 * Only what differs, for a connection of this tenant whose state is known. What is sent is UTF-8, so a `client_encoding` of the
 * client before is put off first, and that of the next one on last.
 */
export const differences = (from: ClientSettings, to: ClientSettings): Conversation => {
  const before = new Map(from.list)
  const wanted = new Map(to.list)
  const resets = from.list.filter(([name]) => name === "client_encoding" || !wanted.has(name))
  const sets = to.list.filter(([name, value]) => name === "client_encoding" || before.get(name) !== value)
  const putOff = resets.toSorted(([a], [b]) => rank(b) - rank(a)).map(([name]) => reset(name))
  return {
    bytes: Buffer.concat([...putOff, ...sets.map(set), sync]),
    readyForQueries: 1,
    commands: [putOff.length + sets.length],
    settingsFrom: putOff.length
  }
}
