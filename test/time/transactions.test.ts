/**
 * How long a client may hold a server connection: idle within a transaction, and with a query that runs.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { frame } from "../../src/protocol/Encoder.ts"
import { Frontend } from "../../src/protocol/Frame.ts"
import { flush, query, runUnnamed, sync } from "../../src/protocol/Frontend.ts"
import { answered, type Client, make } from "../support/memoryPerseus.ts"

const IDLE_MS = 5000
const QUERY_MS = 8000
const idleLimit = { LimitSettings: { IdleInTransactionTimeoutSecs: IDLE_MS / 1000 } }
const queryLimit = { LimitSettings: { QueryTimeoutSecs: QUERY_MS / 1000 } }
const timedOut = ["FATAL 25P03", "closed"]
const overdue = ["FATAL 57014", "closed"]

const copyData = (text: string) => frame(Frontend.copyData, Buffer.from(text))
const copyDone = frame(Frontend.copyDone)
/** Longer than what is kept until it is whole. */
const longQuery = query(`SELECT '${"x".repeat(40_000)}'`)

const started = Effect.fnUntraced(function* (settings: Parameters<typeof make>[0]) {
  const perseus = yield* make(settings)
  const client = yield* perseus.logIn("red")
  return { perseus, client }
})

describe("IdleInTransactionTimeoutSecs", () => {
  const holds: Readonly<Record<string, (client: Client) => void>> = {
    "after BEGIN": (client) => client.ask("BEGIN"),
    "in a transaction that failed": (client) => client.send(query("BEGIN"), query("SELECT error")),
    "with half of a long message sent": (client) => client.send(longQuery.subarray(0, 30_000)),
    "with a batch and no Sync": (client) => client.send(runUnnamed("SELECT 1"), flush),
    "in a COPY whose data do not come": (client) => client.ask("COPY t FROM STDIN")
  }
  for (const [what, hold] of Object.entries(holds)) {
    it.effect(`ends the session of a client that is idle ${what}`, () =>
      Effect.gen(function* () {
        const { perseus, client } = yield* started({ settings: idleLimit })
        hold(client)
        yield* perseus.settle
        assert.strictEqual(perseus.pool().inUse, 1)
        client.heard()
        yield* perseus.falls(IDLE_MS, {
          before: () => assert.deepStrictEqual(client.heard(), []),
          after: () => assert.deepStrictEqual(client.heard(), timedOut)
        })
        perseus.whole(0)
        assert.deepStrictEqual(perseus.postgres.sessions(), [])
      })
    )

    it.effect(`is never where it is 0, ${what}`, () =>
      Effect.gen(function* () {
        const { perseus, client } = yield* started({})
        hold(client)
        yield* perseus.settle
        client.heard()
        yield* perseus.pass(20_000)
        assert.deepStrictEqual(client.heard(), [])
        assert.strictEqual(perseus.pool().inUse, 1)
      })
    )
  }

  it.effect("counts from the last answer", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* started({ settings: idleLimit })
      client.ask("BEGIN")
      for (let round = 0; round < 4; round++) {
        yield* perseus.pass(IDLE_MS - 1)
        client.ask("SELECT pg_sleep(2)")
        yield* perseus.pass(2000)
      }
      client.heard()
      yield* perseus.falls(IDLE_MS, {
        before: () => assert.deepStrictEqual(client.heard(), []),
        after: () => assert.deepStrictEqual(client.heard(), timedOut)
      })
      perseus.whole(0)
    })
  )

  it.effect("does not count while a query runs", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* started({ settings: idleLimit })
      client.send(query("BEGIN"), query("SELECT pg_sleep(30)"))
      yield* perseus.pass(30_000)
      client.ask("COMMIT")
      yield* perseus.settle
      assert.strictEqual(client.heard().at(-1), "ready I")
      perseus.whole(1)
    })
  )

  it.effect("does not count while what was executed before a Flush runs", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* started({ settings: idleLimit })
      client.send(runUnnamed("SELECT pg_sleep(30)"), flush)
      yield* perseus.pass(30_000)
      client.send(sync)
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["1", "2", "row ", "done SELECT 1", "ready I"])
      perseus.whole(1)
    })
  )

  it.effect("does not count while a COPY makes progress", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* started({ settings: idleLimit })
      client.ask("COPY t FROM STDIN")
      for (let row = 0; row < 6; row++) {
        yield* perseus.pass(IDLE_MS - 1)
        client.send(copyData("1\n"))
      }
      client.send(copyDone)
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["G", "done COPY 6", "ready I"])
      perseus.whole(1)
    })
  )

  it.effect("does not count while a long message makes progress", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* started({ settings: idleLimit })
      const length = Math.ceil(longQuery.length / 4)
      for (let at = 0; at < longQuery.length; at += length) {
        client.send(longQuery.subarray(at, at + length))
        yield* perseus.pass(IDLE_MS - 1)
      }
      assert.deepStrictEqual(client.heard().slice(1), ["done SELECT 1", "ready I"])
      perseus.whole(1)
    })
  )

  it.effect("does not concern a client that holds nothing: idle, or with half of a short message sent", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* started({ settings: idleLimit })
      const half = yield* perseus.logIn("red")
      half.send(query("SELECT 1").subarray(0, 8))
      yield* perseus.pass(10 * IDLE_MS)
      assert.deepStrictEqual([...client.heard(), ...half.heard()], [])
      half.send(query("SELECT 1").subarray(8))
      yield* perseus.settle
      assert.deepStrictEqual(half.heard(), answered)
      perseus.whole(1)
    })
  )
})

describe("QueryTimeoutSecs", () => {
  it.effect("ends the session whose query is not answered, and cancels it at the server", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* started({ settings: queryLimit })
      client.ask("SELECT pg_sleep(600)")
      yield* perseus.falls(QUERY_MS, {
        before: () => assert.deepStrictEqual(client.heard(), []),
        after: () => assert.deepStrictEqual(client.heard(), overdue)
      })
      assert.strictEqual(perseus.pool().statistics.cancelsForwarded, 1)
      assert.deepStrictEqual(perseus.postgres.sessions(), [])
      perseus.whole(0)
    })
  )

  it.effect("ends a query within a transaction, counted from its own beginning", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* started({ settings: queryLimit })
      client.ask("BEGIN")
      yield* perseus.pass(7000)
      client.ask("SELECT pg_sleep(7)")
      yield* perseus.pass(7000)
      client.heard()
      client.send(runUnnamed("SELECT pg_sleep(600)"), sync)
      yield* perseus.falls(QUERY_MS, {
        before: () => assert.notInclude(client.heard(), "closed"),
        after: () => assert.deepStrictEqual(client.heard(), overdue)
      })
      assert.deepStrictEqual(perseus.postgres.sessions(), [])
      perseus.whole(0)
    })
  )

  it.effect("counts each query of a pipeline from where the one before it was answered", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* started({ settings: queryLimit })
      client.send(...Array.from({ length: 4 }, () => query("SELECT pg_sleep(6)")))
      yield* perseus.pass(24_000)
      assert.strictEqual(client.heard().filter((line) => line === "ready I").length, 4)
      perseus.whole(1)
    })
  )

  it.effect("does not count the time for which a query waits for its connection", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* started({
        settings: { LimitSettings: { QueryTimeoutSecs: 3 }, PoolSettings: { MaxOpen: 1, MaxIdle: 1 } }
      })
      const holder = yield* perseus.logIn("red")
      holder.ask("BEGIN")
      yield* perseus.settle
      client.ask("SELECT pg_sleep(2)")
      yield* perseus.pass(5000)
      holder.ask("COMMIT")
      yield* perseus.pass(2000)
      assert.deepStrictEqual(client.heard(), ["row ", "done SELECT 1", "ready I"])
      perseus.whole(1)
    })
  )

  it.effect("does not concern a transaction that is idle", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* started({ settings: queryLimit })
      client.ask("BEGIN")
      yield* perseus.settle
      client.heard()
      yield* perseus.pass(5 * QUERY_MS)
      assert.deepStrictEqual(client.heard(), [])
    })
  )

  it.effect("is never where it is 0", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* started({})
      client.ask("SELECT pg_sleep(120)")
      yield* perseus.pass(119_999)
      assert.deepStrictEqual(client.heard(), [])
      yield* perseus.pass(1)
      assert.deepStrictEqual(client.heard(), ["row ", "done SELECT 1", "ready I"])
      perseus.whole(1)
    })
  )
})
