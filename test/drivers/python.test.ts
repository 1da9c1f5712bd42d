import { describe, layer } from "@effect/vitest"
import { compareTranscripts } from "./compare.ts"
import { isInstalled, PROGRAM_TIMEOUT_MS, sourceOf, transcriptOf } from "./programs.ts"
import type { Scenario } from "./scenarios.ts"
import { Targets } from "./targets.ts"

/** Debian's, which has Debian's modules, whatever else is called python3. */
const PYTHON = "/usr/bin/python3"

const common: ReadonlyArray<Scenario> = [
  "connect",
  "connect otherwise",
  "reconnect",
  "settings",
  "types",
  "errors",
  "transactions",
  "failed transaction",
  "statements",
  "cursor",
  "batch",
  "copy",
  "large",
  "many rows",
  "several statements",
  "empty query",
  "notices"
]

const drivers: ReadonlyArray<readonly [module: string, does: ReadonlyArray<Scenario>]> = [
  ["psycopg2", [...common, "pool", "cancel"]],
  ["psycopg", [...common, "own types", "few statements kept", "pipeline", "cancel"]],
  ["asyncpg", [...common, "own types", "few statements kept", "pool", "given up"]]
]

for (const [module, does] of drivers) {
  describe.skipIf(!isInstalled(`${module} for ${PYTHON}`, PYTHON, "-c", `import ${module}`))(
    module,
    { timeout: PROGRAM_TIMEOUT_MS },
    () => {
      layer(Targets.layer, { excludeTestServices: true })((it) => {
        it.effect("gets the same answers, and the right ones, directly and pooled", () =>
          compareTranscripts(does, (target) => transcriptOf(target, PYTHON, "-B", sourceOf(`${module}_scenarios.py`)))
        )
      })
    }
  )
}
