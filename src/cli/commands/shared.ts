/**
 * What several commands need: the root command with its flags, and what the configuration file says.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as Option from "effect/Option"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as ConfigFile from "../../config/ConfigFile.ts"
import { fromConfigInvalid } from "./CommandFailed.ts"

/** The process's environment, as it was handed in. */
export class Environment extends Context.Service<Environment, ConfigFile.Environment>()(
  "perseus/cli/commands/Environment"
) {}

/** The root; a sub-command yields it for the flags that all have. */
export const perseus = Command.make("perseus").pipe(
  Command.withSharedFlags({
    config: Flag.String("config").pipe(
      Flag.withAlias("c"),
      Flag.withMetavar("<file>"),
      Flag.withDescription("The configuration file (default config/config.json)"),
      Flag.optional
    )
  })
)

/** The file that `--config` names, or the one that the Go version looked for, too. */
export const configPath = (config: Option.Option<string>): string =>
  Option.getOrElse(config, () => "config/config.json")

/** Standard output is for the command's answer: a warning about the configuration must not get into it. */
const logToStderr = Logger.layer([
  Logger.withConsoleError(Logger.make(({ logLevel, message }) => `${logLevel.toLowerCase()}: ${String(message)}`))
])

/** The configuration, the environment's overrides applied. */
export const loadConfig = Effect.gen(function* () {
  const { config } = yield* perseus
  const env = yield* Environment
  return yield* Effect.mapError(ConfigFile.load({ path: configPath(config), env }), fromConfigInvalid)
}).pipe(Effect.provide(logToStderr))
