import { assert, describe, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { readFile } from "node:fs/promises"
import { startPerseus } from "../support/perseus.ts"
import { environmentOf, isInstalled, PROGRAM_TIMEOUT_MS, run, sourceOf } from "./programs.ts"
import { Targets } from "./targets.ts"

describe.skipIf(!isInstalled("psql", "psql", "--version"))("psql", { timeout: PROGRAM_TIMEOUT_MS }, () => {
  layer(Targets.layer, { excludeTestServices: true })((it) => {
    it.effect("gets the same answers, and the right ones, directly and pooled", () =>
      Effect.gen(function* () {
        const { both } = yield* Targets
        // The program's own words and the errors in one, as they come.
        const psql = ["-c", 'exec psql -XAtq < "$0" 2>&1', sourceOf("psql_scenarios.sql")]
        const { directly, pooled } = yield* both((target) =>
          run({ ...environmentOf(target), PGTZ: "UTC" }, "sh", ...psql)
        )
        assert.deepStrictEqual(pooled, directly)
        const output = yield* Effect.promise(() => readFile(sourceOf("psql_scenarios.out"), "utf8"))
        // Where in PostgreSQL's source is its own business.
        const said = directly.output.replaceAll(/^LOCATION: .*\n/gm, "")
        assert.deepStrictEqual({ ...directly, output: said }, { code: 0, output, errors: "" })
      })
    )

    it.effect("says which parameter is missing where no tenant is named", () =>
      Effect.gen(function* () {
        const { pooled } = yield* Targets
        const { code, errors } = yield* run({ ...environmentOf(pooled), PGOPTIONS: "" }, "psql", "-c", "SELECT 1")
        assert.strictEqual(code, 2)
        assert.include(errors, "schema_search_path")
      })
    )

    it.effect("names its tenant in the options of a URL", () =>
      Effect.gen(function* () {
        const { both } = yield* Targets
        const { directly, pooled } = yield* both((target) => {
          const url = `postgresql:///?options=${encodeURIComponent(target.options)}`
          return run({ ...environmentOf(target), PGOPTIONS: "" }, "psql", "-XAtc", "SELECT current_schema()", url)
        })
        assert.deepStrictEqual(pooled, directly)
        assert.deepStrictEqual(directly, { code: 0, output: "red\n", errors: "" })
      })
    )

    it.effect("names a tenant whose schema is called anything", () =>
      Effect.gen(function* () {
        const schema = 'a"b; drop schema red --'
        const perseus = yield* startPerseus({ tenants: [schema] })
        const { options, password, user } = perseus.tenant(schema)
        const { pooled } = yield* Targets
        const environment = {
          ...environmentOf(pooled),
          PGPORT: String(perseus.port),
          PGUSER: user,
          PGPASSWORD: password,
          PGOPTIONS: options
        }
        const ran = yield* run(environment, "psql", "-XAtqc", "SELECT current_schema()")
        assert.deepStrictEqual(ran, { code: 0, output: `${schema}\n`, errors: "" })
      })
    )
  })
})
