/**
 * The text in `perseus_auth.source_pass_hashed` that is a scrypt hash, as the Go package easy-scrypt lays it out: base64
 * of `key ‖ salt ‖ N ‖ r ‖ p ‖ digest`, where the key takes what the others leave, the salt 16 bytes, N, r and p an
 * int32 each (little-endian), and the digest is the SHA-256 of all before it.
 *
 * Pure: it derives nothing and has no randomness. What it returns is safe to derive: `decode` refuses every hash whose
 * parameters scrypt does not have, or whose derivation would take memory or time that no login is worth.
 *
 * @see https://www.rfc-editor.org/rfc/rfc7914
 */
import * as Result from "effect/Result"
import { createHash, timingSafeEqual } from "node:crypto"

export interface EasyScrypt {
  /** scrypt(password, salt, N, r, p, key length). */
  readonly key: Uint8Array
  readonly salt: Uint8Array
  readonly N: number
  readonly r: number
  readonly p: number
}

export const saltLength = 16
const parameterLength = 4
const digestLength = 32
const overhead = saltLength + 3 * parameterLength + digestLength

/** What the Go genhash writes: 16 MiB and some 40 ms. */
export const genhashParameters = { N: 16384, r: 8, p: 1, keyLength: 32 } as const

/** What one derivation may allocate. */
export const maxMemoryBytes = 256 * 1024 * 1024
/** N·r·p: five seconds of one core. The memory limit alone would let through a p that takes days. */
export const maxWork = 2 ** 24

/** Bytes that a derivation allocates. */
export const memoryBytes = ({ N, r, p }: Pick<EasyScrypt, "N" | "r" | "p">): number => 128 * N * r + 128 * r * p

/** The hash in a text, or why it is none; the reason never has any of the text in it. */
export const decode = (text: string): Result.Result<EasyScrypt, string> => {
  const bytes = decodeBase64(text)
  if (bytes === undefined) return Result.fail("it is not base64")
  if (bytes.length <= overhead) return Result.fail(`it has ${bytes.length} bytes, and needs more than ${overhead}`)
  const parameters = bytes.length - digestLength - 3 * parameterLength
  const digested = bytes.subarray(0, bytes.length - digestLength)
  if (!timingSafeEqual(sha256(digested), bytes.subarray(bytes.length - digestLength))) {
    return Result.fail("its digest does not match")
  }
  const hash: EasyScrypt = {
    key: bytes.subarray(0, parameters - saltLength),
    salt: bytes.subarray(parameters - saltLength, parameters),
    N: bytes.readInt32LE(parameters),
    r: bytes.readInt32LE(parameters + parameterLength),
    p: bytes.readInt32LE(parameters + 2 * parameterLength)
  }
  const reason = refusal(hash)
  return reason === undefined ? Result.succeed(hash) : Result.fail(reason)
}

/** The text of a hash whose parameters are in order. */
export const encode = ({ key, salt, N, r, p }: EasyScrypt): string => {
  const parameters = Buffer.alloc(3 * parameterLength)
  parameters.writeInt32LE(N, 0)
  parameters.writeInt32LE(r, parameterLength)
  parameters.writeInt32LE(p, 2 * parameterLength)
  const digested = Buffer.concat([key, salt, parameters])
  return Buffer.concat([digested, sha256(digested)]).toString("base64")
}

const refusal = (hash: EasyScrypt): string | undefined => {
  const { N, r, p } = hash
  if (N < 2 || (N & (N - 1)) !== 0) return "its N is not a power of two above 1"
  if (r < 1) return "its r is below 1"
  if (p < 1) return "its p is below 1"
  if (memoryBytes(hash) > maxMemoryBytes) return `its parameters need more than ${maxMemoryBytes >> 20} MiB`
  if (N * r * p > maxWork) return "its parameters take too long"
  return undefined
}

const base64 = /^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$/

/** As Go's `base64.StdEncoding`, which ignores line ends. `Buffer.from` alone takes anything. */
const decodeBase64 = (text: string): Buffer | undefined => {
  const line = text.replace(/[\r\n]/g, "")
  return base64.test(line) ? Buffer.from(line, "base64") : undefined
}

const sha256 = (bytes: Uint8Array): Buffer => createHash("sha256").update(bytes).digest()
