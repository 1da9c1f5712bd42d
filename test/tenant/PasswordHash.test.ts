import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { createHash } from "node:crypto"
import * as EasyScrypt from "../../src/tenant/EasyScrypt.ts"
import { type Derive, nodeScrypt, type Options, PasswordHash, scryptJs } from "../../src/tenant/PasswordHash.ts"
import vectors from "../vectors/easy-scrypt.json" with { type: "json" }

/** Stands for scrypt where the order of things is tested, not the key. */
const fakeKey = (password: string) => createHash("sha256").update(password).digest()

const storedFor = (password: string, salt = 1) =>
  EasyScrypt.encode({ key: fakeKey(password), salt: Buffer.alloc(16, salt), N: 2, r: 1, p: 1 })

/** A derivation that ends when the test says so, and tells which have begun. */
const gatedDerive = () => {
  const begun: Array<string> = []
  const gates: Array<Deferred.Deferred<void>> = []
  const derive: Derive = (password) =>
    Effect.suspend(() => {
      const gate = Deferred.makeUnsafe<void>()
      begun.push(Redacted.value(password))
      gates.push(gate)
      return Effect.as(Deferred.await(gate), fakeKey(Redacted.value(password)))
    })
  /** Ends the oldest that is under way. */
  const finishOne = Effect.suspend(() => {
    const gate = gates.shift()
    return gate === undefined
      ? Effect.die("nothing is being derived")
      : Effect.asVoid(Deferred.succeed(gate, undefined))
  })
  return { begun, derive, finishOne }
}

const countingDerive = (derive: Derive = (password) => Effect.succeed(fakeKey(Redacted.value(password)))) => {
  const counted = { count: 0, derive: (...input: Parameters<Derive>) => (counted.count++, derive(...input)) }
  return counted
}

const withPasswordHash = <A, E>(
  options: Options,
  use: (passwordHash: PasswordHash["Service"]) => Effect.Effect<A, E, Scope.Scope>
) => Effect.scoped(PasswordHash.use(use)).pipe(Effect.provide(PasswordHash.layer(options)))

const fork = <A, E>(effect: Effect.Effect<A, E>) => Effect.forkChild(effect, { startImmediately: true })

const input = (tenant: string, password: string, stored = storedFor(password)) => ({
  tenant,
  stored,
  password: Redacted.make(password)
})

describe("verify", () => {
  for (const [name, implementation] of [
    ["Node's scrypt", nodeScrypt],
    ["scrypt-js", scryptJs]
  ] as const) {
    for (const [index, vector] of vectors.entries()) {
      const title = vector.why ?? "a hash that the Go genhash wrote"
      it.live(`${vector.verifies ? "accepts" : "refuses"} by ${name}: vector ${index}, ${title}`, () => {
        const derive = countingDerive(implementation)
        return withPasswordHash({ derive: derive.derive }, (hash) =>
          Effect.gen(function* () {
            const exit = yield* Effect.exit(hash.verify(input("t", vector.password, vector.hash)))
            if (vector.verifies) return assert.deepStrictEqual(exit, Exit.succeed(true))
            if (vector.why === "wrong password") return assert.deepStrictEqual(exit, Exit.succeed(false))
            assert.isTrue(Exit.isFailure(exit), "a broken hash is a malformed hash")
            assert.strictEqual(derive.count, 0, "nothing was derived")
          })
        )
      })
    }
  }

  it.effect("calls a hash malformed without a word of it or of the password", () =>
    withPasswordHash(countingDerive(), (hash) =>
      Effect.gen(function* () {
        const error = yield* Effect.flip(hash.verify(input("t", "hunter2", "c2VjcmV0LWhhc2g=")))
        assert.strictEqual(error.why, "hash is malformed")
        assert.notMatch(`${error.message} ${JSON.stringify(error)}`, /hunter2|c2Vj/)
      })
    )
  )

  it.effect("derives a right password once, and remembers it", () => {
    const derive = countingDerive()
    return withPasswordHash(derive, (hash) =>
      Effect.gen(function* () {
        for (let login = 0; login < 5; login++) assert.isTrue(yield* hash.verify(input("t", "pw")))
        assert.strictEqual(derive.count, 1)
      })
    )
  })

  it.effect("derives a wrong password each time, and its failures do not make the right one forgotten", () => {
    const derive = countingDerive()
    return withPasswordHash(derive, (hash) =>
      Effect.gen(function* () {
        assert.isTrue(yield* hash.verify(input("t", "pw")))
        assert.isFalse(yield* hash.verify(input("t", "guess", storedFor("pw"))))
        assert.isFalse(yield* hash.verify(input("t", "guess", storedFor("pw"))))
        assert.strictEqual(derive.count, 3)
        assert.isTrue(yield* hash.verify(input("t", "pw")))
        assert.strictEqual(derive.count, 3)
      })
    )
  })

  it.effect("recalls without a derivation what is right and what is wrong of a hash whose password it knows", () => {
    const derive = countingDerive()
    return withPasswordHash(derive, (hash) =>
      Effect.gen(function* () {
        assert.isNull(hash.recall(input("t", "pw")))
        assert.isFalse(yield* hash.verify(input("t", "guess", storedFor("pw"))))
        assert.isNull(hash.recall(input("t", "guess", storedFor("pw"))), "a wrong password says nothing of the others")
        assert.isTrue(yield* hash.verify(input("t", "pw")))
        const derivations = derive.count
        assert.isTrue(hash.recall(input("t", "pw")))
        assert.isFalse(hash.recall(input("t", "guess", storedFor("pw"))))
        assert.isFalse(hash.recall(input("t", "", storedFor("pw"))))
        assert.isNull(hash.recall(input("t", "pw", storedFor("new"))), "another hash")
        assert.isNull(hash.recall(input("t", "pw", storedFor("pw", 2))), "another hash of the same password")
        assert.isNull(hash.recall(input("another", "pw")))
        assert.strictEqual(derive.count, derivations)
      })
    )
  })

  it.effect("forgets a password when the row's hash changes, even to another hash of the same password", () => {
    const derive = countingDerive()
    return withPasswordHash(derive, (hash) =>
      Effect.gen(function* () {
        assert.isTrue(yield* hash.verify(input("t", "pw")))
        assert.isFalse(yield* hash.verify(input("t", "pw", storedFor("new"))))
        assert.isTrue(yield* hash.verify(input("t", "pw", storedFor("pw", 2))))
        assert.strictEqual(derive.count, 3)
      })
    )
  })

  it.effect("does not take one tenant's proof for another's", () => {
    const derive = countingDerive()
    return withPasswordHash(derive, (hash) =>
      Effect.gen(function* () {
        assert.isTrue(yield* hash.verify(input("a", "pw")))
        assert.isTrue(yield* hash.verify(input("b", "pw")))
        assert.strictEqual(derive.count, 2)
      })
    )
  })

  it.effect("remembers no more tenants than allowed, and forgets the one unused for longest", () => {
    const derive = countingDerive()
    return withPasswordHash({ derive: derive.derive, maxRemembered: 2 }, (hash) =>
      Effect.gen(function* () {
        yield* hash.verify(input("a", "pw"))
        yield* hash.verify(input("b", "pw"))
        yield* hash.verify(input("a", "pw"))
        yield* hash.verify(input("c", "pw"))
        assert.strictEqual(derive.count, 3)
        yield* hash.verify(input("a", "pw"))
        assert.strictEqual(derive.count, 3, "a was used after b")
        yield* hash.verify(input("b", "pw"))
        assert.strictEqual(derive.count, 4, "b was forgotten")
      })
    )
  })

  it.live("takes less than a millisecond of CPU for a remembered password", () =>
    withPasswordHash({}, (hash) =>
      Effect.gen(function* () {
        const vector = vectors[0]
        assert.isDefined(vector)
        const login = hash.verify(input("t", vector.password, vector.hash))
        assert.isTrue(yield* login)
        const before = process.cpuUsage()
        for (let count = 0; count < 200; count++) assert.isTrue(yield* login)
        const { user, system } = process.cpuUsage(before)
        assert.isBelow((user + system) / 1000, 200)
      })
    )
  )

  it.live("does not hold up the event loop", () =>
    withPasswordHash({ concurrency: 1 }, (hash) =>
      Effect.gen(function* () {
        const vector = vectors[0]
        assert.isDefined(vector)
        let turns = 0
        const counter = yield* fork(
          Effect.forever(
            Effect.andThen(
              Effect.sync(() => turns++),
              Effect.yieldNow
            )
          )
        )
        yield* hash.verify(input("t", vector.password, vector.hash))
        yield* Fiber.interrupt(counter)
        assert.isAbove(turns, 100)
      })
    )
  )
})

describe("the queue of derivations", () => {
  it.effect("joins those who ask for the same tenant, hash and password", () => {
    const derive = gatedDerive()
    return withPasswordHash(derive, (hash) =>
      Effect.gen(function* () {
        const askers = yield* Effect.forEach(Array.from({ length: 50 }), () => fork(hash.verify(input("t", "pw"))))
        assert.deepStrictEqual(derive.begun, ["pw"])
        yield* derive.finishOne
        for (const asker of askers) assert.isTrue(yield* Fiber.join(asker))
        assert.deepStrictEqual(derive.begun, ["pw"])
      })
    )
  })

  it.effect("runs no more at a time than allowed", () => {
    const derive = gatedDerive()
    return withPasswordHash({ derive: derive.derive, concurrency: 2 }, (hash) =>
      Effect.gen(function* () {
        for (const password of ["1", "2", "3", "4"]) yield* fork(hash.verify(input("t", password)))
        assert.deepStrictEqual(derive.begun, ["1", "2"])
        yield* derive.finishOne
        assert.deepStrictEqual(derive.begun, ["1", "2", "3"])
      })
    )
  })

  it.effect("lets tenants take turns, and serves each in the order of asking", () => {
    const derive = gatedDerive()
    return withPasswordHash({ derive: derive.derive, concurrency: 1 }, (hash) =>
      Effect.gen(function* () {
        for (const password of ["noisy 1", "noisy 2", "noisy 3"]) yield* fork(hash.verify(input("noisy", password)))
        for (const password of ["quiet 1", "quiet 2"]) yield* fork(hash.verify(input("quiet", password)))
        yield* fork(hash.verify(input("late", "late 1")))
        for (let turn = 0; turn < 6; turn++) yield* derive.finishOne
        assert.deepStrictEqual(derive.begun, ["noisy 1", "noisy 2", "quiet 1", "late 1", "noisy 3", "quiet 2"])
      })
    )
  })

  it.effect("goes on for the others when one of its askers is interrupted", () => {
    const derive = gatedDerive()
    return withPasswordHash({ derive: derive.derive, concurrency: 1 }, (hash) =>
      Effect.gen(function* () {
        const first = yield* fork(hash.verify(input("t", "pw")))
        const second = yield* fork(hash.verify(input("t", "pw")))
        yield* Fiber.interrupt(first)
        yield* derive.finishOne
        assert.isTrue(yield* Fiber.join(second))
      })
    )
  })

  it.effect("drops one that waits when all its askers have gone", () => {
    const derive = gatedDerive()
    return withPasswordHash({ derive: derive.derive, concurrency: 1 }, (hash) =>
      Effect.gen(function* () {
        const running = yield* fork(hash.verify(input("a", "runs")))
        const gone = yield* Effect.forEach(["x", "x", "y"], (tenant) => fork(hash.verify(input(tenant, "gone"))))
        const stays = yield* fork(hash.verify(input("x", "stays")))
        yield* Fiber.interruptAll(gone)
        yield* derive.finishOne
        yield* derive.finishOne
        assert.isTrue(yield* Fiber.join(running))
        assert.isTrue(yield* Fiber.join(stays))
        assert.deepStrictEqual(derive.begun, ["runs", "stays"])
      })
    )
  })

  it.effect("frees the place of one whose askers left after it had begun, and still remembers what it proved", () => {
    const derive = gatedDerive()
    return withPasswordHash({ derive: derive.derive, concurrency: 1 }, (hash) =>
      Effect.gen(function* () {
        const gone = yield* fork(hash.verify(input("a", "gone")))
        const next = yield* fork(hash.verify(input("b", "next")))
        yield* Fiber.interrupt(gone)
        assert.deepStrictEqual(derive.begun, ["gone"], "a thread that derives cannot be stopped: its place is taken")
        yield* derive.finishOne
        yield* derive.finishOne
        assert.isTrue(yield* Fiber.join(next))
        assert.isTrue(yield* hash.verify(input("a", "gone")))
        assert.deepStrictEqual(derive.begun, ["gone", "next"])
      })
    )
  })

  it.effect("goes on with the next when a derivation dies", () => {
    const derive: Derive = (password) =>
      Redacted.value(password) === "bad"
        ? Effect.die("out of memory")
        : Effect.succeed(fakeKey(Redacted.value(password)))
    return withPasswordHash({ derive, concurrency: 1 }, (hash) =>
      Effect.gen(function* () {
        assert.isTrue(Exit.hasDies(yield* Effect.exit(hash.verify(input("t", "bad")))))
        assert.isTrue(yield* hash.verify(input("t", "good")))
      })
    )
  })

  it.effect("leaves nobody waiting when the layer is closed", () => {
    const derive = gatedDerive()
    return Effect.gen(function* () {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(PasswordHash.layer({ derive: derive.derive, concurrency: 1 }), scope)
      const askers = yield* Effect.forEach(["running", "waiting"], (password) =>
        fork(
          Effect.provide(
            PasswordHash.use((hash) => hash.verify(input("t", password))),
            context
          )
        )
      )
      yield* Scope.close(scope, Exit.void)
      for (const asker of askers) assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(asker)))
    })
  })
})

describe("hash", () => {
  it.live("writes what verify accepts, with the parameters of the Go genhash and a salt of its own each time", () =>
    withPasswordHash({}, (hash) =>
      Effect.gen(function* () {
        const password = Redacted.make("pässwörd")
        const first = yield* hash.hash(password)
        assert.notStrictEqual(first, yield* hash.hash(password))
        assert.isTrue(yield* hash.verify({ tenant: "t", stored: first, password }))
        assert.isFalse(yield* hash.verify({ tenant: "t", stored: first, password: Redacted.make("passwort") }))
        assert.strictEqual(first.length, 124)
      })
    )
  )
})
