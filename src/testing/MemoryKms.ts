/**
 * A KMS in memory: a KmsDecrypt for ciphertexts that its `encrypt` made. Nothing is secret: the ciphertext is the text in base64.
 *
 * Nothing is cached, so that `fail` holds at once.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { KmsUnavailable } from "../errors.ts"
import { KmsDecrypt } from "../tenant/KmsDecrypt.ts"

const PREFIX = "memory:"

export interface MemoryKms {
  readonly kmsDecrypt: KmsDecrypt["Service"]
  readonly layer: Layer.Layer<KmsDecrypt>
  /** What a row's `dest_pass_enc` has for this password. */
  readonly encrypt: (password: string) => string
  /** From now on nothing is decrypted. */
  readonly fail: (detail?: string) => void
  readonly recover: () => void
  /** Decryptions asked for so far. */
  readonly decrypts: () => number
}

const encrypt = (password: string): string => Buffer.from(`${PREFIX}${password}`, "utf8").toString("base64")

export const make = (): MemoryKms => {
  let failure: KmsUnavailable | null = null
  let decrypts = 0
  const kmsDecrypt = KmsDecrypt.of({
    decrypt: (ciphertext) =>
      Effect.suspend(() => {
        decrypts++
        if (failure !== null) return Effect.fail(failure)
        const text = Buffer.from(ciphertext, "base64").toString("utf8")
        return text.startsWith(PREFIX)
          ? Effect.succeed(Redacted.make(text.slice(PREFIX.length)))
          : Effect.fail(new KmsUnavailable({ detail: "Decrypt: InvalidCiphertextException", retryable: false }))
      }),
    invalidate: Effect.void
  })
  return {
    kmsDecrypt,
    layer: Layer.succeed(KmsDecrypt, kmsDecrypt),
    encrypt,
    fail: (detail = "Decrypt: KMSInternalException") => {
      failure = new KmsUnavailable({ detail, retryable: true })
    },
    recover: () => {
      failure = null
    },
    decrypts: () => decrypts
  }
}
