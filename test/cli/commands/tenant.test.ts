import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { pbkdf2Sync } from "node:crypto"
import { readFile } from "node:fs/promises"
import { join } from "node:path"
import * as LocalKms from "../../../src/cli/LocalKms.ts"
import { decodeVerifier, verifierFor } from "../../../src/protocol/Scram.ts"
import { KmsDecrypt } from "../../../src/tenant/KmsDecrypt.ts"
import { PasswordHash } from "../../../src/tenant/PasswordHash.ts"
import { freshDatabase, type TestDatabase } from "../../support/postgres.ts"
import { configFile, run, type Surroundings, temporaryDirectory } from "../commandLine.ts"

const createTable = Effect.promise(() => readFile(new URL("../../../config/perseus_auth.sql", import.meta.url), "utf8"))

/** An auth database with the table, a KMS, and the command line that is configured for both. */
const site = Effect.gen(function* () {
  const database = yield* freshDatabase()
  yield* database.script(yield* createTable)
  const kms = yield* LocalKms.start({ keyFile: join(yield* temporaryDirectory, "keys.json") })
  const config = yield* configFile({ authDsn: database.dsn(), kms: kms.settings, listen: "db.example:6543" })
  const tenant = (argv: ReadonlyArray<string>, surroundings?: Surroundings) =>
    run(["tenant", ...argv, "--config", config], surroundings)
  return { database, kms, tenant }
})

const names = {
  "source-db": "app",
  "source-schema": "acme",
  "source-user": "app user",
  "dest-host": "db1:5432",
  "dest-db": "main",
  "dest-user": "acme"
}

const add = (changes: Partial<Record<keyof typeof names, string>> = {}) => [
  "add",
  ...Object.entries({ ...names, ...changes }).map(([name, value]) => `--${name}=${value}`)
]

const remove = ["remove", "--source-db=app", "--source-schema=acme"]

const bothPasswords = { stdin: "client secret\nrole secret\n" }

const rows = (database: TestDatabase) => database.query("SELECT * FROM perseus_auth ORDER BY id")

describe("tenant add", () => {
  it.live("inserts a row with which a client can log in, and prints how", () =>
    Effect.gen(function* () {
      const { database, kms, tenant } = yield* site
      const outcome = yield* tenant(add(), bothPasswords)
      assert.deepStrictEqual(outcome, {
        stdout:
          "added: schema acme of database app\n\nClients connect with\n" +
          "  postgres://app%20user:PASSWORD@db.example:6543/app?sslmode=disable&schema_search_path=acme\n",
        stderr: "",
        exitCode: 0
      })
      const [row] = yield* rows(database)
      assert.deepInclude(row, {
        source_db: "app",
        source_schema: "acme",
        source_user: "app user",
        dest_host: "db1:5432",
        dest_db: "main",
        dest_user: "acme"
      })
      const isHash = yield* PasswordHash.use((passwords) =>
        passwords.verify({
          tenant: "t",
          stored: String(row?.["source_pass_hashed"]),
          password: Redacted.make("client secret")
        })
      ).pipe(Effect.provide(PasswordHash.layer()))
      assert.isTrue(isHash)
      const decrypted = yield* KmsDecrypt.use((client) => client.decrypt(String(row?.["dest_pass_enc"]))).pipe(
        Effect.provide(KmsDecrypt.layer(kms.settings))
      )
      assert.strictEqual(Redacted.value(decrypted), "role secret")
    })
  )

  it.live("stores a SCRAM verifier of the client's password with --scram", () =>
    Effect.gen(function* () {
      const { database, tenant } = yield* site
      const outcome = yield* tenant([...add(), "--scram"], bothPasswords)
      assert.strictEqual(outcome.exitCode, 0, outcome.stderr)
      const [row] = yield* rows(database)
      const verifier = decodeVerifier(String(row?.["source_pass_hashed"]))
      assert.isNotNull(verifier)
      const salted = pbkdf2Sync("client secret", verifier.salt, verifier.iterations, 32, "sha256")
      assert.deepStrictEqual(verifier, verifierFor(salted, verifier.salt, verifier.iterations))
    })
  )

  it.live("takes passwords from flags and a terminal, the client's twice", () =>
    Effect.gen(function* () {
      const { database, tenant } = yield* site
      const typed = "client<return>client<return>role<return>"
      const asked = yield* tenant(add(), { typed })
      assert.strictEqual(
        asked.stderr,
        "password for clients as app user: \npassword for clients as app user, again: \npassword of acme on db1:5432: \n"
      )
      const mixed = yield* tenant(add({ "source-schema": "b", "dest-user": "b" }).concat("--source-password=x"), {
        stdin: "role\n"
      })
      assert.strictEqual(mixed.exitCode, 0)
      assert.lengthOf(yield* rows(database), 2)
    })
  )

  it.live("stores any name as it is, however it looks as SQL", () =>
    Effect.gen(function* () {
      const { database, tenant } = yield* site
      const hostile = `'); DROP TABLE perseus_auth; --"$1`
      yield* tenant(add({ "source-schema": hostile, "source-db": hostile, "dest-db": "-x=y" }), bothPasswords)
      assert.deepInclude((yield* rows(database))[0], { source_schema: hostile, source_db: hostile, dest_db: "-x=y" })
    })
  )

  it.live("leaves a row that exists alone, without asking for passwords or KMS, unless --replace is given", () =>
    Effect.gen(function* () {
      const { database, kms, tenant } = yield* site
      yield* tenant(add(), bothPasswords)
      const before = yield* rows(database)
      yield* kms.disable(kms.keyArn)
      assert.deepStrictEqual(yield* tenant(add({ "dest-user": "other" })), {
        stdout: "",
        stderr: "perseus: schema acme of database app exists already; --replace overwrites it\n",
        exitCode: 1
      })
      assert.deepStrictEqual(yield* rows(database), before)
      yield* kms.enable(kms.keyArn)
      const replaced = yield* tenant([...add({ "dest-user": "other" }), "--replace"], bothPasswords)
      assert.match(replaced.stdout, /^replaced: schema acme of database app\n/)
      const after = yield* rows(database)
      assert.lengthOf(after, 1)
      assert.deepInclude(after[0], { id: before[0]?.["id"], dest_user: "other" })
    })
  )

  it.live("inserts nothing when KMS fails or a password is missing", () =>
    Effect.gen(function* () {
      const { database, kms, tenant } = yield* site
      const missing = yield* tenant(add(), { stdin: "client secret\n" })
      assert.strictEqual(
        missing.stderr,
        "perseus: password of acme on db1:5432: line 2 of standard input is empty or missing\n"
      )
      yield* kms.disable(kms.keyArn)
      const refused = yield* tenant(add(), bothPasswords)
      assert.strictEqual(refused.stderr, "perseus: KMS: Encrypt: DisabledException\n")
      assert.deepStrictEqual([missing.exitCode, refused.exitCode], [1, 1])
      assert.lengthOf(yield* rows(database), 0)
    })
  )

  it.live("inserts nothing when a flag gives no password", () =>
    Effect.gen(function* () {
      const { database, tenant } = yield* site
      for (const [flag, whose] of [
        ["--source-password=", "password for clients as app user"],
        ["--dest-password=", "password of acme on db1:5432"]
      ] as const) {
        const { exitCode, stderr } = yield* tenant([...add(), flag], bothPasswords)
        assert.strictEqual(stderr, `perseus: ${whose}: the flag that gives it is empty\n`)
        assert.strictEqual(exitCode, 1)
      }
      assert.lengthOf(yield* rows(database), 0)
    })
  )

  it.live("notes when the role is shared with other tenants of the destination", () =>
    Effect.gen(function* () {
      const { tenant } = yield* site
      yield* tenant(add(), bothPasswords)
      const { stderr } = yield* tenant(add({ "source-schema": "second" }), bothPasswords)
      assert.strictEqual(
        stderr,
        "note: 2 tenants log in to db1:5432/main as acme; inside PostgreSQL nothing keeps them apart\n"
      )
    })
  )

  const refusals: ReadonlyArray<readonly [Parameters<typeof add>[0], string]> = [
    [{ "source-schema": "" }, "--source-schema: it is empty"],
    [{ "source-schema": "pg_temp" }, "--source-schema: names that start with pg_ are PostgreSQL's own"],
    [
      { "source-schema": "x".repeat(64) },
      "--source-schema: it has 64 bytes in UTF-8, and PostgreSQL cuts names after 63"
    ],
    [{ "dest-host": "db1:0" }, "--dest-host: the port must be a number from 1 to 65535"],
    [{ "dest-user": "" }, "--dest-user: it is empty"]
  ]
  for (const [changes, problem] of refusals) {
    it.live(`refuses ${problem}`, () =>
      Effect.gen(function* () {
        const outcome = yield* run(["tenant", ...add(changes), "--config", yield* configFile({})])
        assert.deepStrictEqual(outcome, { stdout: "", stderr: `perseus: ${problem}\n`, exitCode: 1 })
      })
    )
  }

  it.live("names the column that is too short for a value, and how to make room", () =>
    Effect.gen(function* () {
      const { database, tenant } = yield* site
      const host = `${"x".repeat(80)}.example`
      const { exitCode, stderr } = yield* tenant(add({ "dest-host": host }), bothPasswords)
      assert.strictEqual(exitCode, 1)
      assert.match(stderr, /^perseus: --dest-host: it has 88 characters, and the column holds 64; /)
      yield* database.query(/ALTER TABLE .*\)/.exec(stderr)?.[0] ?? "")
      assert.strictEqual((yield* tenant(add({ "dest-host": host }), bothPasswords)).exitCode, 0)
    })
  )
})

describe("tenant list", () => {
  it.live("prints a table without secrets, with what keeps a row's clients out and who shares a role", () =>
    Effect.gen(function* () {
      const { database, tenant } = yield* site
      assert.strictEqual((yield* tenant(["list"])).stdout, "no tenants\n")
      yield* database.script(`
        INSERT INTO perseus_auth (source_db, source_schema, source_user, source_pass_hashed,
                                  dest_host, dest_db, dest_user, dest_pass_enc) VALUES
          ('app', 'b', 'u', 'hash-secret', 'db1', 'main', 'shared', 'enc-secret'),
          ('app', 'a', 'u', 'hash-secret', 'db1', 'main', 'shared', NULL),
          ('app', 'pg_x', NULL, 'hash-secret', 'db1:x', 'main', 'own', 'enc-secret'),
          (E'app\\x1b[2J', 'c', 'u', 'hash-secret', 'db1', 'other', 'shared', 'enc-secret')`)
      const { exitCode, stdout } = yield* tenant(["list"])
      assert.strictEqual(exitCode, 0)
      assert.deepStrictEqual(stdout.split("\n"), [
        "source_db   source_schema  source_user  dest_host  dest_db  dest_user  problems",
        "app         a              u            db1        main     shared     dest_pass_enc is NULL",
        "app         b              u            db1        main     shared",
        "app         pg_x           NULL         db1:x      main     own        source_user is NULL; " +
          "source_schema: names that start with pg_ are PostgreSQL's own; " +
          "dest_host: the port must be a number from 1 to 65535",
        "app\\x1b[2J  c              u            db1        other    shared",
        "",
        "Tenants that share a role; inside PostgreSQL nothing keeps them apart:",
        "  shared on db1/main: 2 tenants",
        ""
      ])
    })
  )

  it.live("prints JSON for scripts", () =>
    Effect.gen(function* () {
      const { tenant } = yield* site
      yield* tenant(add(), bothPasswords)
      yield* tenant(add({ "source-schema": "second" }), bothPasswords)
      const { stdout } = yield* tenant(["list", "-json"])
      const second = {
        source_db: "app",
        source_user: "app user",
        dest_host: "db1:5432",
        dest_db: "main",
        dest_user: "acme",
        problems: []
      }
      assert.deepStrictEqual(JSON.parse(stdout), {
        tenants: [
          { id: 1, source_schema: "acme", ...second },
          { id: 2, source_schema: "second", ...second }
        ],
        shared_roles: [{ dest_host: "db1:5432", dest_db: "main", dest_user: "acme", tenants: 2 }]
      })
    })
  )
})

describe("tenant remove", () => {
  it.live("asks first, and removes at yes only", () =>
    Effect.gen(function* () {
      const { database, tenant } = yield* site
      yield* tenant(add(), bothPasswords)
      yield* tenant(add({ "source-schema": "other" }), bothPasswords)
      const declined = yield* tenant(remove, { typed: "n<return>" })
      assert.deepStrictEqual(declined, {
        stdout: "",
        stderr:
          "Remove schema acme of database app? Its clients are disconnected. [y/N] perseus: nothing was removed\n",
        exitCode: 1
      })
      assert.lengthOf(yield* rows(database), 2)
      const accepted = yield* tenant(remove, { typed: "Yes<return>" })
      assert.strictEqual(accepted.stdout, "removed: schema acme of database app\n")
      assert.deepStrictEqual(
        (yield* rows(database)).map((row) => row["source_schema"]),
        ["other"]
      )
    })
  )

  it.live("refuses without a terminal and without --yes", () =>
    Effect.gen(function* () {
      const { database, tenant } = yield* site
      yield* tenant(add(), bothPasswords)
      const refused = yield* tenant(remove, { stdin: "y\n" })
      assert.deepStrictEqual(refused, {
        stdout: "",
        stderr: "perseus: nobody can be asked whether this is meant: say --yes\n",
        exitCode: 1
      })
      assert.lengthOf(yield* rows(database), 1)
      assert.strictEqual((yield* tenant([...remove, "-yes"])).exitCode, 0)
      assert.lengthOf(yield* rows(database), 0)
    })
  )

  it.live("fails where there is no such tenant", () =>
    Effect.gen(function* () {
      const { tenant } = yield* site
      assert.deepStrictEqual(yield* tenant([...remove, "--yes"]), {
        stdout: "",
        stderr: "perseus: there is no schema acme of database app\n",
        exitCode: 1
      })
    })
  )
})

describe("tenant", () => {
  it.live("finds the table by the connection's search_path", () =>
    Effect.gen(function* () {
      const database = yield* freshDatabase()
      yield* database.script(`CREATE SCHEMA pooler; SET search_path = pooler; ${yield* createTable}`)
      const list = (config: string) => run(["tenant", "list", "--config", config])
      const found = yield* list(yield* configFile({ authDsn: database.dsn({ search_path: "pooler" }) }))
      assert.strictEqual(found.stdout, "no tenants\n")
      const missing = yield* list(yield* configFile({ authDsn: database.dsn() }))
      assert.deepStrictEqual(missing, {
        stdout: "",
        stderr:
          "perseus: auth database: there is no table perseus_auth in the search_path of AuthDBDSN's user; " +
          "config/perseus_auth.sql makes it\n",
        exitCode: 1
      })
    })
  )

  it.live("says in one line, without the password, that the auth database cannot be reached", () =>
    Effect.gen(function* () {
      const authDsn = Redacted.make("postgres://u:hunter2@127.0.0.1:1/d?sslmode=disable")
      const { exitCode, stderr } = yield* run(["tenant", "list", "--config", yield* configFile({ authDsn })])
      assert.strictEqual(exitCode, 1)
      assert.match(stderr, /^perseus: auth database: .*ECONNREFUSED.*\n$/)
      assert.notInclude(stderr, "hunter2")
    })
  )
})
