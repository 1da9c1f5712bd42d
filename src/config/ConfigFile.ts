/**
 * `config.json` on disk, with `PERSEUS_*` environment variables above it, decoded.
 *
 * The environment is handed in, never read from the process. A file that is missing, not JSON, or not a configuration
 * is one `ConfigInvalid` that lists everything wrong with it and repeats none of its content.
 */
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import type { PlatformError } from "effect/PlatformError"
import * as Result from "effect/Result"
import { ConfigInvalid } from "../errors.ts"
import { decode, type Override } from "./Decode.ts"
import { parseJsonc } from "./Jsonc.ts"
import { type PerseusConfig, type Setting, settings } from "./PerseusConfig.ts"
import { didYouMean } from "./Spelling.ts"

export type Environment = Readonly<Record<string, string | undefined>>

/** Go's strconv.ParseBool. */
const BOOLEANS = new Map([
  ...["1", "t", "T", "TRUE", "true", "True"].map((text) => [text, true] as const),
  ...["0", "f", "F", "FALSE", "false", "False"].map((text) => [text, false] as const)
])

/** Decimal only: Go also reads 0x10, and takes 010 for 8, which few who write it mean. */
const INTEGER = /^[+-]?(?:0|[1-9]\d*)$/

/** What `text` means for a key of that kind; text that means nothing stays text, and the decoder names its variable. */
const fromText = (kind: Setting["kind"], text: string): string | number | boolean => {
  if (kind === "integer" && INTEGER.test(text)) return Number(text)
  if (kind === "boolean") return BOOLEANS.get(text) ?? text
  return text
}

/** What the environment sets above the file. A variable that is set but empty counts: it blanks a string. */
export const overridesFrom = (env: Environment): ReadonlyArray<Override> =>
  settings.flatMap(({ kind, path, variable }) => {
    const text = variable === undefined ? undefined : env[variable]
    return variable === undefined || text === undefined ? [] : [{ path, value: fromText(kind, text), source: variable }]
  })

/** One line for each `PERSEUS_*` variable that sets nothing: a mistyped name, or a key that only the file can have. */
export const unknownVariables = (env: Environment): ReadonlyArray<string> => {
  const known = settings.flatMap(({ variable }) => variable ?? [])
  return Object.keys(env)
    .filter((name) => name.startsWith("PERSEUS_") && env[name] !== undefined && !known.includes(name))
    .sort()
    .map((name) => `${name} sets no configuration key${didYouMean(name, known)}`)
}

const whyUnreadable = (error: PlatformError): string => {
  switch (error.reason._tag) {
    case "NotFound":
      return "the file does not exist"
    case "PermissionDenied":
      return "the file may not be read: permission denied"
    default:
      return `the file cannot be read (${error.reason._tag})`
  }
}

/** Reads, overrides and decodes; fails with a `ConfigInvalid` whose `source` is the path. Unknown variables are logged. */
export const load = Effect.fn("ConfigFile.load")(function* (options: {
  readonly path: string
  readonly env: Environment
}): Effect.fn.Return<PerseusConfig, ConfigInvalid, FileSystem.FileSystem> {
  const invalid = (problems: ReadonlyArray<string>) => new ConfigInvalid({ source: options.path, problems })
  const fileSystem = yield* FileSystem.FileSystem
  const text = yield* fileSystem
    .readFileString(options.path)
    .pipe(Effect.mapError((error) => invalid([whyUnreadable(error)])))
  const config = parseJsonc(text).pipe(
    Result.mapError((mistake) => [mistake]),
    Result.flatMap((file) => decode(file, overridesFrom(options.env))),
    Result.mapError(invalid)
  )
  yield* Effect.forEach(unknownVariables(options.env), (line) => Effect.logWarning(line), { discard: true })
  return yield* Effect.fromResult(config)
})
