/**
 * Which build this is: the version from `package.json`, the commit and the date from whoever built or starts it.
 *
 * Read once at start. Build data is for people who look for a fault, so what is missing or damaged becomes "unknown" and
 * never keeps the service from starting. The environment is not read here: `main.ts` hands in what it found there.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { readFileSync } from "node:fs"
import { version as nodeVersion } from "node:process"

/** The fields of `/health`, by the names that monitoring knows. */
export interface BuildInfo {
  readonly commit_hash: string
  readonly build_version: string
  /** As the build wrote it; ISO 8601 by custom. */
  readonly build_date: string
  /** "v26.10.0" */
  readonly node_version: string
}

/** What is known from outside, such as environment variables of a container image. Blank counts as absent. */
export interface GivenBuild {
  readonly commit_hash?: string | undefined
  readonly build_date?: string | undefined
}

const Package = Schema.Struct({ version: Schema.String })

/** `build.json`, which the build script may write beside the compiled modules. */
const Build = Schema.Struct({
  commit_hash: Schema.optionalKey(Schema.String),
  build_date: Schema.optionalKey(Schema.String)
})

const firstKnown = (...values: ReadonlyArray<string | undefined>): string =>
  values.find((value) => value !== undefined && value.trim() !== "") ?? "unknown"

/** None: absent, unreadable, not JSON, or of another shape. */
const read = <A>(schema: Schema.ConstraintDecoder<A>, file: URL): Option.Option<A> => {
  try {
    return Schema.decodeUnknownOption(Schema.fromJsonString(schema))(readFileSync(file, "utf8"))
  } catch {
    return Option.none()
  }
}

/**
 * `given` outranks `build.json` in `directory`; the version comes from `package.json` one level above it. By default
 * that is where this module lies, `src` or `dist`.
 */
export const readBuildInfo = (
  given: GivenBuild = {},
  directory: URL = new URL(".", import.meta.url)
): Effect.Effect<BuildInfo> =>
  Effect.sync(() => {
    const build = Option.getOrUndefined(read(Build, new URL("build.json", directory)))
    const manifest = Option.getOrUndefined(read(Package, new URL("../package.json", directory)))
    return {
      commit_hash: firstKnown(given.commit_hash, build?.commit_hash),
      build_version: firstKnown(manifest?.version),
      build_date: firstKnown(given.build_date, build?.build_date),
      node_version: nodeVersion
    }
  })
