/** Programs of PostgreSQL's own as clients, where the machine has them. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { execFile, spawnSync } from "node:child_process"
import type { TestPerseus, TestTenant } from "./perseus.ts"

export interface Ran {
  readonly code: number
  readonly output: string
  readonly errors: string
}

/** A client program, with the tenant's login in libpq's variables, and more of them. */
export const run = (
  perseus: TestPerseus,
  { user, password, options }: TestTenant,
  program: string,
  args: ReadonlyArray<string>,
  more: Readonly<Record<string, string>> = {}
): Effect.Effect<Ran> =>
  Effect.callback<Ran>((resume) => {
    const env = {
      PATH: process.env["PATH"],
      PGHOST: perseus.host,
      PGPORT: String(perseus.port),
      PGUSER: user,
      PGPASSWORD: password,
      PGDATABASE: perseus.sourceDb,
      PGOPTIONS: options,
      PGCONNECT_TIMEOUT: "10",
      ...more
    }
    const child = execFile(program, args, { env }, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : 1
      resume(Effect.succeed({ code, output: stdout, errors: stderr }))
    })
    return Effect.sync(() => child.kill("SIGKILL"))
  })

/** Where the program is missing: null, said aloud, or a failure where all must run. */
export const installed = (program: string): Option.Option<string> => {
  if (spawnSync(program, ["--version"]).status === 0) return Option.some(program)
  if (process.env["PERSEUS_REQUIRE_ALL"] !== undefined) throw new Error(`${program} is not installed`)
  process.stderr.write(`not run: ${program} is not installed\n`)
  return Option.none()
}
