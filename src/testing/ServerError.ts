/** What the in-memory server refuses a request with: an ErrorResponse in the making. */
import * as Data from "effect/Data"

export class ServerError extends Data.TaggedError("ServerError")<{
  readonly sqlState: string
  readonly message: string
  /** FATAL ends the connection. */
  readonly severity: "ERROR" | "FATAL"
}> {}

export const error = (sqlState: string, message: string): ServerError =>
  new ServerError({ sqlState, message, severity: "ERROR" })

export const fatal = (sqlState: string, message: string): ServerError =>
  new ServerError({ sqlState, message, severity: "FATAL" })
