/**
 * The run-time settings of one session of the in-memory server: SET, SET LOCAL, RESET, what COMMIT keeps and ROLLBACK takes
 * back, and which of them the server reports of its own accord.
 *
 * Knows the settings that a pooler has to do with, by PostgreSQL 18's names and defaults, and any with a dot in its name.
 * Values are checked only where a test needs a server that refuses one.
 */
import * as Result from "effect/Result"
import { error, type ServerError } from "./ServerError.ts"

type Values = ReadonlyMap<string, string>
/** The value as the server spells it; null for one that it refuses. */
type Check = (value: string) => string | null

interface Known {
  /** As ParameterStatus spells it. */
  readonly name: string
  readonly boot: string
  readonly reported: boolean
  readonly check: Check | null
}

const encodings: Readonly<Record<string, string>> = {
  utf8: "UTF8",
  unicode: "UTF8",
  latin1: "LATIN1",
  sqlascii: "SQL_ASCII",
  win1252: "WIN1252"
}

const encoding: Check = (value) => encodings[value.toLowerCase().replaceAll(/[-_]/g, "")] ?? null

const boolean: Check = (value) => {
  if (/^(on|true|yes|1)$/i.test(value)) return "on"
  return /^(off|false|no|0)$/i.test(value) ? "off" : null
}

const duration: Check = (value) => (durationMs(value) === null ? null : value)

const timeZone: Check = (value) => {
  try {
    Intl.DateTimeFormat("en", { timeZone: value })
    return value
  } catch {
    return null
  }
}

const dateStyle: Check = (value) => {
  const words = value.split(",").map((word) => word.trim().toLowerCase())
  const styles: Readonly<Record<string, string>> = { iso: "ISO", sql: "SQL", postgres: "Postgres", german: "German" }
  const orders: Readonly<Record<string, string>> = { mdy: "MDY", dmy: "DMY", ymd: "YMD" }
  if (!words.every((word) => word in styles || word in orders)) return null
  const style = words.find((word) => word in styles) ?? "iso"
  const order = words.find((word) => word in orders) ?? "mdy"
  return `${styles[style]}, ${orders[order]}`
}

const never: Check = () => null

const reported = (name: string, boot: string, check: Check | null = null): Known => ({
  name,
  boot,
  reported: true,
  check
})
const silent = (name: string, boot: string, check: Check | null = null): Known => ({
  name,
  boot,
  reported: false,
  check
})

const known: ReadonlyMap<string, Known> = new Map(
  [
    reported("application_name", ""),
    reported("client_encoding", "UTF8", encoding),
    reported("DateStyle", "ISO, MDY", dateStyle),
    reported("default_transaction_read_only", "off", boolean),
    reported("in_hot_standby", "off", never),
    reported("integer_datetimes", "on", never),
    reported("IntervalStyle", "postgres"),
    reported("is_superuser", "off", never),
    reported("scram_iterations", "4096"),
    reported("search_path", '"$user", public'),
    reported("server_encoding", "UTF8", never),
    reported("server_version", "18.0", never),
    reported("session_authorization", "", never),
    reported("standard_conforming_strings", "on", boolean),
    reported("TimeZone", "UTC", timeZone),
    silent("client_min_messages", "notice"),
    silent("extra_float_digits", "1"),
    silent("idle_in_transaction_session_timeout", "0", duration),
    silent("lock_timeout", "0", duration),
    silent("role", "none"),
    silent("statement_timeout", "0", duration),
    silent("work_mem", "4MB")
  ].map((setting) => [setting.name.toLowerCase(), setting])
)

/** What PostgreSQL takes for a time without a unit is milliseconds; null for what is none. */
export const durationMs = (value: string): number | null => {
  const match = /^(\d+)\s*(us|ms|s|min|h|d)?$/.exec(value.trim())
  if (match === null) return null
  const units: Readonly<Record<string, number>> = { us: 0.001, ms: 1, s: 1e3, min: 6e4, h: 36e5, d: 864e5 }
  return Number(match[1]) * units[match[2] ?? "ms"]!
}

/** A setting's new value under its lower-case name, or why not. */
const checked = (name: string, value: string): Result.Result<readonly [key: string, value: string], ServerError> => {
  const key = name.toLowerCase()
  const setting = known.get(key)
  if (setting === undefined) return key.includes(".") ? Result.succeed([key, value]) : Result.fail(unrecognized(name))
  if (setting.check === never) return Result.fail(error("55P02", `parameter "${setting.name}" cannot be changed`))
  const canonical = setting.check === null ? value : setting.check(value)
  return canonical === null
    ? Result.fail(error("22023", `invalid value for parameter "${setting.name}": "${value}"`))
    : Result.succeed([key, canonical])
}

const unrecognized = (name: string) => error("42704", `unrecognized configuration parameter "${name}"`)

export class SessionSettings {
  /** What RESET returns to: the startup packet's values above the server's own. */
  readonly #initial: Values
  /** Holds once the transaction is rolled back. */
  #committed: Values
  /** Holds once the transaction is committed. */
  #session: Values
  /** Holds now: as `#session`, but for what was SET LOCAL. */
  #current: Values
  #lastReported: Values = new Map()

  private constructor(initial: Values) {
    this.#initial = initial
    this.#committed = initial
    this.#session = initial
    this.#current = initial
  }

  /** `given`: the startup packet's parameters that are settings. */
  static make(user: string, given: Iterable<readonly [string, string]>): Result.Result<SessionSettings, ServerError> {
    return Result.gen(function* () {
      const initial = new Map([...known].map(([key, { boot }]) => [key, boot]))
      initial.set("session_authorization", user)
      for (const [name, value] of given) initial.set(...(yield* checked(name, value)))
      return new SessionSettings(initial)
    })
  }

  /** The value now; null for a name that the server does not know. */
  get(name: string): string | null {
    return this.#current.get(name.toLowerCase()) ?? null
  }

  /** Those that are other than they were at first, but for the search path. */
  get changed(): ReadonlyArray<readonly [name: string, value: string]> {
    return [...this.#current].filter(
      ([name, value]) => name !== "search_path" && value !== (this.#initial.get(name) ?? "")
    )
  }

  /** Null for the value: DEFAULT, as RESET. */
  set(name: string, value: string | null, local: boolean): Result.Result<void, ServerError> {
    return Result.map(value === null ? this.#initialValue(name) : checked(name, value), ([key, canonical]) => {
      this.#current = new Map(this.#current).set(key, canonical)
      if (!local) this.#session = new Map(this.#session).set(key, canonical)
    })
  }

  /** Settings with a dot stay known, and are empty then. */
  resetAll(): void {
    const reset = new Map([...this.#current.keys()].map((key) => [key, this.#initial.get(key) ?? ""]))
    this.#current = reset
    this.#session = reset
  }

  commit(): void {
    this.#committed = this.#session
    this.#current = this.#session
  }

  rollback(): void {
    this.#session = this.#committed
    this.#current = this.#committed
  }

  /** What has to be reported since this was last asked. */
  takeReports(): ReadonlyArray<readonly [name: string, value: string]> {
    const current = this.#current
    const changed = [...known]
      .filter(([key, setting]) => setting.reported && current.get(key) !== this.#lastReported.get(key))
      .map(([key, { name }]) => [name, current.get(key)!] as const)
    this.#lastReported = current
    return changed
  }

  #initialValue(name: string): Result.Result<readonly [key: string, value: string], ServerError> {
    const key = name.toLowerCase()
    if (!this.#current.has(key) && !key.includes(".")) return Result.fail(unrecognized(name))
    return Result.succeed([key, this.#initial.get(key) ?? ""])
  }
}
