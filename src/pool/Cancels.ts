/**
 * The cancel requests that a pool has under way, each on a connection of its own.
 *
 * One request at a time for a connection: more would only outlive the query. Owns a connection's `cancelsInFlight` and
 * `onCancelsEnded`; whoever lends it has to wait for their end, or a late one would hit another's query. Never retries.
 */
import * as Effect from "effect/Effect"
import * as CancelRequest from "./CancelRequest.ts"
import type { PoolContext } from "./PoolContext.ts"
import type { Connection } from "./PoolTenant.ts"

export class Cancels {
  readonly #context: PoolContext
  readonly #onEnded: (connection: Connection) => void
  #inFlight = 0

  /** `onEnded`: the request has ended, in whatever way, and those who waited for its end have been told. */
  constructor(context: PoolContext, onEnded: (connection: Connection) => void) {
    this.#context = context
    this.#onEnded = onEnded
  }

  get inFlight(): number {
    return this.#inFlight
  }

  /** Asks the server to cancel what this connection runs. `done` is told when the request has ended, its own or one under way. */
  send(connection: Connection, done: () => void = () => {}): void {
    if (connection.processId === 0) return done()
    connection.onCancelsEnded.push(done)
    if (connection.cancelsInFlight > 0) return
    connection.cancelsInFlight++
    this.#inFlight++
    const { destination, fork, limits, network, statistics, tls } = this.#context
    statistics.cancelsForwarded++
    fork(
      CancelRequest.send(
        network,
        {
          host: destination.host,
          port: destination.port,
          processId: connection.processId,
          secretKey: connection.secretKey
        },
        tls()
      ).pipe(
        Effect.timeoutOrElse({
          duration: `${limits.CancelTimeoutSecs} seconds`,
          orElse: () => Effect.succeed(false)
        }),
        Effect.catch(() => Effect.succeed(true)),
        Effect.onExit((exit) => Effect.sync(() => this.#ended(connection, exit._tag === "Success" && exit.value)))
      )
    )
  }

  /** `certain`: the server has ended the request, so no signal of it can come any more. */
  #ended(connection: Connection, certain: boolean): void {
    connection.cancelsInFlight--
    this.#inFlight--
    if (!certain) connection.retired = true
    for (const then of connection.onCancelsEnded.splice(0)) then()
    this.#onEnded(connection)
  }
}
