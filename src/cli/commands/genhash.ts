/**
 * `genhash`: a password in, the `source_pass_hashed` of a row out.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Ask from "./Ask.ts"
import { clientSecret, scramFlag } from "./clientSecret.ts"

export const genhash = Command.make(
  "genhash",
  {
    password: Flag.Redacted("password").pipe(
      Flag.withMetavar("<password>"),
      Flag.withDescription("The password; visible in the process list. Without it: asked for, or a line of stdin"),
      Flag.optional
    ),
    scram: scramFlag
  },
  Effect.fnUntraced(function* ({ password, scram }) {
    const answer = yield* Ask.secret({ given: password, what: "password", isNew: true })
    yield* Console.log(yield* clientSecret(answer, scram))
  })
).pipe(
  Command.withDescription(
    "Hash a client's password for perseus_auth.source_pass_hashed, and print the hash: scrypt in base64, or a SCRAM verifier " +
      "as PostgreSQL has it in pg_authid.rolpassword."
  ),
  Command.withShortDescription("Hash a client's password for perseus_auth"),
  Command.withExamples([
    { command: "perseus genhash", description: "Type the password unseen" },
    { command: "perseus genhash < password.txt", description: "The first line of a file" },
    { command: "perseus genhash --scram", description: "For a tenant that logs in by SCRAM" }
  ])
)
