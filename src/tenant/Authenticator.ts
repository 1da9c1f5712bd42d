/**
 * From a tenant's name and a proof of its password to where that tenant is served: row, user, proof, the destination's
 * password.
 *
 * What a client may learn from a refusal is one thing, whichever of tenant, user and password was wrong: the same words, and
 * after about the same time (by waiting, not by burning CPU). The log says which. How a client is asked shows what its row
 * holds: clear text for a scrypt hash, SCRAM for a verifier, and `LoginSettings.UnknownTenant` where there is neither.
 *
 * Keeps nothing; what it asks does: the rows, the passwords that were right, who has failed how often.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { LiveConfig } from "../config/LiveConfig.ts"
import {
  LoginRefused,
  type AuthUnavailable,
  type ChannelBindingFailed,
  type KmsUnavailable,
  type LoginBlocked,
  type ProtocolViolation
} from "../errors.ts"
import { parseDestHost } from "../net/Address.ts"
import { Credential } from "../pool/Credential.ts"
import type { Placement } from "../pool/Pools.ts"
import type { Mode } from "../pool/PoolTenant.ts"
import * as Scram from "../protocol/Scram.ts"
import { AuthRepo, type AuthRow, type TenantKey } from "./AuthRepo.ts"
import { KmsDecrypt } from "./KmsDecrypt.ts"
import { LoginThrottle, type LoginAttempt, type ThrottleCounts } from "./LoginThrottle.ts"
import { PasswordHash } from "./PasswordHash.ts"
import { mockVerifier, proveByScram, type SaslPrompt } from "./ScramLogin.ts"

export interface Identity {
  readonly row: AuthRow
  readonly placement: Placement
}

/** Who wants to log in, and from where ("host:port"). */
export interface LoginClaim {
  readonly key: TenantKey
  readonly user: string
  readonly remote: string
}

/** How the client is asked for a proof of its password. */
export interface Prompt<E> extends SaslPrompt<E> {
  readonly password: Effect.Effect<Redacted.Redacted<string>, E>
}

/** What a row and a user come to before anything is proved. */
interface Expectation {
  /** Or why this login fails, whatever the client proves: it must not see that it is so. */
  readonly row: Result.Result<AuthRow, LoginRefused>
  readonly secret:
    | { readonly _tag: "Hash"; readonly stored: string }
    | { readonly _tag: "Verifier"; readonly verifier: Scram.Verifier }
}

export class Authenticator extends Context.Service<
  Authenticator,
  {
    /** The client is asked, whatever is already known: who asks for an unknown tenant must not see a difference. */
    readonly login: <E>(
      claim: LoginClaim,
      prompt: Prompt<E>
    ) => Effect.Effect<
      Identity,
      LoginRefused | LoginBlocked | AuthUnavailable | KmsUnavailable | ProtocolViolation | ChannelBindingFailed | E
    >
    /** Where a row's tenant is served. */
    readonly locate: (row: AuthRow) => Effect.Effect<Placement, LoginRefused | KmsUnavailable>
    /** Logins that were delayed or refused for those that failed before them. */
    readonly throttled: ThrottleCounts
  }
>()("perseus/tenant/Authenticator") {
  static readonly layer: Layer.Layer<Authenticator, never, LiveConfig | AuthRepo | KmsDecrypt | PasswordHash> =
    Layer.effect(
      Authenticator,
      Effect.gen(function* () {
        const config = yield* LiveConfig
        const repo = yield* AuthRepo
        const kms = yield* KmsDecrypt
        const passwords = yield* PasswordHash
        const throttle = new LoginThrottle(() => config.current().LoginSettings)

        const proveInClear = Effect.fnUntraced(function* <E>(
          prompt: Prompt<E>,
          attempt: LoginAttempt,
          row: Expectation["row"],
          expected: { readonly tenant: string; readonly stored: string }
        ) {
          const claim = { ...expected, password: yield* prompt.password }
          // A password that was right before costs nothing to judge, and must not suffer from others' guesses.
          const remembered = Result.isSuccess(row) ? passwords.recall(claim) : null
          if (remembered === true) return throttle.welcome(attempt)
          if (remembered === false) return yield* throttle.refuse(attempt, wrongPassword())
          const isRight = Effect.andThen(Effect.fromResult(row), passwords.verify(claim))
          yield* throttle.judge(attempt, Effect.flatMap(isRight, refuseUnless))
        })

        const proveByVerifier = Effect.fnUntraced(function* <E>(
          prompt: Prompt<E>,
          attempt: LoginAttempt,
          row: Expectation["row"],
          verifier: Scram.Verifier
        ) {
          const answer = yield* proveByScram(prompt, verifier)
          yield* throttle.judge(attempt, Effect.andThen(Effect.fromResult(row), refuseUnless(answer !== null)))
          if (answer !== null) yield* prompt.finish(answer)
        })

        /** Of rows as long as they are remembered: what a row comes to is the same for each login. */
        const located = new WeakMap<AuthRow, Placement>()

        const locate = Effect.fnUntraced(function* (row: AuthRow) {
          const known = located.get(row)
          if (known !== undefined) return known
          const { destHost, destDb, destUser, destPassEnc } = row
          if (destHost === null) return yield* nullColumn(row, "dest_host")
          if (destDb === null) return yield* nullColumn(row, "dest_db")
          if (destUser === null) return yield* nullColumn(row, "dest_user")
          if (destPassEnc === null) return yield* nullColumn(row, "dest_pass_enc")
          const address = parseDestHost(destHost)
          if (Result.isFailure(address)) {
            return yield* new LoginRefused({ why: "dest_host is malformed", detail: address.failure })
          }
          // A NUL would begin a field of the row's choosing in the startup packet.
          if (destDb.includes("\0") || destUser.includes("\0")) return yield* nullColumn(row, "dest_db or dest_user")
          if (row.poolMode !== null && !isMode(row.poolMode)) {
            return yield* new LoginRefused({
              why: "pool_mode is malformed",
              detail: `perseus_auth.id ${row.id}: pool_mode is transaction, session, statement or NULL`
            })
          }
          const password = yield* kms.decrypt(destPassEnc)
          const placement: Placement = {
            tenantKey: tenantName(row),
            destination: { label: destHost, database: destDb, ...address.success },
            credential: new Credential(destUser, password),
            secret: destPassEnc,
            schema: row.sourceSchema,
            mode: row.poolMode
          }
          located.set(row, placement)
          return placement
        })

        return Authenticator.of({
          login: Effect.fnUntraced(function* (claim, prompt) {
            const tenant = tenantName(claim.key)
            const attempt = throttle.attempt(claim.remote, tenant)
            yield* throttle.admit(attempt)
            const { UnknownTenant } = config.current().LoginSettings
            const { row, secret } = expectationOf(yield* repo.find(claim.key), claim, UnknownTenant)
            if (secret._tag === "Hash") yield* proveInClear(prompt, attempt, row, { ...secret, tenant })
            else yield* proveByVerifier(prompt, attempt, row, secret.verifier)
            const proven = yield* Effect.fromResult(row)
            return { row: proven, placement: yield* locate(proven) }
          }),
          locate,
          throttled: throttle.counts
        })
      })
    )
}

const isMode = (text: string): text is Mode => text === "transaction" || text === "session" || text === "statement"

/** One name for each key: no two keys share it. */
export const tenantName = ({ sourceDb, sourceSchema }: TenantKey): string => JSON.stringify([sourceDb, sourceSchema])

const expectationOf = (
  found: Option.Option<AuthRow>,
  { key, user }: LoginClaim,
  unknownTenant: "clear" | "scram"
): Expectation => {
  const mock = (like?: Scram.Verifier) => ({ _tag: "Verifier", verifier: mockVerifier(key, user, like) }) as const
  const unknown = (refusal: LoginRefused): Expectation => ({
    row: Result.fail(refusal),
    secret: unknownTenant === "scram" ? mock() : { _tag: "Hash", stored: "" }
  })
  if (Option.isNone(found)) return unknown(new LoginRefused({ why: "unknown tenant" }))
  const { sourcePassHashed } = found.value
  if (sourcePassHashed === null) return unknown(nullColumn(found.value, "source_pass_hashed"))
  const stored = Redacted.value(sourcePassHashed)
  const row = ofUser(found.value, user)
  if (!stored.startsWith(Scram.VERIFIER_PREFIX)) return { row, secret: { _tag: "Hash", stored } }
  const verifier = Scram.decodeVerifier(stored)
  if (verifier === null) {
    const detail = "it begins as a SCRAM verifier and is none"
    return { row: Result.fail(new LoginRefused({ why: "hash is malformed", detail })), secret: mock() }
  }
  return { row, secret: Result.isSuccess(row) ? { _tag: "Verifier", verifier } : mock(verifier) }
}

const ofUser = (row: AuthRow, user: string): Result.Result<AuthRow, LoginRefused> => {
  if (row.sourceUser === null) return Result.fail(nullColumn(row, "source_user"))
  return row.sourceUser === user ? Result.succeed(row) : Result.fail(new LoginRefused({ why: "wrong user" }))
}

const wrongPassword = () => new LoginRefused({ why: "wrong password" })

const refuseUnless = (isRight: boolean): Effect.Effect<void, LoginRefused> =>
  isRight ? Effect.void : Effect.fail(wrongPassword())

const nullColumn = (row: AuthRow, column: string): LoginRefused =>
  new LoginRefused({ why: "row has a NULL column", detail: `perseus_auth.id ${row.id}: ${column}` })
