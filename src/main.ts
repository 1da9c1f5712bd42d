#!/usr/bin/env node
/**
 * The process: arguments, environment, signals, standard streams, exit codes. The only file that touches `process`.
 *
 * SIGTERM or SIGINT ends whatever runs in an orderly way; a second one tells a daemon that drains not to wait any
 * longer. SIGHUP makes a daemon read its configuration again.
 *
 * Exit codes: 0 done, or stopped by a signal; 1 failed; 2 the arguments make no sense; 78 (EX_CONFIG) the configuration
 * cannot be used, so that a supervisor need not try again; 130 a command was interrupted.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Cause from "effect/Cause"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { FileSystem } from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Runtime from "effect/Runtime"
import * as Stream from "effect/Stream"
import { setFlagsFromString } from "node:v8"
import { readBuildInfo } from "./BuildInfo.ts"
import * as Cli from "./cli/Cli.ts"
import { EX_CONFIG } from "./cli/commands/CommandFailed.ts"
import * as Demo from "./cli/demo/Demo.ts"
import * as ConfigFile from "./config/ConfigFile.ts"
import { LiveConfig, reloadOn } from "./config/LiveConfig.ts"
import type { AuthTableInvalid, ConfigInvalid, ListenFailed } from "./errors.ts"
import { forbidRing } from "./net/KernelSockets.ts"
import * as Logging from "./observability/Logging.ts"
import { Perseus } from "./Perseus.ts"

/**
 * Ctrl-C under npm arrives twice, from the terminal and from npm. A person who wants to say it again takes longer. Nobody
 * doubles a SIGTERM.
 */
const SAME_INTERRUPT_MS = 500

/** What running commands have asked for. */
const onEnd: { interruptedCode: number; failedCode: number | undefined; secondSignal: Effect.Effect<void> } = {
  interruptedCode: 130,
  failedCode: undefined,
  secondSignal: Effect.void
}

// ---- the daemon --------------------------------------------------------------------------------------------------

/** Until there is a configuration that says otherwise. */
const firstLog = Logging.layerWith(process.stdout, () => ({ Level: "INFO", Json: false }))

const daemon = (path: string): Effect.Effect<void, DaemonFailure, FileSystem> =>
  Effect.gen(function* () {
    onEnd.interruptedCode = 0
    // The file system alone: a reload logs where the daemon logs, not where its start did.
    const load = Effect.provideService(ConfigFile.load({ path, env: process.env }), FileSystem, yield* FileSystem)
    const hangups = yield* listenTo("SIGHUP")
    return yield* Layer.launch(
      Layer.merge(Layer.provideMerge(cutOnSecondSignal, Perseus.layer), reloadOn(Stream.fromQueue(hangups))).pipe(
        Layer.provide(Logging.layer(process.stdout)),
        Layer.provide(LiveConfig.layer(load))
      )
    )
  }).pipe(
    Effect.scoped,
    Effect.tapErrorTag("ConfigInvalid", () => Effect.sync(() => (onEnd.failedCode = EX_CONFIG))),
    Effect.provide(firstLog)
  )

type DaemonFailure = ConfigInvalid | ListenFailed | AuthTableInvalid

const cutOnSecondSignal = Layer.effectDiscard(
  Perseus.useSync(({ cut }) => {
    onEnd.secondSignal = cut
  })
)

/** Listens until the scope closes. One waiting signal stands for all that came since the last was taken. */
const listenTo = (signal: NodeJS.Signals) =>
  Effect.gen(function* () {
    const queue = yield* Queue.sliding<void>(1)
    const onSignal = () => Queue.offerUnsafe(queue, undefined)
    yield* Effect.acquireRelease(
      Effect.sync(() => process.on(signal, onSignal)),
      () => Effect.sync(() => process.off(signal, onSignal))
    )
    return queue
  })

// ---- the process -------------------------------------------------------------------------------------------------

const demo = ({ once }: { readonly once: boolean }) =>
  Effect.suspend(() => {
    onEnd.interruptedCode = 0
    return Demo.run({ once, write: (text) => process.stdout.write(text), isTerminal: process.stdout.isTTY })
  })

let isStopping = false
const onStop = () => {
  if (isStopping) Effect.runFork(onEnd.secondSignal)
  isStopping = true
}
let interruptedAt: number | undefined
process.on("SIGTERM", onStop)
process.on("SIGINT", () => {
  const now = performance.now()
  if (interruptedAt === undefined || now - interruptedAt > SAME_INTERRUPT_MS) onStop()
  interruptedAt ??= now
})
// A reader that has gone (`perseus tenant list | head`) is no reason for a stack trace; nor may it end a daemon.
process.stdout.on("error", () => {})
process.stderr.on("error", () => {})

// That FFI may change (net/KernelSockets) is nothing for those on call; all else is told as ever.
const tellOf = process.listeners("warning")
process.removeAllListeners("warning").on("warning", (warning) => {
  if (warning.name === "ExperimentalWarning" && warning.message.startsWith("FFI ")) return
  for (const tell of tellOf) tell(warning)
})

// Serving a transaction leaves nothing for V8 to collect but what is young. A login does, and V8 lets all memory more than double
// before it looks. 10,000 clients that came, went and came again, three times: 11.5 kB each where it may grow by a half, 10.2 by a
// fifth. A login costs the same.
setFlagsFromString("--heap-growing-percent=20")

// As Node itself goes by.
if (process.env["UV_USE_IO_URING"] === "0") forbidRing("UV_USE_IO_URING is 0")

const main = Effect.gen(function* () {
  const { build_version: version } = yield* readBuildInfo()
  return yield* Cli.run(process.argv.slice(2), { version, env: process.env, daemon, demo })
}).pipe(
  // A fault of the program. Failures have been told in one line by Cli.run.
  Effect.tapCause((cause) => (Cause.hasDies(cause) ? Console.error(Cause.pretty(cause)) : Effect.void)),
  Effect.provide(NodeServices.layer)
)

NodeRuntime.runMain(main, {
  disableErrorReporting: true,
  teardown: (exit, onExit) =>
    Runtime.defaultTeardown(exit, (code) => {
      // A pipe that stays open behind the password (`docker run -i … genhash`) would keep the process until it closes.
      process.stdin.pause()
      if (code === 130) onExit(onEnd.interruptedCode)
      else onExit(code === 0 ? 0 : (onEnd.failedCode ?? code))
    })
})
