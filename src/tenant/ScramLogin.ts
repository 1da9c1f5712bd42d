/**
 * A client proves its password by SCRAM: the server's side of the exchange, and the mock of it for whom there is no verifier.
 *
 * Says whether the proof is right, and nothing to the client about it: that is whoever asked's to do. It costs microseconds.
 */
import * as Effect from "effect/Effect"
import { createHmac, randomBytes } from "node:crypto"
import { ChannelBindingFailed, ProtocolViolation } from "../errors.ts"
import * as Scram from "../protocol/Scram.ts"
import type { TenantKey } from "./AuthRepo.ts"

/** How a client is asked for a proof. */
export interface SaslPrompt<E> {
  /** `tls-server-end-point` of the certificate that we showed this client; null: nothing to bind to. */
  readonly serverEndPoint: Buffer | null
  readonly start: (
    mechanisms: ReadonlyArray<string>
  ) => Effect.Effect<{ readonly mechanism: string; readonly data: string }, E>
  readonly challenge: (data: string) => Effect.Effect<string, E>
  /** The proof was right: what shows the client that we knew the password too. */
  readonly finish: (data: string) => Effect.Effect<void>
}

const NONCE_LENGTH = 18

/** The last message to a client whose proof is right; null where it is wrong. */
export const proveByScram = Effect.fnUntraced(function* <E>(
  prompt: SaslPrompt<E>,
  verifier: Scram.Verifier
): Effect.fn.Return<string | null, E | ProtocolViolation | ChannelBindingFailed> {
  const { serverEndPoint } = prompt
  const mechanisms: ReadonlyArray<string> =
    serverEndPoint === null ? [Scram.Mechanism.plain] : [Scram.Mechanism.plus, Scram.Mechanism.plain]
  const { mechanism, data } = yield* prompt.start(mechanisms)
  if (!mechanisms.includes(mechanism)) return yield* violation("a SASL mechanism was chosen that was not offered")
  const client = Scram.decodeClientFirst(data)
  if (client === null) return yield* violation("the first SCRAM message is malformed")
  if ((client.binding === "ServerEndPoint") !== (mechanism === Scram.Mechanism.plus)) {
    return yield* violation("the SASL mechanism and the SCRAM message differ about channel binding")
  }
  if (client.binding === "NotOffered" && serverEndPoint !== null) {
    return yield* new ChannelBindingFailed({ detail: "the client was not told that it is offered" })
  }
  const first = Scram.serverFirst(client, randomBytes(NONCE_LENGTH).toString("base64"), verifier)
  const final = Scram.decodeClientFinal(first, yield* prompt.challenge(first))
  if (final === null) return yield* violation("the last SCRAM message is malformed")
  if (!Scram.isBoundTo(final, bindingOf(client, serverEndPoint))) {
    return yield* new ChannelBindingFailed({ detail: "the client sees another certificate" })
  }
  return Scram.serverFinal(client, first, final, verifier)
})

const violation = (detail: string) => new ProtocolViolation({ detail })

const bindingOf = ({ binding }: Scram.ClientFirst, serverEndPoint: Buffer | null): Scram.ChannelBinding =>
  binding === "ServerEndPoint" && serverEndPoint !== null
    ? { _tag: binding, hash: serverEndPoint }
    : { _tag: binding === "NotOffered" ? binding : "Unsupported" }

// ---- where there is no verifier

const mockKey = randomBytes(32)

/**
 * What a name without a verifier is challenged with, the same each time: a salt that changed would tell that it is made up.
 * No proof fits it. `like`: the verifier that would be shown for another user.
 */
export const mockVerifier = (key: TenantKey, user: string, like?: Scram.Verifier): Scram.Verifier => {
  const derive = (what: string, length: number) =>
    createHmac("sha512", mockKey)
      .update(JSON.stringify([what, key.sourceDb, key.sourceSchema, user]))
      .digest()
      .subarray(0, length)
  return {
    iterations: like?.iterations ?? Scram.DEFAULT_ITERATIONS,
    salt: derive("salt", like?.salt.length ?? Scram.DEFAULT_SALT_LENGTH),
    storedKey: derive("StoredKey", Scram.KEY_LENGTH),
    serverKey: derive("ServerKey", Scram.KEY_LENGTH)
  }
}
