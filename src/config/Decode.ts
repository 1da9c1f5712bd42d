/**
 * From parsed JSON to a `PerseusConfig`, or to all that is wrong with it at once: one line a problem, which begins with
 * the key's path (or the environment variable's name) and says what is allowed. No line holds a rejected value: the one
 * at fault may be a password that stands in the wrong place.
 *
 * Pure: no file and no environment is read here. A key may be spelled in any case and `null` means absent, as Go's
 * encoding/json has it; unlike there, an unknown key or two spellings of one key are problems.
 */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import type * as SchemaIssue from "effect/SchemaIssue"
import * as SchemaParser from "effect/SchemaParser"
import { fieldsOf, type Note, PerseusConfig, valueAt } from "./PerseusConfig.ts"
import { didYouMean } from "./Spelling.ts"

/** A value that stands above the file's, as the file would have it: an environment variable, a flag. */
export interface Override {
  readonly path: ReadonlyArray<string>
  readonly value: unknown
  /** What problems are reported under, in place of the path. */
  readonly source: string
}

type Path = ReadonlyArray<PropertyKey>
type Json = { readonly [key: string]: unknown }

const isObject = (value: unknown): value is Json => typeof value === "object" && value !== null && !Array.isArray(value)

const recordValueOf = (schema: Schema.Constraint): Schema.Constraint | undefined =>
  "key" in schema && "value" in schema ? (schema.value as Schema.Constraint) : undefined

/** `PoolSettings.MaxOpen`, `OverrideSettings["db-1:5432/app"].MaxOpen`, `PoolSettings.ExtraSchemas[0]`. */
const spell = (path: Path): string =>
  path.reduce<string>((before, key) => {
    if (typeof key === "number") return `${before}[${key}]`
    const name = String(key)
    if (!/^\w+$/.test(name)) return `${before}[${JSON.stringify(name)}]`
    return before === "" ? name : `${before}.${name}`
  }, "") || "the configuration"

// ---------------------------------------------------------------------------------------------------------------------
// Keys: spelling, doubles, strangers
// ---------------------------------------------------------------------------------------------------------------------

/** The same tree with every key as the schema spells it, without nulls, and with an empty section where none was. */
const respell = (schema: Schema.Constraint, value: unknown, path: Path, problems: Array<string>): unknown => {
  if (!isObject(value)) return value
  const fields = fieldsOf(schema)
  if (fields !== undefined) return respellKeys(fields, value, path, problems)
  const entry = recordValueOf(schema)
  if (entry === undefined) return value
  return Object.fromEntries(
    Object.entries(value)
      .filter(([, given]) => given !== null && given !== undefined)
      .map(([name, given]) => [name, respell(entry, given, [...path, name], problems)])
  )
}

const respellKeys = (fields: Schema.Struct.Fields, value: Json, path: Path, problems: Array<string>): Json => {
  const known = Object.keys(fields)
  const written = new Map<string, string>()
  for (const name of Object.keys(value)) {
    const key = known.find((candidate) => candidate.toLowerCase() === name.toLowerCase())
    const other = key === undefined ? undefined : written.get(key)
    if (key === undefined) problems.push(`${spell([...path, name])}: unknown key${didYouMean(name, known)}`)
    else if (other === undefined) written.set(key, name)
    else problems.push(`${spell([...path, other])} and ${spell([...path, name])}: the same key twice; keep one`)
  }
  return Object.fromEntries(
    Object.entries(fields).flatMap(([key, field]) => {
      const isSection = fieldsOf(field) !== undefined || recordValueOf(field) !== undefined
      const name = written.get(key)
      const given = (name === undefined ? undefined : value[name]) ?? (isSection ? {} : undefined)
      return given === undefined ? [] : [[key, respell(field, given, [...path, key], problems)]]
    })
  )
}

const put = (tree: unknown, path: ReadonlyArray<string>, value: unknown): unknown => {
  const [key, ...rest] = path
  if (key === undefined) return value
  return isObject(tree) ? { ...tree, [key]: put(tree[key], rest, value) } : tree
}

// ---------------------------------------------------------------------------------------------------------------------
// Values: one problem for each leaf of the schema's issue
// ---------------------------------------------------------------------------------------------------------------------

interface Leaf {
  readonly path: Path
  readonly issue: SchemaIssue.Issue
}

const leavesOf = (issue: SchemaIssue.Issue, path: Path): ReadonlyArray<Leaf> => {
  switch (issue._tag) {
    case "Filter":
    case "Encoding":
      return leavesOf(issue.issue, path)
    case "Pointer":
      return leavesOf(issue.issue, [...path, ...issue.path])
    case "Composite":
      return issue.issues.flatMap((inner) => leavesOf(inner, path))
    default:
      return [{ path, issue }]
  }
}

const noteAt = (path: Path): Note | undefined => {
  const schema = path.reduce<Schema.Constraint | undefined>(
    (at, key) => at && (fieldsOf(at)?.[String(key)] ?? recordValueOf(at)),
    PerseusConfig
  )
  return schema && Schema.resolveAnnotations(schema)?.note
}

const kindOf = (value: unknown): Note["kind"] | "fraction" | "null" => {
  if (value === null) return "null"
  if (Array.isArray(value)) return "list"
  if (typeof value === "number") return Number.isInteger(value) ? "integer" : "fraction"
  if (typeof value === "string") return "string"
  return typeof value === "boolean" ? "boolean" : "object"
}

const NAMES_OF_KINDS = {
  string: "a string",
  integer: "an integer",
  boolean: "a boolean",
  list: "a list",
  object: "an object",
  fraction: "a fraction",
  null: "null"
}

const expectationAt = (path: Path): Pick<Note, "kind" | "allowed"> =>
  typeof path.at(-1) === "number"
    ? { kind: "string", allowed: "a string" }
    : (noteAt(path) ?? { kind: "object", allowed: "an object" })

const complaint = ({ path, issue }: Leaf, value: unknown): string => {
  if (issue._tag === "InvalidValue" && issue.annotations?.message !== undefined)
    return String(issue.annotations.message)
  const { kind, allowed } = expectationAt(path)
  if (issue._tag === "MissingKey") return `is missing; expected ${allowed}`
  const got = kindOf(value)
  return got === kind ? `expected ${allowed}` : `expected ${allowed}, got ${NAMES_OF_KINDS[got]}`
}

// ---------------------------------------------------------------------------------------------------------------------
// Rules that span keys
// ---------------------------------------------------------------------------------------------------------------------

// They stand beside the schema, not as checks of its structs: such a check is skipped as long as any key of its struct
// is wrong, and then the operator would meet this problem only at the second try.

const isIdleAboveOpen = ({ MaxIdle, MaxOpen }: Json): boolean =>
  typeof MaxIdle === "number" && typeof MaxOpen === "number" && MaxOpen > 0 && MaxIdle > MaxOpen

const sectionOf = (tree: unknown, name: string): Json => {
  const section = isObject(tree) ? tree[name] : undefined
  return isObject(section) ? section : {}
}

const awsProblems = (tree: unknown): ReadonlyArray<string> => {
  const { AccessKeyId, SecretAccessKey } = sectionOf(tree, "AWSSettings")
  const isBlank = (value: unknown) => value === undefined || value === ""
  return isBlank(AccessKeyId) === isBlank(SecretAccessKey)
    ? []
    : ["AWSSettings: give both AccessKeyId and SecretAccessKey, or neither"]
}

const poolProblems = (tree: unknown): ReadonlyArray<string> =>
  isIdleAboveOpen(sectionOf(tree, "PoolSettings"))
    ? ["PoolSettings.MaxIdle: must not be greater than PoolSettings.MaxOpen"]
    : []

/** Which files a mode needs, and which need each other. */
const tlsProblems = (tree: unknown): ReadonlyArray<string> => {
  const settings = sectionOf(tree, "TLSSettings")
  const isGiven = (key: string) => settings[key] !== undefined && settings[key] !== ""
  const needs = (modeKey: string, modes: ReadonlyArray<string>, fileKey: string) =>
    modes.includes(String(settings[modeKey])) && !isGiven(fileKey)
      ? [`TLSSettings.${fileKey}: is missing; ${modeKey} "${String(settings[modeKey])}" needs it`]
      : []
  return [
    ...needs("ClientMode", ["allow", "require", "verify-full"], "ClientCertFile"),
    ...needs("ClientMode", ["allow", "require", "verify-full"], "ClientKeyFile"),
    ...needs("ClientMode", ["verify-full"], "ClientCAFile"),
    ...needs("ServerMode", ["verify-ca", "verify-full"], "ServerCAFile"),
    ...(isGiven("ServerCertFile") === isGiven("ServerKeyFile")
      ? []
      : ["TLSSettings: give both ServerCertFile and ServerKeyFile, or neither"])
  ]
}

const overrideProblems = (tree: unknown): ReadonlyArray<string> =>
  Object.entries(sectionOf(tree, "OverrideSettings")).flatMap(([name, entry]) => {
    const path = spell(["OverrideSettings", name])
    if (/^(?:$|\/)|\/$/.test(name)) return [`${path}: the name must be "dest_host/dest_db" or "dest_db"`]
    if (!isObject(entry) || !("MaxIdle" in entry || "MaxOpen" in entry)) return []
    return isIdleAboveOpen({ ...sectionOf(tree, "PoolSettings"), ...entry })
      ? [`${path}: MaxIdle must not be greater than MaxOpen (what an entry leaves out comes from PoolSettings)`]
      : []
  })

// ---------------------------------------------------------------------------------------------------------------------

const decodeValues = SchemaParser.decodeUnknownResult(PerseusConfig, { errors: "all" })

/** The configuration that `file` (parsed JSON) and `overrides` (stronger than the file) make, or every problem. */
export const decode = (
  file: unknown,
  overrides: ReadonlyArray<Override> = []
): Result.Result<PerseusConfig, ReadonlyArray<string>> => {
  const problems: Array<string> = []
  const tree = overrides.reduce(
    (before, { path, value }) => put(before, path, value),
    respell(PerseusConfig, file, [], problems)
  )
  const nameOf = (path: Path) =>
    overrides.find(({ path: other }) => spell(other) === spell(path))?.source ?? spell(path)
  const decoded = decodeValues(tree)
  if (Result.isFailure(decoded)) {
    for (const leaf of leavesOf(decoded.failure, [])) {
      problems.push(`${nameOf(leaf.path)}: ${complaint(leaf, valueAt(tree, leaf.path))}`)
    }
  }
  problems.push(...awsProblems(tree), ...poolProblems(tree), ...overrideProblems(tree), ...tlsProblems(tree))
  return Result.isFailure(decoded) || problems.length > 0 ? Result.fail(problems) : Result.succeed(decoded.success)
}
