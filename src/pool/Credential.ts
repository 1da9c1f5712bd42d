/**
 * As whom a server connection is logged in. A connection serves tenants of its own credential and of no other: the Go
 * version looked at the destination alone, and one tenant ran as another's role.
 *
 * Rows that share a `dest_user` have each their own ciphertext of one password, so the password itself (as an HMAC under a
 * key that lives only in this process) tells whether two rows may share connections.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { createHmac, randomBytes } from "node:crypto"
import { deriveSaltedPassword } from "./SaltedPassword.ts"

const fingerprintKey = randomBytes(32)

export class Credential {
  readonly user: string
  readonly password: Redacted.Redacted<string>
  /** Equal for equal user and password; tells nothing about either. */
  readonly fingerprint: string
  /** The last salted password: a server gives a role the same salt each time. */
  #salted: { readonly salt: Buffer; readonly iterations: number; readonly key: Promise<Buffer> } | null = null

  constructor(user: string, password: Redacted.Redacted<string>) {
    this.user = user
    this.password = password
    this.fingerprint = createHmac("sha256", fingerprintKey)
      .update(JSON.stringify([user, Redacted.value(password)]))
      .digest("base64")
  }

  /** For SCRAM; derived once, whoever asks and however many at a time. */
  saltedPassword(salt: Buffer, iterations: number): Effect.Effect<Buffer> {
    return Effect.promise(() => {
      const known = this.#salted
      if (known !== null && known.iterations === iterations && known.salt.equals(salt)) return known.key
      const key = deriveSaltedPassword(this.password, salt, iterations)
      this.#salted = { salt, iterations, key }
      return key
    })
  }
}
