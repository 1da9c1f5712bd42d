/**
 * How the in-memory server has a password proved to it: in clear text, by SCRAM-SHA-256 (the server's half of RFC 5802), or not
 * at all. Salt and nonce are handed in, so that nothing here is random; few iterations, so that nothing takes long.
 */
import * as Effect from "effect/Effect"
import { createHash, createHmac, pbkdf2Sync } from "node:crypto"
import type { ReadFailure } from "../net/ByteReader.ts"
import {
  authenticationCleartextPassword,
  authenticationSasl,
  authenticationSaslContinue,
  authenticationSaslFinal
} from "../protocol/Backend.ts"
import { Frontend } from "../protocol/Frame.ts"
import { decodePassword, decodeSaslInitialResponse } from "../protocol/Frontend.ts"
import { fatal, type ServerError } from "./ServerError.ts"
import type { ServerWire } from "./ServerWire.ts"

const SCRAM_ITERATIONS = 16

export type AuthenticationMethod = "clear text" | "SCRAM-SHA-256" | "trust"

export interface Claim {
  readonly user: string
  /** Undefined: no such user, which looks like a wrong password. */
  readonly password: string | undefined
  /** For SCRAM's salt and nonce. */
  readonly seed: string
}

export const provePassword = (
  wire: ServerWire,
  method: AuthenticationMethod,
  claim: Claim
): Effect.Effect<void, ServerError | ReadFailure> => {
  switch (method) {
    case "trust":
      return Effect.void
    case "clear text":
      return clearText(wire, claim)
    case "SCRAM-SHA-256":
      return scram(wire, claim)
  }
}

const refused = ({ user }: Claim) => fatal("28P01", `password authentication failed for user "${user}"`)

const answer = Effect.fnUntraced(function* (wire: ServerWire, request: Buffer) {
  wire.put(request)
  yield* wire.flush
  const { type, body } = yield* wire.frame
  if (type !== Frontend.password) return yield* fatal("08P01", `expected password response, got message type ${type}`)
  return body
})

const clearText = Effect.fnUntraced(function* (wire: ServerWire, claim: Claim) {
  const given = decodePassword(yield* answer(wire, authenticationCleartextPassword))
  if (given === null || given !== claim.password) return yield* refused(claim)
})

const scram = Effect.fnUntraced(function* (wire: ServerWire, claim: Claim) {
  const initial = decodeSaslInitialResponse(yield* answer(wire, authenticationSasl("SCRAM-SHA-256")))
  const clientFirst = /^n,,(n=[^,]*,r=([^,]+))$/.exec(initial?.data ?? "")
  if (clientFirst === null) return yield* fatal("08P01", "malformed SCRAM message")
  const [, bare, clientNonce] = clientFirst
  const salt = sha256(claim.seed).subarray(0, 16)
  const nonce = `${clientNonce}${sha256(`nonce ${claim.seed}`).toString("base64")}`
  const serverFirst = `r=${nonce},s=${salt.toString("base64")},i=${SCRAM_ITERATIONS}`
  const clientFinal = (yield* answer(wire, authenticationSaslContinue(serverFirst))).toString("utf8")

  const proofAt = clientFinal.lastIndexOf(",p=")
  const withoutProof = clientFinal.slice(0, proofAt)
  const keys = deriveKeys(claim.password ?? "", salt, `${bare},${serverFirst},${withoutProof}`)
  const right = withoutProof === `c=biws,r=${nonce}` && clientFinal.slice(proofAt + 3) === keys.proof
  if (!right || claim.password === undefined) return yield* refused(claim)
  wire.put(authenticationSaslFinal(`v=${keys.serverSignature}`))
})

const sha256 = (data: string | Buffer): Buffer => createHash("sha256").update(data).digest()
const hmac = (key: Buffer, data: string): Buffer => createHmac("sha256", key).update(data).digest()

/** The proof that the client must give and the signature that it is answered with, both in base64. */
const deriveKeys = (password: string, salt: Buffer, authMessage: string) => {
  const salted = pbkdf2Sync(password.normalize("NFKC"), salt, SCRAM_ITERATIONS, 32, "sha256")
  const clientKey = hmac(salted, "Client Key")
  const clientSignature = hmac(sha256(clientKey), authMessage)
  const proof = Buffer.from(clientKey.map((byte, index) => byte ^ clientSignature[index]!))
  return {
    proof: proof.toString("base64"),
    serverSignature: hmac(hmac(salted, "Server Key"), authMessage).toString("base64")
  }
}
