/**
 * SCRAM with the real ones: clients that are not ours, verifiers that PostgreSQL wrote, and PostgreSQL's own idea of a password.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { execFile, spawnSync } from "node:child_process"
import { pbkdf2Sync } from "node:crypto"
import { Client } from "pg"
import postgres from "postgres"
import { saslPrep } from "../../src/protocol/SaslPrep.ts"
import * as Scram from "../../src/protocol/Scram.ts"
import { startPerseus, type TestPerseus } from "../support/perseus.ts"
import { writtenByPostgres } from "../support/verifiers.ts"

const psql = (perseus: TestPerseus, password: string, more: Readonly<Record<string, string>> = {}) =>
  Effect.callback<{ readonly output: string; readonly errors: string }>((resume) => {
    const { user, options } = perseus.tenant("red")
    const env = {
      PATH: process.env["PATH"],
      PGHOST: perseus.host,
      PGPORT: String(perseus.port),
      PGUSER: user,
      PGPASSWORD: password,
      PGDATABASE: perseus.sourceDb,
      PGOPTIONS: options,
      PGCONNECT_TIMEOUT: "10",
      ...more
    }
    const child = execFile("psql", ["-XAtc", "SELECT 'let in'"], { env }, (_, stdout, stderr) =>
      resume(Effect.succeed({ output: stdout.trim(), errors: stderr }))
    )
    return Effect.sync(() => child.kill("SIGKILL"))
  })

/** Where psql is missing: null, said aloud, or a failure where all must run. */
const psqlInstalled = ((): Option.Option<string> => {
  if (spawnSync("psql", ["--version"]).status === 0) return Option.some("psql")
  if (process.env["PERSEUS_REQUIRE_ALL"] !== undefined) throw new Error("psql is not installed")
  process.stderr.write("not run: psql is not installed\n")
  return Option.none()
})()

const nodePostgres = (perseus: TestPerseus, password: string) =>
  Effect.promise(async () => {
    const { user, options } = perseus.tenant("red")
    const client = new Client({
      host: perseus.host,
      port: perseus.port,
      user,
      password,
      database: perseus.sourceDb,
      options
    })
    client.on("error", () => undefined)
    try {
      await client.connect()
      const { rows } = await client.query("SELECT 'let in' AS answer")
      return String(rows[0].answer)
    } catch (error) {
      return String(error)
    } finally {
      await client.end()
    }
  })

const postgresJs = (perseus: TestPerseus, password: string) =>
  Effect.promise(async () => {
    const { user, schema } = perseus.tenant("red")
    const sql = postgres({
      host: perseus.host,
      port: perseus.port,
      user,
      password,
      database: perseus.sourceDb,
      max: 1,
      // Not one of the parameters that its types know.
      connection: { schema_search_path: schema } as Record<string, string>
    })
    try {
      const rows = await sql`SELECT 'let in' AS answer`
      return String(rows[0]?.["answer"])
    } catch (error) {
      return String(error)
    } finally {
      await sql.end({ timeout: 5 })
    }
  })

/** SASLprep changes some of these and has nothing for others. */
const passwords = [
  "pencil",
  "p@ss/w#rd%, with = and ,",
  "pässwörd",
  "I\u00adX",
  "\u2168\u00aa\u00a0\uff21",
  "a\u0308\u0323",
  "\u0627\u0031\u0628",
  "\u0627\u0031",
  "a\u0627\u00aa",
  "\u{1f511}\u00aa",
  "\u00aa\ue000",
  "\u00aa\u0007",
  "x\u200by\u2060z",
  "\u1e9b\u0323\ufb01",
  "\u2f00\u3000\u3131",
  "\u0149\u03d2\u0344"
]

describe("a verifier that PostgreSQL wrote", () => {
  it.live("is the one that we would write, whatever the password is made of", () =>
    Effect.gen(function* () {
      for (const [index, text] of (yield* writtenByPostgres(passwords)).entries()) {
        const verifier = Scram.decodeVerifier(text)
        assert.isNotNull(verifier, text)
        const salted = pbkdf2Sync(saslPrep(passwords[index]!), verifier.salt, verifier.iterations, 32, "sha256")
        const ours = Scram.encodeVerifier(Scram.verifierFor(salted, verifier.salt, verifier.iterations))
        assert.strictEqual(ours, text, JSON.stringify(passwords[index]))
      }
    })
  )

  it.live("lets drivers in as it stands in the column, and nobody with another password", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const [ordinary = "", strong = ""] = [
        ...(yield* writtenByPostgres(["pencil"])),
        ...(yield* writtenByPostgres(["pencil"], 20_000))
      ]
      assert.match(strong, /^SCRAM-SHA-256\$20000:/)
      for (const verifier of [ordinary, strong]) {
        yield* perseus.updateRow("red", "source_pass_hashed", verifier)
        assert.strictEqual(yield* nodePostgres(perseus, "pencil"), "let in")
        assert.strictEqual(yield* postgresJs(perseus, "pencil"), "let in")
        assert.include(yield* nodePostgres(perseus, "Pencil"), "password authentication failed")
        assert.include(yield* postgresJs(perseus, "Pencil"), "password authentication failed")
      }
      assert.isFalse(perseus.log.some((line) => /pencil|SCRAM-SHA-256\$/i.test(line)))
    })
  )
})

if (Option.isSome(psqlInstalled)) {
  describe("psql", () => {
    it.live("logs in by SCRAM with passwords of all kinds, and with no other", () =>
      Effect.gen(function* () {
        const perseus = yield* startPerseus({ tenants: ["red"], config: { LoginSettings: { FailuresBeforeDelay: 0 } } })
        for (const [index, verifier] of (yield* writtenByPostgres(passwords)).entries()) {
          yield* perseus.updateRow("red", "source_pass_hashed", verifier)
          const { errors, output } = yield* psql(perseus, passwords[index]!)
          assert.strictEqual(output, "let in", `${JSON.stringify(passwords[index])}: ${errors}`)
        }
        const wrong = yield* psql(perseus, "wrong")
        assert.include(wrong.errors, "password authentication failed")
      })
    )

    it.live("finds SCRAM where it requires it, and none for an unknown tenant unless that is what it is shown", () =>
      Effect.gen(function* () {
        const perseus = yield* startPerseus({ tenants: ["red"] })
        const [verifier = ""] = yield* writtenByPostgres(["sesame"])
        const bound = { PGCHANNELBINDING: "require" }
        const clear = yield* psql(perseus, "sesame", bound)
        assert.include(clear.errors, "channel binding required")
        yield* perseus.updateRow("red", "source_pass_hashed", verifier)
        assert.strictEqual((yield* psql(perseus, "sesame")).output, "let in")
        // In clear there is nothing to bind to.
        assert.notStrictEqual((yield* psql(perseus, "sesame", bound)).output, "let in")
      })
    )
  })
}

describe("SASLprep for a server", () => {
  it.live("lets us in where the role's password is one that PostgreSQL prepared", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      for (const password of ["I\u00adX", "\u2168\u00a0\uff21", "\u00aa\ue000"]) {
        yield* perseus.destination.query(`ALTER ROLE ${perseus.tenant("red").role} PASSWORD '${password}'`)
        yield* perseus.updateRow("red", "dest_pass_enc", yield* perseus.encrypt(password))
        assert.deepStrictEqual(yield* perseus.query("red", "SELECT 1 AS one"), [{ one: 1 }], password)
      }
    })
  )
})
