/**
 * Perseus for a suite that knows nothing of it: before a PostgreSQL server that trusts loopback, with one tenant for each
 * database, whose role is the server's superuser, or those it is told. Runs until SIGTERM, and leaves a database `perseus` on the server.
 *
 *   node test/upstream/perseus.ts <listen port> <server port> <session | transaction> <tenant>…
 *
 * A tenant is `<database>[:<schema>[:<user>[:<password>]]]`. Clients log in as `postgres` with the password `postgres`, and
 * name the schema `public`, where it does not say otherwise.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { mkdtemp, readFile, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { Client } from "pg"
import * as LocalKms from "../../src/cli/LocalKms.ts"
import { decode } from "../../src/config/Decode.ts"
import { LiveConfig } from "../../src/config/LiveConfig.ts"
import { Perseus } from "../../src/Perseus.ts"
import { encrypt } from "../../src/tenant/KmsDecrypt.ts"
import { PasswordHash } from "../../src/tenant/PasswordHash.ts"

const [listenPort, serverPort, mode, ...names] = process.argv.slice(2)

const HOST = "127.0.0.1"
/** The user's and the role's name, and the password of both. */
const USER = "postgres"

const tenants = names.map((name) => {
  const [database, schema = "public", user = USER, password = USER] = name.split(":")
  return { database, schema, user, password: Redacted.make(password) }
})

const connectTo = (name: string) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const client = new Client({ host: HOST, port: Number(serverPort), user: USER, database: name })
      await client.connect()
      return client
    }),
    (client) => Effect.promise(() => client.end())
  )

const writeAuthTable = Effect.fnUntraced(function* (kms: LocalKms.LocalKms) {
  const maintenance = yield* connectTo("postgres")
  yield* Effect.promise(() => maintenance.query("DROP DATABASE IF EXISTS perseus WITH (FORCE)"))
  yield* Effect.promise(() => maintenance.query("CREATE DATABASE perseus"))
  const auth = yield* connectTo("perseus")
  const table = yield* Effect.promise(() => readFile(new URL("../../config/perseus_auth.sql", import.meta.url), "utf8"))
  yield* Effect.promise(() => auth.query(table))
  for (const { database, schema, user, password } of tenants) {
    const hash = yield* PasswordHash.use((passwords) => passwords.hash(password))
    const ciphertext = yield* encrypt(kms.settings, password)
    yield* Effect.promise(() =>
      auth.query(
        `INSERT INTO perseus_auth (source_db, source_schema, source_user, source_pass_hashed, dest_host, dest_db,
          dest_pass_enc, dest_user) VALUES ($1, $2, $3, $4, $5, $1, $6, $3)`,
        [database, schema, user, hash, `${HOST}:${serverPort}`, ciphertext]
      )
    )
  }
}, Effect.scoped)

const configOf = (kms: LocalKms.LocalKms) =>
  decode({
    ListenAddress: `${HOST}:${listenPort}`,
    AuthDBSettings: {
      AuthDBDSN: `postgres://${USER}@${HOST}:${serverPort}/perseus?sslmode=disable`,
      AuthQueryTimeoutSecs: 5
    },
    AWSSettings: {
      AccessKeyId: "key",
      SecretAccessKey: "secret",
      Region: kms.settings.region,
      Endpoint: kms.endpoint,
      KMSKeyARN: kms.keyArn
    },
    PoolSettings: {
      Mode: mode,
      MaxIdle: 5,
      MaxOpen: 50,
      ConnCreateTimeoutSecs: 5,
      ConnCloseTimeoutSecs: 2,
      SchemaExecTimeoutSecs: 5
    },
    // A suite may log in wrongly as often as it likes.
    LoginSettings: { FailuresBeforeDelay: 0, FailuresBeforeBlock: 0 },
    LimitSettings: { ShutdownTimeoutSecs: 2 },
    ServerSettings: { AllowTrust: true }
  })

const program = Effect.gen(function* () {
  const directory = yield* Effect.acquireRelease(
    Effect.promise(() => mkdtemp(path.join(tmpdir(), "perseus-upstream-"))),
    (name) => Effect.promise(() => rm(name, { recursive: true }))
  )
  const kms = yield* LocalKms.start({ keyFile: path.join(directory, "keys.json") })
  yield* writeAuthTable(kms)
  const config = configOf(kms)
  if (Result.isFailure(config)) return yield* Effect.die(new Error(config.failure.join("\n")))
  const listening = Perseus.use(({ address }) => Console.log(`listening on ${address.host}:${address.port}`))
  return yield* Layer.launch(
    Layer.effectDiscard(listening).pipe(Layer.provide(Perseus.layer), Layer.provide(LiveConfig.layerOf(config.success)))
  )
})

NodeRuntime.runMain(program.pipe(Effect.scoped, Effect.provide(PasswordHash.layer())))
