/**
 * SCRAM-SHA-256, the client's half (RFC 5802, RFC 7677), for logging in to servers.
 *
 * Pure: the nonce and the salted password are handed in, since randomness and key derivation (PBKDF2, milliseconds of CPU)
 * are not this module's to do. What a server sends is untrusted: its nonce must continue ours, its iteration count is
 * capped, and its signature is checked before anything else is believed.
 */
import { createHash, createHmac, timingSafeEqual } from "node:crypto"

/**
 * PostgreSQL's own default is 4096. A server that asks for 2^31 would hold a core for an hour; this many take about 0.1 s.
 */
export const MAX_ITERATIONS = 200_000

/** Longest server-first-message that is looked at; PostgreSQL's has about 90 bytes. */
const MAX_SERVER_FIRST = 1024

export interface ServerFirst {
  readonly message: string
  readonly nonce: string
  readonly salt: Buffer
  readonly iterations: number
}

/** PostgreSQL takes the user's name from the startup packet, so `n=` stays empty. */
const clientFirstBare = (clientNonce: string): string => `n=,r=${clientNonce}`

/** gs2 header "n,,": no channel binding. */
export const clientFirst = (clientNonce: string): string => `n,,${clientFirstBare(clientNonce)}`

/** The salt is base64 to the letter: a single one of its characters would decode to no salt at all. */
const serverFirst =
  /^r=([\x21-\x2b\x2d-\x7e]+),s=((?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{4}|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{2}==)),i=([1-9][0-9]{0,9})$/

/** Null where the message is malformed, does not continue our nonce, or asks for too much work. */
export const decodeServerFirst = (clientNonce: string, message: string): ServerFirst | null => {
  if (message.length > MAX_SERVER_FIRST) return null
  const match = serverFirst.exec(message)
  if (match === null) return null
  const [, nonce, salt, iterationText] = match as unknown as [string, string, string, string]
  const iterations = Number(iterationText)
  if (!nonce.startsWith(clientNonce) || nonce.length === clientNonce.length || iterations > MAX_ITERATIONS) return null
  return { message, nonce, salt: Buffer.from(salt, "base64"), iterations }
}

const hmac = (key: Uint8Array, data: string): Buffer => createHmac("sha256", key).update(data).digest()

export interface ClientFinal {
  readonly message: string
  /** Base64 of the signature that the server's final message must carry. */
  readonly serverSignature: Buffer
}

/** `saltedPassword`: PBKDF2-HMAC-SHA-256 of the password under the server's salt and iterations, 32 bytes. */
export const clientFinal = (clientNonce: string, server: ServerFirst, saltedPassword: Uint8Array): ClientFinal => {
  const withoutProof = `c=biws,r=${server.nonce}`
  const authMessage = `${clientFirstBare(clientNonce)},${server.message},${withoutProof}`
  const clientKey = hmac(saltedPassword, "Client Key")
  const storedKey = createHash("sha256").update(clientKey).digest()
  const clientSignature = hmac(storedKey, authMessage)
  const proof = clientKey.map((byte, index) => byte ^ clientSignature[index]!)
  return {
    message: `${withoutProof},p=${Buffer.from(proof).toString("base64")}`,
    serverSignature: hmac(hmac(saltedPassword, "Server Key"), authMessage)
  }
}

/** Whether the server has proved that it knows the password too. */
export const verifyServerFinal = (expected: Buffer, message: string): boolean => {
  const match = /^v=([A-Za-z0-9+/]+={0,2})(,|$)/.exec(message)
  if (match === null) return false
  const signature = Buffer.from(match[1]!, "base64")
  return signature.length === expected.length && timingSafeEqual(signature, expected)
}
