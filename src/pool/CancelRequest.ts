/**
 * Tells a server to cancel what one of its connections runs: a connection of its own, which the server closes when it has
 * passed the request on, under TLS as its logins are (the key must not be read by others). Until then the request may still hit, so the caller lends the cancelled connection to nobody.
 *
 * @see https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-CANCELING-REQUESTS
 */
import * as Effect from "effect/Effect"
import type { TlsToServers } from "../config/LiveTls.ts"
import type { Network } from "../net/Network.ts"
import { cancelRequest } from "../protocol/Frontend.ts"
import type { ConnectFailure } from "./ConnectFailure.ts"
import { dial } from "./Dial.ts"

export interface CancelTarget {
  readonly host: string
  readonly port: number
  readonly processId: number
  readonly secretKey: Buffer
}

/**
 * Ends when the server has closed; true where that was in good order, so that no signal can come any more. Fails where the
 * server cannot be reached: then nothing was asked. No timeout of its own.
 */
export const send = (
  network: Network["Service"],
  target: CancelTarget,
  tls: TlsToServers
): Effect.Effect<boolean, ConnectFailure> =>
  Effect.acquireUseRelease(
    // An acquisition is uninterruptible by itself, and a dead host may not answer for two minutes.
    Effect.interruptible(dial(network, target, tls)),
    (transport) =>
      Effect.callback<boolean>((resume) => {
        const onClose = (reason: string | null) => resume(Effect.succeed(reason === null))
        if (transport.closed) return onClose("closed before it was asked")
        transport.handler = { onData: () => {}, onDrain: () => {}, onClose }
        transport.write(cancelRequest(target.processId, target.secretKey))
      }),
    (transport) => Effect.sync(() => transport.destroy())
  )
