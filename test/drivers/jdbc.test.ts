import { assert, describe, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
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

/** Where Debian puts pgjdbc. */
const JAR = "/usr/share/java/postgresql.jar"

const isReady = [isInstalled("javac", "javac", "-version"), isInstalled(JAR, "test", "-r", JAR)].every(Boolean)

describe.skipIf(!isReady)("pgjdbc", { timeout: PROGRAM_TIMEOUT_MS }, () => {
  layer(Targets.layer, { excludeTestServices: true })((it) => {
    it.effect("gets the same answers, and the right ones, directly and pooled", () =>
      Effect.gen(function* () {
        const { direct } = yield* Targets
        const classes = yield* buildDirectory
        const source = sourceOf("Scenarios.java")
        const compiled = yield* run(
          environmentOf(direct),
          "javac",
          "-cp",
          JAR,
          "-d",
          classes,
          "-encoding",
          "UTF-8",
          source
        )
        assert.deepStrictEqual(compiled, { code: 0, output: "", errors: "" })
        // A small machine, and no time lost to optimise what runs once.
        const java = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Duser.timezone=UTC", "-cp", `${classes}:${JAR}`]
        yield* compareTranscripts(
          [
            "connect",
            "connect otherwise",
            "reconnect",
            "settings",
            "isolation",
            "types",
            "own types",
            "errors",
            "transactions",
            "failed transaction",
            "errors forgiven",
            "introspection",
            "statements",
            "few statements kept",
            "cursor",
            "batch",
            "copy",
            "cancel",
            "query timeout",
            "large",
            "many rows",
            "several statements",
            "empty query",
            "notices"
          ],
          (target) => transcriptOf(target, "java", ...java, "Scenarios")
        )
      })
    )
  })
})
