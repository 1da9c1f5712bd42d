/**
 * How a real PostgreSQL may ask for its role's password, by pg_hba.conf and by what it keeps of it.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { writeFile } from "node:fs/promises"
import { startPerseus } from "../support/perseus.ts"
import { databaseOn, ownPostgres } from "../support/postgres.ts"
import { fieldsOf, sqlStatesOf } from "../support/rawClient.ts"

const methods = ["password", "md5", "scram-sha-256"] as const

describe("a server that asks for the password", () => {
  it.live(
    "by password, md5 or scram-sha-256 gets it; another one fails with 08001, in the server's words in the log",
    () =>
      Effect.gen(function* () {
        const server = yield* Effect.orDie(ownPostgres())
        const perseus = yield* startPerseus({
          server,
          tenants: methods.map((schema) => ({ schema, destUser: schema }))
        })
        const hba = ["host all postgres 127.0.0.1/32 scram-sha-256"]
        for (const method of methods) {
          const { role, rolePassword } = perseus.tenant(method)
          hba.push(`host all ${role} 127.0.0.1/32 ${method}`)
          yield* perseus.destination.script(
            `SET password_encryption = '${method === "md5" ? "md5" : "scram-sha-256"}'; ALTER ROLE ${role} PASSWORD '${rolePassword}'`
          )
        }
        yield* Effect.promise(() => writeFile(`${server.dataDir}/pg_hba.conf`, `${hba.join("\n")}\n`))
        yield* databaseOn(server, "postgres").query("SELECT pg_reload_conf()")
        for (const method of methods) {
          assert.deepStrictEqual(yield* perseus.query(method, "SELECT current_user AS me"), [
            { me: perseus.tenant(method).role }
          ])
        }
        const wrong = yield* perseus.encrypt("another")
        for (const method of methods) {
          yield* perseus.updateRow(method, "dest_pass_enc", wrong)
          const answers = yield* perseus.refusal(perseus.tenant(method).startup)
          assert.deepStrictEqual(sqlStatesOf(answers), ["08001"], method)
          assert.notInclude(Object.values(fieldsOf(answers.at(-1)!)).join(" "), "password")
          const { role } = perseus.tenant(method)
          assert.include(perseus.log.join("\n"), `28P01 password authentication failed for user "${role}"`)
        }
      })
  )

  it.live("and does not have the database says so in the log, and to no client", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      yield* perseus.updateRow("red", "dest_db", "no_such_shop")
      const answers = yield* perseus.refusal(perseus.tenant("red").startup)
      assert.deepStrictEqual(sqlStatesOf(answers), ["08001"])
      assert.notInclude(Object.values(fieldsOf(answers.at(-1)!)).join(" "), "no_such_shop")
      assert.include(perseus.log.join("\n"), '3D000 database "no_such_shop" does not exist')
    })
  )

  it.live("of a role that may not log in refuses each try, and the log says why", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const { role, startup } = perseus.tenant("red")
      yield* perseus.destination.query(`ALTER ROLE ${role} NOLOGIN`)
      for (let turn = 0; turn < 2; turn++) {
        assert.deepStrictEqual(sqlStatesOf(yield* perseus.refusal(startup)), ["08001"])
      }
      assert.include(perseus.log.join("\n"), `28000 role "${role}" is not permitted to log in`)
    })
  )
})
