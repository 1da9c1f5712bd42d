/**
 * Tells a server to cancel what one of its connections runs: a connection of its own, which the server closes when it has
 * passed the request on. Until then the request may still hit, so the caller lends the cancelled connection to nobody.
 *
 * @see https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-CANCELING-REQUESTS
 */
import * as Effect from "effect/Effect"
import type { Network } from "../net/Network.ts"
import { cancelRequest } from "../protocol/Frontend.ts"

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
export const send = (network: Network["Service"], target: CancelTarget): Effect.Effect<boolean, string> =>
  Effect.acquireUseRelease(
    // An acquisition is uninterruptible by itself, and a dead host may not answer for two minutes.
    Effect.interruptible(network.connect(target)),
    (transport) =>
      Effect.callback<boolean>((resume) => {
        const onClose = (reason: string | null) => resume(Effect.succeed(reason === null))
        transport.handler = { onData: () => {}, onDrain: () => {}, onClose }
        transport.write(cancelRequest(target.processId, target.secretKey))
      }),
    (transport) => Effect.sync(() => transport.destroy())
  )
