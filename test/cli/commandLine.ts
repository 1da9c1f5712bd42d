/**
 * Runs the command line as a process would, but in this one: with a pipe or a terminal at standard input, and standard
 * output, standard error and the exit code caught.
 */
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as Runtime from "effect/Runtime"
import type * as Scope from "effect/Scope"
import * as Sink from "effect/Sink"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as Terminal from "effect/Terminal"
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Cli from "../../src/cli/Cli.ts"
import type { KmsSettings } from "../../src/tenant/KmsDecrypt.ts"
import { minimal } from "../config/fixtures.ts"

export interface Outcome {
  readonly stdout: string
  readonly stderr: string
  readonly exitCode: number
}

export interface Surroundings {
  /** What stands in the pipe at standard input; an array for what arrives in pieces. */
  readonly stdin?: string | ReadonlyArray<Uint8Array> | undefined
  /** Standard input is a terminal, and this is typed: characters, and keys in angle brackets (`<return>`, `<ctrl-c>`). */
  readonly typed?: string | undefined
  readonly env?: Readonly<Record<string, string>> | undefined
  readonly daemon?: Cli.Io["daemon"] | undefined
  readonly demo?: Cli.Io["demo"] | undefined
}

/** `argv` is without the program's name. */
export const run = Effect.fnUntraced(function* (
  argv: ReadonlyArray<string>,
  { daemon, demo, env = {}, stdin = "", typed }: Surroundings = {}
): Effect.fn.Return<Outcome> {
  let stdout = ""
  let stderr = ""
  const testConsole: Console.Console = Object.assign(Object.create(globalThis.console), {
    log: (line: string) => (stdout += `${line}\n`),
    error: (line: string) => (stderr += `${line}\n`)
  })
  const toStderr = Sink.forEach((text: string | Uint8Array) => Effect.sync(() => void (stderr += text)))
  const stdio = Stdio.layerTest({
    stdin: Stream.fromIterable(typeof stdin === "string" ? [Buffer.from(stdin)] : stdin),
    stdinIsTerminal: Effect.succeed(typed !== undefined),
    stderr: () => toStderr
  })
  const terminal = Layer.succeed(Terminal.Terminal, keyboard(typed ?? ""))
  const exit = yield* Cli.run(argv, {
    version: "1.2.3",
    env,
    daemon: daemon ?? (() => Effect.die("no daemon expected")),
    demo: demo ?? (() => Effect.die("no demo expected"))
  }).pipe(
    Effect.provide(Layer.merge(stdio, terminal)),
    Effect.provide(NodeServices.layer),
    Effect.provideService(Console.Console, testConsole),
    Effect.exit
  )
  if (exit._tag === "Failure" && Cause.hasDies(exit.cause)) return yield* Effect.failCause(Cause.map(exit.cause, die))
  let exitCode = 0
  Runtime.defaultTeardown(exit, (code) => (exitCode = code))
  return { stdout, stderr, exitCode }
})

const die = (error: unknown): never => {
  throw error
}

/** All that is typed is there from the start, as when it is pasted. */
const keyboard = (typed: string): Terminal.Terminal => {
  const keys = Array.from(typed.matchAll(/<([a-z-]+)>|./gsu), ([text, named]): Terminal.UserInput => {
    const name = named?.replace("ctrl-", "") ?? text
    return {
      input: named === undefined ? Option.some(text) : Option.none(),
      key: { name, ctrl: named?.startsWith("ctrl-") === true, meta: false, shift: false }
    }
  })
  const readInput = Effect.gen(function* () {
    const queue = yield* Queue.make<Terminal.UserInput, Cause.Done>()
    Queue.offerAllUnsafe(queue, keys.splice(0))
    Queue.endUnsafe(queue)
    return queue
  })
  const readLine = Effect.suspend(() => {
    const end = keys.findIndex(({ key }) => key.name === "return")
    if (end === -1) return Effect.fail(new Terminal.QuitError({}))
    const line = keys.splice(0, end + 1).map(({ input }) => Option.getOrElse(input, () => ""))
    return Effect.succeed(line.join(""))
  })
  return Terminal.make({
    columns: Effect.succeed(80),
    rows: Effect.succeed(24),
    size: Effect.die("not asked"),
    readInput,
    readLine,
    display: () => Effect.void
  })
}

/** A directory that is gone when the scope closes. */
export const temporaryDirectory: Effect.Effect<string, never, Scope.Scope> = Effect.acquireRelease(
  Effect.promise(() => mkdtemp(join(tmpdir(), "perseus-cli-"))),
  (path) => Effect.promise(() => rm(path, { recursive: true }))
)

/** The path of a configuration with this auth database and this KMS. */
export const configFile = Effect.fnUntraced(function* (settings: {
  readonly authDsn?: Redacted.Redacted<string> | undefined
  readonly kms?: KmsSettings | undefined
  readonly listen?: string | undefined
}) {
  const { authDsn, kms, listen } = settings
  const path = join(yield* temporaryDirectory, "config.json")
  const file = minimal()
  const config = {
    ...file,
    ListenAddress: listen ?? file.ListenAddress,
    AuthDBSettings: {
      AuthDBDSN: authDsn === undefined ? file.AuthDBSettings.AuthDBDSN : Redacted.value(authDsn),
      AuthQueryTimeoutSecs: 10
    },
    AWSSettings:
      kms === undefined
        ? file.AWSSettings
        : {
            AccessKeyId: kms.accessKeyId,
            SecretAccessKey: Redacted.value(kms.secretAccessKey),
            Region: kms.region,
            Endpoint: kms.endpoint,
            KMSKeyARN: kms.keyArn
          }
  }
  yield* Effect.promise(() => writeFile(path, JSON.stringify(config)))
  return path
})
