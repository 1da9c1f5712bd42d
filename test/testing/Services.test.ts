import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import { PasswordHash } from "../../src/tenant/PasswordHash.ts"
import * as MemoryAuthRepo from "../../src/testing/MemoryAuthRepo.ts"
import * as MemoryKms from "../../src/testing/MemoryKms.ts"
import * as MemoryPasswordHash from "../../src/testing/MemoryPasswordHash.ts"

const key = { sourceDb: "shop", sourceSchema: "a" }

describe("MemoryAuthRepo", () => {
  it.effect("finds the row that was set last, under the id that it had first", () =>
    Effect.gen(function* () {
      const memory = yield* MemoryAuthRepo.make()
      memory.set({ ...key, sourceUser: "one", sourcePassHashed: "hash" })
      memory.set({ ...key, sourceUser: "two", sourcePassHashed: "hash" })
      const row = Option.getOrThrow(yield* memory.authRepo.find(key))
      assert.deepStrictEqual([row.id, row.sourceUser, row.destHost], [1, "two", null])
      assert.strictEqual(row.sourcePassHashed === null ? null : Redacted.value(row.sourcePassHashed), "hash")
      memory.remove(key)
      assert.isTrue(Option.isNone(yield* memory.authRepo.find(key)))
      assert.strictEqual(memory.finds(), 2)
    })
  )

  it.effect("tells of each change, and of none that was not one", () =>
    Effect.gen(function* () {
      const memory = yield* MemoryAuthRepo.make()
      const told = yield* Effect.forkChild(Stream.runCollect(Stream.take(memory.authRepo.changes, 3)), {
        startImmediately: true
      })
      memory.remove(key)
      memory.set(key)
      memory.announceAll()
      memory.remove(key)
      assert.deepStrictEqual(yield* Fiber.join(told), [{ _tag: "Row", key }, { _tag: "All" }, { _tag: "Row", key }])
    })
  )

  it.effect("cannot be asked while it fails", () =>
    Effect.gen(function* () {
      const memory = yield* MemoryAuthRepo.make()
      memory.fail()
      assert.strictEqual((yield* Effect.flip(memory.authRepo.find(key)))._tag, "AuthUnavailable")
      assert.isFalse(yield* memory.authRepo.ready)
      memory.recover()
      assert.isTrue(yield* memory.authRepo.ready)
    })
  )
})

describe("MemoryKms", () => {
  it.effect("decrypts what was encrypted, and nothing else", () =>
    Effect.gen(function* () {
      const { kmsDecrypt, encrypt, decrypts } = MemoryKms.make()
      const plaintext = yield* kmsDecrypt.decrypt(encrypt("p@ss"))
      assert.strictEqual(Redacted.value(plaintext), "p@ss")
      assert.isFalse((yield* Effect.flip(kmsDecrypt.decrypt("nonsense"))).retryable)
      assert.strictEqual(decrypts(), 2)
    })
  )

  it.effect("cannot be asked while it fails", () =>
    Effect.gen(function* () {
      const memory = MemoryKms.make()
      memory.fail()
      assert.isTrue((yield* Effect.flip(memory.kmsDecrypt.decrypt(memory.encrypt("x")))).retryable)
      memory.recover()
      yield* memory.kmsDecrypt.decrypt(memory.encrypt("x"))
    })
  )
})

describe("MemoryPasswordHash", () => {
  it.effect("tells the right password from a wrong one, and a hash from what is none", () =>
    Effect.gen(function* () {
      const { hash, verify } = yield* PasswordHash
      const password = Redacted.make("secret")
      const stored = MemoryPasswordHash.stored("secret")
      assert.strictEqual(yield* hash(password), stored)
      assert.isTrue(yield* verify({ tenant: "t", stored, password }))
      assert.isFalse(yield* verify({ tenant: "t", stored, password: Redacted.make("wrong") }))
      const refused = yield* Effect.flip(verify({ tenant: "t", stored: "secret", password }))
      assert.strictEqual(refused.why, "hash is malformed")
    }).pipe(Effect.provide(MemoryPasswordHash.layer))
  )
})
