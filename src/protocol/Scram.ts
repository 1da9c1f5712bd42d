/**
 * SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677): the client's half, for logging in to servers, and the server's
 * half, for clients that log in to us.
 *
 * Pure: nonces, salts and salted passwords are handed in, since randomness and key derivation (PBKDF2, milliseconds of CPU)
 * are not this module's to do. What a peer sends is untrusted: attributes stand in their order, base64 is canonical, nonces
 * continue each other, iteration counts are capped where they are work for us, and secrets are compared in constant time.
 * What does not fit is null.
 */
import { createHash, createHmac, timingSafeEqual } from "node:crypto"

/** The mechanisms by their SASL names. */
export const Mechanism = { plain: "SCRAM-SHA-256", plus: "SCRAM-SHA-256-PLUS" } as const

/**
 * PostgreSQL's own default is 4096. A server that asks for 2^31 would hold a core for an hour; this many take about 0.1 s.
 */
export const MAX_ITERATIONS = 200_000

/** What a new verifier gets: PostgreSQL's `scram_iterations`, and its SCRAM_DEFAULT_SALT_LEN. */
export const DEFAULT_ITERATIONS = 4096
export const DEFAULT_SALT_LENGTH = 16

/** Of SHA-256, and so of all keys, proofs and signatures. */
export const KEY_LENGTH = 32

/** Longest message that is looked at (PostgreSQL's PG_MAX_SASL_MESSAGE_LENGTH); its own have about 90 bytes. */
export const MAX_MESSAGE = 1024

const sha256 = (data: Uint8Array): Buffer => createHash("sha256").update(data).digest()
const hmac = (key: Uint8Array, data: string): Buffer => createHmac("sha256", key).update(data).digest()
const xor = (one: Uint8Array, other: Uint8Array): Buffer => Buffer.from(one.map((byte, index) => byte ^ other[index]!))

/** `Buffer.from` alone takes anything. */
const decodeBase64 = (text: string): Buffer | null => {
  const bytes = Buffer.from(text, "base64")
  return bytes.toString("base64") === text ? bytes : null
}

const decodeKey = (text: string): Buffer | null => {
  const bytes = decodeBase64(text)
  return bytes !== null && bytes.length === KEY_LENGTH ? bytes : null
}

// ---- channel binding

/** What a client says of channel binding: it cannot; it could, but the server did not offer it; the server's certificate. */
export type ChannelBinding =
  | { readonly _tag: "Unsupported" }
  | { readonly _tag: "NotOffered" }
  | { readonly _tag: "ServerEndPoint"; readonly hash: Buffer }

const gs2Headers = { Unsupported: "n,,", NotOffered: "y,,", ServerEndPoint: "p=tls-server-end-point,," } as const

/** The `c=` of the client's last message. */
const channelBindingData = (binding: ChannelBinding): string =>
  Buffer.concat([
    Buffer.from(gs2Headers[binding._tag]),
    binding._tag === "ServerEndPoint" ? binding.hash : Buffer.alloc(0)
  ]).toString("base64")

// ---- the client's half

export interface ServerFirst {
  readonly message: string
  readonly nonce: string
  readonly salt: Buffer
  readonly iterations: number
}

/** PostgreSQL takes the user's name from the startup packet, so `n=` stays empty. */
const clientFirstBare = (clientNonce: string): string => `n=,r=${clientNonce}`

const unbound: ChannelBinding = { _tag: "Unsupported" }

export const clientFirst = (clientNonce: string, binding: ChannelBinding = unbound): string =>
  gs2Headers[binding._tag] + clientFirstBare(clientNonce)

/** Null where the message is malformed, does not continue our nonce, or asks for too much work. */
export const decodeServerFirst = (clientNonce: string, message: string): ServerFirst | null => {
  if (message.length > MAX_MESSAGE) return null
  const match = /^r=([\x21-\x2b\x2d-\x7e]+),s=([A-Za-z0-9+/]+={0,2}),i=([1-9][0-9]{0,9})$/.exec(message)
  if (match === null) return null
  const [, nonce, saltText, iterationText] = match as unknown as [string, string, string, string]
  const salt = decodeBase64(saltText)
  const iterations = Number(iterationText)
  if (salt === null || iterations > MAX_ITERATIONS) return null
  if (!nonce.startsWith(clientNonce) || nonce.length === clientNonce.length) return null
  return { message, nonce, salt, iterations }
}

export interface ClientFinal {
  readonly message: string
  /** What the server's final message must carry. */
  readonly serverSignature: Buffer
}

/** `saltedPassword`: PBKDF2-HMAC-SHA-256 of the password under the server's salt and iterations, 32 bytes. */
export const clientFinal = (
  clientNonce: string,
  server: ServerFirst,
  saltedPassword: Uint8Array,
  binding: ChannelBinding = unbound
): ClientFinal => {
  const withoutProof = `c=${channelBindingData(binding)},r=${server.nonce}`
  const authMessage = `${clientFirstBare(clientNonce)},${server.message},${withoutProof}`
  const clientKey = hmac(saltedPassword, "Client Key")
  const proof = xor(clientKey, hmac(sha256(clientKey), authMessage))
  return {
    message: `${withoutProof},p=${proof.toString("base64")}`,
    serverSignature: hmac(hmac(saltedPassword, "Server Key"), authMessage)
  }
}

/** Whether the server has proved that it knows the password too. */
export const verifyServerFinal = (expected: Buffer, message: string): boolean => {
  const match = /^v=([A-Za-z0-9+/]+={0,2})(,|$)/.exec(message)
  const signature = match === null ? null : decodeKey(match[1]!)
  return signature !== null && timingSafeEqual(signature, expected)
}

// ---- verifiers

/** What a server keeps of a password: enough to check a proof, not enough to make one. */
export interface Verifier {
  readonly iterations: number
  readonly salt: Buffer
  readonly storedKey: Buffer
  readonly serverKey: Buffer
}

/** How the text of a verifier begins, in `pg_authid.rolpassword` as in `source_pass_hashed`. */
export const VERIFIER_PREFIX = `${Mechanism.plain}$`

/** PostgreSQL's `scram_iterations` is an int. */
const MAX_VERIFIER_ITERATIONS = 2_147_483_647

/** `saltedPassword`: as for `clientFinal`. */
export const verifierFor = (saltedPassword: Uint8Array, salt: Buffer, iterations: number): Verifier => ({
  iterations,
  salt,
  storedKey: sha256(hmac(saltedPassword, "Client Key")),
  serverKey: hmac(saltedPassword, "Server Key")
})

/** `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, as PostgreSQL writes it. */
export const encodeVerifier = ({ iterations, salt, storedKey, serverKey }: Verifier): string =>
  `${VERIFIER_PREFIX}${iterations}:${salt.toString("base64")}$${storedKey.toString("base64")}:${serverKey.toString("base64")}`

export const decodeVerifier = (text: string): Verifier | null => {
  if (text.length > MAX_MESSAGE || !text.startsWith(VERIFIER_PREFIX)) return null
  const match = /^([1-9][0-9]{0,9}):([^:$]+)\$([^:$]+):([^:$]+)$/.exec(text.slice(VERIFIER_PREFIX.length))
  if (match === null) return null
  const [, iterationText, saltText, storedText, serverText] = match as unknown as [
    string,
    string,
    string,
    string,
    string
  ]
  const iterations = Number(iterationText)
  const [salt, storedKey, serverKey] = [decodeBase64(saltText), decodeKey(storedText), decodeKey(serverText)]
  if (iterations > MAX_VERIFIER_ITERATIONS || salt === null || storedKey === null || serverKey === null) return null
  return { iterations, salt, storedKey, serverKey }
}

// ---- the server's half

export interface ClientFirst {
  readonly binding: ChannelBinding["_tag"]
  /** The message without its gs2 header. */
  readonly bare: string
  readonly nonce: string
}

const bindings: ReadonlyMap<string, ChannelBinding["_tag"]> = new Map([
  ["n", "Unsupported"],
  ["y", "NotOffered"],
  ["p=tls-server-end-point", "ServerEndPoint"]
])

/**
 * gs2 header, name, nonce. The name is passed over, as PostgreSQL does: the startup packet has it. No authorization identity
 * and no mandatory extension (`m=`) is known; optional ones are passed over.
 */
const clientFirstPattern = /^(n|y|p=[A-Za-z0-9.-]+),,(n=[^,\0]*,r=([\x21-\x2b\x2d-\x7e]+)(?:,[A-Za-ln-z]=[^,\0]+)*)$/

/** Null where the message is malformed, or binds to another thing than the server's certificate. */
export const decodeClientFirst = (message: string): ClientFirst | null => {
  if (message.length > MAX_MESSAGE) return null
  const match = clientFirstPattern.exec(message)
  if (match === null) return null
  const [, header, bare, nonce] = match as unknown as [string, string, string, string]
  const binding = bindings.get(header)
  return binding === undefined ? null : { binding, bare, nonce }
}

/** `serverNonce`: printable ASCII without a comma, not to be guessed. */
export const serverFirst = (client: ClientFirst, serverNonce: string, { salt, iterations }: Verifier): string =>
  `r=${client.nonce}${serverNonce},s=${salt.toString("base64")},i=${iterations}`

export interface ReceivedClientFinal {
  readonly channelBinding: string
  readonly withoutProof: string
  readonly proof: Buffer
}

const clientFinalPattern =
  /^(c=([A-Za-z0-9+/]+={0,2}),r=([\x21-\x2b\x2d-\x7e]+)(?:,[A-Za-oq-z]=[^,\0]+)*),p=([A-Za-z0-9+/]+={0,2})$/

/** Null where the message is malformed, or is not the answer to `serverFirst`. */
export const decodeClientFinal = (sentFirst: string, message: string): ReceivedClientFinal | null => {
  if (message.length > MAX_MESSAGE) return null
  const match = clientFinalPattern.exec(message)
  if (match === null) return null
  const [, withoutProof, channelBinding, nonce, proofText] = match as unknown as [
    string,
    string,
    string,
    string,
    string
  ]
  const proof = decodeKey(proofText)
  return proof === null || !sentFirst.startsWith(`r=${nonce},`) ? null : { channelBinding, withoutProof, proof }
}

/** Whether both ends see the same channel: the same header as at first and, where that binds, the same certificate. */
export const isBoundTo = (final: ReceivedClientFinal, binding: ChannelBinding): boolean => {
  const [given, expected] = [final.channelBinding, channelBindingData(binding)].map((text) => Buffer.from(text))
  return given!.length === expected!.length && timingSafeEqual(given!, expected!)
}

/** The server's last message where the proof is right, else null. */
export const serverFinal = (
  client: ClientFirst,
  sentFirst: string,
  final: ReceivedClientFinal,
  { storedKey, serverKey }: Verifier
): string | null => {
  const authMessage = `${client.bare},${sentFirst},${final.withoutProof}`
  const clientKey = xor(final.proof, hmac(storedKey, authMessage))
  return timingSafeEqual(sha256(clientKey), storedKey) ? `v=${hmac(serverKey, authMessage).toString("base64")}` : null
}
