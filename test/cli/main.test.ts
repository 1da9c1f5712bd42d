import { assert, describe, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import { createServer, type AddressInfo } from "node:net"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { execPath } from "node:process"
import { fileURLToPath } from "node:url"
import { Client } from "pg"
import { KmsDecrypt } from "../../src/tenant/KmsDecrypt.ts"
import { eventually, SharedPerseus, type TestPerseus } from "../support/perseus.ts"
import { freshDatabase } from "../support/postgres.ts"

const main = fileURLToPath(new URL("../../src/main.ts", import.meta.url))

// ---- a process ---------------------------------------------------------------------------------------------------

interface Process {
  readonly stdout: () => string
  readonly stderr: () => string
  readonly signal: (signal: NodeJS.Signals) => Effect.Effect<void>
  readonly exitCode: Effect.Effect<number | null>
  readonly isOver: Effect.Effect<boolean>
}

/** Killed at the scope's end, if it still lives. */
const start = (
  argv: ReadonlyArray<string>,
  env: Readonly<Record<string, string>> = {}
): Effect.Effect<Process, never, Scope.Scope> =>
  Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => spawn(execPath, [main, ...argv], { env, stdio: ["ignore", "pipe", "pipe"] })),
      (child) => Effect.sync(() => child.kill("SIGKILL"))
    ),
    (child) => {
      let stdout = ""
      let stderr = ""
      child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text))
      child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text))
      const closed = once(child, "close")
      return {
        stdout: () => stdout,
        stderr: () => stderr,
        signal: (signal) => Effect.sync(() => void child.kill(signal)),
        exitCode: Effect.promise(() => closed).pipe(Effect.map(() => child.exitCode)),
        isOver: Effect.sync(() => hasEnded(child))
      }
    }
  )

const hasEnded = (child: ChildProcess) => child.exitCode !== null || child.signalCode !== null

const runToEnd = (argv: ReadonlyArray<string>, env?: Readonly<Record<string, string>>) =>
  Effect.scoped(
    Effect.flatMap(start(argv, env), (child) =>
      Effect.map(child.exitCode, (exitCode) => ({ exitCode, stdout: child.stdout(), stderr: child.stderr() }))
    )
  )

const directory = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(path.join(tmpdir(), "perseus-main-"))),
  (directory) => Effect.promise(() => rm(directory, { recursive: true }))
)

const write = (file: string, config: unknown) => Effect.promise(() => writeFile(file, JSON.stringify(config)))

const configFile = Effect.fnUntraced(function* (config: unknown) {
  const file = path.join(yield* directory, "config.json")
  yield* write(file, config)
  return file
})

// ---- a daemon ----------------------------------------------------------------------------------------------------

/** A configuration for the auth database, the KMS and the tenants of the test's own Perseus. */
const configFor = ({ auth, kms }: TestPerseus) => ({
  ListenAddress: "127.0.0.1:0",
  MetricsAddress: "127.0.0.1:0",
  AuthDBSettings: { AuthDBDSN: Redacted.value(auth.dsn()), AuthQueryTimeoutSecs: 5 },
  AWSSettings: {
    AccessKeyId: "key",
    SecretAccessKey: "secret",
    Region: "us-east-1",
    Endpoint: kms.endpoint,
    KMSKeyARN: kms.keyArn
  },
  PoolSettings: { MaxIdle: 2, MaxOpen: 2, ConnCreateTimeoutSecs: 5, ConnCloseTimeoutSecs: 2, SchemaExecTimeoutSecs: 5 },
  LimitSettings: { ShutdownTimeoutSecs: 60 }
})

/** The port that a line of the log names. */
const portIn = (process: Process, line: RegExp): Effect.Effect<number> =>
  Effect.map(
    eventually(
      Effect.sync(() => line.exec(process.stdout())?.[1]),
      (port) => port !== undefined
    ),
    Number
  )

const startDaemon = Effect.fnUntraced(function* (
  stage: TestPerseus,
  settings: object = configFor(stage),
  env?: Readonly<Record<string, string>>
) {
  const config = yield* configFile(settings)
  const process = yield* start(["-config", config], env)
  const port = yield* portIn(process, /listening for clients on \S+:(\d+)/)
  const httpPort = yield* portIn(process, /metrics are on http:\S+:(\d+)/)
  const ready = Effect.promise(async () => (await fetch(`http://127.0.0.1:${httpPort}/ready`)).status)
  const says = (line: string) =>
    eventually(
      Effect.sync(() => process.stdout()),
      (log) => log.includes(line)
    )
  /** Of the one destination that there is. */
  const metric = (name: string) =>
    Effect.promise(async () => {
      const text = await (await fetch(`http://127.0.0.1:${httpPort}/metrics`)).text()
      return Number(new RegExp(`^perseus_${name}\\{.*\\} (.*)$`, "m").exec(text)?.[1])
    })
  const connections = Effect.all({
    max_open: metric("max_open_connections"),
    open: metric("open_connections"),
    idle: metric("idle_connections")
  })
  return { ...process, config, port, ready, says, metric, connections }
})

const connect = (stage: TestPerseus, port: number, schema: string) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const { user, password, options } = stage.tenant(schema)
      const client = new Client({ host: "127.0.0.1", port, user, password, database: stage.sourceDb, options })
      const ended: Promise<string> = new Promise((resolve) =>
        client.on("error", (error: Error & { readonly code?: string }) => resolve(error.code ?? error.message))
      )
      await client.connect()
      return { client, ended }
    }),
    ({ client }) => Effect.promise(() => client.end().catch(() => undefined))
  )

layer(SharedPerseus.with({ tenants: ["red", "green"] }), { excludeTestServices: true })("the daemon", (it) => {
  it.effect("says at start which destinations' tenants share a role", () =>
    Effect.gen(function* () {
      const stage = yield* SharedPerseus
      const daemon = yield* startDaemon(stage)
      const { role } = stage.tenant("red")
      assert.include(daemon.stdout(), `2 as ${role} on `)
      assert.strictEqual(yield* daemon.ready, 200)
    })
  )

  it.effect("SIGTERM lets transactions end, is not ready meanwhile, tells idle clients why, and exits with 0", () =>
    Effect.gen(function* () {
      const stage = yield* SharedPerseus
      const daemon = yield* startDaemon(stage)
      const idle = yield* connect(stage, daemon.port, "red")
      const busy = yield* connect(stage, daemon.port, "green")
      yield* Effect.promise(() => busy.client.query("BEGIN"))

      yield* daemon.signal("SIGTERM")
      assert.strictEqual(yield* Effect.promise(() => idle.ended), "57P01")
      assert.strictEqual(yield* daemon.ready, 503)
      const { rows } = yield* Effect.promise(() => busy.client.query("SELECT current_schema() AS schema"))
      assert.deepStrictEqual(rows, [{ schema: "green" }])
      assert.isFalse(yield* daemon.isOver)

      yield* Effect.promise(() => busy.client.query("COMMIT"))
      assert.strictEqual(yield* Effect.promise(() => busy.ended), "57P01")
      assert.strictEqual(yield* daemon.exitCode, 0)
      assert.strictEqual(daemon.stderr(), "")
    })
  )

  it.effect("a second SIGTERM does not wait for a transaction, however soon it comes", () =>
    Effect.gen(function* () {
      const stage = yield* SharedPerseus
      const daemon = yield* startDaemon(stage)
      const busy = yield* connect(stage, daemon.port, "red")
      yield* Effect.promise(() => busy.client.query("BEGIN"))
      yield* daemon.signal("SIGTERM")
      yield* daemon.says("shutting down: 1 clients are connected")
      yield* Effect.promise(() => busy.client.query("SELECT 1"))
      yield* daemon.signal("SIGTERM")
      assert.strictEqual(yield* daemon.exitCode, 0)
      assert.include(daemon.stdout(), "cutting off 1 clients")
    })
  )

  it.effect(
    "SIGINT that comes twice at once, as Ctrl-C under npm does, lets transactions end; SIGTERM then does not",
    () =>
      Effect.gen(function* () {
        const stage = yield* SharedPerseus
        const daemon = yield* startDaemon(stage)
        const busy = yield* connect(stage, daemon.port, "red")
        yield* Effect.promise(() => busy.client.query("BEGIN"))
        yield* daemon.signal("SIGINT")
        yield* daemon.says("shutting down: 1 clients are connected")
        yield* daemon.signal("SIGINT")
        for (let times = 0; times < 20; times++) yield* Effect.promise(() => busy.client.query("SELECT 1"))
        yield* daemon.signal("SIGTERM")
        assert.strictEqual(yield* daemon.exitCode, 0)
        assert.include(daemon.stdout(), "cutting off 1 clients")
      })
  )

  it.effect("SIGHUP reads the file again, and a file that cannot be used changes nothing", () =>
    Effect.gen(function* () {
      const stage = yield* SharedPerseus
      const daemon = yield* startDaemon(stage)
      const config = configFor(stage)
      yield* write(daemon.config, { ...config, PoolSettings: { ...config.PoolSettings, MaxOpen: 7 } })
      yield* daemon.signal("SIGHUP")
      yield* daemon.says("configuration reloaded: PoolSettings.MaxOpen")
      yield* write(daemon.config, { ...config, PoolSettings: {} })
      yield* daemon.signal("SIGHUP")
      yield* daemon.says("configuration not reloaded")
      assert.strictEqual(yield* daemon.ready, 200)
    })
  )

  it.effect("SIGHUP applies a lower MaxOpen to the pools that are there", () =>
    Effect.gen(function* () {
      const stage = yield* SharedPerseus
      const daemon = yield* startDaemon(stage)
      const config = configFor(stage)
      const [one, two] = [yield* connect(stage, daemon.port, "red"), yield* connect(stage, daemon.port, "red")]
      for (const { client } of [one, two]) yield* Effect.promise(() => client.query("BEGIN"))
      for (const { client } of [one, two]) yield* Effect.promise(() => client.query("COMMIT"))
      assert.deepStrictEqual(yield* daemon.connections, { max_open: 2, open: 2, idle: 2 })
      yield* write(daemon.config, { ...config, PoolSettings: { ...config.PoolSettings, MaxIdle: 1, MaxOpen: 1 } })
      yield* daemon.signal("SIGHUP")
      yield* daemon.says("configuration reloaded: PoolSettings.MaxIdle, PoolSettings.MaxOpen")
      yield* eventually(daemon.connections, ({ open }) => open === 1)
      yield* Effect.promise(() => one.client.query("BEGIN"))
      const waiting = two.client.query("SELECT 1 AS one")
      yield* eventually(daemon.metric("waiting_clients"), (waiting) => waiting === 1)
      assert.deepStrictEqual(yield* daemon.connections, { max_open: 1, open: 1, idle: 0 })
      yield* Effect.promise(() => one.client.query("COMMIT"))
      assert.deepStrictEqual((yield* Effect.promise(() => waiting)).rows, [{ one: 1 }])
    })
  )

  it.effect("SIGHUP says which of the changed keys need a restart, and listens on where it did", () =>
    Effect.gen(function* () {
      const stage = yield* SharedPerseus
      const daemon = yield* startDaemon(stage)
      yield* write(daemon.config, { ...configFor(stage), ListenAddress: "127.0.0.1:1" })
      yield* daemon.signal("SIGHUP")
      yield* daemon.says("takes effect after a restart only: ListenAddress")
      yield* connect(stage, daemon.port, "red")
    })
  )

  describe("where the configuration has no keys for KMS, takes those of the environment", () => {
    // Else the SDK would look for a machine of Amazon's around it, over the network.
    const elsewhere = { AWS_EC2_METADATA_DISABLED: "true", HOME: "/nonexistent" }
    const keys = { AWS_ACCESS_KEY_ID: "key", AWS_SECRET_ACCESS_KEY: "secret" }

    it.effect("to decrypt what a row holds, and lets nobody in where that has none either", () =>
      Effect.gen(function* () {
        const stage = yield* SharedPerseus
        const { AWSSettings, ...settings } = configFor(stage)
        const blank = { ...settings, AWSSettings: { ...AWSSettings, AccessKeyId: "", SecretAccessKey: "" } }
        const without = yield* startDaemon(stage, blank, elsewhere)
        const refused = yield* Effect.exit(connect(stage, without.port, "red"))
        assert.include(String(refused), "the destination's password could not be decrypted")
        yield* without.says("CredentialsProviderError")
        const daemon = yield* startDaemon(stage, blank, { ...elsewhere, ...keys })
        const { client } = yield* connect(stage, daemon.port, "red")
        const { rows } = yield* Effect.promise(() => client.query("SELECT current_schema() AS schema"))
        assert.deepStrictEqual(rows, [{ schema: "red" }])
      })
    )

    it.effect("to encrypt a password", () =>
      Effect.gen(function* () {
        const { kms } = yield* SharedPerseus
        const argv = [
          "encpass",
          "-passwd=sesame",
          "-region=us-east-1",
          `-endpoint=${kms.endpoint}`,
          `-key_arn=${kms.keyArn}`
        ]
        const without = yield* runToEnd(argv, elsewhere)
        assert.deepStrictEqual(without, {
          exitCode: 1,
          stdout: "",
          stderr: "perseus: KMS: Encrypt: CredentialsProviderError\n"
        })
        const { exitCode, stdout } = yield* runToEnd(argv, { ...elsewhere, ...keys })
        assert.strictEqual(exitCode, 0)
        const plain = yield* KmsDecrypt.use(({ decrypt }) => decrypt(stdout.trimEnd())).pipe(
          Effect.provide(KmsDecrypt.layer(kms.settings))
        )
        assert.strictEqual(Redacted.value(plain), "sesame")
      })
    )
  })

  it.effect("a port that is taken is one line on standard error, and exit code 1", () =>
    Effect.gen(function* () {
      const stage = yield* SharedPerseus
      const server = yield* Effect.acquireRelease(
        Effect.promise(async () => {
          const server = createServer()
          await once(server.listen(0, "127.0.0.1"), "listening")
          return server
        }),
        (server) => Effect.sync(() => server.close())
      )
      const taken = `127.0.0.1:${(server.address() as AddressInfo).port}`
      const config = yield* configFile({ ...configFor(stage), ListenAddress: taken })
      const { exitCode, stderr } = yield* runToEnd(["--config", config])
      assert.strictEqual(stderr, `perseus: ListenAddress ${taken}: the port is already in use\n`)
      assert.strictEqual(exitCode, 1)
    })
  )

  it.effect("an auth database without the table is told how to make it, and exit code 1", () =>
    Effect.gen(function* () {
      const stage = yield* SharedPerseus
      const empty = yield* freshDatabase()
      const config = configFor(stage)
      const AuthDBSettings = { ...config.AuthDBSettings, AuthDBDSN: Redacted.value(empty.dsn()) }
      const { exitCode, stderr } = yield* runToEnd(["--config", yield* configFile({ ...config, AuthDBSettings })])
      assert.include(stderr, "there is no table perseus_auth")
      assert.include(stderr, "CREATE TABLE")
      assert.strictEqual(exitCode, 1)
    })
  )
})

describe("the process", () => {
  it.live("a configuration that does not exist is one line on standard error, and exit code 78", () =>
    Effect.gen(function* () {
      const { exitCode, stderr, stdout } = yield* runToEnd(["--config", "/nonexistent/config.json"])
      assert.strictEqual(stderr, "perseus: /nonexistent/config.json: the file does not exist\n")
      assert.strictEqual(stdout, "")
      assert.strictEqual(exitCode, 78)
    })
  )

  it.live("everything that is wrong with a configuration is listed, without its values", () =>
    Effect.gen(function* () {
      const config = yield* configFile({ ListenAddress: 1, AuthDBSettings: { AuthDBDSN: "sesame" } })
      const { exitCode, stderr } = yield* runToEnd(["--config", config])
      for (const key of ["ListenAddress", "AuthDBSettings.AuthDBDSN", "PoolSettings.MaxIdle"]) {
        assert.include(stderr, `  ${key}: `)
      }
      assert.notInclude(stderr, "sesame")
      assert.strictEqual(exitCode, 78)
    })
  )

  it.live("--version is the version of package.json, and exit code 0", () =>
    Effect.gen(function* () {
      const { exitCode, stdout } = yield* runToEnd(["--version"])
      assert.match(stdout, /^perseus \d+\.\d+\.\d+\n$/)
      assert.strictEqual(exitCode, 0)
    })
  )
})
