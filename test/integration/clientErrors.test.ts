import { assert, describe, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { createServer } from "node:net"
import { Client } from "pg"
import { eventually, SharedPerseus, startPerseus, type TestPerseus } from "../support/perseus.ts"
import {
  cancelRequest,
  fieldsOf,
  query,
  rowsOf,
  sqlStatesOf,
  startup,
  terminate,
  typesOf,
  type Message,
  type RawClient
} from "../support/rawClient.ts"

/** Severity and SQLSTATE of the last ErrorResponse. */
const verdict = (answers: ReadonlyArray<Message>): string => {
  const errors = answers.filter(({ type }) => type === "E")
  const { S, V, C } = fieldsOf(errors.at(-1)!)
  assert.strictEqual(S, V)
  return `${S} ${C}`
}

const messageOf = (answers: ReadonlyArray<Message>): string => fieldsOf(answers.at(-1)!)["M"] ?? ""

/** A port where nobody listens: it was free a moment ago. */
const deadPort = Effect.callback<number>((resume) => {
  const server = createServer()
  server.listen(0, "127.0.0.1", () => {
    const address = server.address()
    server.close(() => resume(Effect.succeed(typeof address === "object" && address !== null ? address.port : 0)))
  })
})

const stillWorks = (client: RawClient) =>
  Effect.map(client.query("SELECT 'fine'"), (answers) => assert.deepStrictEqual(rowsOf(answers), ["fine"]))

layer(SharedPerseus.with({ tenants: ["red"] }), { excludeTestServices: true })(
  "a login is refused with FATAL",
  (it) => {
    const start = (perseus: TestPerseus, changes: Readonly<Record<string, string>>) =>
      perseus.refusal({ ...perseus.tenant("red").startup, ...changes })

    it.effect("28P01 and the same words, whichever of tenant, user and password is wrong", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const attempts: ReadonlyArray<Effect.Effect<ReadonlyArray<Message>>> = [
          start(perseus, { database: "nowhere" }),
          start(perseus, { schema_search_path: "nobody" }),
          start(perseus, { user: "postgres" }),
          perseus.refusal(perseus.tenant("red").startup, "wrong"),
          perseus.refusal(perseus.tenant("red").startup, "")
        ]
        const seen = (yield* Effect.all(attempts, { concurrency: "unbounded" })).map((answers) => {
          assert.strictEqual(typesOf(answers), "RE")
          return JSON.stringify(fieldsOf(answers[1]!))
        })
        assert.strictEqual(new Set(seen).size, 1)
        assert.match(seen[0]!, /"S":"FATAL".*"C":"28P01"/)
        for (const why of ["unknown tenant", "wrong user", "wrong password"]) {
          assert.isTrue(
            perseus.log.some((line) => line.includes(why)),
            why
          )
        }
      })
    )

    for (const parameter of ["user", "database", "schema_search_path"]) {
      it.effect(`08P01 where no ${parameter} is named, and it says which and how to send it`, () =>
        Effect.gen(function* () {
          const perseus = yield* SharedPerseus
          const { [parameter]: _left, ...rest } = perseus.tenant("red").startup
          const answers = yield* perseus.refusal(rest)
          assert.strictEqual(verdict(answers), "FATAL 08P01")
          const { M, H } = fieldsOf(answers[0]!)
          assert.include(M, parameter)
          assert.include(H, parameter)
        })
      )
    }

    it.effect("of the server's own where it refuses a setting", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        assert.strictEqual(verdict(yield* start(perseus, { TimeZone: "Middle/Earth" })), "FATAL 22023")
        assert.strictEqual(verdict(yield* start(perseus, { options: "-c no_such_setting=1" })), "FATAL 42704")
        assert.strictEqual(verdict(yield* start(perseus, { client_encoding: "KLINGON" })), "FATAL 22023")
        assert.strictEqual(verdict(yield* start(perseus, { log_min_messages: "debug5" })), "FATAL 42501")
        yield* eventually(Effect.sync(perseus.pool), ({ inUse }) => inUse === 0)
      })
    )

    it.effect("0A000 where it asks for what a pooler does not do", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        assert.strictEqual(verdict(yield* start(perseus, { replication: "database" })), "FATAL 0A000")
        assert.strictEqual(verdict(yield* start(perseus, { options: "-d 5" })), "FATAL 0A000")
      })
    )
  }
)

describe("a login that fails for a reason of the service's", () => {
  it.live("says 58000 where KMS is down, and nothing of what KMS said", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      yield* perseus.kms.disable(perseus.kms.keyArn)
      const answers = yield* perseus.refusal(perseus.tenant("red").startup)
      assert.strictEqual(typesOf(answers), "RE")
      assert.strictEqual(verdict(answers), "FATAL 58000")
      assert.notMatch(messageOf(answers), /arn|kms|disabled/i)
      yield* perseus.kms.enable(perseus.kms.keyArn)
      yield* perseus.login("red")
    })
  )

  it.live("says 08006 where the auth database is gone, and its rows are not known", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: ["red"],
        config: { AuthDBSettings: { AuthCacheTtlSecs: 0 } }
      })
      yield* perseus.auth.query("ALTER TABLE perseus_auth RENAME TO elsewhere")
      const answers = yield* perseus.refusal(perseus.tenant("red").startup)
      assert.strictEqual(verdict(answers), "FATAL 08006")
      assert.notMatch(messageOf(answers), /perseus_auth|relation/)
    })
  )

  it.live("says 08001 where the destination is down", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      yield* perseus.updateRow("red", "dest_host", `127.0.0.1:${yield* deadPort}`)
      const answers = yield* perseus.refusal(perseus.tenant("red").startup)
      assert.strictEqual(verdict(answers), "FATAL 08001")
      assert.notInclude(messageOf(answers), "ECONN")
    })
  )

  it.live("says 08001 where the destination refuses the role's password, or has no such database", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red", "green"] })
      yield* perseus.updateRow("red", "dest_pass_enc", yield* perseus.encrypt("not the password"))
      yield* perseus.updateRow("green", "dest_db", "no_such_database")
      for (const schema of ["red", "green"]) {
        assert.strictEqual(verdict(yield* perseus.refusal(perseus.tenant(schema).startup)), "FATAL 08001")
      }
    })
  )

  it.live("refuses a row with a NULL as it refuses a wrong password, and the log names row and column", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red", "green"] })
      yield* perseus.auth.query("UPDATE perseus_auth SET dest_db = NULL WHERE source_schema = 'red'")
      assert.strictEqual(verdict(yield* perseus.refusal(perseus.tenant("red").startup)), "FATAL 28P01")
      assert.isTrue(perseus.log.some((line) => /perseus_auth\.id \d+: dest_db/.test(line)))
      yield* perseus.login("green")
    })
  )
})

describe("a client that is ended before it is connected", () => {
  it.live("is gone without an error, as from PostgreSQL", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const { user, password, options } = perseus.tenant("red")
      const { host, port, sourceDb: database } = perseus
      const client = new Client({ host, port, user, password, database, options })
      const errors: Array<Error> = []
      client.on("error", (error) => errors.push(error))
      // What it promises is neither kept nor broken then.
      void client.connect().catch((error: Error) => errors.push(error))
      yield* Effect.promise(() => client.end())
      assert.deepStrictEqual(errors, [])
      const raw = yield* perseus.raw
      raw.send(terminate, startup(perseus.tenant("red").startup))
      assert.deepStrictEqual(yield* raw.closed(), [])
      assert.isEmpty(perseus.log.filter((line) => /^(Warn|Error)/.test(line)))
    })
  )
})

describe("too many clients", () => {
  it.live("of a tenant are refused with 53300, those of another tenant are not", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: ["red", "green"],
        config: { LimitSettings: { MaxClientsPerTenant: 2 } }
      })
      yield* perseus.login("red")
      const second = yield* perseus.login("red")
      assert.strictEqual(verdict(yield* perseus.refusal(perseus.tenant("red").startup)), "FATAL 53300")
      yield* perseus.login("green")
      second.vanish()
      yield* eventually(perseus.refusal(perseus.tenant("red").startup), (answers) => answers.at(-1)?.type === "Z")
    })
  )

  it.live("of all are refused with 53300, and a cancel still gets through", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { LimitSettings: { MaxClients: 2 } } })
      yield* perseus.login("red")
      const busy = yield* perseus.login("red")
      const answers = yield* perseus.refusal(perseus.tenant("red").startup)
      assert.strictEqual(verdict(answers), "FATAL 53300")
      assert.strictEqual(typesOf(answers), "E")
      busy.send(query("SELECT pg_sleep(600)"))
      yield* eventually(perseus.backends, (backends) => backends.some(({ state }) => state === "active"))
      const canceller = yield* perseus.raw
      canceller.send(cancelRequest(busy.key))
      assert.deepStrictEqual(yield* canceller.closed(), [])
      assert.strictEqual(verdict(yield* busy.ready()), "ERROR 57014")
    })
  )
})

describe("a destination that goes away under a living session", () => {
  it.live("is ERROR 08001 and ReadyForQuery for a query that was not sent, and the session can try again", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const client = yield* perseus.login("red")
      yield* perseus.updateRow("red", "dest_host", `127.0.0.1:${yield* deadPort}`)
      const answers = yield* eventually(client.query("SELECT 1"), (answers) => sqlStatesOf(answers).length > 0)
      assert.strictEqual(typesOf(answers), "EZ")
      assert.strictEqual(verdict(answers), "ERROR 08001")
      const { host, port } = perseus.destination
      yield* perseus.updateRow("red", "dest_host", `${host}:${port}`)
      yield* eventually(client.query("SELECT 1"), (answers) => rowsOf(answers)[0] === "1")
    })
  )
})

describe("a server connection that is lost", () => {
  it.live("in mid-query is passed on in the server's own words, then the session is closed", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const client = yield* perseus.login("red")
      client.send(query("SELECT pg_sleep(600)"))
      const [backend] = yield* eventually(perseus.backends, (backends) =>
        backends.some(({ state }) => state === "active")
      )
      yield* perseus.destination.query("SELECT pg_terminate_backend($1)", [backend!.pid])
      const answers = yield* client.closed()
      assert.strictEqual(typesOf(answers), "TE")
      assert.strictEqual(verdict(answers), "FATAL 57P01")
      assert.match(messageOf(answers), /administrator command$/)
    })
  )

  it.live("between the queries of a transaction is FATAL 57P01", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const client = yield* perseus.login("red")
      yield* client.query("BEGIN")
      const [backend] = yield* perseus.backends
      yield* perseus.destination.query("SELECT pg_terminate_backend($1)", [backend!.pid])
      assert.strictEqual(verdict(yield* client.closed()), "FATAL 57P01")
    })
  )

  it.live("while it lies idle is noticed by nobody", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const client = yield* perseus.login("red")
      const [backend] = yield* perseus.backends
      yield* perseus.destination.query("SELECT pg_terminate_backend($1)", [backend!.pid])
      yield* eventually(Effect.sync(perseus.pool), ({ open }) => open === 0)
      yield* stillWorks(client)
    })
  )
})
