/**
 * One PostgreSQL for all integration tests of a run, started before the first and stopped after the last. Tests learn
 * of it through `test/support/postgres.ts`; each makes a database of its own there.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { randomBytes } from "node:crypto"
import type { TestProject } from "vitest/node"
import { start } from "../../src/cli/demo/EmbeddedPostgres.ts"

declare module "vitest" {
  export interface ProvidedContext {
    readonly postgres: {
      readonly host: string
      readonly port: number
      readonly user: string
      readonly password: string
    }
  }
}

export default async function setup(project: TestProject) {
  const scope = Effect.runSync(Scope.make())
  const password = Redacted.make(randomBytes(12).toString("hex"))
  const { host, port, user } = await Effect.runPromise(Scope.provide(start({ password }), scope))
  project.provide("postgres", { host, port, user, password: Redacted.value(password) })
  return () => Effect.runPromise(Scope.close(scope, Exit.void))
}
