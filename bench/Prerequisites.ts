/** What the bench needs and does not bring: Linux, pgbench, and the built program. */
import * as Effect from "effect/Effect"
import { execFile } from "node:child_process"
import { existsSync } from "node:fs"
import { platform } from "node:process"
import { promisify } from "node:util"
import { BenchFailed } from "./Scenario.ts"

export const check: Effect.Effect<void, BenchFailed> = Effect.gen(function* () {
  if (platform !== "linux") {
    return yield* new BenchFailed({ message: "Linux is needed: CPU time and memory are read from /proc" })
  }
  yield* Effect.tryPromise({
    try: () => promisify(execFile)("pgbench", ["--version"]),
    catch: () =>
      new BenchFailed({
        message:
          "pgbench is needed, and is not in the PATH; on Debian and Ubuntu it comes with the package postgresql-contrib"
      })
  })
  if (!existsSync(new URL("../dist/main.js", import.meta.url))) {
    return yield* new BenchFailed({ message: "dist/ is needed: npm run bench builds it, or npm run build" })
  }
})
