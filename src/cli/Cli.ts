/**
 * The command line: `perseus [--config FILE]` is the daemon, everything else a sub-command.
 *
 * What a command prints is on standard output and nothing else is; errors are one line on standard error, never a
 * stack and never a secret. The process itself (arguments, environment, signals, exit) is `main.ts`'s: what is needed
 * of it is handed in, and so are the daemon and the demo.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Runtime from "effect/Runtime"
import * as CliConfig from "effect/cli/CliConfig"
import type * as CliError from "effect/cli/CliError"
import * as CliOutput from "effect/cli/CliOutput"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as GlobalFlag from "effect/cli/GlobalFlag"
import type { HelpDoc } from "effect/cli/HelpDoc"
import type * as ConfigFile from "../config/ConfigFile.ts"
import { checkConfig } from "./commands/checkConfig.ts"
import { CommandFailed } from "./commands/CommandFailed.ts"
import { encpass } from "./commands/encpass.ts"
import { genhash } from "./commands/genhash.ts"
import { configPath, Environment, perseus } from "./commands/shared.ts"
import { tenant } from "./commands/tenant.ts"
import * as GoFlags from "./GoFlags.ts"

/** What a command that is handed in may fail with; `message` is printed unless it says that this was done. */
export interface Failure {
  readonly message: string
}

/** What `main.ts` hands in. */
export interface Io {
  readonly version: string
  readonly env: ConfigFile.Environment
  /** Serves until it is interrupted. */
  readonly daemon: (configPath: string) => Effect.Effect<void, Failure, Command.Environment>
  readonly demo: (options: { readonly once: boolean }) => Effect.Effect<void, Failure, Command.Environment>
}

/**
 * Runs the command that `argv`, the arguments without the program's name, asks for. Fails with `CommandFailed`, which
 * has been printed and carries the exit code for `Runtime.defaultTeardown`: 2 where the arguments could not be
 * understood, 78 where the configuration cannot be used, 1 where the command failed.
 */
export const run = (argv: ReadonlyArray<string>, io: Io): Effect.Effect<void, CommandFailed, Command.Environment> =>
  Command.runWith(rootCommand(io), { version: io.version })(GoFlags.normalise(argv)).pipe(
    Effect.catch(report),
    Effect.provideService(Environment, io.env),
    Effect.provideService(CliOutput.Presenter, presenter),
    Effect.provideService(CliConfig.CliConfig, CliConfig.make({ builtIns }))
  )

/** Not Effect's `--log-level`, which the configuration says, nor what a handful of short commands do without. */
const builtIns = [GlobalFlag.Help, GlobalFlag.Version]

const rootCommand = (io: Io) =>
  perseus.pipe(
    Command.withHandler(({ config }) => io.daemon(configPath(config))),
    Command.withDescription(
      "Perseus, a PostgreSQL connection pooler where every tenant is a schema. Without a command it runs the daemon."
    ),
    Command.withSubcommands([
      Command.make("daemon", {}, () => Effect.flatMap(perseus, ({ config }) => io.daemon(configPath(config)))).pipe(
        Command.withDescription(
          "Serve clients until SIGTERM or SIGINT; SIGHUP reads the configuration again. The default command."
        ),
        Command.withShortDescription("Serve clients (the default)")
      ),
      checkConfig,
      tenant,
      genhash,
      encpass,
      Command.make(
        "demo",
        {
          once: Flag.Boolean("once").pipe(
            Flag.withDescription("Show it once and end, instead of serving until Ctrl-C"),
            Flag.withDefault(false),
            Flag.withoutNegation
          )
        },
        io.demo
      ).pipe(
        Command.withDescription(
          "Show Perseus at work on this machine: a PostgreSQL, a KMS and tenants that are gone when it ends."
        ),
        Command.withShortDescription("Show Perseus at work on this machine")
      )
    ])
  )

const presenter: CliOutput.Presenter = {
  present: (event) => {
    switch (event._tag) {
      case "InvalidInvocation":
        return Console.error(explain(event.commandPath, event.errors))
      case "Version":
        return Console.log(`${event.name} ${event.version}`)
      case "Help": {
        const helpDoc = ownHelp(event)
        return event.reason === "Implicit"
          ? Effect.flatMap(CliOutput.Formatter, (formatter) => Console.error(formatter.formatHelpDoc(helpDoc)))
          : CliOutput.defaultPresenter.present({ ...event, helpDoc })
      }
    }
  }
}

/** They take the flags of all commands, and make nothing of them. */
const withoutConfig: ReadonlySet<string | undefined> = new Set(["genhash", "demo"])

const ownHelp = ({ commandPath, helpDoc }: CliOutput.Presenter.Help): HelpDoc =>
  withoutConfig.has(commandPath.at(-1)) ? { ...helpDoc, inheritedFlags: [] } : helpDoc

/** The mistakes, and where to read on, in place of the whole help. */
const explain = (commandPath: ReadonlyArray<string>, errors: ReadonlyArray<CliError.NonShowHelpErrors>): string =>
  [
    ...errors.map((error) => `${commandPath.join(" ")}: ${describe(error)}`),
    `Try: ${commandPath.join(" ")} --help`
  ].join("\n")

/** Misplaced arguments may well be passwords, and standard error may well be a log. */
const describe = (error: CliError.NonShowHelpErrors): string => {
  switch (error._tag) {
    case "UnexpectedArgument":
      return "unexpected argument; a value belongs behind its flag, and in quotes if it has blanks"
    case "UnrecognizedOption":
      return `unknown flag ${error.option.split("=", 1).join()}${didYouMean(error.suggestions)}`
    case "UnknownSubcommand":
      return `unknown command ${JSON.stringify(error.subcommand)}${didYouMean(error.suggestions)}`
    case "MissingOption":
      return `--${error.option} is missing`
    default:
      return error.message
  }
}

const didYouMean = (suggestions: ReadonlyArray<string>): string =>
  suggestions.length === 0 ? "" : `; did you mean ${suggestions.join(" or ")}?`

const report = (error: Failure | CliError.CliError | CommandFailed): Effect.Effect<never, CommandFailed> =>
  Effect.suspend(() => {
    if ("_tag" in error && error._tag === "ShowHelp") {
      return Effect.fail(new CommandFailed({ message: error.message, exitCode: 2 }))
    }
    const failed = error instanceof CommandFailed ? error : new CommandFailed({ message: error.message })
    const isReported = !(error instanceof CommandFailed) && !Runtime.getErrorReported(error)
    return Effect.andThen(isReported ? Effect.void : Console.error(`perseus: ${failed.message}`), Effect.fail(failed))
  })
