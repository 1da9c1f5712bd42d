import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { SharedPerseus } from "../support/perseus.ts"
import { bind, execute, parse, query, rowsOf, sync, type RawClient } from "../support/rawClient.ts"

const one = { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } }

const show = (client: RawClient, name: string) =>
  Effect.map(client.query(`SHOW ${name}`), (answers) => rowsOf(answers)[0])

const twoClients = Effect.gen(function* () {
  const perseus = yield* SharedPerseus
  return { perseus, a: yield* perseus.login("red"), b: yield* perseus.login("red"), blue: yield* perseus.login("blue") }
})

layer(SharedPerseus.with({ tenants: ["red", "blue"], config: one }), { excludeTestServices: true })(
  "what a client sets",
  (it) => {
    for (const [name, value] of [
      ["statement_timeout", "5s"],
      ["lock_timeout", "7s"],
      ["work_mem", "9MB"],
      ["extra_float_digits", "3"],
      ["DateStyle", "German, DMY"],
      ["TimeZone", "Asia/Tokyo"],
      ["IntervalStyle", "iso_8601"],
      ["bytea_output", "escape"],
      ["default_transaction_isolation", "serializable"],
      ["client_min_messages", "warning"],
      ["application_name", "it's \\ me"],
      ["my.setting", "Zoë's"]
    ] as const) {
      it.effect(`follows it and reaches no other, also of its tenant: ${name}`, () =>
        Effect.gen(function* () {
          const { a, b, blue } = yield* twoClients
          if (name.includes(".")) yield* Effect.forEach([b, blue], (client) => client.query(`SET ${name} = ''`))
          const usual = yield* show(b, name)
          assert.notStrictEqual(usual, value)
          yield* a.query(`SET ${name} = '${value.replaceAll("'", "''")}'`)
          for (let round = 0; round < 2; round++) {
            assert.strictEqual(yield* show(b, name), usual)
            assert.strictEqual(yield* show(blue, name), usual)
            assert.strictEqual(yield* show(a, name), value)
          }
        })
      )
    }

    it.effect("follows it as a role does, and other settings with it", () =>
      Effect.gen(function* () {
        const { perseus, a, b, blue } = yield* twoClients
        const { role } = perseus.tenant("red")
        yield* perseus.destination.script(`CREATE ROLE ${role}_group; GRANT ${role}_group TO ${role}`)
        yield* Effect.addFinalizer(() => perseus.destination.script(`DROP ROLE ${role}_group`))
        yield* a.query(`SET ROLE ${role}_group`)
        yield* a.query("SET work_mem = '9MB'")
        for (let round = 0; round < 2; round++) {
          assert.deepStrictEqual(rowsOf(yield* b.query("SELECT current_user")), [role])
          assert.deepStrictEqual(rowsOf(yield* blue.query("SELECT current_user")), [role])
          assert.deepStrictEqual(rowsOf(yield* a.query("SELECT current_user, current_setting('work_mem')")), [
            `${role}_group|9MB`
          ])
        }
        yield* a.query("RESET ROLE")
        yield* b.query("SELECT 1")
        assert.deepStrictEqual(rowsOf(yield* a.query("SELECT current_user, current_setting('work_mem')")), [
          `${role}|9MB`
        ])
      })
    )

    it.effect("follows it as temp_tablespaces and the like do, which are lists of names", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const a = yield* perseus.login("red", { options: "-c local_preload_libraries=" })
        const b = yield* perseus.login("red")
        yield* a.query("SET temp_tablespaces = pg_default, 'pg_global'")
        const before = yield* show(a, "temp_tablespaces")
        assert.strictEqual(yield* show(b, "temp_tablespaces"), "")
        assert.strictEqual(yield* show(a, "temp_tablespaces"), before)
      })
    )

    it.effect("is followed where it was set by set_config, in a DO block, or by a prepared statement", () =>
      Effect.gen(function* () {
        const { a, b } = yield* twoClients
        yield* a.query("SELECT set_config('work_mem', '9MB', false)")
        yield* a.query("DO $$BEGIN PERFORM set_config('lock_timeout', '8s', false); END$$")
        a.send(parse("s", "SELECT set_config('statement_timeout', '6s', false)"), bind("", "s"), execute(), sync)
        yield* a.ready()
        const mine =
          "SELECT current_setting('work_mem'), current_setting('lock_timeout'), current_setting('statement_timeout')"
        assert.deepStrictEqual(rowsOf(yield* b.query(mine)), ["4MB|0|0"])
        assert.deepStrictEqual(rowsOf(yield* a.query(mine)), ["9MB|8s|6s"])
      })
    )

    it.effect("is forgotten by RESET and DISCARD ALL, which return to what it asked for at startup", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const a = yield* perseus.login("red", { TimeZone: "Europe/Berlin" })
        const b = yield* perseus.login("red")
        for (const undo of ["RESET TimeZone", "RESET ALL", "SET TimeZone TO DEFAULT", "DISCARD ALL"]) {
          yield* a.query("SET TimeZone = 'Asia/Tokyo'")
          yield* b.query("SELECT 1")
          assert.strictEqual(yield* show(a, "TimeZone"), "Asia/Tokyo")
          yield* a.query(undo)
          yield* b.query("SELECT 1")
          assert.strictEqual(yield* show(a, "TimeZone"), "Europe/Berlin", undo)
        }
      })
    )

    it.effect("is not followed where it was rolled back, or only SET LOCAL", () =>
      Effect.gen(function* () {
        const { a, b } = yield* twoClients
        yield* a.query("BEGIN; SET work_mem = '9MB'; SET TimeZone = 'Asia/Tokyo'; ROLLBACK")
        yield* a.query("BEGIN; SAVEPOINT s; SET work_mem = '9MB'; ROLLBACK TO s; COMMIT")
        yield* a.query("BEGIN")
        yield* a.query("SET LOCAL lock_timeout = '5s'")
        yield* a.query("COMMIT")
        yield* b.query("SELECT 1")
        assert.deepStrictEqual(
          rowsOf(
            yield* a.query(
              "SELECT current_setting('work_mem'), current_setting('TimeZone'), current_setting('lock_timeout')"
            )
          ),
          [`4MB|${yield* show(b, "TimeZone")}|0`]
        )
      })
    )

    it.effect("costs a transaction that only says SET LOCAL neither a question nor a switch", () =>
      Effect.gen(function* () {
        const { perseus, a } = yield* twoClients
        yield* a.query("SELECT 1")
        const before = { ...perseus.pool().statistics }
        for (const sql of [
          "BEGIN",
          "SET LOCAL work_mem = '9MB'",
          "SELECT set_config('my.user', 'me', true)",
          "COMMIT"
        ]) {
          yield* a.query(sql)
        }
        yield* a.query("SELECT 1")
        const { inspections, tenantSwitches } = perseus.pool().statistics
        assert.deepStrictEqual([inspections, tenantSwitches], [before.inspections, before.tenantSwitches])
      })
    )

    it.effect("of a plan's is not believed where the plan was made under another's", () =>
      Effect.gen(function* () {
        const { a, b } = yield* twoClients
        yield* a.query("SET DateStyle = 'ISO, DMY'")
        yield* b.query("SET DateStyle = 'ISO, MDY'")
        for (const client of [a, b]) client.send(parse("s", "SELECT '01/02/2020'::date::text"), sync)
        for (const client of [a, b]) yield* client.ready()
        const ask = (client: RawClient) => {
          client.send(bind("", "s"), execute(), sync)
          return Effect.map(client.ready(), rowsOf)
        }
        for (let round = 0; round < 2; round++) {
          assert.deepStrictEqual(yield* ask(a), ["2020-02-01"])
          assert.deepStrictEqual(yield* ask(b), ["2020-01-02"])
        }
      })
    )

    it.effect("may be its search path: that follows it alone, and RESET or DISCARD ALL returns to its tenant's", () =>
      Effect.gen(function* () {
        const { a, b, blue } = yield* twoClients
        for (const [sql, path] of [
          ["SET search_path = blue", "blue"],
          ['SET search_path TO "Ünï", red, public', '"Ünï", red, public'],
          ["SELECT set_config('search_path', 'blue, red', false)", "blue, red"],
          ["SET search_path = ''", '""']
        ] as const) {
          for (const undo of ["RESET search_path", "RESET ALL", "DISCARD ALL", "SET search_path = red"]) {
            yield* a.query(sql)
            for (let round = 0; round < 2; round++) {
              assert.strictEqual(yield* show(b, "search_path"), "red", sql)
              assert.strictEqual(yield* show(blue, "search_path"), "blue", sql)
              assert.strictEqual(yield* show(a, "search_path"), path, sql)
            }
            yield* a.query(undo)
            assert.strictEqual(yield* show(a, "search_path"), "red", undo)
          }
        }
      })
    )

    it.effect("of its search path is not followed where it was rolled back, or only SET LOCAL", () =>
      Effect.gen(function* () {
        const { a, b } = yield* twoClients
        yield* a.query("BEGIN; SET search_path = blue; ROLLBACK")
        yield* a.query("BEGIN; SET LOCAL search_path = blue; COMMIT")
        yield* a.query("SET work_mem = '9MB'")
        for (const client of [a, b]) assert.strictEqual(yield* show(client, "search_path"), "red")
      })
    )

    it.effect("is reported as it holds: what RESET told of the connection's own values is put right", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const client = yield* perseus.login("red", { TimeZone: "Asia/Tokyo", application_name: "me" })
        yield* client.query("RESET ALL")
        const told = (yield* client.query("SELECT 1"))
          .filter(({ type }) => type === "S")
          .map(({ body }) => body.toString())
        assert.includeMembers(told, ["TimeZone\0Asia/Tokyo\0", "application_name\0me\0"])
        const again = yield* client.query("SELECT 1")
        assert.isFalse(again.some(({ type }) => type === "S"))
      })
    )

    it.effect("in a pipeline holds for the queries behind it", () =>
      Effect.gen(function* () {
        const { a, b } = yield* twoClients
        a.send(
          query("SET work_mem = '9MB'"),
          query("SHOW work_mem"),
          query("SET work_mem = '10MB'"),
          query("SHOW work_mem")
        )
        assert.deepStrictEqual(rowsOf(yield* a.ready(4)), ["9MB", "10MB"])
        assert.strictEqual(yield* show(b, "work_mem"), "4MB")
        assert.strictEqual(yield* show(a, "work_mem"), "10MB")
      })
    )

    it.effect("follows it where it is an empty application_name, said at startup or later", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const nameless = yield* perseus.login("red", { application_name: "" })
        const named = yield* perseus.login("red", { application_name: "named" })
        const emptied = yield* perseus.login("red", { application_name: "other" })
        yield* emptied.query("SET application_name = ''")
        for (let round = 0; round < 2; round++) {
          assert.strictEqual(yield* show(nameless, "application_name"), "")
          assert.strictEqual(yield* show(named, "application_name"), "named")
          assert.strictEqual(yield* show(emptied, "application_name"), "")
        }
      })
    )
  }
)
