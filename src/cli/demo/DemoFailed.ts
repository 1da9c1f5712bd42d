/**
 * The demo could not be shown, or showed something that must not be. `message` is one line for the person at the
 * terminal.
 */
import * as Data from "effect/Data"

export class DemoFailed extends Data.TaggedError("DemoFailed")<{
  readonly message: string
}> {}
