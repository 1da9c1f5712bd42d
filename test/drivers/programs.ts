/**
 * Client programs that are not Node's: whether they are there, and how a test runs one.
 *
 * A program of ours, in `programs/`, finds its target in libpq's variables, the schema in SCHEMA and what names it at startup in
 * SCHEMA_PARAMETER. It writes a line of JSON for each scenario, `["name", result]`, and nothing else.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execFile, spawnSync } from "node:child_process"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { fileURLToPath } from "node:url"
import type { Target } from "./targets.ts"
import type { Transcript } from "./scenarios.ts"

/** Of a test that compiles and runs one twice, on a busy machine. */
export const PROGRAM_TIMEOUT_MS = 120_000

export interface Ran {
  readonly code: number
  readonly output: string
  readonly errors: string
}

/** Where a command fails, what it tests for is missing: said aloud, or a failure where all must run. */
export const isInstalled = (what: string, command: string, ...args: ReadonlyArray<string>): boolean => {
  if (spawnSync(command, args).status === 0) return true
  if (process.env["PERSEUS_REQUIRE_ALL"] !== undefined) throw new Error(`${what} is not installed`)
  process.stderr.write(`not run: ${what} is not installed\n`)
  return false
}

/** The file of a program in `programs/`. */
export const sourceOf = (name: string): string => fileURLToPath(new URL(`programs/${name}`, import.meta.url))

/** As libpq's programs read it. PostgreSQL's own sense of time and of encoding, whatever the machine's. */
export const environmentOf = ({ database, host, options, parameter, password, port, schema, user }: Target) => ({
  PATH: process.env["PATH"],
  LC_ALL: "C.UTF-8",
  PGHOST: host,
  PGPORT: String(port),
  PGUSER: user,
  PGPASSWORD: password,
  PGDATABASE: database,
  PGOPTIONS: options,
  PGCONNECT_TIMEOUT: "10",
  PGSSLMODE: "disable",
  SCHEMA: schema,
  SCHEMA_PARAMETER: parameter
})

export const run = (
  environment: Readonly<Record<string, string | undefined>>,
  command: string,
  ...args: ReadonlyArray<string>
): Effect.Effect<Ran> =>
  Effect.callback<Ran>((resume) => {
    const options = { env: environment, maxBuffer: 64 << 20 }
    const child = execFile(command, args, options, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : 1
      resume(Effect.succeed({ code, output: stdout, errors: stderr }))
    })
    return Effect.sync(() => child.kill("SIGKILL"))
  })

/** Of a program that writes a line for each scenario. */
export const transcriptOf = (
  target: Target,
  command: string,
  ...args: ReadonlyArray<string>
): Effect.Effect<Transcript> =>
  Effect.map(run(environmentOf(target), command, ...args), ({ code, errors, output }) => {
    assert.deepStrictEqual({ code, errors }, { code: 0, errors: "" }, `${target.name}, after ${output.slice(-1000)}`)
    return Object.fromEntries(
      output
        .trim()
        .split("\n")
        .map((line): [string, unknown] => JSON.parse(line))
    )
  })

/** A directory of one's own for what is compiled; gone with the scope. */
export const buildDirectory = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(path.join(tmpdir(), "perseus-drivers-"))),
  (directory) => Effect.promise(() => rm(directory, { recursive: true }))
)
