/**
 * Drives a target with pgbench: one process for each tenant, all at once, and looks at the CPU of pooler and server while all of
 * them are at full load. Logging in and out lies outside what is measured, unless a load logs in for each transaction.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { type ChildProcess, spawn } from "node:child_process"
import { once } from "node:events"
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { env } from "node:process"
import { latenciesOf, look, perTransaction, serverConnections } from "./Look.ts"
import type { Sample } from "./Sample.ts"
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
  /** Its latencies say nothing and are left out. */
  readonly untimed?: boolean
  /** Goes elsewhere than the rest. */
  readonly target?: Target
  /** Transactions a second, begun when they are due; latencies then count from that moment. As fast as it can where left out. */
  readonly rate?: number
  /** Logs in for each transaction, and out after it. */
  readonly reconnects?: boolean
}

/** Before the measurement: connections are opened, plans are made. */
const WARM_UP_SECONDS = 1
/** Of a load whose length is not known beforehand. */
const LONGEST_SECONDS = 120
/** pgbench writes its log by 4 kB: those that are on their way when it is ended have to lie behind the window. */
const TAIL_SECONDS = 1

/** Transactions that ended in the window, and how long they took, in milliseconds. */
interface Window {
  readonly transactions: number
  readonly latencies: ReadonlyArray<number>
}

/** Measures for some seconds. */
export const drive = (
  target: Target,
  loads: ReadonlyArray<Load>,
  seconds: number
): Effect.Effect<Sample, BenchFailed> =>
  Effect.scoped(measured(target, loads, seconds + WARM_UP_SECONDS + 2, Effect.sleep(seconds * 1000)))

/** Measures for as long as something else takes, and ends then. The loads must be quick: hundreds of transactions a second. */
export const driveDuring = <A>(
  target: Target,
  loads: ReadonlyArray<Load>,
  other: Effect.Effect<A, BenchFailed>
): Effect.Effect<readonly [Sample, A], BenchFailed> =>
  Effect.scoped(
    Effect.gen(function* () {
      let result: { readonly of: A } | null = null
      const noted = Effect.map(other, (of) => void (result = { of }))
      const sample = yield* measured(target, loads, LONGEST_SECONDS, noted, "then end")
      return [sample, result!.of as A] as const
    })
  )

/** `longest`: in seconds, what pgbench is told; more than the warm-up and `during` take. */
const measured = Effect.fnUntraced(function* (
  target: Target,
  loads: ReadonlyArray<Load>,
  longest: number,
  during: Effect.Effect<void, BenchFailed>,
  then: "then end" | "then wait" = "then wait"
): Effect.fn.Return<Sample, BenchFailed, Scope.Scope> {
  const directory = yield* Effect.acquireRelease(
    Effect.promise(() => mkdtemp(path.join(tmpdir(), "perseus-bench-"))),
    (name) => Effect.promise(() => rm(name, { recursive: true, force: true }))
  )
  const processes = yield* Effect.forEach(
    loads,
    (load, index) =>
      Effect.acquireRelease(
        attempt(() => start(directory, target, load, index, longest)),
        ({ child }) => Effect.sync(() => child.kill("SIGKILL"))
      ),
    { concurrency: "unbounded" }
  )
  yield* attempt(() => Promise.all(processes.map(({ underWay }) => underWay)))
  yield* Effect.sleep(WARM_UP_SECONDS * 1000)
  const connections = serverConnections(target)
  const before = look(target)
  yield* during
  const after = look(target)
  if (then === "then wait") yield* attempt(() => Promise.all(processes.map(({ done }) => done)))
  else {
    yield* Effect.sleep(TAIL_SECONDS * 1000)
    // One that has ended by itself has failed, and says why.
    for (const { child, done } of processes) if (child.exitCode !== null) yield* attempt(() => done)
    for (const { child } of processes) child.kill("SIGTERM")
  }
  const windows = yield* attempt(() =>
    Promise.all(loads.map((load, index) => windowOf(directory, load, index, before.at, after.at)))
  )
  const transactions = windows.reduce((sum, window) => sum + window.transactions, 0)
  const anyWatched = loads.some(({ watched }) => watched === true)
  const told = windows.filter(
    (_, index) => loads[index]?.untimed !== true && (!anyWatched || loads[index]?.watched === true)
  )
  return {
    ...perTransaction(before, after, transactions),
    ...(told.length > 0 && latenciesOf(told.flatMap((window) => window.latencies))),
    ...connections
  }
})

const attempt = <A>(evaluate: () => Promise<A>): Effect.Effect<A, BenchFailed> =>
  Effect.tryPromise({
    try: evaluate,
    catch: (cause) => new BenchFailed({ message: cause instanceof Error ? cause.message : String(cause) })
  })

const start = async (directory: string, target: Target, load: Load, index: number, longest: number) => {
  const { login, clients, protocol = "simple", script, rate, reconnects = false } = load
  const { host, port } = load.target ?? target
  const file = path.join(directory, `script-${index}.sql`)
  if ("text" in script) await writeFile(file, script.text)
  const child = spawn(
    "pgbench",
    [
      "--no-vacuum",
      `--host=${host}`,
      `--port=${port}`,
      `--username=${login.user}`,
      `--client=${clients}`,
      `--protocol=${protocol}`,
      "--progress=1",
      // The end is the parent's to say: it cuts off what lies behind the window.
      `--time=${longest}`,
      "--log",
      `--log-prefix=${path.join(directory, `log-${index}`)}`,
      ...(rate === undefined ? [] : [`--rate=${rate}`]),
      ...(reconnects ? ["--connect"] : []),
      "text" in script ? `--file=${file}` : `--builtin=${script.builtin}`,
      login.database
    ],
    {
      env: {
        PATH: env["PATH"],
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
  // Looked at later, or never where the load is ended.
  done.catch(() => {})
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
