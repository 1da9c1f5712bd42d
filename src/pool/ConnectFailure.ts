/** Why a connection to a server could not be had, in words for the log and a kind for the pool. Nothing secret is in it. */
import * as Data from "effect/Data"
import type { ReadFailure } from "../net/ByteReader.ts"
import type { ReceivedError } from "../protocol/Backend.ts"

export class ConnectFailure extends Data.TaggedError("ConnectFailure")<{
  /**
   * `unreachable`: may be otherwise in a moment (down, starting, full). `refused`: will not be otherwise until somebody
   * changes something (password, database, policy).
   */
  readonly kind: "unreachable" | "refused"
  /** Words for the log; the server's own where it gave some. */
  readonly detail: string
  /** The server's, where it gave one. */
  readonly error?: ReceivedError
}> {
  override get message() {
    return this.detail
  }
}

export const refused = (detail: string) => new ConnectFailure({ kind: "refused", detail })
export const unreachable = (detail: string) => new ConnectFailure({ kind: "unreachable", detail })

export const lost = (failure: ReadFailure): ConnectFailure =>
  failure._tag === "BadLength"
    ? refused("what answers there does not speak PostgreSQL's protocol")
    : unreachable(failure.reason ?? "the server closed the connection during the login")
