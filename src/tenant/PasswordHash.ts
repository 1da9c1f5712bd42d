/**
 * Proves passwords against scrypt hashes, and makes such hashes.
 *
 * A derivation takes 40 ms of CPU and 16 MiB by design. So it runs on the thread pool, never on the event loop; only a
 * few at a time; fair across tenants, so that nobody's guesses keep the others out; and once: askers for one tenant,
 * hash and password share a derivation, and a password that was right is remembered.
 *
 * What is remembered is a digest of the hash, and an HMAC under a key that lives only in this process, over tenant, hash and
 * password: a changed hash, or another password, is not in it. Wrong passwords are never remembered, and no password is kept longer than
 * its derivation waits and runs.
 */
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { createHmac, hash, randomBytes, scrypt, scryptSync, timingSafeEqual } from "node:crypto"
import { availableParallelism } from "node:os"
import { LoginRefused } from "../errors.ts"
import * as EasyScrypt from "./EasyScrypt.ts"

/** scrypt(UTF-8 password, salt, N, r, p, keyLength); takes as long as its parameters say. */
export type Derive = (
  password: Redacted.Redacted<string>,
  parameters: Pick<EasyScrypt.EasyScrypt, "salt" | "N" | "r" | "p"> & { readonly keyLength: number }
) => Effect.Effect<Uint8Array>

/** On libuv's thread pool. An interruption stops the waiting, not the thread. */
export const nodeScrypt: Derive = (password, { salt, N, r, p, keyLength }) =>
  Effect.callback((resume) => {
    // OpenSSL counts two blocks more than the algorithm needs.
    const maxmem = EasyScrypt.memoryBytes({ N: N + 2, r, p })
    scrypt(Redacted.value(password), salt, keyLength, { N, r, p, maxmem }, (error, key) =>
      resume(error === null ? Effect.succeed(key) : Effect.die(error))
    )
  })

/** In JavaScript, in steps on the event loop and several times slower: only for where Node's own is unavailable. */
export const scryptJs: Derive = (password, { salt, N, r, p, keyLength }) =>
  Effect.promise(async () => {
    const { default: library } = await import("scrypt-js")
    return library.scrypt(Buffer.from(Redacted.value(password), "utf8"), salt, N, r, p, keyLength)
  })

/** Node's own, unless its OpenSSL has none, as in a FIPS build. */
const available: Effect.Effect<Derive> = Effect.suspend(() => {
  try {
    scryptSync("", "", 1, { N: 2, r: 1, p: 1 })
    return Effect.succeed(nodeScrypt)
  } catch {
    return Effect.as(Effect.logWarning("this Node has no scrypt: scrypt-js is used, and logins take longer"), scryptJs)
  }
})

export interface Options {
  /** Derivations at a time. One core stays free for the event loop: 2 where there are more than two, else 1. */
  readonly concurrency?: number | undefined
  /** Tenants whose last right password is remembered; the one unused for longest is forgotten first. */
  readonly maxRemembered?: number | undefined
  readonly derive?: Derive | undefined
}

export interface PasswordClaim {
  /** Whose turn it is, and whose password is remembered: one name a row. */
  readonly tenant: string
  /** `source_pass_hashed`. */
  readonly stored: string
  readonly password: Redacted.Redacted<string>
}

export class PasswordHash extends Context.Service<
  PasswordHash,
  {
    /** Whether the password is the hash's. Fails with `hash is malformed`, before anything is derived. */
    readonly verify: (claim: PasswordClaim) => Effect.Effect<boolean, LoginRefused>
    /**
     * What memory alone says, at once and without a derivation: right, wrong (another password is this hash's), or null where
     * nothing is remembered for the hash.
     */
    readonly recall: (claim: PasswordClaim) => boolean | null
    /** A new hash, with the parameters that the Go genhash writes. */
    readonly hash: (password: Redacted.Redacted<string>) => Effect.Effect<string>
  }
>()("perseus/tenant/PasswordHash") {
  static readonly layer = (options: Options = {}): Layer.Layer<PasswordHash> =>
    Layer.effect(PasswordHash, make(options))
}

const make = Effect.fnUntraced(function* (options: Options) {
  const derive = options.derive ?? (yield* available)
  const remembered = rememberAtMost(options.maxRemembered ?? 10_000)
  const derivations = yield* fairDerivations(options.concurrency ?? (availableParallelism() > 2 ? 2 : 1))
  const processKey = randomBytes(32)

  // Each part with its length before it, so that no two inputs run together to the same text.
  const digest = (...parts: ReadonlyArray<string>): Buffer =>
    createHmac("sha256", processKey)
      .update(parts.map((part) => `${part.length}:${part}`).join(""))
      .digest()
  const identify = ({ tenant, stored, password }: PasswordClaim): Buffer =>
    digest(tenant, stored, Redacted.value(password))

  return PasswordHash.of({
    recall: (claim) => remembered.recall(claim, identify(claim)),
    verify: (claim) =>
      Effect.suspend(() => {
        const { tenant, stored, password } = claim
        const identity = identify(claim)
        if (remembered.recall(claim, identity) === true) return Effect.succeed(true)
        const decoded = EasyScrypt.decode(stored)
        if (Result.isFailure(decoded)) {
          return Effect.fail(new LoginRefused({ why: "hash is malformed", detail: decoded.failure }))
        }
        const { key, ...parameters } = decoded.success
        const proof = Effect.map(derive(password, { ...parameters, keyLength: key.length }), (derived) => {
          const right = timingSafeEqual(derived, key)
          if (right) remembered.put(tenant, { hash: hashOf(stored), identity })
          return right
        })
        return derivations.join(tenant, identity.toString("base64"), proof)
      }),
    hash: (password) =>
      Effect.suspend(() => {
        const { keyLength, ...cost } = EasyScrypt.genhashParameters
        const parameters = { salt: randomBytes(EasyScrypt.saltLength), ...cost }
        return Effect.map(derive(password, { ...parameters, keyLength }), (key) =>
          EasyScrypt.encode({ ...parameters, key })
        )
      })
  })
})

/** Its salt is in it: whoever sees the digest can try no password against it. */
const hashOf = (stored: string): Buffer => hash("sha256", stored, "buffer")

interface Remembered {
  readonly hash: Buffer
  /** Of the password and of the hash that it is of; tells nothing about either. */
  readonly identity: Buffer
}

/** The identity of each tenant's last right password; the least recently used tenant goes when there are too many. */
const rememberAtMost = (limit: number) => {
  const byTenant = new Map<string, Remembered>()
  const put = (tenant: string, remembered: Remembered) => {
    byTenant.delete(tenant)
    byTenant.set(tenant, remembered)
    for (const oldest of byTenant.keys()) {
      if (byTenant.size <= limit) return
      byTenant.delete(oldest)
    }
  }
  return {
    put,
    recall: ({ tenant, stored }: PasswordClaim, identity: Buffer): boolean | null => {
      const known = byTenant.get(tenant)
      if (known === undefined) return null
      // The hash is in it, and need not be looked at alone: 2 % of a login.
      if (timingSafeEqual(known.identity, identity)) {
        put(tenant, known)
        return true
      }
      return timingSafeEqual(known.hash, hashOf(stored)) ? false : null
    }
  }
}

interface Derivation {
  readonly tenant: string
  readonly identity: string
  readonly proof: Effect.Effect<boolean>
  readonly done: Deferred.Deferred<boolean>
  askers: number
  started: boolean
}

/**
 * Runs at most `concurrency` proofs: tenants take turns, and within one the first come is served first. Askers for the
 * same identity share one. A proof that has begun goes on whoever leaves; one that waits is dropped with its last asker.
 */
const fairDerivations = Effect.fnUntraced(function* (concurrency: number) {
  const derivations = new Map<string, Derivation>()
  // In the order of turns: a tenant that was served goes to the end.
  const waiting = new Map<string, Array<Derivation>>()
  let running = 0
  // Registered before the fibers, hence run after they are gone: nobody is left waiting for a turn that never comes.
  yield* Effect.addFinalizer(() =>
    Effect.sync(() => {
      for (const { done } of derivations.values()) Deferred.doneUnsafe(done, Effect.interrupt)
    })
  )
  const fork = yield* FiberSet.makeRuntime<never, void, never>()

  const takeNext = (): Derivation | undefined => {
    for (const [tenant, queue] of waiting) {
      waiting.delete(tenant)
      const next = queue.shift()
      if (queue.length > 0) waiting.set(tenant, queue)
      return next
    }
    return undefined
  }

  const startNext = () => {
    while (running < concurrency) {
      const next = takeNext()
      if (next === undefined) return
      running++
      next.started = true
      fork(Effect.onExit(next.proof, (exit) => Effect.sync(() => finish(next, exit))).pipe(Effect.exit, Effect.asVoid))
    }
  }

  const finish = (derivation: Derivation, exit: Effect.Effect<boolean>) => {
    running--
    derivations.delete(derivation.identity)
    // Before those who asked for this one go on, who may be many: a thread would have nothing to do for as long.
    startNext()
    Deferred.doneUnsafe(derivation.done, exit)
  }

  const enqueue = (tenant: string, identity: string, proof: Effect.Effect<boolean>): Derivation => {
    const derivation = { tenant, identity, proof, done: Deferred.makeUnsafe<boolean>(), askers: 0, started: false }
    derivations.set(identity, derivation)
    const queue = waiting.get(tenant)
    if (queue === undefined) waiting.set(tenant, [derivation])
    else queue.push(derivation)
    return derivation
  }

  const leave = (derivation: Derivation) => {
    derivation.askers--
    if (derivation.askers > 0 || derivation.started) return
    derivations.delete(derivation.identity)
    const queue = waiting.get(derivation.tenant)?.filter((other) => other !== derivation) ?? []
    if (queue.length === 0) waiting.delete(derivation.tenant)
    else waiting.set(derivation.tenant, queue)
  }

  const join = (tenant: string, identity: string, proof: Effect.Effect<boolean>): Effect.Effect<boolean> =>
    Effect.uninterruptibleMask((restore) =>
      Effect.suspend(() => {
        const derivation = derivations.get(identity) ?? enqueue(tenant, identity, proof)
        derivation.askers++
        startNext()
        return Effect.ensuring(
          restore(Deferred.await(derivation.done)),
          Effect.sync(() => leave(derivation))
        )
      })
    )

  return { join }
})
