/**
 * CancelTimeoutSecs: a connection with a cancel on its way is lent to nobody, for as long as the cancel may still come.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { answered, make } from "../support/memoryPerseus.ts"

const CANCEL_MS = 4000
const settings = {
  PoolSettings: { MaxOpen: 1, MaxIdle: 1 },
  LimitSettings: { CancelTimeoutSecs: CANCEL_MS / 1000 }
}
const slept = ["row ", "done SELECT 1", "ready I"]

/** A query of 2 s runs, its cancel has reached the server 500 ms ago and does not end; another tenant's client waits. */
const cancelling = Effect.fnUntraced(function* () {
  const signals: Array<() => void> = []
  const perseus = yield* make({ settings, deferCancel: (signal) => signals.push(signal) })
  const next = yield* perseus.logIn("blue")
  const client = yield* perseus.logIn("red")
  client.ask("SELECT pg_sleep(2)")
  yield* perseus.settle
  perseus.cancel(client)
  yield* perseus.settle
  assert.strictEqual(signals.length, 1)
  next.ask("SELECT 1")
  yield* perseus.pass(500)
  return { perseus, client, next, signal: signals[0]! }
})

describe("CancelTimeoutSecs", () => {
  it.effect("closes the connection whose cancel does not end, and lends it to nobody before", () =>
    Effect.gen(function* () {
      const { perseus, client, next } = yield* cancelling()
      const [{ processId } = { processId: 0 }] = perseus.postgres.sessions()
      yield* perseus.pass(1500)
      assert.deepStrictEqual(client.heard(), slept)
      yield* perseus.falls(CANCEL_MS - 2000, {
        late: 0,
        before: () => {
          assert.deepStrictEqual(next.heard(), [])
          assert.strictEqual(perseus.pool().inUse, 1)
        },
        after: () => assert.deepStrictEqual(next.heard(), answered)
      })
      assert.notStrictEqual(perseus.postgres.log.at(-1)?.connection, processId)
      perseus.whole(1)
    })
  )

  it.effect("closes the connection that comes back later than that, too", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings, deferCancel: () => {} })
      const client = yield* perseus.logIn("red")
      client.ask("SELECT pg_sleep(6)")
      yield* perseus.settle
      perseus.cancel(client)
      yield* perseus.pass(5999)
      perseus.cancel(client)
      yield* perseus.pass(1)
      assert.deepStrictEqual(client.heard(), slept)
      yield* perseus.pass(CANCEL_MS)
      perseus.whole(0)
    })
  )

  it.effect("lends the connection again when its cancel has ended, and only then", () =>
    Effect.gen(function* () {
      const { perseus, client, next, signal } = yield* cancelling()
      const [{ processId } = { processId: 0 }] = perseus.postgres.sessions()
      yield* perseus.pass(2500)
      assert.deepStrictEqual(client.heard(), slept)
      assert.deepStrictEqual(next.heard(), [])
      signal()
      yield* perseus.settle
      assert.deepStrictEqual(next.heard(), answered)
      assert.strictEqual(perseus.postgres.log.at(-1)?.connection, processId)
      perseus.whole(1)
    })
  )

  it.effect("is not waited for where the cancel does its work at once", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      client.ask("SELECT pg_sleep(60)")
      yield* perseus.pass(1000)
      assert.deepStrictEqual(client.heard(), [])
      perseus.cancel(client)
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["ERROR 57014", "ready I"])
      perseus.whole(1)
    })
  )

  it.effect("bounds one request at a time: cancels that come meanwhile reach no server", () =>
    Effect.gen(function* () {
      const { perseus, client, signal } = yield* cancelling()
      for (let more = 0; more < 5; more++) perseus.cancel(client)
      yield* perseus.settle
      assert.strictEqual(perseus.pool().statistics.cancelsForwarded, 1)
      signal()
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["ERROR 57014", "ready I"])
      perseus.whole(1)
    })
  )

  it.effect("does not hold back a client that is idle: its cancel reaches no server", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings, deferCancel: () => {} })
      const client = yield* perseus.logIn("red")
      client.ask("BEGIN")
      yield* perseus.settle
      client.heard()
      perseus.cancel(client)
      yield* perseus.settle
      client.ask("COMMIT")
      yield* perseus.settle
      perseus.cancel(client)
      yield* perseus.settle
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["done COMMIT", "ready I", ...answered])
      assert.strictEqual(perseus.pool().statistics.cancelsForwarded, 0)
      perseus.whole(1)
    })
  )
})
