/**
 * Makes SCRAM verifiers: what `source_pass_hashed` holds for a tenant that logs in by SCRAM, as PostgreSQL itself would write it.
 */
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import { randomBytes } from "node:crypto"
import { deriveSaltedPassword } from "../pool/SaltedPassword.ts"
import { DEFAULT_ITERATIONS, DEFAULT_SALT_LENGTH, encodeVerifier, verifierFor } from "../protocol/Scram.ts"

export const scramVerifier = (password: Redacted.Redacted<string>): Effect.Effect<string> =>
  Effect.suspend(() => {
    const salt = randomBytes(DEFAULT_SALT_LENGTH)
    return Effect.map(
      Effect.promise(() => deriveSaltedPassword(password, salt, DEFAULT_ITERATIONS)),
      (key) => encodeVerifier(verifierFor(key, salt, DEFAULT_ITERATIONS))
    )
  })
