/**
 * The log: one line for each event, for people or as JSON, to a sink that is handed in.
 *
 * The level is read at each line, so a reload acts at once. Annotations are the line's fields. An error shows its tag
 * and message; only a defect, which is a fault of this program, shows its stack. What is `Redacted` stays so. A value
 * that a client or a server chose can neither begin a line of its own nor send an escape sequence to a terminal. A value
 * that cannot be printed costs that value, never the line: a log call does not throw.
 */
import * as Cause from "effect/Cause"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as LogLevel from "effect/LogLevel"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import { LiveConfig } from "../config/LiveConfig.ts"
import type { LogSettings } from "../config/PerseusConfig.ts"

/** Where lines go; `write` gets one whole line with its newline. `process.stdout` is one. */
export interface Sink {
  readonly write: (line: string) => unknown
}

/** One event, as Effect hands it to a logger. */
export interface LogEntry {
  readonly date: Date
  readonly level: LogLevel.LogLevel
  readonly message: ReadonlyArray<unknown>
  readonly annotations: Readonly<Record<string, unknown>>
  readonly cause: Cause.Cause<unknown>
}

// ---------------------------------------------------------------------------------------------------------------------
// Values
// ---------------------------------------------------------------------------------------------------------------------

type Json = string | number | boolean | null | ReadonlyArray<Json> | { readonly [key: string]: Json }

/** A property's value, or undefined where even asking fails. */
const read = (owner: unknown, key: string): unknown => {
  try {
    return Reflect.get(Object(owner), key)
  } catch {
    return undefined
  }
}

/** The tag of a typed failure, or an error's name, and what it says of itself. Nothing else that it carries. */
const errorText = (error: unknown): string => {
  if (typeof error === "string") return error
  const tag = [read(error, "_tag"), read(error, "name")].find((name) => typeof name === "string") ?? typeof error
  const message = read(error, "message")
  return typeof message === "string" && message !== "" ? `${tag}: ${message}` : String(tag)
}

/** For JSON.stringify, which has already called `toJSON`: on an Error, that would print all of its fields. */
function replacer(this: unknown, key: string, value: unknown): unknown {
  const original = read(this, key)
  if (original instanceof Error) return errorText(original)
  if (Redacted.isRedacted(original)) return String(original)
  return typeof value === "bigint" ? String(value) : value
}

/** `value` as data that JSON can hold. */
const plain = (value: unknown): Json => {
  if (typeof value === "string" || typeof value === "boolean") return value
  try {
    const json = JSON.stringify({ value }, replacer)
    return json === "{}" ? typeof value : JSON.parse(json).value
  } catch {
    return "<unprintable>"
  }
}

/** Line ends, escape sequences, and marks that turn the direction of reading: all that makes a line other than it is. */
const UNSAFE = /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/gu

const escapeUnsafe = (text: string): string =>
  text.replace(UNSAFE, (character) => {
    const escaped = JSON.stringify(character).slice(1, -1)
    return escaped === character ? `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}` : escaped
  })

// ---------------------------------------------------------------------------------------------------------------------
// Lines
// ---------------------------------------------------------------------------------------------------------------------

const messageText = (message: ReadonlyArray<unknown>): string =>
  message
    .map(plain)
    .map((part) => (typeof part === "string" ? part : JSON.stringify(part)))
    .join(" ")

const causeFields = (cause: Cause.Cause<unknown>): Record<string, Json> => {
  const errors = cause.reasons.flatMap((reason) => {
    if (Cause.isFailReason(reason)) return [errorText(reason.error)]
    return Cause.isDieReason(reason) ? [errorText(reason.defect)] : []
  })
  const stacks = cause.reasons
    .filter(Cause.isDieReason)
    .map(({ defect }) => read(defect, "stack"))
    .filter((stack) => typeof stack === "string")
  if (cause.reasons.length === 0) return {}
  return {
    error: errors.length === 0 ? "interrupted" : errors.join("; "),
    ...(stacks.length === 0 ? {} : { stack: stacks.join("\n") })
  }
}

const RESERVED = new Set(["time", "level", "message", "error", "stack"])

const annotationFields = (annotations: LogEntry["annotations"]): Record<string, Json> =>
  Object.fromEntries(
    Object.entries(annotations)
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => [RESERVED.has(name) ? `${name}_` : name, plain(value)])
  )

const fieldText = ([name, value]: readonly [string, Json]): string => {
  const isBare = typeof value === "string" && /^[^\s"=\\]+$/.test(value)
  return `${name}=${isBare ? value : JSON.stringify(value)}`
}

/**
 * One line, without its newline. JSON: an object of `time`, `level`, `message`, the annotations, and for a cause `error`
 * and perhaps `stack`; an annotation of one of these names gets a `_` behind it. Otherwise
 * `2026-11-23T19:07:12.345Z INFO  message name=value name="a value"`.
 */
export const formatLine = (entry: LogEntry, json: boolean): string => {
  const time = entry.date.toISOString()
  const level = entry.level.toUpperCase()
  const message = messageText(entry.message)
  const fields = { ...annotationFields(entry.annotations), ...causeFields(entry.cause) }
  return escapeUnsafe(
    json
      ? JSON.stringify({ time, level, message, ...fields })
      : [time, level.padEnd(5), message, ...Object.entries(fields).map(fieldText)].join(" ")
  )
}

// ---------------------------------------------------------------------------------------------------------------------
// The logger
// ---------------------------------------------------------------------------------------------------------------------

const THRESHOLDS = {
  DEBUG: LogLevel.getOrdinal("Debug"),
  INFO: LogLevel.getOrdinal("Info"),
  WARN: LogLevel.getOrdinal("Warn"),
  ERROR: LogLevel.getOrdinal("Error")
}

/**
 * Makes the logger of this file the only one, with settings asked for at each line. For what is logged before there is
 * a configuration; else `layer`.
 */
export const layerWith = (sink: Sink, settings: () => LogSettings): Layer.Layer<never> =>
  Layer.merge(
    Logger.layer([
      Logger.make<unknown, void>(({ cause, date, fiber, logLevel, message }) => {
        const { Json, Level } = settings()
        if (LogLevel.getOrdinal(logLevel) < THRESHOLDS[Level]) return
        const annotations = fiber.getRef(References.CurrentLogAnnotations)
        const parts = Array.isArray(message) ? message : [message]
        sink.write(`${formatLine({ date, level: logLevel, message: parts, annotations, cause }, Json)}\n`)
      })
    ]),
    // Effect drops what is below this before any logger sees it, and its default is Info.
    Layer.succeed(References.MinimumLogLevel, "Debug")
  )

/** The log as `LogSettings` of the configuration in force has it. */
export const layer = (sink: Sink): Layer.Layer<never, never, LiveConfig> =>
  Layer.unwrap(LiveConfig.useSync((live) => layerWith(sink, () => live.current().LogSettings)))
