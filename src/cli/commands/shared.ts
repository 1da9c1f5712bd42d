/**
 * What several commands need: which configuration file, and what it says.
 */
import type * as FileSystem from "effect/FileSystem"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Flag from "effect/cli/Flag"
import * as ConfigFile from "../../config/ConfigFile.ts"
import type { PerseusConfig } from "../../config/PerseusConfig.ts"
import { type CommandFailed, fromError } from "./CommandFailed.ts"

/** Where the Go version looked for it, too. */
const defaultConfigPath = "config/config.json"

/** The process's environment, as `main.ts` handed it in. */
export class Environment extends Context.Service<Environment, ConfigFile.Environment>()(
  "perseus/cli/commands/Environment"
) {}

export const configFlag = Flag.String("config").pipe(
  Flag.withAlias("c"),
  Flag.withMetavar("<file>"),
  Flag.withDescription(`The configuration file (default ${defaultConfigPath})`),
  Flag.optional
)

export type ConfigFlag = Option.Option<string>

export const configPath = (flag: ConfigFlag): string => Option.getOrElse(flag, () => defaultConfigPath)

/** The configuration, the environment's overrides applied. */
export const loadConfig = (
  flag: ConfigFlag
): Effect.Effect<PerseusConfig, CommandFailed, Environment | FileSystem.FileSystem> =>
  Effect.flatMap(Environment, (env) =>
    Effect.mapError(ConfigFile.load({ path: configPath(flag), env }), fromError)
  )
