/**
 * What a row holds of a client's password, for the commands that make one: a scrypt hash, or a SCRAM verifier with `--scram`.
 */
import * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import * as Flag from "effect/cli/Flag"
import { PasswordHash } from "../../tenant/PasswordHash.ts"
import { scramVerifier } from "../../tenant/ScramVerifier.ts"

export const scramFlag = Flag.Boolean("scram").pipe(
  Flag.withDescription("A SCRAM-SHA-256 verifier: the password never crosses the network. Default: a scrypt hash"),
  Flag.withDefault(false),
  Flag.withoutNegation
)

export const clientSecret = (password: Redacted.Redacted<string>, scram: boolean): Effect.Effect<string> =>
  scram
    ? scramVerifier(password)
    : PasswordHash.use((passwords) => passwords.hash(password)).pipe(Effect.provide(PasswordHash.layer()))
