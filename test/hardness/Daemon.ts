/**
 * Perseus as it runs in production, a process of its own, so that its memory can be told from the test's; and clients of bare
 * sockets, for thousands of them or gigabytes through one.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import * as Net from "node:net"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { execPath } from "node:process"
import { fileURLToPath } from "node:url"
import { eventually, type Overrides, type TestPerseus } from "../support/perseus.ts"
import { RawClient } from "../support/rawClient.ts"

const main = fileURLToPath(new URL("../../src/main.ts", import.meta.url))

export const MB = 1024 * 1024

/**
 * V8 lets garbage lie as long as the machine has memory, hundreds of megabytes here, so that resident memory would tell nothing
 * of what is held. A small heap is collected often; and whoever holds more than it has does not survive the test.
 */
const smallHeap = (megabytes: number) => [`--max-old-space-size=${megabytes}`, "--max-semi-space-size=4"]

export interface Daemon {
  readonly host: string
  readonly port: number
  /** Resident memory in bytes, as its own metrics tell it. */
  readonly resident: Effect.Effect<number>
  /** A series of /metrics, summed over its labels. */
  readonly metric: (name: string) => Effect.Effect<number>
  readonly login: (schema: string) => Effect.Effect<RawClient, never, Scope.Scope>
  readonly raw: Effect.Effect<RawClient, never, Scope.Scope>
  /** A socket, connected; destroyed with the scope. */
  readonly socket: Effect.Effect<Net.Socket, never, Scope.Scope>
}

/** Serves the tenants of `stage`, whose own service has nothing to do. Killed with the scope. */
export const startDaemon = (
  stage: TestPerseus,
  overrides: Overrides,
  heapMegabytes = 96
): Effect.Effect<Daemon, never, Scope.Scope> =>
  Effect.gen(function* () {
    const directory = yield* Effect.acquireRelease(
      Effect.promise(() => mkdtemp(path.join(tmpdir(), "perseus-hardness-"))),
      (directory) => Effect.promise(() => rm(directory, { recursive: true }))
    )
    const file = path.join(directory, "config.json")
    const config = {
      ListenAddress: "127.0.0.1:0",
      MetricsAddress: "127.0.0.1:0",
      AuthDBSettings: { AuthDBDSN: Redacted.value(stage.auth.dsn()), AuthQueryTimeoutSecs: 5 },
      AWSSettings: {
        AccessKeyId: "key",
        SecretAccessKey: "secret",
        Region: "us-east-1",
        Endpoint: stage.kms.endpoint,
        KMSKeyARN: stage.kms.keyArn
      },
      PoolSettings: {
        MaxIdle: 4,
        MaxOpen: 4,
        ConnCreateTimeoutSecs: 5,
        ConnCloseTimeoutSecs: 2,
        SchemaExecTimeoutSecs: 5,
        ...overrides.PoolSettings
      },
      LimitSettings: { ...overrides.LimitSettings },
      LogSettings: { Level: "INFO" }
    }
    yield* Effect.promise(() => writeFile(file, JSON.stringify(config)))
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        spawn(execPath, [...smallHeap(heapMegabytes), main, "-config", file], {
          env: {},
          stdio: ["ignore", "pipe", "inherit"]
        })
      ),
      (child) => Effect.sync(() => child.kill("SIGKILL"))
    )
    let head = ""
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      if (head.length < 100_000) head += text
    })
    const portIn = (line: RegExp) =>
      Effect.map(
        eventually(
          Effect.sync(() => line.exec(head)?.[1]),
          (port) => port !== undefined
        ),
        Number
      )
    const port = yield* portIn(/listening for clients on \S+:(\d+)/)
    const httpPort = yield* portIn(/metrics are on http:\S+:(\d+)/)
    const address = { host: "127.0.0.1", port }
    const scrape = Effect.promise(async () => (await fetch(`http://127.0.0.1:${httpPort}/metrics`)).text())
    const metric = (name: string) =>
      Effect.map(scrape, (text) => {
        const values = text.matchAll(new RegExp(`^${name}(?:\\{[^}]*\\})? (\\S+)$`, "gm"))
        return Array.from(values, ([, value]) => Number(value)).reduce((sum, value) => sum + value, 0)
      })
    const raw = RawClient.connect(address)
    return {
      ...address,
      metric,
      resident: metric("process_resident_memory_bytes"),
      raw,
      login: (schema) =>
        Effect.gen(function* () {
          const { startup, password } = stage.tenant(schema)
          const client = yield* raw
          const greeting = yield* client.logIn(startup, password)
          if (greeting.at(-1)?.type !== "Z") return yield* Effect.die(new Error("the login was refused"))
          return client
        }),
      socket: Effect.acquireRelease(
        Effect.promise(async () => {
          const socket = Net.connect(address)
          await once(socket, "connect")
          socket.on("error", () => {})
          return socket
        }),
        (socket) => Effect.sync(() => socket.destroy())
      )
    }
  })
