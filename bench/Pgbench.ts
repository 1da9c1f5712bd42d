/**
 * Drives a target with pgbench: one process for each tenant, all at once, and looks at the CPU of pooler and server while all of
 * them are at full load. Logging in and out lies outside what is measured.
 */
import * as Effect from "effect/Effect"
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { cpuOf, cpuOfTree, memoryOf } from "./Machine.ts"
import { quantile, type Sample } from "./Sample.ts"
import { BenchFailed } from "./Scenario.ts"
import type { Login, Target } from "./stage/Target.ts"

export type Protocol = "simple" | "extended" | "prepared"

/** One pgbench process. */
export interface Load {
  readonly login: Login
  readonly clients: number
  readonly protocol?: Protocol
  /** One of pgbench's own, such as "select-only", or a script's text. */
  readonly script: { readonly builtin: string } | { readonly text: string; readonly transactions: number }
  /** Its latencies are the ones that are told; those of all loads where none is. */
  readonly watched?: boolean
}

/** Before the measurement: connections are opened, plans are made. */
const WARM_UP_SECONDS = 1

/** Transactions that ended in the window, and how long they took, in milliseconds. */
interface Window {
  readonly transactions: number
  readonly latencies: ReadonlyArray<number>
}

export const drive = (
  target: Target,
  loads: ReadonlyArray<Load>,
  seconds: number
): Effect.Effect<Sample, BenchFailed> =>
  Effect.acquireUseRelease(
    Effect.promise(() => mkdtemp(path.join(tmpdir(), "perseus-bench-"))),
    (directory) => Effect.tryPromise({ try: () => run(directory, target, loads, seconds), catch: failure }),
    (directory) => Effect.promise(() => rm(directory, { recursive: true, force: true }))
  )

const failure = (cause: unknown) => new BenchFailed({ message: cause instanceof Error ? cause.message : String(cause) })

const run = async (directory: string, target: Target, loads: ReadonlyArray<Load>, seconds: number): Promise<Sample> => {
  const processes = await Promise.all(loads.map((load, index) => start(directory, target, load, index, seconds)))
  try {
    await Promise.all(processes.map(({ underWay }) => underWay))
    await pause(WARM_UP_SECONDS * 1000)
    const before = look(target)
    await pause(seconds * 1000)
    const after = look(target)
    await Promise.all(processes.map(({ done }) => done))
    const windows = await Promise.all(loads.map((load, index) => windowOf(directory, load, index, before.at, after.at)))
    return sampleOf(loads, windows, before, after)
  } finally {
    for (const { child } of processes) child.kill("SIGKILL")
  }
}

const pause = (millis: number) => new Promise((resolve) => setTimeout(resolve, millis))

interface Look {
  /** Milliseconds of the wall clock, as pgbench logs it. */
  readonly at: number
  readonly pooler: number
  readonly server: number
  readonly memory: number
}

const look = ({ pid, serverPid }: Target): Look => ({
  at: Date.now(),
  pooler: pid === null ? 0 : cpuOf(pid),
  server: cpuOfTree(serverPid),
  memory: pid === null ? 0 : memoryOf(pid).resident
})

const start = async (directory: string, target: Target, load: Load, index: number, seconds: number) => {
  const { login, clients, protocol = "simple", script } = load
  const file = path.join(directory, `script-${index}.sql`)
  if ("text" in script) await writeFile(file, script.text)
  const child = spawn(
    "pgbench",
    [
      "--no-vacuum",
      `--host=${target.host}`,
      `--port=${target.port}`,
      `--username=${login.user}`,
      `--client=${clients}`,
      `--protocol=${protocol}`,
      "--progress=1",
      // The end is the parent's to say: it cuts off what lies behind the window.
      `--time=${seconds + WARM_UP_SECONDS + 2}`,
      "--log",
      `--log-prefix=${path.join(directory, `log-${index}`)}`,
      "text" in script ? `--file=${file}` : `--builtin=${script.builtin}`,
      login.database
    ],
    {
      env: {
        PATH: "/usr/local/bin:/usr/bin:/bin",
        PGPASSWORD: login.password,
        PGSSLMODE: login.tls === true ? "require" : "disable",
        PGCONNECT_TIMEOUT: "30",
        ...(login.options !== undefined && { PGOPTIONS: login.options })
      },
      stdio: ["ignore", "ignore", "pipe"]
    }
  )
  let errors = ""
  const underWay = new Promise<void>((resolve) => {
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      errors = (errors + text).slice(-2000)
      if (text.includes("progress:")) resolve()
    })
  })
  const done = finished(child, () => errors)
  return { child, underWay: Promise.race([underWay, done]), done }
}

const finished = async (child: ChildProcess, errors: () => string): Promise<void> => {
  const [code] = await once(child, "close")
  const lines = errors()
    .split("\n")
    .filter((line) => line !== "" && !line.startsWith("progress:"))
  if (code !== 0) throw new Error(`pgbench ended with ${code}: ${lines.slice(-3).join("; ")}`)
}

/** A line of the log: client, transaction's number, µs, script, and when it ended: seconds and µs. */
const windowOf = async (directory: string, load: Load, index: number, from: number, to: number): Promise<Window> => {
  const files = (await readdir(directory)).filter((name) => name.startsWith(`log-${index}.`))
  const latencies: Array<number> = []
  for (const name of files) {
    for (const line of (await readFile(path.join(directory, name), "latin1")).split("\n")) {
      const [, , micros, , seconds, fraction] = line.split(" ")
      if (fraction === undefined) continue
      const at = Number(seconds) * 1000 + Number(fraction) / 1000
      if (at >= from && at < to) latencies.push(Number(micros) / 1000)
    }
  }
  return { transactions: latencies.length * ("text" in load.script ? load.script.transactions : 1), latencies }
}

const sampleOf = (loads: ReadonlyArray<Load>, windows: ReadonlyArray<Window>, before: Look, after: Look): Sample => {
  const transactions = windows.reduce((sum, window) => sum + window.transactions, 0)
  const anyWatched = loads.some(({ watched }) => watched === true)
  const told = windows.filter((_, index) => !anyWatched || loads[index]?.watched === true)
  const latencies = Float64Array.from(told.flatMap((window) => window.latencies)).sort()
  const [pooler, server] = [
    (after.pooler - before.pooler) / transactions,
    (after.server - before.server) / transactions
  ]
  return {
    ...(before.pooler > 0 && { cpuPerTx: pooler, memoryMb: after.memory / 2 ** 20 }),
    serverCpuPerTx: server,
    totalCpuPerTx: pooler + server,
    tps: (transactions * 1000) / (after.at - before.at),
    p50: quantile(latencies, 0.5),
    p95: quantile(latencies, 0.95),
    p99: quantile(latencies, 0.99)
  }
}
