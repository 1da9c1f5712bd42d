import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Runtime from "effect/Runtime"
import { writeFile } from "node:fs/promises"
import { join } from "node:path"
import { configFile, run, temporaryDirectory } from "./commandLine.ts"

/** The path with which the daemon was started. */
const daemonPath = (argv: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    let path: string | undefined
    const outcome = yield* run(argv, { daemon: (config) => Effect.sync(() => void (path = config)) })
    assert.deepStrictEqual(outcome, { stdout: "", stderr: "", exitCode: 0 })
    return path
  })

describe("the command line", () => {
  it.live("runs the daemon without a command, with config/config.json unless told otherwise", () =>
    Effect.gen(function* () {
      assert.strictEqual(yield* daemonPath([]), "config/config.json")
      assert.strictEqual(yield* daemonPath(["daemon"]), "config/config.json")
      for (const argv of [["-config", "x"], ["--config=x"], ["-c", "x"]]) {
        assert.strictEqual(yield* daemonPath(argv), "x")
        assert.strictEqual(yield* daemonPath([...argv, "daemon"]), "x")
        assert.strictEqual(yield* daemonPath(["daemon", ...argv]), "x")
      }
    })
  )

  it.live("tells the demo whether it is shown once", () =>
    Effect.gen(function* () {
      const seen: Array<boolean> = []
      const demo = ({ once }: { readonly once: boolean }) => Effect.sync(() => void seen.push(once))
      yield* run(["demo"], { demo })
      yield* run(["demo", "-once"], { demo })
      assert.deepStrictEqual(seen, [false, true])
    })
  )

  it.live("prints its version", () =>
    Effect.gen(function* () {
      for (const flag of ["--version", "-version", "-v"]) {
        assert.deepStrictEqual(yield* run([flag]), { stdout: "perseus 1.2.3\n", stderr: "", exitCode: 0 })
      }
    })
  )

  it.live("helps with each command, on standard output", () =>
    Effect.gen(function* () {
      for (const command of [
        [],
        ["daemon"],
        ["check-config"],
        ["genhash"],
        ["encpass"],
        ["demo"],
        ["tenant"],
        ["tenant", "add"],
        ["tenant", "list"],
        ["tenant", "remove"]
      ]) {
        const { exitCode, stderr, stdout } = yield* run([...command, "--help"])
        assert.strictEqual(exitCode, 0)
        assert.strictEqual(stderr, "")
        assert.include(stdout, `perseus ${command.join(" ")}`.trim())
        const readsConfig = !["genhash", "demo"].includes(command.join(" "))
        assert.strictEqual(stdout.includes("--config"), readsConfig, command.join(" "))
      }
    })
  )

  const mistakes: ReadonlyArray<readonly [ReadonlyArray<string>, string]> = [
    [["genhsah"], 'perseus: unknown command "genhsah"; did you mean genhash?\nTry: perseus --help\n'],
    [
      ["genhash", "-passwrod=secret"],
      "perseus genhash: unknown flag --passwrod; did you mean --password?\nTry: perseus genhash --help\n"
    ],
    [
      ["genhash", "secret"],
      "perseus genhash: unexpected argument; a value belongs behind its flag, and in quotes if it has blanks\n" +
        "Try: perseus genhash --help\n"
    ],
    [
      ["tenant", "remove", "--source-db", "secret"],
      "perseus tenant remove: --source-schema is missing\nTry: perseus tenant remove --help\n"
    ]
  ]
  for (const [argv, stderr] of mistakes) {
    it.live(`says what is wrong with ${argv.join(" ")}, in a line and with exit code 2`, () =>
      Effect.gen(function* () {
        assert.deepStrictEqual(yield* run(argv), { stdout: "", stderr, exitCode: 2 })
      })
    )
  }

  it.live("shows a group's help on standard error when no command of it is named", () =>
    Effect.gen(function* () {
      const { exitCode, stderr, stdout } = yield* run(["tenant"])
      assert.strictEqual(exitCode, 2)
      assert.strictEqual(stdout, "")
      assert.include(stderr, "perseus tenant <subcommand>")
    })
  )

  it.live("prints the daemon's failure in one line, unless the daemon has reported it", () =>
    Effect.gen(function* () {
      const failed = yield* run([], { daemon: () => Effect.fail({ message: "ListenAddress :1: EACCES" }) })
      assert.deepStrictEqual(failed, { stdout: "", stderr: "perseus: ListenAddress :1: EACCES\n", exitCode: 1 })
      const reported = { message: "as logged", [Runtime.errorReported]: false }
      const silent = yield* run([], { daemon: () => Effect.fail(reported) })
      assert.deepStrictEqual(silent, { stdout: "", stderr: "", exitCode: 1 })
    })
  )
})

describe("a configuration that cannot be used", () => {
  const tenant = ["--source-db", "app", "--source-schema", "acme"]
  const place = ["--source-user", "app", "--dest-host", "db1", "--dest-db", "app", "--dest-user", "acme"]
  for (const argv of [
    ["check-config"],
    ["encpass"],
    ["tenant", "list"],
    ["tenant", "add", ...tenant, ...place],
    ["tenant", "remove", ...tenant, "--yes"]
  ]) {
    it.live(`ends ${argv.slice(0, 2).join(" ")} with 78, whether it is the file or what a key holds`, () =>
      Effect.gen(function* () {
        const missing = yield* run([...argv, "--config", "/nonexistent.json"])
        assert.deepStrictEqual(missing, {
          stdout: "",
          stderr: "perseus: /nonexistent.json: the file does not exist\n",
          exitCode: 78
        })
        const env = { PERSEUS_AUTHDBSETTINGS_AUTHDBDSN: "<>" }
        const unfilled = yield* run([...argv, "--config", yield* configFile({})], { env })
        assert.strictEqual(unfilled.exitCode, 78)
        assert.include(unfilled.stderr, 'PERSEUS_AUTHDBSETTINGS_AUTHDBDSN: still says "<>"')
      })
    )
  }

  it.live("ends tenant list with 78 where AuthDBDSN makes no sense", () =>
    Effect.gen(function* () {
      for (const AuthDBDSN of ["postgres://u:p@h/d?sslmode=maybe", "postgres://u:p@h/d?sslrootcert=/nonexistent.pem"]) {
        const env = { PERSEUS_AUTHDBSETTINGS_AUTHDBDSN: AuthDBDSN }
        const outcome = yield* run(["tenant", "list", "--config", yield* configFile({})], { env })
        assert.strictEqual(outcome.exitCode, 78, outcome.stderr)
      }
    })
  )
})

describe("check-config", () => {
  it.live("prints ok and a summary without secrets", () =>
    Effect.gen(function* () {
      const { exitCode, stderr, stdout } = yield* run(["check-config", "-config", yield* configFile({})])
      assert.strictEqual(exitCode, 0)
      assert.strictEqual(stderr, "")
      assert.match(stdout, /^ok\n/)
      assert.include(stdout, "auth on localhost:5432 as perseus, sslmode=prefer")
      assert.notInclude(stdout, "hunter2")
    })
  )

  it.live("prints every problem, and fails", () =>
    Effect.gen(function* () {
      const path = join(yield* temporaryDirectory, "config.json")
      yield* Effect.promise(() => writeFile(path, '{ "ListenAddress": "x", "PoolSettings": { "MaxIdel": 1 } }'))
      const { exitCode, stderr, stdout } = yield* run(["check-config", "-config", path])
      assert.strictEqual(exitCode, 78)
      assert.strictEqual(stdout, "")
      for (const key of ["ListenAddress", "PoolSettings.MaxIdel", "AuthDBSettings.AuthDBDSN"]) {
        assert.include(stderr, key)
      }
    })
  )

  it.live("looks into the files that TLS needs", () =>
    Effect.gen(function* () {
      const env = {
        PERSEUS_TLSSETTINGS_CLIENTMODE: "require",
        PERSEUS_TLSSETTINGS_CLIENTCERTFILE: join(yield* temporaryDirectory, "none.crt"),
        PERSEUS_TLSSETTINGS_CLIENTKEYFILE: join(yield* temporaryDirectory, "none.key")
      }
      const { exitCode, stderr } = yield* run(["check-config", "-config", yield* configFile({})], { env })
      assert.strictEqual(exitCode, 78)
      assert.match(
        stderr,
        /^perseus: TLSSettings: 2 problems\n {2}ClientCertFile: the file does not exist\n {2}ClientKey/
      )
    })
  )

  it.live("finds what is wrong within AuthDBDSN, from the environment too", () =>
    Effect.gen(function* () {
      const env = { PERSEUS_AUTHDBSETTINGS_AUTHDBDSN: "postgres://u:hunter2@h/d?sslmode=maybe" }
      const { exitCode, stderr } = yield* run(["check-config", "-config", yield* configFile({})], { env })
      assert.strictEqual(exitCode, 78)
      assert.match(stderr, /^perseus: AuthDBSettings\.AuthDBDSN: .*sslmode/)
      assert.notInclude(stderr, "hunter2")
    })
  )
})
