import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import { readFileSync } from "node:fs"
import { AuthTableInvalid, AuthUnavailable, ConfigInvalid } from "../../src/errors.ts"
import { type AuthChange, AuthRepo, createTable, type Settings } from "../../src/tenant/AuthRepo.ts"
import { freshDatabase, ownPostgres, type Row, type TestDatabase } from "../support/postgres.ts"

const authSql = readFileSync(new URL("../../config/perseus_auth.sql", import.meta.url), "utf8")

/** A database with the table and its triggers. */
const authDatabase = Effect.tap(freshDatabase(), (database) => database.script(authSql))

const repoOf = (database: TestDatabase, settings: Partial<Settings> = {}) =>
  Layer.build(AuthRepo.layer({ dsn: database.dsn(), queryTimeoutSecs: 10, cacheTtlSecs: 3600, ...settings })).pipe(
    Effect.flatMap((context) => Effect.provide(AuthRepo, context))
  )

const insert = (database: TestDatabase, sourceDb: string, sourceSchema: string, destHost = "h") =>
  database.query("INSERT INTO perseus_auth (source_db, source_schema, dest_host) VALUES ($1, $2, $3)", [
    sourceDb,
    sourceSchema,
    destHost
  ])

/** What `changes` tells from here on. */
const subscribe = (repo: AuthRepo["Service"]) =>
  Effect.gen(function* () {
    const queue = yield* Queue.unbounded<AuthChange>()
    yield* repo.changes.pipe(
      Stream.runForEach((change) => Queue.offer(queue, change)),
      Effect.forkScoped({ startImmediately: true })
    )
    return queue
  })

const rowChanged = (sourceDb: string, sourceSchema: string): AuthChange => ({
  _tag: "Row",
  key: { sourceDb, sourceSchema }
})

const destHost = (repo: AuthRepo["Service"], sourceDb: string, sourceSchema: string) =>
  Effect.map(repo.find({ sourceDb, sourceSchema }), (row) => Option.getOrUndefined(row)?.destHost)

/** Puts a view in the table's place, in which each look-up that finds a row leaves its mark. */
const countLookUps = Effect.fnUntraced(function* (database: TestDatabase) {
  yield* database.script(`
    ALTER TABLE perseus_auth RENAME TO real_rows;
    CREATE SEQUENCE look_ups;
    CREATE VIEW perseus_auth AS SELECT * FROM real_rows WHERE nextval('look_ups') > 0`)
  return Effect.map(database.query("SELECT last_value::int AS n, is_called FROM look_ups"), ([row]) =>
    row?.is_called === true ? row.n : 0
  )
})

/** Holds up every look-up until the returned effect is run. */
const lockRows = Effect.fnUntraced(function* (database: TestDatabase, table = "perseus_auth") {
  const locker = yield* database.client
  yield* Effect.promise(() => locker.query(`BEGIN; LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE`))
  return Effect.promise(() => locker.query("COMMIT"))
})

/** Ends when so many statements wait for a lock in this database. */
const untilWaiting = (database: TestDatabase, count: number) =>
  Effect.repeat(
    database.query(
      "SELECT pid FROM pg_locks JOIN pg_database d ON d.oid = database WHERE NOT granted AND datname = current_database()"
    ),
    { until: (waiting: ReadonlyArray<Row>) => waiting.length === count }
  )

const fork = <A, E>(effect: Effect.Effect<A, E>) => Effect.forkChild(effect, { startImmediately: true })

const capturedLog = () => {
  const lines: Array<string> = []
  const logger = Logger.make(({ logLevel, message }) => {
    lines.push(`${logLevel} ${String(message)}`)
  })
  return { lines, layer: Logger.layer([logger]) }
}

const failureOf = <A, E>(exit: Exit.Exit<A, E>): E | undefined => Option.getOrUndefined(Exit.findErrorOption(exit))

describe("find", () => {
  it.live("gives a row with all its columns, and hides its hash", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      yield* database.query(
        `INSERT INTO perseus_auth (source_db, source_schema, source_user, source_pass_hashed, dest_host, dest_db, dest_user, dest_pass_enc)
         VALUES ('app', 'acme', 'u', 'secret-hash', 'db1:5433', 'prod', 'role', 'AQIC')`
      )
      const repo = yield* repoOf(database)
      const row = Option.getOrThrow(yield* repo.find({ sourceDb: "app", sourceSchema: "acme" }))
      const { sourcePassHashed, ...rest } = row
      assert.deepStrictEqual(rest, {
        id: 1,
        sourceDb: "app",
        sourceSchema: "acme",
        sourceUser: "u",
        destHost: "db1:5433",
        destDb: "prod",
        destUser: "role",
        destPassEnc: "AQIC",
        poolMode: null
      })
      assert.strictEqual(sourcePassHashed && Redacted.value(sourcePassHashed), "secret-hash")
      assert.notMatch(JSON.stringify(row), /secret-hash/)
    })
  )

  it.live("gives null for what is NULL, and nothing for a tenant that has no row", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      yield* database.query("INSERT INTO perseus_auth (source_db, source_schema) VALUES ('app', 'careless')")
      const repo = yield* repoOf(database)
      const row = Option.getOrThrow(yield* repo.find({ sourceDb: "app", sourceSchema: "careless" }))
      assert.deepInclude(row, {
        sourceUser: null,
        sourcePassHashed: null,
        destHost: null,
        destDb: null,
        destUser: null
      })
      for (const [sourceDb, sourceSchema] of [
        ["app", "acme"],
        ["careless", "app"],
        ["APP", "careless"],
        ["", ""]
      ] as const) {
        assert.isTrue(Option.isNone(yield* repo.find({ sourceDb, sourceSchema })))
      }
    })
  )

  it.live("takes names as they are, whatever SQL they look like", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      const repo = yield* repoOf(database)
      const names = [
        `a"b; drop schema x --`,
        `'; DROP TABLE perseus_auth; --`,
        `$1`,
        `%s`,
        `a\\b`,
        `x' OR 'a'='a`,
        "ünïcödé-密码",
        "a\nb",
        `{"db":"x"}`
      ]
      for (const name of names) {
        assert.isTrue(Option.isNone(yield* repo.find({ sourceDb: name, sourceSchema: name })))
        yield* insert(database, name, name, name)
      }
      const fresh = yield* repoOf(database)
      for (const name of names) assert.strictEqual(yield* destHost(fresh, name, name), name)
    })
  )

  it.live("has no row for a name with a NUL or of any length, and asks on as before", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      yield* insert(database, "app", "acme")
      const repo = yield* repoOf(database)
      for (const name of ["\0", "app\0", "x".repeat(1_000_000)]) {
        assert.isTrue(Option.isNone(yield* repo.find({ sourceDb: name, sourceSchema: "acme" })))
        assert.isTrue(Option.isNone(yield* repo.find({ sourceDb: "app", sourceSchema: name })))
      }
      assert.strictEqual(yield* destHost(repo, "app", "acme"), "h")
    })
  )

  it.live("lets nothing that a client sends alter the auth connection", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      const repo = yield* repoOf(database, { dsn: database.dsn({ pool_max_conns: "1" }), cacheTtlSecs: 0 })
      const sessions = database.query(
        "SELECT pid, usename, application_name FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'perseus' ORDER BY pid"
      )
      yield* repo.find({ sourceDb: "app", sourceSchema: "acme" })
      const before = yield* sessions
      yield* database.script("CREATE SCHEMA evil; CREATE TABLE evil.perseus_auth (LIKE public.perseus_auth)")
      yield* database.query("INSERT INTO evil.perseus_auth (id, source_db, source_schema) VALUES (1, 'app', 'evil')")
      for (const text of ["evil", "SET search_path = evil", "options=-c search_path=evil", "application_name"]) {
        assert.isTrue(Option.isNone(yield* repo.find({ sourceDb: text, sourceSchema: text })))
        assert.isTrue(Option.isNone(yield* repo.find({ sourceDb: "app", sourceSchema: text })))
      }
      assert.deepStrictEqual(yield* sessions, before, "the same connections, as they were")
    })
  )

  it.live("is one query for 50 who ask together, and none for those who ask again", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      yield* insert(database, "app", "acme")
      const lookUps = yield* countLookUps(database)
      const repo = yield* repoOf(database)
      const unlock = yield* lockRows(database, "real_rows")
      const askers = yield* Effect.forEach(Array.from({ length: 50 }), () => fork(destHost(repo, "app", "acme")))
      yield* untilWaiting(database, 1)
      yield* unlock
      for (const asker of askers) assert.strictEqual(yield* Fiber.join(asker), "h")
      assert.strictEqual(yield* destHost(repo, "app", "acme"), "h")
      assert.strictEqual(yield* lookUps, 1)
    })
  )

  it.effect("fails when the answer takes too long, and for that look-up alone", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      yield* insert(database, "app", "acme")
      const repo = yield* repoOf(database, { queryTimeoutSecs: 1 })
      const unlock = yield* lockRows(database)
      const looking = yield* fork(Effect.flip(repo.find({ sourceDb: "app", sourceSchema: "acme" })))
      yield* untilWaiting(database, 1)
      yield* TestClock.adjust("999 millis")
      assert.isUndefined(looking.pollUnsafe())
      yield* TestClock.adjust("1 millis")
      assert.strictEqual((yield* Fiber.join(looking)).detail, "look-up failed: timed out after 1 s")
      yield* unlock
      assert.strictEqual(yield* destHost(repo, "app", "acme"), "h")
    })
  )

  it.effect("does not wait longer for a server that no longer answers at all", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      const repo = yield* repoOf(database, { queryTimeoutSecs: 1, dsn: database.dsn({ pool_max_conns: "1" }) })
      yield* repo.find({ sourceDb: "app", sourceSchema: "acme" })
      const [backend] = yield* database.query(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'SELECT id::text%'"
      )
      const signal = (name: "SIGSTOP" | "SIGCONT") => Effect.sync(() => process.kill(Number(backend?.pid), name))
      yield* Effect.acquireRelease(signal("SIGSTOP"), () => signal("SIGCONT"))
      const looking = yield* fork(Effect.exit(repo.find({ sourceDb: "app", sourceSchema: "other" })))
      // To cancel the query would take five seconds more; that goes on behind the scenes.
      yield* TestClock.adjust("1 seconds")
      assert.instanceOf(failureOf(yield* Fiber.join(looking)), AuthUnavailable)
      yield* signal("SIGCONT")
    })
  )

  it.live("serves a table in another schema, by the search_path of the DSN or of the role", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      const schema = `we"ird Schema`
      yield* database.script(`CREATE SCHEMA "we""ird Schema"; SET search_path = "we""ird Schema"; ${authSql}`)
      yield* database.query(
        `INSERT INTO "we""ird Schema".perseus_auth (source_db, source_schema, dest_host) VALUES ('app', 'acme', 'h')`
      )
      const error = failureOf(yield* Effect.exit(Effect.scoped(repoOf(database))))
      assert.instanceOf(error, AuthTableInvalid)
      const repo = yield* repoOf(database, { dsn: database.dsn({ search_path: `"${schema.replaceAll('"', '""')}"` }) })
      assert.strictEqual(yield* destHost(repo, "app", "acme"), "h")
      yield* database.query(`ALTER DATABASE ${database.database} SET search_path = "we""ird Schema"`)
      assert.strictEqual(yield* destHost(yield* repoOf(database), "app", "acme"), "h")
    })
  )
})

describe("changes", () => {
  it.live("acts on an insert, an update and a deletion at once, and tells of each", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      const repo = yield* repoOf(database)
      const changes = yield* subscribe(repo)
      assert.isUndefined(yield* destHost(repo, "app", "acme"))
      yield* insert(database, "app", "acme", "one")
      assert.deepStrictEqual(yield* Queue.take(changes), rowChanged("app", "acme"))
      assert.strictEqual(yield* destHost(repo, "app", "acme"), "one")
      yield* database.query("UPDATE perseus_auth SET dest_host = 'two'")
      assert.deepStrictEqual(yield* Queue.take(changes), rowChanged("app", "acme"))
      assert.strictEqual(yield* destHost(repo, "app", "acme"), "two")
      yield* database.query("DELETE FROM perseus_auth")
      assert.deepStrictEqual(yield* Queue.take(changes), rowChanged("app", "acme"))
      assert.isUndefined(yield* destHost(repo, "app", "acme"))
    })
  )

  it.live("leaves the other rows in the cache", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      yield* insert(database, "app", "acme", "one")
      yield* insert(database, "app", "other", "one")
      const repo = yield* repoOf(database)
      const changes = yield* subscribe(repo)
      yield* destHost(repo, "app", "acme")
      yield* destHost(repo, "app", "other")
      yield* database.query("ALTER TABLE perseus_auth DISABLE TRIGGER USER")
      yield* database.query("UPDATE perseus_auth SET dest_host = 'two'")
      yield* database.query("ALTER TABLE perseus_auth ENABLE TRIGGER USER")
      yield* database.query("UPDATE perseus_auth SET dest_host = 'three' WHERE source_schema = 'acme'")
      yield* Queue.take(changes)
      assert.strictEqual(yield* destHost(repo, "app", "acme"), "three")
      assert.strictEqual(yield* destHost(repo, "app", "other"), "one")
    })
  )

  it.live("tells of both tenants when a row's key changes", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      yield* insert(database, "app", "old")
      const repo = yield* repoOf(database)
      const changes = yield* subscribe(repo)
      assert.strictEqual(yield* destHost(repo, "app", "old"), "h")
      assert.isUndefined(yield* destHost(repo, "app", "new"))
      yield* database.query("UPDATE perseus_auth SET source_schema = 'new'")
      assert.deepStrictEqual(yield* Queue.takeN(changes, 2), [rowChanged("app", "old"), rowChanged("app", "new")])
      assert.isUndefined(yield* destHost(repo, "app", "old"))
      assert.strictEqual(yield* destHost(repo, "app", "new"), "h")
    })
  )

  it.live("tells that all may have changed on TRUNCATE, on a NULL key, and on a notification it cannot read", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      const repo = yield* repoOf(database)
      const changes = yield* subscribe(repo)
      for (const sql of [
        "TRUNCATE perseus_auth",
        "INSERT INTO perseus_auth (source_db) VALUES ('app')",
        "NOTIFY perseus_auth",
        "NOTIFY perseus_auth, 'app/acme'",
        `NOTIFY perseus_auth, '{"db":"app"}'`,
        `NOTIFY perseus_auth, '{"db":1,"schema":2}'`
      ]) {
        yield* database.query(sql)
        assert.deepStrictEqual(yield* Queue.take(changes), { _tag: "All" }, sql)
      }
    })
  )

  it.live("asks anew for a changed row, even while a look-up from before the change is under way", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      yield* insert(database, "app", "acme")
      const lookUps = yield* countLookUps(database)
      const repo = yield* repoOf(database)
      const changes = yield* subscribe(repo)
      const unlock = yield* lockRows(database, "real_rows")
      const before = yield* fork(destHost(repo, "app", "acme"))
      yield* untilWaiting(database, 1)
      yield* database.query(`NOTIFY perseus_auth, '{"db":"app","schema":"acme"}'`)
      yield* Queue.take(changes)
      const after = yield* fork(destHost(repo, "app", "acme"))
      yield* untilWaiting(database, 2)
      yield* unlock
      for (const asker of [before, after]) assert.strictEqual(yield* Fiber.join(asker), "h")
      assert.strictEqual(yield* destHost(repo, "app", "acme"), "h")
      assert.strictEqual(yield* lookUps, 2)
    })
  )

  it.live("listens on a connection beside the pool", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      yield* insert(database, "app", "acme")
      const repo = yield* repoOf(database, { dsn: database.dsn({ pool_max_conns: "1" }) })
      const changes = yield* subscribe(repo)
      assert.strictEqual(yield* destHost(repo, "app", "acme"), "h")
      yield* database.query("DELETE FROM perseus_auth")
      yield* Queue.take(changes)
      assert.isUndefined(yield* destHost(repo, "app", "acme"))
    })
  )

  it.live("forgets all rows when the listening connection is lost, and tells so when it is back", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      yield* insert(database, "app", "acme", "one")
      const log = capturedLog()
      yield* Effect.gen(function* () {
        const repo = yield* repoOf(database)
        const changes = yield* subscribe(repo)
        assert.strictEqual(yield* destHost(repo, "app", "acme"), "one")
        yield* database.query("ALTER TABLE perseus_auth DISABLE TRIGGER USER")
        yield* database.query("UPDATE perseus_auth SET dest_host = 'two'")
        yield* database.query(
          "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
        )
        assert.deepStrictEqual(yield* Queue.take(changes), { _tag: "All" })
        assert.strictEqual(yield* destHost(repo, "app", "acme"), "two")
        yield* database.query("ALTER TABLE perseus_auth ENABLE TRIGGER USER")
        yield* database.query("DELETE FROM perseus_auth")
        assert.deepStrictEqual(yield* Queue.take(changes), rowChanged("app", "acme"))
      }).pipe(Effect.provide(log.layer))
      assert.match(log.lines.join("\n"), /Warn .*changes are not listened for/)
      assert.match(log.lines.join("\n"), /Info .*listening for changes again/)
    })
  )

  it.live("does without the trigger: the cache's time decides", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      yield* database.script(createTable)
      yield* insert(database, "app", "acme", "one")
      const cached = yield* repoOf(database)
      const uncached = yield* repoOf(database, { cacheTtlSecs: 0 })
      for (const repo of [cached, uncached]) assert.strictEqual(yield* destHost(repo, "app", "acme"), "one")
      yield* database.query("UPDATE perseus_auth SET dest_host = 'two'")
      assert.strictEqual(yield* destHost(cached, "app", "acme"), "one")
      assert.strictEqual(yield* destHost(uncached, "app", "acme"), "two")
    })
  )

  it.effect(
    "tells that all may have changed each time that the cache's time has passed, until there is a trigger",
    () =>
      Effect.gen(function* () {
        const database = yield* freshDatabase()
        yield* database.script(createTable)
        const log = capturedLog()
        yield* Effect.gen(function* () {
          const changes = yield* subscribe(yield* repoOf(database, { cacheTtlSecs: 5 }))
          for (let times = 0; times < 3; times++) {
            yield* TestClock.adjust("4999 millis")
            assert.strictEqual(yield* Queue.size(changes), 0)
            yield* TestClock.adjust("1 millis")
            assert.deepStrictEqual(yield* Queue.take(changes), { _tag: "All" })
          }
          yield* database.script(authSql)
          // What happened before the trigger was there.
          yield* TestClock.adjust("5 seconds")
          assert.deepStrictEqual(yield* Queue.take(changes), { _tag: "All" })
          yield* insert(database, "app", "acme")
          assert.deepStrictEqual(yield* Queue.take(changes), rowChanged("app", "acme"))
          yield* TestClock.adjust("1 hour")
          yield* database.query("DELETE FROM perseus_auth")
          assert.deepStrictEqual(yield* Queue.take(changes), rowChanged("app", "acme"))
        }).pipe(Effect.provide(log.layer))
        assert.deepStrictEqual(log.lines, [
          "Warn perseus_auth lacks the triggers of config/perseus_auth.sql: a change is noticed within about 5 s; run that script, and it is at once",
          "Info perseus_auth has its triggers: a change is noticed at once"
        ])
      })
  )

  it.effect("tells so each second where nothing is cached, and where a trigger is disabled or nobody can listen", () =>
    Effect.gen(function* () {
      const disabled = yield* authDatabase
      yield* disabled.query("ALTER TABLE perseus_auth DISABLE TRIGGER USER")
      const deaf = yield* authDatabase
      const role = `deaf_${deaf.database}`
      // As on a standby, where LISTEN fails and SELECT does not.
      yield* deaf.script(
        `CREATE ROLE ${role} LOGIN PASSWORD 'pw' CONNECTION LIMIT 1; GRANT SELECT ON perseus_auth TO ${role}`
      )
      yield* Effect.addFinalizer(() => deaf.script(`DROP OWNED BY ${role}; DROP ROLE ${role}`))
      for (const repo of [
        yield* repoOf(disabled, { cacheTtlSecs: 0 }),
        yield* repoOf(deaf, { cacheTtlSecs: 0, dsn: deaf.dsn({ user: role, password: "pw", pool_max_conns: "1" }) })
      ]) {
        const changes = yield* subscribe(repo)
        for (let times = 0; times < 3; times++) {
          yield* TestClock.adjust("1 seconds")
          assert.deepStrictEqual(yield* Queue.take(changes), { _tag: "All" })
        }
      }
    })
  )
})

describe("findAll", () => {
  it.live("gives the rows of many tenants as they are, in one query past the cache, and leaves out who has none", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      const names = ["acme", `a"b\\c'd{},`, "ünïcödé-密码", "a\nb"]
      for (const name of names) yield* insert(database, "app", name, name)
      const repo = yield* repoOf(database, { dsn: database.dsn({ pool_max_conns: "1" }) })
      assert.strictEqual(yield* destHost(repo, "app", "acme"), "acme")
      yield* database.query("ALTER TABLE perseus_auth DISABLE TRIGGER USER")
      yield* database.query("UPDATE perseus_auth SET dest_host = 'other' WHERE source_schema = 'acme'")
      yield* insert(database, "elsewhere", "acme")
      const rows = yield* repo.findAll(["nobody", ...names].map((sourceSchema) => ({ sourceDb: "app", sourceSchema })))
      assert.sameDeepMembers(
        rows.map(({ sourceDb, sourceSchema, destHost }) => [sourceDb, sourceSchema, destHost]),
        [["app", "acme", "other"], ...names.slice(1).map((name) => ["app", name, name])]
      )
      assert.deepStrictEqual(yield* repo.findAll([]), [])
    })
  )
})

describe("several rows of one tenant", () => {
  it.live("count as the first of them, by number", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      yield* database.script("ALTER TABLE perseus_auth DROP CONSTRAINT perseus_auth_source_db_source_schema_key")
      yield* database.query(
        "INSERT INTO perseus_auth (id, source_db, source_schema) VALUES (10, 'app', 'acme'), (9, 'app', 'acme')"
      )
      const repo = yield* repoOf(database)
      const key = { sourceDb: "app", sourceSchema: "acme" }
      assert.strictEqual(Option.getOrThrow(yield* repo.find(key)).id, 9)
      assert.deepStrictEqual(
        (yield* repo.findAll([key])).map(({ id }) => id),
        [9]
      )
    })
  )
})

describe("an auth database that cannot be used", () => {
  const buildFailure = (database: TestDatabase, settings?: Partial<Settings>) =>
    Effect.map(Effect.exit(Effect.scoped(repoOf(database, settings))), failureOf)

  it.live("is refused at start without the table, with the statement that makes it", () =>
    Effect.gen(function* () {
      const error = yield* buildFailure(yield* freshDatabase())
      assert.instanceOf(error, AuthTableInvalid)
      assert.include(error.detail, createTable)
    })
  )

  it.live("is refused at start when a column is missing or may not be read, by its name", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      const role = `reader_${database.database}`
      yield* database.script(`CREATE ROLE ${role} LOGIN PASSWORD 'pw'; GRANT SELECT (id, source_db, source_schema, source_user,
        source_pass_hashed, dest_host, dest_db) ON perseus_auth TO ${role}`)
      yield* Effect.addFinalizer(() => database.script(`DROP OWNED BY ${role}; DROP ROLE ${role}`))
      const asReader = { dsn: database.dsn({ user: role, password: "pw" }) }
      const unreadable = yield* buildFailure(database, asReader)
      assert.instanceOf(unreadable, AuthTableInvalid)
      assert.match(unreadable.detail, /may not SELECT dest_pass_enc, dest_user from public\.perseus_auth/)
      yield* database.query(`GRANT SELECT (dest_pass_enc, dest_user) ON perseus_auth TO ${role}`)
      assert.isUndefined(yield* buildFailure(database, asReader), "column privileges are enough")

      yield* database.query("ALTER TABLE perseus_auth DROP COLUMN dest_user, DROP COLUMN source_user")
      const missing = yield* buildFailure(database)
      assert.instanceOf(missing, AuthTableInvalid)
      assert.match(missing.detail, /public\.perseus_auth has no column source_user, dest_user/)
    })
  )

  it.live("is refused at start when the DSN, its password, its database or its certificate is wrong", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      for (const [parameters, words] of [
        [{ pool_max_conns: "0" }, /^pool_max_conns: /],
        [{ password: "wrong-password" }, /the server refuses it: .*authentication failed.*28P01/],
        [{ dbname: "nowhere" }, /the server refuses it: .*3D000/],
        [{ sslmode: "verify-full", sslrootcert: "/nowhere/ca.pem" }, /^sslrootcert: ENOENT/]
      ] as const) {
        const error = yield* buildFailure(database, { dsn: database.dsn(parameters) })
        assert.instanceOf(error, ConfigInvalid)
        assert.strictEqual(error.source, "AuthDBSettings.AuthDBDSN")
        assert.match(error.problems.join(), words)
        assert.notMatch(`${error.message} ${JSON.stringify(error)}`, /wrong-password/)
      }
    })
  )

  it.live("may be down at start and whenever it likes, and is used again when it is back", () =>
    Effect.gen(function* () {
      const server = yield* ownPostgres()
      const database = yield* freshDatabase(server)
      yield* database.script(authSql)
      yield* insert(database, "app", "acme")
      yield* server.stop("fast")
      const log = capturedLog()
      yield* Effect.gen(function* () {
        const repo = yield* repoOf(database)
        const changes = yield* subscribe(repo)
        assert.isFalse(yield* repo.ready)
        const error = yield* Effect.flip(repo.find({ sourceDb: "app", sourceSchema: "acme" }))
        assert.instanceOf(error, AuthUnavailable)
        assert.match(error.detail, /ECONNREFUSED/)
        yield* server.start
        assert.deepStrictEqual(yield* Queue.take(changes), { _tag: "All" })
        assert.isTrue(yield* repo.ready)
        assert.strictEqual(yield* destHost(repo, "app", "acme"), "h")
        for (const mode of ["fast", "immediate"] as const) {
          yield* server.restart(mode)
          assert.deepStrictEqual(yield* Queue.take(changes), { _tag: "All" })
          assert.strictEqual(yield* destHost(repo, "app", "acme"), "h")
        }
        yield* server.stop("immediate")
        assert.isFalse(yield* repo.ready)
        // What is cached ends with the listening connection, however young it is.
        yield* Effect.repeat(Effect.exit(repo.find({ sourceDb: "app", sourceSchema: "acme" })), {
          until: Exit.isFailure
        })
      }).pipe(Effect.provide(log.layer))
      assert.match(log.lines.join("\n"), /Warn auth database: .*ECONNREFUSED.*; starting without it/)
    })
  )

  it.effect("is reported once while it is down, however often it is tried", () =>
    Effect.gen(function* () {
      const server = yield* ownPostgres()
      const database = yield* freshDatabase(server)
      yield* server.stop("fast")
      const log = capturedLog()
      yield* Effect.gen(function* () {
        const repo = yield* repoOf(database, { queryTimeoutSecs: 3600 })
        for (let attempt = 0; attempt < 20; attempt++) {
          yield* TestClock.adjust("10 seconds")
          assert.isFalse(yield* repo.ready)
        }
      }).pipe(Effect.provide(log.layer))
      assert.deepStrictEqual(
        log.lines.map((line) => line.replace(/: .*ECONNREFUSED.*?(;|$)/, ": …$1")),
        ["Warn auth database: …; starting without it, logins fail until it answers", "Warn auth database: …"]
      )
    })
  )

  it.live("is reported once when its table turns out to be invalid, fails every look-up, and recovers", () =>
    Effect.gen(function* () {
      const server = yield* ownPostgres()
      const database = yield* freshDatabase(server)
      yield* server.stop("fast")
      const log = capturedLog()
      yield* Effect.gen(function* () {
        const repo = yield* repoOf(database)
        const changes = yield* subscribe(repo)
        yield* server.start
        yield* Effect.repeat(
          Effect.sync(() => log.lines.filter((line) => line.startsWith("Error")).length).pipe(
            Effect.tap(Effect.yieldNow)
          ),
          {
            until: (errors: number) => errors > 0
          }
        )
        // Not before: a look-up shares an attempt that began while the server was still starting.
        const error = yield* Effect.flip(repo.find({ sourceDb: "app", sourceSchema: "acme" }))
        assert.match(error.detail, /no table perseus_auth/)
        assert.notMatch(error.detail, /CREATE TABLE/)
        assert.isFalse(yield* repo.ready)
        yield* database.script(authSql)
        assert.deepStrictEqual(yield* Queue.take(changes), { _tag: "All" })
        assert.isTrue(yield* repo.ready)
        assert.isTrue(Option.isNone(yield* repo.find({ sourceDb: "app", sourceSchema: "acme" })))
      }).pipe(Effect.provide(log.layer))
      const errors = log.lines.filter((line) => line.startsWith("Error"))
      assert.strictEqual(errors.length, 1)
      assert.include(errors[0], createTable)
    })
  )

  it.live("is asked for its table again when that was moved to another schema", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      yield* insert(database, "app", "acme")
      const repo = yield* repoOf(database, { dsn: database.dsn({ search_path: "public,elsewhere" }), cacheTtlSecs: 0 })
      assert.strictEqual(yield* destHost(repo, "app", "acme"), "h")
      yield* database.script("CREATE SCHEMA elsewhere; ALTER TABLE perseus_auth SET SCHEMA elsewhere")
      yield* Effect.flip(repo.find({ sourceDb: "app", sourceSchema: "acme" }))
      assert.strictEqual(yield* destHost(repo, "app", "acme"), "h")
    })
  )
})

describe("config/perseus_auth.sql", () => {
  it("has the statement that an operator is shown when the table is missing", () => {
    assert.include(authSql, createTable)
  })

  it.live("can be run again, keeps the rows, and leaves the session's search_path alone", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      yield* insert(database, "app", "acme")
      const client = yield* database.client
      yield* Effect.promise(() => client.query(`SET search_path = public; ${authSql}`))
      const { rows } = yield* Effect.promise(() => client.query("SHOW search_path"))
      assert.deepStrictEqual(rows, [{ search_path: "public" }])
      assert.deepStrictEqual(yield* database.query("SELECT source_schema FROM perseus_auth"), [
        { source_schema: "acme" }
      ])
      const triggers = yield* database.query("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY tgname")
      assert.deepStrictEqual(
        triggers.map((row) => row.tgname),
        ["perseus_auth_changed", "perseus_auth_truncated"]
      )
    })
  )

  it.live("adds the triggers to the table that the search_path finds, and makes no second one before it", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      yield* database.script(
        `CREATE SCHEMA a; CREATE SCHEMA b; SET search_path = b; ${createTable} SET search_path = a, b; ${authSql}`
      )
      const tables = yield* database.query("SELECT schemaname FROM pg_tables WHERE tablename = 'perseus_auth'")
      assert.deepStrictEqual(tables, [{ schemaname: "b" }])
      const functions = yield* database.query(
        "SELECT pronamespace::regnamespace::text AS schema FROM pg_proc WHERE proname LIKE 'perseus%'"
      )
      assert.deepStrictEqual(functions, [{ schema: "b" }])
    })
  )

  it.live("notifies of nothing but the names, and of all rows when they are too long for it", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      const client = yield* database.client
      const payloads = yield* Queue.unbounded<string>()
      client.on("notification", ({ payload }) => Queue.offerUnsafe(payloads, payload ?? "none"))
      yield* Effect.promise(() => client.query("LISTEN perseus_auth"))
      yield* database.query(
        `INSERT INTO perseus_auth (source_db, source_schema, source_user, source_pass_hashed, dest_host, dest_db, dest_user, dest_pass_enc)
         VALUES ('app', $1, 'u', 'secret', 'secret', 'secret', 'secret', 'secret')`,
        [`a"b`]
      )
      assert.deepStrictEqual(JSON.parse(yield* Queue.take(payloads)), { db: "app", schema: `a"b` })
      yield* database.query("ALTER TABLE perseus_auth ALTER COLUMN source_db TYPE text")
      for (const length of [1000, 7972, 7973, 100_000]) {
        yield* database.query("TRUNCATE perseus_auth")
        assert.strictEqual(yield* Queue.take(payloads), "")
        yield* insert(database, "x".repeat(length), "s")
        const payload = yield* Queue.take(payloads)
        if (length > 7972) assert.strictEqual(payload, "")
        else assert.strictEqual(JSON.parse(payload).db.length, length)
      }
    })
  )

  it.live("is at work for a writer whose search_path has nothing of it", () =>
    Effect.gen(function* () {
      const database = yield* authDatabase
      const repo = yield* repoOf(database)
      const changes = yield* subscribe(repo)
      yield* database.script(
        `SET search_path = ''; INSERT INTO public.perseus_auth (source_db, source_schema) VALUES ('app', 'acme')`
      )
      assert.deepStrictEqual(yield* Queue.take(changes), rowChanged("app", "acme"))
    })
  )
})
