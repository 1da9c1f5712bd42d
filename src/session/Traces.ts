/**
 * What a lease may have left on its connection, as far as texts, tags and reports tell: which questions the server is to be
 * asked before the connection is lent on. A hint alone, for asking costs a millisecond; the server's answer decides
 * (pool/Inspection).
 *
 * What no text or tag shows (a function that sets something behind a plain SELECT) stays within its tenant: a tenant switch
 * forgets everything. Pure bookkeeping.
 */
import { indexOfNul } from "../protocol/Frame.ts"
import { CommandTags, type CommandTag } from "./CommandTags.ts"
import { bare, isPlain, MAX_TEXT_LENGTH } from "./SqlText.ts"

/** Settings with a dot in their name that one client may make: each is asked for by name. */
const MAX_CUSTOM_NAMES = 100

/** What a statement's text says of what it may do. */
export interface Hint {
  readonly settings: boolean
  readonly holds: boolean
  readonly customNames: ReadonlyArray<string>
  /** It is one SET LOCAL, SET TRANSACTION or SET CONSTRAINTS and nothing else: its tag is no trace. */
  readonly setsLocally: boolean
}

export const noHint: Hint = { settings: false, holds: false, customNames: [], setsLocally: false }
/** Of a text that is too long to be looked through. */
export const anyHint: Hint = { settings: true, holds: true, customNames: [], setsLocally: false }

const telltale = /advisory_(?!xact_)|set_config|\btemp|pg_temp|(?:^|[;/\r\n])[^\S\r\n]*set\s/i
const holding = /advisory_(?!xact_)|\btemp|pg_temp/i
/** The blanks are PostgreSQL's: it takes a no-break space for a letter. */
const localSet = /^\s*set\s+(?:local|transaction|constraints)[ \t-\r]/i
const oneStatement = /^[^;]*(?:;\s*)?$/
/** The usual `set_config('app.user', $1, true)`, which ends with its transaction. */
const localConfig = /set_config\s*\(\s*'[^']*'\s*,\s*(?:'[^']*'|\$\d+(?:\s*::\s*\w+)?)\s*,\s*true\s*\)/gi
const customName = String.raw`("?[a-z_][\w$]*"?(?:\s*\.\s*"?[\w$]+"?)+)`
const customSet = new RegExp(String.raw`(?:^|;)\s*set\s+(?:session\s+)?${customName}`, "gi")
const customConfig = new RegExp(String.raw`set_config\s*\(\s*e?'${customName}'`, "gi")
const sets = /(?:^|;)\s*set\s/i

export const hintOf = (text: string): Hint => {
  if (text.length > MAX_TEXT_LENGTH) return anyHint
  if (!telltale.test(text)) return noHint
  const said = bare(text, "with literals")
  const settings = /set_config/i.test(said.replaceAll(localConfig, ""))
  const holds = holding.test(said)
  // Of the text as it came: what was taken for a comment may be none.
  const setsLocally = localSet.test(said) && oneStatement.test(text)
  if (!settings && !holds && !setsLocally && !sets.test(said) && !/set_config/i.test(said)) return noHint
  const names = [...said.matchAll(customSet), ...said.matchAll(customConfig)]
  const customNames = names.map(([, name = ""]) => name.replaceAll(/[\s"]/g, ""))
  return { settings, holds, customNames, setsLocally }
}

/** The same of a text that lies at `from` in these bytes and ends with a NUL, or before `end`. */
export const hintOfBytes = (bytes: Buffer, from: number, end: number): Hint => {
  if (isPlain(bytes, from, end)) return noHint
  const textEnd = indexOfNul(bytes, from, end)
  return hintOf(bytes.toString("latin1", from, textEnd === -1 ? end : textEnd))
}

const noNames: ReadonlySet<string> = new Set()

export class Traces {
  settings = false
  holds = false
  /** For as long as the client lives. */
  customNames: ReadonlySet<string> = noNames
  /** How often settings may have changed in this lease: a statement parsed under one is not what it is under another. */
  changes = 0

  get any(): boolean {
    return this.settings || this.holds
  }

  /** The connection has been asked, or goes. */
  clear(): void {
    this.settings = false
    this.holds = false
  }

  /** A statement with this text is sent, or one that was prepared is used. */
  onStatement(hint: Hint): void {
    if (hint === noHint) return
    this.changes++
    if (hint.settings) this.settings = true
    if (hint.holds) this.holds = true
    for (const name of hint.customNames) {
      const key = name.toLowerCase()
      if (this.customNames.has(key) || this.customNames.size >= MAX_CUSTOM_NAMES) continue
      this.customNames = new Set(this.customNames).add(key)
    }
  }

  onCommand(tag: CommandTag): void {
    if (tag !== CommandTags.harmless && tag !== CommandTags.other) this.changes++
    switch (tag) {
      case CommandTags.harmless:
        return
      case CommandTags.set:
      case CommandTags.reset:
        this.settings = true
        return
      case CommandTags.anything:
        this.settings = true
        this.holds = true
        return
      default:
        this.holds = true
    }
  }

  /** A setting that the server reports has changed. */
  onReport(): void {
    this.changes++
    this.settings = true
  }
}
