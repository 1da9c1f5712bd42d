/**
 * A PasswordHash that derives nothing, for tests with many logins: the hash of a password is `plain:` and the password.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { LoginRefused } from "../errors.ts"
import { PasswordHash } from "../tenant/PasswordHash.ts"

const PREFIX = "plain:"

/** What a row's `source_pass_hashed` has for this password. */
export const stored = (password: string): string => `${PREFIX}${password}`

export const layer: Layer.Layer<PasswordHash> = Layer.succeed(
  PasswordHash,
  PasswordHash.of({
    verify: (input) =>
      input.stored.startsWith(PREFIX)
        ? Effect.succeed(input.stored === stored(Redacted.value(input.password)))
        : Effect.fail(new LoginRefused({ why: "hash is malformed" })),
    hash: (password) => Effect.succeed(stored(Redacted.value(password)))
  })
)
