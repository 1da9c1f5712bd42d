/**
 * Every setting that the server lets a role set, changed at once: the list is the server's own, so that none is forgotten and
 * none that a later version adds.
 */
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { SharedPerseus, type TestPerseus } from "../support/perseus.ts"
import { connection } from "../support/postgres.ts"
import { RawClient, rowsOf } from "../support/rawClient.ts"

/** The path is the tenant's (settings.test.ts); the others are a transaction's, no state, or the system's where it has it. */
const exceptions = [
  "search_path",
  "role",
  "session_authorization",
  "seed",
  "tcp_user_timeout",
  "transaction_deferrable",
  "transaction_isolation",
  "transaction_read_only"
]

/** Where a server knows one value only, unless somebody has built it with more. */
const withoutChoice = ["default_table_access_method", "default_toast_compression"]

/** What is neither a number nor a choice. */
const texts: Readonly<Record<string, string>> = {
  DateStyle: "German, DMY",
  TimeZone: "Asia/Tokyo",
  application_name: "it's \\ me",
  client_encoding: "LATIN1",
  createrole_self_grant: "set",
  default_table_access_method: "heap",
  default_tablespace: "pg_global",
  default_text_search_config: "pg_catalog.german",
  lc_monetary: "POSIX",
  lc_numeric: "POSIX",
  lc_time: "POSIX",
  local_preload_libraries: "",
  restrict_nonsystem_relation_kind: "foreign-table",
  temp_tablespaces: "pg_default",
  timezone_abbreviations: "India"
}

const LIST = `SELECT name, vartype, setting, min_val, max_val, array_to_string(enumvals, ',') FROM pg_settings
  WHERE context = 'user' AND NOT name = ANY ('{${exceptions.join(",")}}') ORDER BY name`
const VALUES = `SELECT name || '=' || setting FROM pg_settings
  WHERE context = 'user' AND NOT name = ANY ('{${exceptions.join(",")}}') ORDER BY name`

interface Setting {
  readonly name: string
  readonly value: string
}

/** Another value than it has; of a number one so far up that no timeout passes. */
const change = (row: string): Setting => {
  const [name = "", type, now = "", min, max, choices = ""] = row.split("|")
  const halfway = (Number(now) + Number(max)) / 2
  switch (type) {
    case "bool":
      return { name, value: now === "on" ? "off" : "on" }
    case "enum":
      return { name, value: choices.split(",").find((choice) => choice !== now) ?? now }
    case "integer":
      return { name, value: String(now === max ? min : Math.ceil(halfway)) }
    case "real":
      return { name, value: String(now === max ? min : halfway) }
    default:
      if (texts[name] === undefined) throw new Error(`the test has no value for ${name}`)
      return { name, value: texts[name] }
  }
}

const directly = (perseus: TestPerseus) =>
  Effect.gen(function* () {
    const { role, rolePassword } = perseus.tenant("red")
    const client = yield* RawClient.connect(connection())
    yield* client.logIn({ user: role, database: perseus.destination.database }, rolePassword)
    return client
  })

const one = { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } }

layer(SharedPerseus.with({ tenants: ["red", "blue"], config: one }), { excludeTestServices: true })(
  "all that a role may set",
  (it) => {
    it.effect("follows the client that set it and reaches no other", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const [a, b, blue] = [yield* perseus.login("red"), yield* perseus.login("red"), yield* perseus.login("blue")]
        const all = (client: RawClient) => Effect.map(client.query(VALUES), rowsOf)
        const usual = yield* all(b)
        const direct = yield* directly(perseus)
        const settings = rowsOf(yield* direct.query(LIST)).map(change)
        for (const { name, value } of settings) {
          const set = `SET "${name}" = '${value.replaceAll("'", "''")}'`
          for (const client of [direct, a]) yield* client.query(set)
        }
        const changed = yield* all(direct)
        const same = changed.filter((each) => usual.includes(each)).map((each) => each.split("=")[0]!)
        assert.isAbove(changed.length, 120)
        assert.deepStrictEqual(same, withoutChoice)
        for (let round = 0; round < 2; round++) {
          assert.deepStrictEqual(yield* all(blue), usual)
          assert.deepStrictEqual(yield* all(a), changed)
          assert.deepStrictEqual(yield* all(b), usual)
        }
      })
    )

    it.effect("is all that the server reports, but what cannot be set", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const client = yield* perseus.raw
        const { startup, password } = perseus.tenant("red")
        const greeting = yield* client.logIn(startup, password)
        const reported = greeting.filter(({ type }) => type === "S").map(({ body }) => body.toString().split("\0")[0]!)
        const known = new Set([...exceptions, ...rowsOf(yield* client.query(LIST)).map((row) => row.split("|")[0]!)])
        const fixed = ["in_hot_standby", "integer_datetimes", "is_superuser", "server_encoding", "server_version"]
        assert.deepStrictEqual(reported.filter((name) => !known.has(name)).toSorted(), fixed)
      })
    )
  }
)
