import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { spawn } from "node:child_process"
import { existsSync } from "node:fs"
import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises"
import { connect } from "node:net"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { start } from "../../src/cli/demo/EmbeddedPostgres.ts"
import { databaseOn } from "../support/postgres.ts"

const module = new URL("../../src/cli/demo/EmbeddedPostgres.ts", import.meta.url).href

/** A directory of the test's own, to put a database's directory in. */
const workDirectory = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(path.join(tmpdir(), "perseus-test-"))),
  (directory) => Effect.promise(() => rm(directory, { recursive: true, force: true }))
)

/** Not created yet. The server's account has to be able to walk through its parent, which `mkdtemp` makes private. */
const databaseDirectory = Effect.map(workDirectory, (directory) => `${directory}-database`)

const canConnect = (port: number) =>
  Effect.callback<boolean>((resume) => {
    const socket = connect(port, "127.0.0.1")
    socket.on("connect", () => (socket.destroy(), resume(Effect.succeed(true))))
    socket.on("error", () => resume(Effect.succeed(false)))
  })

it.live("answers with the password given and the settings asked for, and is gone with its scope", () =>
  Effect.gen(function* () {
    const databaseDir = yield* databaseDirectory
    const password = Redacted.make("pässwörd '\"\\")
    const steps: Array<string> = []
    const server = yield* Effect.scoped(
      Effect.gen(function* () {
        const server = yield* start({
          databaseDir,
          password,
          settings: { work_mem: "5MB" },
          onProgress: (step) => Effect.sync(() => steps.push(step))
        })
        const [row] = yield* databaseOn(server, "postgres").query(
          "SELECT current_setting('work_mem') AS work_mem, current_setting('server_version') AS version"
        )
        assert.deepStrictEqual(row, { work_mem: "5MB", version: server.version })
        return server
      })
    )
    assert.isFalse(yield* canConnect(server.port))
    assert.isFalse(existsSync(databaseDir))
    assert.strictEqual(steps.length, 3)
  })
)

it.live("keeps its port and its data over a stop and a start", () =>
  Effect.gen(function* () {
    const server = yield* start({ password: Redacted.make("pw") })
    const database = databaseOn(server, "postgres")
    yield* database.query("CREATE TABLE t AS SELECT 1 AS a")
    yield* server.stop("fast")
    yield* server.stop("fast")
    assert.isFalse(yield* canConnect(server.port))
    yield* server.start
    yield* server.start
    for (const mode of ["fast", "immediate"] as const) {
      yield* server.restart(mode)
      assert.deepStrictEqual(yield* database.query("SELECT a FROM t"), [{ a: 1 }])
    }
  })
)

it.live("leaves nothing when it is interrupted, at whatever step", () =>
  Effect.gen(function* () {
    for (const at of [1, 2, 3]) {
      const databaseDir = yield* databaseDirectory
      const reached = yield* Deferred.make<void>()
      let step = 0
      const onProgress = () =>
        ++step === at ? Effect.andThen(Deferred.succeed(reached, undefined), Effect.yieldNow) : Effect.void
      const starting = yield* Effect.forkChild(
        Effect.scoped(Effect.andThen(start({ databaseDir, password: Redacted.make("pw"), onProgress }), Effect.never))
      )
      yield* Deferred.await(reached)
      yield* Fiber.interrupt(starting)
      assert.isFalse(existsSync(databaseDir))
    }
  })
)

it.live("leaves nothing when the process is killed", () =>
  Effect.gen(function* () {
    const databaseDir = yield* databaseDirectory
    const script = `
      import * as Effect from "effect/Effect"
      import * as Redacted from "effect/Redacted"
      import { start } from "${module}"
      Effect.runFork(Effect.scoped(Effect.gen(function* () {
        const server = yield* start({ databaseDir: process.argv[1], password: Redacted.make("pw") })
        process.stdout.write(String(server.port))
        yield* Effect.never
      })))`
    const child = spawn(process.execPath, ["--input-type=module", "-e", script, databaseDir], {
      stdio: ["ignore", "pipe", "inherit"]
    })
    const port = yield* Effect.callback<number>((resume) => {
      child.stdout.once("data", (text) => resume(Effect.succeed(Number(text))))
    })
    assert.isTrue(yield* canConnect(port))
    child.kill("SIGKILL")
    yield* Effect.repeat(
      Effect.delay(
        Effect.sync(() => existsSync(databaseDir)),
        "20 millis"
      ),
      { while: (exists: boolean) => exists }
    )
    assert.isFalse(yield* canConnect(port))
  })
)

it.live("refuses a directory that holds something, and leaves it as it is", () =>
  Effect.gen(function* () {
    const databaseDir = yield* workDirectory
    yield* Effect.promise(() => writeFile(path.join(databaseDir, "precious"), ""))
    const error = yield* Effect.flip(Effect.scoped(start({ databaseDir, password: Redacted.make("pw") })))
    assert.match(error.message, /is not empty/)
    assert.deepStrictEqual(yield* Effect.promise(() => readdir(databaseDir)), ["precious"])
  })
)

it.live("says why when the server does not start, and not with what password", () =>
  Effect.gen(function* () {
    const error = yield* Effect.flip(
      Effect.scoped(start({ password: Redacted.make("hunter2"), settings: { shared_buffers: "many" } }))
    )
    assert.match(error.message, /invalid value for parameter "shared_buffers"/)
    assert.notMatch(error.message, /hunter2/)
  })
)
