/**
 * `genhash`: a password in, the `source_pass_hashed` of a row out.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import { PasswordHash } from "../../tenant/PasswordHash.ts"
import * as Ask from "./Ask.ts"

export const genhash = Command.make(
  "genhash",
  {
    password: Flag.Redacted("password").pipe(
      Flag.withMetavar("<password>"),
      Flag.withDescription("The password; visible in the process list. Without it: asked for, or a line of stdin"),
      Flag.optional
    )
  },
  Effect.fnUntraced(function* ({ password }) {
    const answer = yield* Ask.secret({ given: password, what: "password", isNew: true })
    const hash = yield* PasswordHash.use((passwords) => passwords.hash(answer)).pipe(
      Effect.provide(PasswordHash.layer())
    )
    yield* Console.log(hash)
  })
).pipe(
  Command.withDescription(
    "Hash a client's password for perseus_auth.source_pass_hashed (scrypt, base64) and print the hash."
  ),
  Command.withShortDescription("Hash a client's password for perseus_auth"),
  Command.withExamples([
    { command: "perseus genhash", description: "Type the password unseen" },
    { command: "perseus genhash < password.txt", description: "The first line of a file" }
  ])
)
