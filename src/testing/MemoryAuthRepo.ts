/**
 * The rows of `perseus_auth` in memory: an AuthRepo whose table is a Map that the test changes and breaks.
 *
 * Nothing is cached: a change holds from the next look-up on, and is told to whoever listens.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as PubSub from "effect/PubSub"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { AuthUnavailable } from "../errors.ts"
import { AuthRepo, type AuthChange, type AuthRow, type TenantKey } from "../tenant/AuthRepo.ts"

/** A row as a test writes it; what is left out is NULL. */
export interface MemoryRow extends TenantKey, Partial<Omit<AuthRow, keyof TenantKey | "id" | "sourcePassHashed">> {
  readonly sourcePassHashed?: string | null
}

export interface MemoryAuthRepo {
  readonly authRepo: AuthRepo["Service"]
  readonly layer: Layer.Layer<AuthRepo>
  /** Makes or replaces a tenant's row. */
  readonly set: (row: MemoryRow) => void
  readonly remove: (key: TenantKey) => void
  /** What is changed in it is told to nobody, as by a table that has no triggers. */
  readonly quietly: (change: () => void) => void
  /** As after a lost LISTEN: any row may have changed. */
  readonly announceAll: () => void
  /** From now on nothing can be looked up. */
  readonly fail: (detail?: string) => void
  readonly recover: () => void
  /** Look-ups so far. */
  readonly finds: () => number
}

export const make = Effect.fnUntraced(function* (): Effect.fn.Return<MemoryAuthRepo, never, Scope.Scope> {
  const changes = yield* Effect.acquireRelease(PubSub.unbounded<AuthChange>(), PubSub.shutdown)
  const rows = new Map<string, AuthRow>()
  let failure: AuthUnavailable | null = null
  let finds = 0
  let nextId = 1
  let quiet = false

  const look = <A>(answer: () => A) =>
    Effect.suspend(() => {
      finds++
      return failure === null ? Effect.succeed(answer()) : Effect.fail(failure)
    })

  const authRepo = AuthRepo.of({
    find: (key) => look(() => Option.fromUndefinedOr(rows.get(idOf(key)))),
    findAll: (keys) => look(() => keys.flatMap((key) => rows.get(idOf(key)) ?? [])),
    changes: Stream.fromPubSub(changes),
    ready: Effect.sync(() => failure === null)
  })
  const announce = ({ sourceDb, sourceSchema }: TenantKey): void => {
    if (!quiet) PubSub.publishUnsafe(changes, { _tag: "Row", key: { sourceDb, sourceSchema } })
  }

  return {
    authRepo,
    layer: Layer.succeed(AuthRepo, authRepo),
    set: (row) => {
      const id = rows.get(idOf(row))?.id ?? nextId++
      const { sourcePassHashed = null } = row
      const secret = sourcePassHashed === null ? null : Redacted.make(sourcePassHashed)
      rows.set(idOf(row), { ...emptyRow, id, ...row, sourcePassHashed: secret })
      announce(row)
    },
    remove: (key) => {
      if (rows.delete(idOf(key))) announce(key)
    },
    quietly: (change) => {
      quiet = true
      change()
      quiet = false
    },
    announceAll: () => void PubSub.publishUnsafe(changes, { _tag: "All" }),
    fail: (detail = "it is down") => {
      failure = new AuthUnavailable({ detail })
    },
    recover: () => {
      failure = null
    },
    finds: () => finds
  }
})

const idOf = ({ sourceDb, sourceSchema }: TenantKey): string => JSON.stringify([sourceDb, sourceSchema])

const emptyRow = {
  sourceUser: null,
  destHost: null,
  destDb: null,
  destUser: null,
  destPassEnc: null,
  poolMode: null
}
