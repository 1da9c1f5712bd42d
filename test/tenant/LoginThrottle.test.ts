import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as References from "effect/References"
import { TestClock } from "effect/testing"
import { LoginBlocked, LoginRefused } from "../../src/errors.ts"
import { LoginThrottle, MAX_DELAYED, networkOf, REFUSAL_DELAY_MS } from "../../src/tenant/LoginThrottle.ts"

const settings = {
  RequireTLS: false,
  UnknownTenant: "clear" as const,
  FailuresBeforeDelay: 0,
  FailuresBeforeBlock: 0,
  FailureWindowSecs: 300,
  BlockSecs: 60
}
const refusal = () => new LoginRefused({ why: "wrong password" })
const fork = <A, E>(effect: Effect.Effect<A, E>) => Effect.forkChild(effect, { startImmediately: true })

/** A login that fails, and all the time that its answer takes. */
const fail = (throttle: LoginThrottle, remote: string, tenant = "t") =>
  Effect.gen(function* () {
    const fiber = yield* fork(throttle.refuse(throttle.attempt(remote, tenant), refusal()))
    yield* TestClock.adjust(REFUSAL_DELAY_MS)
    return yield* Fiber.await(fiber)
  }).pipe(Effect.provideService(References.MinimumLogLevel, "None"))

const isBlocked = (throttle: LoginThrottle, remote: string) =>
  Effect.map(Effect.exit(throttle.admit(throttle.attempt(remote, "another"))), Exit.isFailure)

describe("networkOf", () => {
  const cases = [
    ["192.0.2.1:5432", "192.0.2.1"],
    ["::ffff:192.0.2.1:5432", "192.0.2.1"],
    ["[::ffff:192.0.2.1]:5432", "192.0.2.1"],
    ["2001:db8:1:2:3:4:5:6:5432", "2001:db8:1:2::/64"],
    ["2001:DB8:0001:2::6:5432", "2001:db8:1:2::/64"],
    ["[2001:db8:1:2::]:5432", "2001:db8:1:2::/64"],
    ["2001:db8::1:5432", "2001:db8:0:0::/64"],
    ["::1:5432", "0:0:0:0::/64"],
    ["fe80::1%eth0:5432", "fe80:0:0:0::/64"],
    ["a host:5432", "a host"],
    ["?:0", "?"]
  ] as const
  for (const [remote, network] of cases) {
    it(`takes ${remote} as ${network}`, () => assert.strictEqual(networkOf(remote), network))
  }
})

describe("LoginThrottle", () => {
  it.effect("delays so many at a time and refuses more, and again delays when those have their answer", () =>
    Effect.gen(function* () {
      const throttle = new LoginThrottle(() => ({ ...settings, FailuresBeforeDelay: 1 }))
      yield* fail(throttle, "192.0.2.1:1")
      const right = throttle.judge(throttle.attempt("192.0.2.1:1", "t"), Effect.void)
      const delayed = yield* Effect.forEach(Array.from({ length: MAX_DELAYED }), () => fork(right))
      const refused = yield* Effect.flip(right)
      assert.instanceOf(refused, LoginBlocked)
      yield* Fiber.interrupt(delayed[0]!)
      const next = yield* fork(right)
      yield* TestClock.adjust(10_000)
      for (const fiber of [...delayed.slice(1), next]) {
        assert.deepStrictEqual(yield* Fiber.await(fiber), Exit.void)
      }
    })
  )

  it.effect("counts a wrong proof though its client leaves before the answer", () =>
    Effect.gen(function* () {
      const throttle = new LoginThrottle(() => ({ ...settings, FailuresBeforeBlock: 1 }))
      const attempt = throttle.attempt("192.0.2.1:1", "t")
      const leaving = yield* fork(
        Effect.provideService(throttle.refuse(attempt, refusal()), References.MinimumLogLevel, "None")
      )
      yield* Fiber.interrupt(leaving)
      assert.isTrue(yield* isBlocked(throttle, "192.0.2.1:2"))
    })
  )

  it.effect("shows a block to the logins that were under way when it began, right ones and wrong ones alike", () =>
    Effect.gen(function* () {
      const throttle = new LoginThrottle(() => ({ ...settings, FailuresBeforeBlock: 1 }))
      const gate = yield* Deferred.make<void>()
      const logins = yield* Effect.forEach([Effect.void, Effect.fail(refusal())], (verdict) =>
        fork(throttle.judge(throttle.attempt("192.0.2.1:1", "t"), Effect.andThen(Deferred.await(gate), verdict)))
      )
      yield* fail(throttle, "192.0.2.1:2")
      yield* Deferred.succeed(gate, undefined)
      for (const login of logins) {
        const refused = yield* Effect.flip(Fiber.join(login))
        assert.instanceOf(refused, LoginBlocked)
      }
    })
  )

  it.effect("delays right ones and wrong ones alike, by what had failed when they were judged", () =>
    Effect.gen(function* () {
      const throttle = new LoginThrottle(() => ({ ...settings, FailuresBeforeDelay: 1 }))
      yield* fail(throttle, "192.0.2.1:1")
      const attempt = throttle.attempt("192.0.2.1:1", "t")
      const [right, wrong] = [
        yield* fork(throttle.judge(attempt, Effect.void)),
        yield* fork(throttle.refuse(attempt, refusal()))
      ]
      yield* TestClock.adjust(249)
      assert.isUndefined(right.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(right.pollUnsafe(), Exit.void)
      yield* TestClock.adjust(REFUSAL_DELAY_MS - 1)
      assert.isUndefined(wrong.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.isTrue(Exit.isFailure(yield* Fiber.await(wrong)))
    })
  )

  it.effect("counts no login whose proof was not judged: a client that gives up is no guesser", () =>
    Effect.gen(function* () {
      const throttle = new LoginThrottle(() => ({ ...settings, FailuresBeforeBlock: 1 }))
      const attempt = throttle.attempt("192.0.2.1:1", "t")
      yield* Fiber.interrupt(yield* fork(throttle.judge(attempt, Effect.never)))
      assert.isFalse(yield* isBlocked(throttle, "192.0.2.1:2"))
    })
  )

  it.effect("forgets who has failed longest ago when there are too many", () =>
    Effect.gen(function* () {
      const throttle = new LoginThrottle(() => ({ ...settings, FailuresBeforeBlock: 1, BlockSecs: 1_000_000 }))
      yield* fail(throttle, "192.0.2.1:1")
      yield* fail(throttle, "192.0.2.2:1")
      assert.isTrue(yield* isBlocked(throttle, "192.0.2.1:1"), "and so was used last")
      for (let other = 0; other < 9_998; other++) {
        const attempt = throttle.attempt(`10.0.${other >> 8}.${other & 255}:1`, "t")
        yield* Fiber.interrupt(
          yield* fork(Effect.provideService(throttle.refuse(attempt, refusal()), References.MinimumLogLevel, "None"))
        )
      }
      assert.isFalse(yield* isBlocked(throttle, "192.0.2.2:1"))
      assert.isTrue(yield* isBlocked(throttle, "10.0.39.1:1"))
    })
  )

  it.effect(
    "says in the log once that a block begins, with no more of a name than fits a line, and to who is refused how long it lasts",
    () =>
      Effect.gen(function* () {
        const log: Array<string> = []
        const recorder = Logger.make(({ message }) => void log.push(String(message)))
        const throttle = new LoginThrottle(() => ({ ...settings, FailuresBeforeBlock: 1 }))
        const attempt = throttle.attempt("192.0.2.1:1", "x".repeat(10_000))
        for (let login = 0; login < 3; login++) {
          const leaving = yield* fork(Effect.provide(throttle.refuse(attempt, refusal()), Logger.layer([recorder])))
          yield* Fiber.interrupt(leaving)
        }
        assert.deepStrictEqual(log, [
          "address 192.0.2.1 is blocked for 60 s: 1 logins failed",
          `tenant ${"x".repeat(160)} is blocked for 60 s: 1 logins failed`
        ])
        yield* TestClock.adjust("10 seconds")
        const refused = yield* Effect.flip(throttle.admit(attempt))
        assert.strictEqual(refused.hint, "Try again in 50 s, with the right password.")
      })
  )
})
