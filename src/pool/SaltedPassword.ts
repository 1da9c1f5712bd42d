/**
 * The key that SCRAM derives of a password: SASLprep, then PBKDF2 on the thread pool, for 4096 iterations are 1.8 ms that the
 * event loop has not.
 */
import * as Redacted from "effect/Redacted"
import { pbkdf2 } from "node:crypto"
import { promisify } from "node:util"
import { saslPrep } from "../protocol/SaslPrep.ts"
import { KEY_LENGTH } from "../protocol/Scram.ts"

export const deriveSaltedPassword = (
  password: Redacted.Redacted<string>,
  salt: Uint8Array,
  iterations: number
): Promise<Buffer> => promisify(pbkdf2)(saslPrep(Redacted.value(password)), salt, iterations, KEY_LENGTH, "sha256")
