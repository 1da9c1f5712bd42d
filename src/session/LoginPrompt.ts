/**
 * Asks a client for a proof of its password, in the messages of the protocol: clear text, or SASL.
 *
 * Reads and writes; what is proved is the Authenticator's to judge. No message is kept.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { ProtocolViolation } from "../errors.ts"
import type { ByteReader, ReadFailure } from "../net/ByteReader.ts"
import type { Transport } from "../net/Transport.ts"
import {
  authenticationCleartextPassword,
  authenticationSasl,
  authenticationSaslContinue,
  authenticationSaslFinal
} from "../protocol/Backend.ts"
import { Frontend } from "../protocol/Frame.ts"
import { decodePassword, decodeSaslInitialResponse, decodeSaslResponse } from "../protocol/Frontend.ts"
import * as Scram from "../protocol/Scram.ts"
import type { Prompt } from "../tenant/Authenticator.ts"

/** PostgreSQL's own limit for a password packet (PG_MAX_AUTH_TOKEN_LENGTH). */
const MAX_PASSWORD_LENGTH = 65_535

type PromptFailure = ProtocolViolation | ReadFailure

/** What the client answers to a request; `what` names it in the client's error. */
const ask = <A>(
  reader: ByteReader,
  transport: Transport,
  request: Buffer,
  { what, limit, decode }: { what: string; limit: number; decode: (body: Buffer) => A | null }
): Effect.Effect<A, PromptFailure> =>
  Effect.suspend(() => {
    transport.write(request)
    return Effect.flatMap(reader.frame(limit), ({ type, body }): Effect.Effect<A, PromptFailure> => {
      if (type !== Frontend.password) return Effect.fail(new ProtocolViolation({ detail: `expected a ${what}` }))
      const answer = decode(body)
      return answer === null
        ? Effect.fail(new ProtocolViolation({ detail: `the ${what} is malformed` }))
        : Effect.succeed(answer)
    })
  })

export const promptFor = (reader: ByteReader, transport: Transport): Prompt<PromptFailure> => ({
  serverEndPoint: transport.tls?.serverEndPoint ?? null,
  password: Effect.map(
    ask(reader, transport, authenticationCleartextPassword, {
      what: "password message",
      limit: MAX_PASSWORD_LENGTH,
      decode: decodePassword
    }),
    (password) => Redacted.make(password, { label: "password" })
  ),
  start: (mechanisms) =>
    ask(reader, transport, authenticationSasl(...mechanisms), {
      what: "SASLInitialResponse message",
      limit: Scram.MAX_MESSAGE,
      decode: decodeSaslInitialResponse
    }),
  challenge: (data) =>
    ask(reader, transport, authenticationSaslContinue(data), {
      what: "SASLResponse message",
      limit: Scram.MAX_MESSAGE,
      decode: decodeSaslResponse
    }),
  finish: (data) => Effect.sync(() => void transport.write(authenticationSaslFinal(data)))
})
