/**
 * A PasswordHash that derives nothing, for tests with many logins: the hash of a password is `plain:` and the password.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { LoginRefused } from "../errors.ts"
import { type PasswordClaim, PasswordHash } from "../tenant/PasswordHash.ts"

const PREFIX = "plain:"

/** What a row's `source_pass_hashed` has for this password. */
export const stored = (password: string): string => `${PREFIX}${password}`

export const layer: Layer.Layer<PasswordHash> = Layer.sync(PasswordHash, () => {
  /** The hashes of passwords that were right, by tenant. */
  const remembered = new Map<string, string>()
  const isRight = (claim: PasswordClaim) => claim.stored === stored(Redacted.value(claim.password))
  return PasswordHash.of({
    verify: (claim) =>
      Effect.suspend(() => {
        if (!claim.stored.startsWith(PREFIX)) return Effect.fail(new LoginRefused({ why: "hash is malformed" }))
        if (isRight(claim)) remembered.set(claim.tenant, claim.stored)
        return Effect.succeed(isRight(claim))
      }),
    recall: (claim) => (remembered.get(claim.tenant) === claim.stored ? isRight(claim) : null),
    hash: (password) => Effect.succeed(stored(Redacted.value(password)))
  })
})
