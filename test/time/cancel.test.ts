/**
 * CancelTimeoutSecs: a connection with a cancel on its way is lent to nobody, for as long as the cancel may still come.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { cancelRequest } from "../../src/protocol/Frontend.ts"
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

  it.effect(
    "bounds the connect to a host that does not answer any more, and the connection is lent to nobody again",
    () =>
      Effect.gen(function* () {
        const perseus = yield* make({ settings })
        const client = yield* perseus.logIn("red")
        client.ask("SELECT pg_sleep(2)")
        yield* perseus.settle
        perseus.server.vanish()
        perseus.cancel(client)
        yield* perseus.pass(2000)
        assert.deepStrictEqual(client.heard(), slept)
        yield* perseus.falls(CANCEL_MS - 2000, {
          late: 0,
          before: () => assert.strictEqual(perseus.network.openTransports().connecting, 1),
          after: () => perseus.whole(0)
        })
      })
  )

  it.effect("is not waited for by a shutdown, which gives it ConnCloseTimeoutSecs", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { ...settings, LimitSettings: { CancelTimeoutSecs: 3600 } } })
      const client = yield* perseus.logIn("red")
      client.ask("SELECT pg_sleep(2)")
      yield* perseus.settle
      perseus.server.vanish()
      perseus.cancel(client)
      yield* perseus.pass(2000)
      const end = yield* Effect.forkChild(perseus.shutDown, { startImmediately: true })
      yield* perseus.pass(2000)
      assert.isDefined(end.pollUnsafe())
      perseus.whole(0)
    })
  )
})

describe("a client that vanishes in mid-query", () => {
  it.effect("has the query cancelled, once", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      client.ask("SELECT pg_sleep(60)")
      yield* perseus.settle
      client.memory.vanish()
      yield* perseus.settle
      assert.deepStrictEqual(perseus.postgres.sessions(), [])
      assert.strictEqual(perseus.pool().statistics.cancelsForwarded, 1)
      perseus.whole(0)
    })
  )
})

describe("a cancel request that breaks off", () => {
  it.effect("may still hit: its connection is closed when it comes back, and the next client has another", () =>
    Effect.gen(function* () {
      const { perseus, client, next } = yield* cancelling()
      const [{ processId } = { processId: 0 }] = perseus.postgres.sessions()
      perseus.server.breakNewest()
      yield* perseus.pass(1500)
      assert.deepStrictEqual(client.heard(), slept)
      assert.deepStrictEqual(next.heard(), answered)
      assert.notStrictEqual(perseus.postgres.log.at(-1)?.connection, processId)
      perseus.whole(1)
    })
  )

  it.effect("before it was sent cannot hit: its connection goes on", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      const [{ processId } = { processId: 0 }] = perseus.postgres.sessions()
      client.ask("SELECT pg_sleep(2)")
      yield* perseus.settle
      perseus.server.refuse()
      perseus.cancel(client)
      yield* perseus.pass(2000)
      assert.deepStrictEqual(client.heard(), slept)
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
      assert.strictEqual(perseus.postgres.log.at(-1)?.connection, processId)
      perseus.whole(1)
    })
  )
})

describe("a cancel request with a key that is nobody's", () => {
  it.effect("has no effect and no answer", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      client.ask("SELECT pg_sleep(2)")
      yield* perseus.settle
      const { processId, secretKey } = client.memory.backendKey!
      const [backend] = perseus.postgres.sessions()
      const guesses: ReadonlyArray<readonly [processId: number, secretKey: Buffer]> = [
        [processId, Buffer.from(secretKey.map((byte, index) => (index === 3 ? byte ^ 1 : byte)))],
        [processId + 1, secretKey],
        [0, Buffer.alloc(4)],
        [processId, Buffer.alloc(256)],
        [processId, Buffer.concat([secretKey, Buffer.of(0)])],
        [backend!.processId, secretKey]
      ]
      for (const guess of guesses) {
        const guesser = perseus.dial()
        guesser.send(cancelRequest(...guess))
        yield* perseus.settle
        assert.deepStrictEqual(guesser.heard(), ["closed"])
      }
      yield* perseus.pass(2000)
      assert.deepStrictEqual(client.heard(), slept)
      assert.strictEqual(perseus.pool().statistics.cancelsForwarded, 0)
      assert.strictEqual(perseus.perseus.live.cancelsWithoutEffect, guesses.length)
      perseus.whole(1)
    })
  )

  it.effect("any more has no effect on the connection's next query", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const gone = yield* perseus.logIn("red")
      const next = yield* perseus.logIn("red")
      gone.memory.disconnect()
      yield* perseus.settle
      next.ask("SELECT pg_sleep(2)")
      yield* perseus.settle
      perseus.cancel(gone)
      yield* perseus.pass(2000)
      assert.deepStrictEqual(next.heard(), slept)
      assert.strictEqual(perseus.perseus.live.cancelsWithoutEffect, 1)
      perseus.whole(1)
    })
  )
})
