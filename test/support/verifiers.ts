/** SCRAM verifiers as PostgreSQL itself writes them. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { randomUUID } from "node:crypto"
import { connection, databaseOn } from "./postgres.ts"

/** What PostgreSQL keeps of these passwords: it prepares, salts and hashes them itself. */
export const writtenByPostgres = (
  passwords: ReadonlyArray<string>,
  iterations = 4096
): Effect.Effect<ReadonlyArray<string>, never, Scope.Scope> =>
  Effect.gen(function* () {
    const maintenance = databaseOn(connection(), "postgres")
    const role = yield* Effect.acquireRelease(
      Effect.sync(() => `role_${randomUUID().replaceAll("-", "")}`),
      (name) => maintenance.query(`DROP ROLE IF EXISTS ${name}`)
    )
    return yield* Effect.forEach(passwords, (password, index) =>
      Effect.gen(function* () {
        const literal = `E'${password.replaceAll(/['\\]/g, "\\$&")}'`
        yield* maintenance.script(
          `SET scram_iterations = ${iterations}; SET password_encryption = 'scram-sha-256';
           ${index === 0 ? "CREATE" : "ALTER"} ROLE ${role} PASSWORD ${literal}`
        )
        const rows = yield* maintenance.query("SELECT rolpassword FROM pg_authid WHERE rolname = $1", [role])
        return String(rows[0]?.["rolpassword"])
      })
    )
  })
