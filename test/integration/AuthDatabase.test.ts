import { assert, describe, it, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import { TestClock } from "effect/testing"
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import * as path from "node:path"
import * as AuthDatabase from "../../src/tenant/AuthDatabase.ts"
import * as AuthDsn from "../../src/tenant/AuthDsn.ts"
import { authority, signedBy } from "../support/certificates.ts"
import { databaseOn, freshDatabase, ownPostgres, type TestDatabase } from "../support/postgres.ts"

const open = (database: TestDatabase, parameters: Readonly<Record<string, string>>) =>
  Effect.suspend(() => AuthDatabase.make(Result.getOrThrow(AuthDsn.parse(database.dsn(parameters)))))

const isEncrypted = (auth: AuthDatabase.AuthDatabase) =>
  Effect.map(auth.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"), ([row]) => row?.ssl)

/** How many queries with this in them run in this database, or wait for a lock there. */
const running = (database: TestDatabase, what: string) =>
  Effect.map(
    database.query(
      "SELECT count(*)::int AS n FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid() AND query LIKE $1",
      [`%${what}%`]
    ),
    ([row]) => row?.n
  )

/** A server with TLS, and one role each that may log in only with it, only without it, and only by a certificate. */
class TlsServer extends Context.Service<
  TlsServer,
  {
    readonly database: TestDatabase
    readonly role: (name: "tls" | "plain" | "certified") => Readonly<Record<string, string>>
    /** Paths of PEM files. */
    readonly ca: string
    readonly otherCa: string
    readonly client: { readonly sslcert: string; readonly sslkey: string }
  }
>()("test/TlsServer") {
  static readonly layer = Layer.effect(
    TlsServer,
    Effect.gen(function* () {
      const ca = authority()
      const serverCertificate = signedBy(ca, "127.0.0.1", "db.internal")
      const server = yield* ownPostgres({
        settings: { ssl: "on", ssl_ca_file: "ca.crt" },
        files: {
          "server.crt": serverCertificate.cert,
          "server.key": serverCertificate.key,
          "ca.crt": ca.cert,
          "pg_hba.conf": [
            "host all postgres 127.0.0.1/32 scram-sha-256",
            "hostssl all tls 127.0.0.1/32 scram-sha-256",
            "hostnossl all plain 127.0.0.1/32 scram-sha-256",
            "hostssl all certified 127.0.0.1/32 cert"
          ].join("\n")
        }
      })
      const database = databaseOn(server, "postgres")
      for (const role of ["tls", "plain", "certified"]) {
        yield* database.query(`CREATE ROLE ${role} LOGIN PASSWORD '${role}'`)
      }
      const clientCertificate = signedBy(ca, "certified")
      const directory = yield* Effect.acquireRelease(
        Effect.promise(() => mkdtemp(path.join(tmpdir(), "perseus-test-"))),
        (directory) => Effect.promise(() => rm(directory, { recursive: true }))
      )
      const pem = (name: string, content: string) =>
        Effect.promise(async () => {
          const file = path.join(directory, name)
          await writeFile(file, content, { mode: 0o600 })
          return file
        })
      return TlsServer.of({
        database,
        role: (name) => ({ user: name, password: name }),
        ca: yield* pem("ca.pem", ca.cert),
        otherCa: yield* pem("other.pem", authority().cert),
        client: {
          sslcert: yield* pem("client.pem", clientCertificate.cert),
          sslkey: yield* pem("client.key", clientCertificate.key)
        }
      })
    })
  ).pipe(Layer.orDie)
}

layer(TlsServer.layer)("sslmode, with a server that has TLS", (it) => {
  for (const [sslmode, encrypted] of [
    ["disable", false],
    ["allow", false],
    ["prefer", true],
    ["require", true]
  ] as const) {
    it.effect(`${sslmode} ${encrypted ? "encrypts, whoever signed the certificate" : "does not encrypt"}`, () =>
      Effect.gen(function* () {
        const { database } = yield* TlsServer
        assert.strictEqual(yield* isEncrypted(yield* open(database, { sslmode })), encrypted)
      })
    )
  }

  it.effect("allow encrypts where the server wants it, prefer does not where the server wants it not", () =>
    Effect.gen(function* () {
      const { database, role } = yield* TlsServer
      for (const [sslmode, name, encrypted] of [
        ["allow", "tls", true],
        ["prefer", "tls", true],
        ["allow", "plain", false],
        ["prefer", "plain", false]
      ] as const) {
        const auth = yield* open(database, { sslmode, ...role(name) })
        for (const look of ["first", "second"]) {
          assert.strictEqual(yield* isEncrypted(auth), encrypted, `${sslmode} as ${name}, ${look} query`)
        }
      }
    })
  )

  it.effect("disable and require do not try the other way", () =>
    Effect.gen(function* () {
      const { database, role } = yield* TlsServer
      for (const [sslmode, name] of [
        ["disable", "tls"],
        ["require", "plain"]
      ] as const) {
        const auth = yield* open(database, { sslmode, ...role(name) })
        assert.strictEqual((yield* Effect.flip(isEncrypted(auth))).sqlState, "28000")
      }
    })
  )

  it.effect("verify-ca and verify-full trust the authority given, and it alone", () =>
    Effect.gen(function* () {
      const { database, ca, otherCa } = yield* TlsServer
      for (const sslmode of ["require", "verify-ca", "verify-full"]) {
        assert.isTrue(yield* isEncrypted(yield* open(database, { sslmode, sslrootcert: ca })))
        const error = yield* Effect.flip(isEncrypted(yield* open(database, { sslmode, sslrootcert: otherCa })))
        assert.match(error.detail, /certificate/, `${sslmode} with another authority`)
      }
      for (const sslmode of ["verify-ca", "verify-full"]) {
        const error = yield* Effect.flip(isEncrypted(yield* open(database, { sslmode })))
        assert.match(error.detail, /certificate/, `${sslmode} without an authority trusts the public ones`)
      }
    })
  )

  it.effect("verify-full wants the host's name in the certificate, verify-ca does not", () =>
    Effect.gen(function* () {
      const { database, ca } = yield* TlsServer
      const elsewhere = { sslrootcert: ca, host: "localhost" }
      assert.isTrue(yield* isEncrypted(yield* open(database, { sslmode: "verify-ca", ...elsewhere })))
      const error = yield* Effect.flip(isEncrypted(yield* open(database, { sslmode: "verify-full", ...elsewhere })))
      assert.match(error.detail, /altnames/)
    })
  )

  it.effect("a client certificate is shown where sslcert and sslkey name one", () =>
    Effect.gen(function* () {
      const { database, ca, client, role } = yield* TlsServer
      const as = { sslmode: "verify-full", sslrootcert: ca, ...role("certified") }
      assert.isTrue(yield* isEncrypted(yield* open(database, { ...as, ...client })))
      yield* Effect.flip(isEncrypted(yield* open(database, as)))
    })
  )

  it.effect("the listening connection is encrypted like the others", () =>
    Effect.gen(function* () {
      const { database, role } = yield* TlsServer
      for (const [sslmode, name] of [
        ["require", "tls"],
        ["allow", "tls"],
        ["prefer", "plain"]
      ] as const) {
        const auth = yield* open(database, { sslmode, ...role(name) })
        const notifications = yield* auth.listen("c")
        yield* auth.query("SELECT pg_notify('c', $1)", [name])
        assert.strictEqual((yield* Queue.take(notifications)).payload, name)
      }
    })
  )
})

describe("sslmode, with a server that has no TLS", () => {
  it.effect("prefer and allow go without, the others fail", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      for (const sslmode of ["disable", "allow", "prefer"]) {
        assert.isFalse(yield* isEncrypted(yield* open(database, { sslmode })))
      }
      for (const sslmode of ["require", "verify-ca", "verify-full"]) {
        const error = yield* Effect.flip(isEncrypted(yield* open(database, { sslmode })))
        assert.match(error.detail, /does not support TLS/)
      }
    })
  )
})

/** Draws these, one after the other. */
const drawing = (fractions: ReadonlyArray<number>): typeof Random.Random.Service => {
  const left = [...fractions]
  return { nextIntUnsafe: () => 0, nextDoubleUnsafe: () => left.shift() ?? 0 }
}

describe("the pool", () => {
  it.live("opens pool_min_conns ahead and never more than pool_max_conns", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      const auth = yield* open(database, { pool_min_conns: "2", pool_max_conns: "3", application_name: "counted" })
      const count = Effect.map(
        database.query("SELECT count(*)::int AS n FROM pg_stat_activity WHERE application_name = 'counted'"),
        ([row]) => row?.n
      )
      yield* auth.query("SELECT 1")
      yield* Effect.repeat(count, { until: (n) => n === 2 })
      const locker = yield* database.client
      yield* Effect.promise(() => locker.query("SELECT pg_advisory_lock(1)"))
      const queries = yield* Effect.forkChild(
        Effect.all(
          Array.from({ length: 20 }, () => auth.query("SELECT pg_advisory_lock_shared(1)")),
          { concurrency: "unbounded" }
        )
      )
      yield* Effect.repeat(running(database, "pg_advisory_lock_shared"), { until: (n) => n === 3 })
      assert.strictEqual(yield* count, 3)
      yield* Effect.promise(() => locker.query("SELECT pg_advisory_unlock(1)"))
      yield* Fiber.join(queries)
      assert.strictEqual(yield* count, 3)
    })
  )

  const backend = (auth: AuthDatabase.AuthDatabase) =>
    Effect.map(auth.query("SELECT pg_backend_pid() AS pid"), ([row]) => row?.pid)

  /** The process ids of the connections whose `application_name` is this. */
  const backends = (database: TestDatabase, name: string) =>
    Effect.map(
      database.query("SELECT pid FROM pg_stat_activity WHERE application_name = $1", [name]),
      (rows): ReadonlyArray<unknown> => rows.map((row) => row.pid)
    )

  /** One connection, which nothing but its lifetime ends. */
  const single = { pool_max_conns: "1", pool_max_conn_idle_time: "24h" }

  it.effect("replaces a connection of pool_max_conn_lifetime, and not before", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      const auth = yield* open(database, { ...single, pool_max_conn_lifetime: "1h" })
      const first = yield* backend(auth)
      yield* TestClock.adjust("3599 seconds")
      assert.strictEqual(yield* backend(auth), first)
      yield* TestClock.adjust("1 seconds")
      const second = yield* backend(auth)
      assert.notStrictEqual(second, first)
      assert.strictEqual(yield* backend(auth), second)
    })
  )

  it.effect(
    "counts the lifetime from the opening, and looks every pool_health_check_period, whether it is used or not",
    () =>
      Effect.gen(function* () {
        const database = yield* freshDatabase()
        const auth = yield* open(database, {
          pool_min_conns: "2",
          pool_max_conn_lifetime: "1m",
          pool_health_check_period: "50s",
          application_name: "aging"
        })
        yield* auth.query("SELECT 1")
        const both = (pids: ReadonlyArray<unknown>) => pids.length === 2
        const first = yield* Effect.repeat(backends(database, "aging"), { until: both })
        yield* TestClock.adjust("99 seconds")
        assert.sameMembers([...(yield* backends(database, "aging"))], [...first])
        yield* TestClock.adjust("1 seconds")
        yield* Effect.repeat(backends(database, "aging"), {
          until: (pids: ReadonlyArray<unknown>) => both(pids) && !pids.some((pid) => first.includes(pid))
        })
      })
  )

  it.effect("gives each connection a share of pool_max_conn_lifetime_jitter of its own", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      const lifetime = { pool_max_conn_lifetime: "1h", pool_max_conn_lifetime_jitter: "1h" }
      const auth = yield* open(database, { ...single, ...lifetime })
      for (const minutes of [75, 105, 60]) {
        const now = yield* backend(auth)
        yield* TestClock.adjust(`${minutes * 60 - 1} seconds`)
        assert.strictEqual(yield* backend(auth), now)
        yield* TestClock.adjust("1 seconds")
        assert.notStrictEqual(yield* backend(auth), now)
      }
    }).pipe(Effect.provideService(Random.Random, drawing([0.25, 0.75, 0, 0])))
  )

  it.effect("closes what was idle for pool_max_conn_idle_time, but for pool_min_conns of them", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      const auth = yield* open(database, {
        pool_min_conns: "1",
        pool_max_conn_idle_time: "5m",
        application_name: "idle"
      })
      const locker = yield* database.client
      yield* Effect.promise(() => locker.query("SELECT pg_advisory_lock(2)"))
      const lock = auth.query("SELECT pg_advisory_lock_shared(2)")
      const queries = yield* Effect.forkChild(Effect.all([lock, lock, lock], { concurrency: 3 }))
      yield* Effect.repeat(running(database, "pg_advisory_lock_shared"), { until: (n) => n === 3 })
      yield* Effect.promise(() => locker.query("SELECT pg_advisory_unlock(2)"))
      yield* Fiber.join(queries)
      yield* TestClock.adjust("299 seconds")
      assert.lengthOf(yield* backends(database, "idle"), 3)
      yield* TestClock.adjust("1 seconds")
      yield* Effect.repeat(backends(database, "idle"), { until: (pids: ReadonlyArray<unknown>) => pids.length === 1 })
      yield* TestClock.adjust("30 minutes")
      assert.lengthOf(yield* backends(database, "idle"), 1)
    })
  )

  it.effect("keeps nothing idle open beyond the next check where pool_max_conn_idle_time is 0", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      const auth = yield* open(database, { pool_max_conn_idle_time: "0", application_name: "fleeting" })
      yield* auth.query("SELECT 1")
      yield* TestClock.adjust("1 minute")
      yield* Effect.repeat(backends(database, "fleeting"), {
        until: (pids: ReadonlyArray<unknown>) => pids.length === 0
      })
    })
  )

  it.live("passes over connections that the server has ended while they were idle", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      const auth = yield* open(database, { pool_min_conns: "3", application_name: "ended" })
      for (let round = 0; round < 3; round++) {
        yield* auth.query("SELECT 1")
        yield* Effect.repeat(backends(database, "ended"), {
          until: (pids: ReadonlyArray<unknown>) => pids.length === 3
        })
        yield* database.query(
          "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'ended'"
        )
        assert.deepStrictEqual(yield* auth.query("SELECT 1 AS one"), [{ one: 1 }])
      }
    })
  )

  it.live("reports what a statement fails with, and goes on", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      const auth = yield* open(database, { pool_max_conns: "1" })
      for (let round = 0; round < 2; round++) {
        assert.strictEqual((yield* Effect.flip(auth.query("SELECT nothing"))).sqlState, "42703")
        assert.deepStrictEqual(yield* auth.query("SELECT 1 AS one"), [{ one: 1 }])
      }
    })
  )

  it.live("returns at once from an interrupted query, and has its connection back", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      const auth = yield* open(database, { pool_max_conns: "1" })
      const asking = yield* Effect.forkChild(auth.query("SELECT pg_sleep(3600)"))
      yield* Effect.repeat(running(database, "pg_sleep"), { until: (n) => n === 1 })
      yield* Fiber.interrupt(asking)
      assert.deepStrictEqual(yield* auth.query("SELECT 1 AS one"), [{ one: 1 }])
    })
  )

  it.live("passes the server's settings on, and says who it is", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      const auth = yield* open(database, { search_path: "a, b", options: "-c geqo=off" })
      const [row] = yield* auth.query(
        "SELECT current_setting('search_path') AS path, current_setting('geqo') AS geqo, current_setting('application_name') AS name"
      )
      assert.deepStrictEqual(row, { path: "a, b", geqo: "off", name: "perseus" })
    })
  )
})
