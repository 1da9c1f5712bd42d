/**
 * What a lease may have left on its connection, as far as texts, tags and reports tell: which questions the server is to be
 * asked before the connection is lent on. A hint alone, for asking costs a millisecond; the server's answer decides
 * (pool/Inspection).
 *
 * What no text or tag shows (a function that sets something behind a plain SELECT) stays within its tenant: a tenant switch
 * forgets everything. Pure bookkeeping.
 */
import { CommandTags, type CommandTag } from "./CommandTags.ts"

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

/** One look at each text: 0.1 µs where there is nothing. */
const telltale = /advisory_(?!xact_)|set_config|\btemp|pg_temp|(?:^|;)\s*set\s/i
const holding = /advisory_(?!xact_)|\btemp|pg_temp/i
const localSet = /^\s*set\s+(?:local|transaction|constraints)\s[^;]*;?\s*$/i
/** The usual `set_config('app.user', $1, true)`, which ends with its transaction. */
const localConfig = /set_config\s*\(\s*'[^']*'\s*,\s*(?:'[^']*'|\$\d+(?:\s*::\s*\w+)?)\s*,\s*true\s*\)/gi
const customSet =
  /(?:^|;)\s*set\s+(?:session\s+)?"?([a-z_][\w$]*(?:\.[\w$]+)+)|set_config\s*\(\s*'([a-z_][\w$]*(?:\.[\w$]+)+)'/gi

export const hintOf = (text: string): Hint => {
  if (!telltale.test(text)) return noHint
  return {
    settings: /set_config/i.test(text.replaceAll(localConfig, "")),
    holds: holding.test(text),
    customNames: Array.from(text.matchAll(customSet), ([, set, config]) => set ?? config ?? ""),
    setsLocally: localSet.test(text)
  }
}

export class Traces {
  settings = false
  holds = false
  /** For as long as the client lives. */
  readonly customNames = new Set<string>()
  #localSets = 0

  get any(): boolean {
    return this.settings || this.holds
  }

  /** The connection has been asked, or goes. */
  clear(): void {
    this.settings = false
    this.holds = false
    this.#localSets = 0
  }

  /** A statement with this text is sent, or one that was prepared is used. */
  onStatement(hint: Hint): void {
    if (hint === noHint) return
    if (hint.settings) this.settings = true
    if (hint.holds) this.holds = true
    for (const name of hint.customNames) {
      if (this.customNames.size < MAX_CUSTOM_NAMES) this.customNames.add(name.toLowerCase())
    }
  }

  /** A simple Query with this text is sent: what its tag tells is known before. */
  onQuery(hint: Hint): void {
    this.onStatement(hint)
    if (hint.setsLocally) this.#localSets++
  }

  onCommand(tag: CommandTag): void {
    switch (tag) {
      case CommandTags.harmless:
        return
      case CommandTags.set:
        if (this.#localSets > 0) this.#localSets--
        else this.settings = true
        return
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
    this.settings = true
  }

  /** What was to come locally may not come: the tags behind it are believed no more. */
  onError(): void {
    this.#localSets = 0
  }
}
