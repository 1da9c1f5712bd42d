/**
 * From a tenant's name and a password to where that tenant is served: row, user, proof, the destination's password.
 *
 * What a client may learn from a refusal is one thing, whichever of tenant, user and password was wrong: the same words, and
 * after about the same time (by waiting, not by burning CPU). The log says which. Keeps nothing; the services that it asks do.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { LoginRefused, type AuthUnavailable, type KmsUnavailable } from "../errors.ts"
import { parseDestHost } from "../net/Address.ts"
import { Credential } from "../pool/Credential.ts"
import type { Placement } from "../pool/Pools.ts"
import type { Mode } from "../pool/PoolTenant.ts"
import { AuthRepo, type AuthRow, type TenantKey } from "./AuthRepo.ts"
import { KmsDecrypt } from "./KmsDecrypt.ts"
import { PasswordHash } from "./PasswordHash.ts"

/** From the password's arrival to a refusal, at least: longer than a derivation takes on a machine that is not overloaded. */
export const REFUSAL_DELAY_MS = 250

export interface Identity {
  readonly row: AuthRow
  readonly placement: Placement
}

export class Authenticator extends Context.Service<
  Authenticator,
  {
    /** `askPassword` is run once, whatever is already known: who asks for an unknown tenant must not see a difference. */
    readonly login: <E>(
      key: TenantKey,
      user: string,
      askPassword: Effect.Effect<Redacted.Redacted<string>, E>
    ) => Effect.Effect<Identity, LoginRefused | AuthUnavailable | KmsUnavailable | E>
    /** Where a row's tenant is served. */
    readonly locate: (row: AuthRow) => Effect.Effect<Placement, LoginRefused | KmsUnavailable>
  }
>()("perseus/tenant/Authenticator") {
  static readonly layer: Layer.Layer<Authenticator, never, AuthRepo | KmsDecrypt | PasswordHash> = Layer.effect(
    Authenticator,
    Effect.gen(function* () {
      const repo = yield* AuthRepo
      const kms = yield* KmsDecrypt
      const passwords = yield* PasswordHash

      const prove = Effect.fnUntraced(function* (
        row: Option.Option<AuthRow>,
        key: TenantKey,
        user: string,
        password: Redacted.Redacted<string>
      ) {
        if (Option.isNone(row)) return yield* new LoginRefused({ why: "unknown tenant" })
        const { sourceUser, sourcePassHashed } = row.value
        if (sourceUser === null) return yield* nullColumn(row.value, "source_user")
        if (sourcePassHashed === null) return yield* nullColumn(row.value, "source_pass_hashed")
        if (sourceUser !== user) return yield* new LoginRefused({ why: "wrong user" })
        const stored = Redacted.value(sourcePassHashed)
        const right = yield* passwords.verify({ tenant: tenantName(key), stored, password })
        if (!right) return yield* new LoginRefused({ why: "wrong password" })
        return row.value
      })

      const locate = Effect.fnUntraced(function* (row: AuthRow) {
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
        return {
          tenantKey: tenantName(row),
          destination: { label: destHost, database: destDb, ...address.success },
          credential: new Credential(destUser, password),
          secret: destPassEnc,
          schema: row.sourceSchema,
          mode: row.poolMode
        }
      })

      return Authenticator.of({
        login: (key, user, askPassword) =>
          Effect.gen(function* () {
            const row = yield* repo.find(key)
            const password = yield* askPassword
            const since = yield* Clock.currentTimeMillis
            const proven = yield* prove(row, key, user, password).pipe(Effect.tapError(() => delaySince(since)))
            return { row: proven, placement: yield* locate(proven) }
          }),
        locate
      })
    })
  )
}

const isMode = (text: string): text is Mode => text === "transaction" || text === "session" || text === "statement"

/** One name for each key: no two keys share it. */
export const tenantName = ({ sourceDb, sourceSchema }: TenantKey): string => JSON.stringify([sourceDb, sourceSchema])

const nullColumn = (row: AuthRow, column: string): LoginRefused =>
  new LoginRefused({ why: "row has a NULL column", detail: `perseus_auth.id ${row.id}: ${column}` })

const delaySince = (since: number): Effect.Effect<void> =>
  Effect.flatMap(Clock.currentTimeMillis, (now) => Effect.sleep(Math.max(0, since + REFUSAL_DELAY_MS - now)))
