/**
 * Going down: who leaves at once, who may end what it is at, and when the rest is cut.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { runUnnamed, sync } from "../../src/protocol/Frontend.ts"
import { make, type MemoryPerseus } from "../support/memoryPerseus.ts"

const SHUTDOWN_MS = 30_000
const settings = { LimitSettings: { ShutdownTimeoutSecs: SHUTDOWN_MS / 1000, AcquireTimeoutSecs: 60 } }
const goodbye = ["FATAL 57P01", "closed"]

const beginShutDown = Effect.fnUntraced(function* (perseus: MemoryPerseus) {
  const end = yield* Effect.forkChild(perseus.shutDown, { startImmediately: true })
  yield* perseus.settle
  return { down: () => end.pollUnsafe() !== undefined }
})

const nothingIsOpen = (perseus: MemoryPerseus) => {
  assert.deepStrictEqual(perseus.network.openTransports(), { accepted: 0, connected: 0, connecting: 0 })
  assert.deepStrictEqual(perseus.postgres.sessions(), [])
}

describe("ShutdownTimeoutSecs", () => {
  it.effect("is not waited for where every client is idle: each is told, and it is over at once", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const clients = [yield* perseus.logIn("red"), yield* perseus.logIn("blue")]
      const { down } = yield* beginShutDown(perseus)
      for (const client of clients) assert.deepStrictEqual(client.heard(), goodbye)
      assert.isTrue(down())
      nothingIsOpen(perseus)
    })
  )

  it.effect(
    "is not waited for by whoever has not logged in yet: a probe that says nothing, a password that is missing",
    () =>
      Effect.gen(function* () {
        const perseus = yield* make({ settings })
        const probe = perseus.dial()
        const without = perseus.beginLogin("red")
        yield* perseus.settle
        const { down } = yield* beginShutDown(perseus)
        assert.isTrue(down())
        assert.deepStrictEqual(probe.heard(), goodbye)
        assert.deepStrictEqual(without.heard().slice(-2), goodbye)
        nothingIsOpen(perseus)
      })
  )

  it.effect("lets transactions end, and tells each client at its border", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      const other = yield* perseus.logIn("blue")
      client.ask("BEGIN")
      other.send(runUnnamed("SELECT pg_sleep(20)"), sync)
      yield* perseus.settle
      client.heard()
      const { down } = yield* beginShutDown(perseus)
      yield* perseus.pass(10_000)
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["row 1", "done SELECT 1", "ready T"])
      client.ask("COMMIT")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["done COMMIT", "ready I", ...goodbye])
      assert.isFalse(down())
      yield* perseus.falls(10_000, {
        late: 0,
        before: () => assert.notInclude(other.heard(), "closed"),
        after: () => assert.deepStrictEqual(other.heard(), ["1", "2", "row ", "done SELECT 1", "ready I", ...goodbye])
      })
      assert.isTrue(down())
      nothingIsOpen(perseus)
    })
  )

  it.effect("refuses a client that waits for a connection at once: nothing of it was run", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { ...settings, PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const holder = yield* perseus.logIn("red")
      const waiter = yield* perseus.logIn("red")
      holder.ask("BEGIN")
      yield* perseus.settle
      waiter.ask("SELECT 1")
      yield* perseus.settle
      perseus.statements()
      yield* beginShutDown(perseus)
      assert.deepStrictEqual(waiter.heard(), goodbye)
      holder.ask("COMMIT")
      yield* perseus.settle
      assert.deepStrictEqual(perseus.statements(), ["red: COMMIT"])
      nothingIsOpen(perseus)
    })
  )

  it.effect("is when those are cut off whose transactions have not ended", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const idle = yield* perseus.logIn("red")
      const busy = yield* perseus.logIn("red")
      idle.ask("BEGIN")
      busy.ask("SELECT pg_sleep(600)")
      yield* perseus.settle
      idle.heard()
      const { down } = yield* beginShutDown(perseus)
      yield* perseus.falls(SHUTDOWN_MS, {
        late: 0,
        before: () => {
          assert.deepStrictEqual([...idle.heard(), ...busy.heard()], [])
          assert.isFalse(down())
        },
        after: () => {
          assert.include(idle.heard(), "closed")
          assert.include(busy.heard(), "closed")
          assert.isTrue(down())
        }
      })
      nothingIsOpen(perseus)
    })
  )

  it.effect("is not waited for once somebody says cut", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      client.ask("SELECT pg_sleep(600)")
      yield* perseus.settle
      const { down } = yield* beginShutDown(perseus)
      yield* perseus.pass(1000)
      assert.isFalse(down())
      yield* perseus.perseus.cut
      yield* perseus.settle
      assert.include(client.heard(), "closed")
      assert.isTrue(down())
      assert.strictEqual(perseus.perseus.live.count, 0)
      nothingIsOpen(perseus)
    })
  )

  it.effect("lets nobody in any more, and who was about to log in is told", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const holder = yield* perseus.logIn("red")
      holder.ask("BEGIN")
      yield* perseus.settle
      perseus.postgres.stallAt("authentication")
      const begun = perseus.beginLogin("blue")
      yield* perseus.settle
      yield* beginShutDown(perseus)
      const late = perseus.dial()
      yield* perseus.settle
      assert.deepStrictEqual(late.heard(), ["closed"])
      perseus.postgres.proceed()
      yield* perseus.settle
      assert.deepStrictEqual(begun.heard().slice(-2), goodbye)
    })
  )

  it.effect("cancels at the server what a client that was cut off had running", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      client.ask("SELECT pg_sleep(600)")
      yield* perseus.settle
      yield* beginShutDown(perseus)
      yield* perseus.pass(SHUTDOWN_MS)
      assert.deepStrictEqual(perseus.postgres.sessions(), [])
    })
  )
})
