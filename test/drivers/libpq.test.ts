import { assert, describe, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { spawnSync } from "node:child_process"
import * as path from "node:path"
import { compareTranscripts } from "./compare.ts"
import {
  buildDirectory,
  environmentOf,
  isInstalled,
  PROGRAM_TIMEOUT_MS,
  run,
  sourceOf,
  transcriptOf
} from "./programs.ts"
import { Targets } from "./targets.ts"

const isReady = [
  isInstalled("gcc", "gcc", "--version"),
  isInstalled("libpq's pg_config", "pg_config", "--version")
].every(Boolean)

const told = (what: string) => spawnSync("pg_config", [what], { encoding: "utf8" }).stdout.trim()

describe.skipIf(!isReady)("libpq", { timeout: PROGRAM_TIMEOUT_MS }, () => {
  layer(Targets.layer, { excludeTestServices: true })((it) => {
    it.effect("gets the same answers, and the right ones, directly and pooled", () =>
      Effect.gen(function* () {
        const { direct } = yield* Targets
        const program = path.join(yield* buildDirectory, "scenarios")
        const flags = ["-Wall", "-Wextra", "-Werror", `-I${told("--includedir")}`, `-L${told("--libdir")}`]
        const source = sourceOf("libpq_scenarios.c")
        const compiled = yield* run(environmentOf(direct), "gcc", ...flags, "-o", program, source, "-lpq")
        assert.deepStrictEqual(compiled, { code: 0, output: "", errors: "" })
        yield* compareTranscripts(
          [
            "connect",
            "connect otherwise",
            "reconnect",
            "statements",
            "cursor",
            "streamed rows",
            "copy",
            "pipeline",
            "pipelines of several clients",
            "cancel",
            "large object",
            "large",
            "several statements",
            "empty query",
            "notices"
          ],
          (target) => transcriptOf(target, program)
        )
      })
    )
  })
})
