/**
 * Opens a connection to a server, under TLS where the settings say so and the server can: dial, SSLRequest, handshake.
 *
 * The same for a login and for a cancel request. Nothing that a server says before the handshake is shown to anyone or read after
 * it (CVE-2021-23222, CVE-2024-10977). With `prefer` anybody in the middle may say that the server has no TLS; what may be
 * answered over such a connection is for the login to decide. Interruption at any moment closes the socket.
 */
import * as Effect from "effect/Effect"
import type { TlsToServers } from "../config/LiveTls.ts"
import { ByteReader, type SecureFailure } from "../net/ByteReader.ts"
import type { Network } from "../net/Network.ts"
import type { Transport } from "../net/Transport.ts"
import { sslRequest } from "../protocol/Frontend.ts"
import { ConnectFailure, lost, refused, unreachable } from "./ConnectFailure.ts"

export interface Target {
  readonly host: string
  readonly port: number
}

const WILLING = 0x53 // S
const UNWILLING = 0x4e // N

export const dial = (
  network: Network["Service"],
  target: Target,
  tls: TlsToServers
): Effect.Effect<Transport, ConnectFailure> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(restore(Effect.mapError(network.connect(target), unreachable)), (transport) =>
      restore(secure(transport, target.host, tls)).pipe(
        Effect.onError(() => Effect.sync(() => transport.destroy())),
        Effect.as(transport)
      )
    )
  )

const secure = Effect.fnUntraced(function* (
  transport: Transport,
  host: string,
  tls: TlsToServers
): Effect.fn.Return<void, ConnectFailure> {
  if (tls.mode === "disable") return
  const reader = new ByteReader(transport)
  transport.write(sslRequest)
  const [answer] = yield* Effect.mapError(reader.read(1), lost)
  switch (answer) {
    case WILLING:
      return yield* Effect.mapError(reader.secure(tls.connect(host), "must not be"), faultOf)
    case UNWILLING:
      if (tls.mode !== "prefer") {
        return yield* refused(`the server offers no TLS (TLSSettings.ServerMode is ${tls.mode})`)
      }
      // What it said behind this, nobody asked for.
      if (reader.takeRest().length > 0) return yield* refused("the server sent data before it was asked for any")
      return
    default:
      return yield* refused("the server did not understand the request for TLS")
  }
})

const faultOf = (failure: SecureFailure): ConnectFailure => {
  if (failure._tag === "UnreadBytes") return refused("the server sent data in clear behind its agreement to TLS")
  const detail = `the TLS handshake with the server failed: ${failure.reason}`
  // The system's codes have no underscore, those of TLS and of certificates have.
  return failure.reason.includes("_") ? refused(detail) : unreachable(detail)
}
