/**
 * What several commands need: the root command with its flags, and what the configuration file says.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as ConfigFile from "../../config/ConfigFile.ts"
import { fromError } from "./CommandFailed.ts"

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
export const configPath = Effect.map(perseus, ({ config }) => Option.getOrElse(config, () => "config/config.json"))

/** The configuration, the environment's overrides applied. */
export const loadConfig = Effect.gen(function* () {
  const path = yield* configPath
  return yield* Effect.mapError(ConfigFile.load({ path, env: yield* Environment }), fromError)
})
