/**
 * A program that the bench starts, and ends with its scope.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type ChildProcess, spawn } from "node:child_process"
import { connect, createServer } from "node:net"
import { BenchFailed } from "../Scenario.ts"

export interface Started {
  readonly child: ChildProcess
  readonly pid: number
}

export interface Program {
  readonly command: string
  readonly args: ReadonlyArray<string>
  readonly env?: Readonly<Record<string, string>>
  /** Where it will listen, on 127.0.0.1: it has started when somebody answers there. */
  readonly port: number
}

const START_TIMEOUT_MS = 15_000
const END_TIMEOUT = "5 seconds"

/** Told to end by SIGTERM, and killed where that takes too long. */
export const start = ({ command, args, env = {}, port }: Program): Effect.Effect<Started, BenchFailed, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.tryPromise({
      try: async () => {
        const child = spawn(command, args, {
          env: { PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", ...env },
          stdio: ["ignore", "ignore", "pipe"]
        })
        let words = ""
        child.stderr.setEncoding("utf8").on("data", (text: string) => (words = (words + text).slice(-2000)))
        const failed = new Promise<never>((_, reject) => {
          child.once("error", reject)
          child.once("exit", (code) => reject(new Error(`${command} ended with ${code}: ${words.trim()}`)))
        })
        failed.catch(() => {})
        await Promise.race([answers(port), failed])
        return { child, pid: child.pid! }
      },
      catch: (cause) => new BenchFailed({ message: cause instanceof Error ? cause.message : String(cause) })
    }),
    ({ child }) =>
      Effect.callback<void>((resume) => {
        if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
        child.once("exit", () => resume(Effect.void))
        child.kill("SIGTERM")
      }).pipe(Effect.timeoutOrElse({ duration: END_TIMEOUT, orElse: () => Effect.sync(() => child.kill("SIGKILL")) }))
  )

const answers = async (port: number): Promise<void> => {
  const until = Date.now() + START_TIMEOUT_MS
  for (;;) {
    const there = await new Promise<boolean>((resolve) => {
      const socket = connect({ host: "127.0.0.1", port })
      socket.once("connect", () => resolve(true)).once("error", () => resolve(false))
      socket.once("connect", () => socket.destroy())
    })
    if (there) return
    if (Date.now() > until) throw new Error(`nothing answers on port ${port}`)
    await new Promise((resolve) => setTimeout(resolve, 50))
  }
}

/**
 * A port that is free now, below those that the system gives to outgoing connections: one of these may meet a port that is
 * listened on later.
 */
export const freePort: Effect.Effect<number, BenchFailed> = Effect.tryPromise({
  try: async () => {
    for (let attempt = 0; attempt < 100; attempt++) {
      const port = 20_000 + Math.floor(Math.random() * 12_000)
      const free = await new Promise<boolean>((resolve) => {
        const server = createServer()
        server.once("error", () => resolve(false))
        server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)))
      })
      if (free) return port
    }
    throw new Error("no free port")
  },
  catch: (cause) => new BenchFailed({ message: String(cause) })
})
