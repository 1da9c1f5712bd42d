import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execFile } from "node:child_process"
import { readFileSync } from "node:fs"
import { mkdtemp, rm, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { execPath } from "node:process"
import { fileURLToPath } from "node:url"
import { settings, type Setting } from "../src/config/PerseusConfig.ts"
import * as errors from "../src/errors.ts"
import { format } from "../src/observability/Metrics.ts"
import { PoolStatistics } from "../src/pool/PoolStatistics.ts"

const root = fileURLToPath(new URL("..", import.meta.url))
const readme = readFileSync(path.join(root, "README.md"), "utf8")

/** The cells of the table between `<!-- name -->` and `<!-- /name -->`, without its head. */
const table = (name: string): ReadonlyArray<ReadonlyArray<string>> => {
  const text = readme.split(`<!-- ${name} -->`)[1]?.split(`<!-- /${name} -->`)[0] ?? ""
  return text
    .split("\n")
    .filter((line) => line.startsWith("|"))
    .slice(2)
    .map((line) =>
      line
        .split("|")
        .slice(1, -1)
        .map((cell) => cell.trim())
    )
}

// ---- configuration -----------------------------------------------------------------------------------------------

const fallbackText = (fallback: unknown): string => {
  if (fallback === undefined) return "required"
  return fallback === "" ? "blank" : `\`${JSON.stringify(fallback)}\``
}

const settingRow = ({ about, fallback, key, needsRestart, variable }: Setting): ReadonlyArray<string> => [
  `\`${key}\``,
  variable === undefined ? "the file only" : `\`${variable}\``,
  fallbackText(fallback),
  needsRestart ? "restart" : "reload",
  about
]

// ---- errors ------------------------------------------------------------------------------------------------------

/** What each failure says to a client, with "…" in place of all that varies. */
const clientFaults = (): ReadonlyArray<ReadonlyArray<string>> => {
  const varying = ["parameter", "detail", "why", "feature", "advice", "seconds", "waiting", "scope", "limit", "need"]
  const fields = { ...Object.fromEntries(varying.map((name) => [name, "…"])), holds: ["…"] }
  return Object.values(errors).flatMap((Failure) => {
    const fault: unknown = new (Failure as new (fields: object) => unknown)(fields)
    const [sqlState, severity, message] = ["sqlState", "severity", "clientMessage"].map((name) =>
      Reflect.get(Object(fault), name)
    )
    // One passes on the server's own.
    return typeof sqlState === "string" ? [[sqlState, String(severity), String(message)]] : []
  })
}

// ---- metrics -----------------------------------------------------------------------------------------------------

const metrics = (): ReadonlyArray<ReadonlyArray<string>> => {
  const pool = { maxOpen: 0, open: 0, idle: 0, inUse: 0, closing: 0, pinned: 0, opening: 0, waiting: 0 }
  const text = format(
    {
      pools: [{ destHost: "host", destDb: "db", ...pool, statistics: new PoolStatistics() }],
      clients: { login: 0, idle: 0, waiting: 0, active: 0 },
      maxClients: 0,
      logins: new Map([["ok", 1]]),
      throttledLogins: { delayed: { address: 0, tenant: 0 }, blocked: { address: 0, tenant: 0 } },
      errorsBySqlState: new Map([["28P01", 1]]),
      pinnedBy: new Map([["LISTEN", 1]]),
      transactions: 0,
      cancels: { forwarded: 0, withoutEffect: 0 },
      draining: false
    },
    {
      startTime: 0,
      cpuSeconds: 0,
      residentBytes: 0,
      heapUsedBytes: 0,
      heapTotalBytes: 0,
      externalBytes: 0,
      openFds: undefined,
      maxFds: undefined,
      eventLoopActiveSeconds: 0,
      eventLoopLagSeconds: { p50: 0, p99: 0, max: 0 }
    },
    { build_version: "", commit_hash: "", build_date: "", node_version: "" }
  )
  return Array.from(text.matchAll(/^# HELP (perseus_\S+) (.*)\n# TYPE \S+ (.*)$/gm), ([, name, help, type]) => [
    `\`${name}\``,
    `${type}`,
    `${help}`
  ])
}

// ---- examples ----------------------------------------------------------------------------------------------------

const run = (args: ReadonlyArray<string>) =>
  Effect.callback<{ readonly output: string; readonly failed: boolean }>((resume) => {
    const child = execFile(execPath, args, (error, stdout, stderr) =>
      resume(Effect.succeed({ output: stdout + stderr, failed: error !== null }))
    )
    return Effect.sync(() => child.kill())
  })

/** Type-checks modules as a program that depends on this package would be. */
const typeCheck = Effect.fnUntraced(function* (modules: ReadonlyArray<string>) {
  const directory = yield* Effect.acquireRelease(
    Effect.promise(() => mkdtemp(path.join(tmpdir(), "perseus-readme-"))),
    (directory) => Effect.promise(() => rm(directory, { recursive: true }))
  )
  yield* Effect.promise(async () => {
    await symlink(path.join(root, "node_modules"), path.join(directory, "node_modules"))
    await writeFile(path.join(directory, "package.json"), '{ "type": "module" }')
    for (const [index, module] of modules.entries()) await writeFile(path.join(directory, `${index}.ts`), module)
    const compilerOptions = { rootDir: "/", paths: { perseus: [path.join(root, "src/index.ts")] } }
    const tsconfig = { extends: path.join(root, "tsconfig.json"), compilerOptions, include: ["*.ts"] }
    await writeFile(path.join(directory, "tsconfig.json"), JSON.stringify(tsconfig))
  })
  return yield* run([path.join(root, "node_modules/typescript/bin/tsc"), "-p", directory])
}, Effect.scoped)

describe("the README", () => {
  it("has every configuration key, with its variable, its default, and whether a reload applies it", () => {
    assert.deepStrictEqual(table("settings"), settings.map(settingRow))
  })

  it("has every error that a client may see, in the words that it sees", () => {
    const told = table("errors").map((row) => row.slice(0, 3).join(" | "))
    const said = clientFaults().map((row) => row.join(" | "))
    assert.deepStrictEqual(told.toSorted(), said.toSorted())
  })

  it("has every metric of the service", () => {
    assert.deepStrictEqual(table("metrics"), metrics())
  })

  it.live("has examples of embedding that compile", () =>
    Effect.gen(function* () {
      const examples = Array.from(readme.matchAll(/^```ts\n(.*?)^```$/gms), ([, code]) => `${code}`)
      assert.isAtLeast(examples.length, 3)
      const { failed, output } = yield* typeCheck(examples)
      assert.strictEqual(output, "")
      assert.isFalse(failed)
    })
  )
})
