/**
 * How a command ends when it did not do what it was asked: one line on standard error, and the exit code.
 */
import * as Data from "effect/Data"
import * as Runtime from "effect/Runtime"
import type { ConfigInvalid } from "../../errors.ts"

/** The configuration cannot be used: trying again would not help. */
export const EX_CONFIG = 78

/** `message` is for the person at the terminal: what is wrong and what to do, without any secret. */
export class CommandFailed extends Data.TaggedError("CommandFailed")<{
  readonly message: string
  /** 1: it failed. 2: the command line could not be understood, as Go's `flag` has it. 130: the user ended it. */
  readonly exitCode?: 1 | 2 | typeof EX_CONFIG | 130 | undefined
}> {
  override readonly [Runtime.errorExitCode] = this.exitCode ?? 1
  /** `Cli.run` has printed it, or will: nobody else should. */
  override readonly [Runtime.errorReported] = false
}

/** `error.message` as a command's failure. */
export const fromError = (error: { readonly message: string }): CommandFailed =>
  new CommandFailed({ message: error.message })

/** The same, for a configuration that cannot be used. */
export const fromConfigInvalid = ({ message }: ConfigInvalid): CommandFailed =>
  new CommandFailed({ message, exitCode: EX_CONFIG })
