import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { frame } from "../../src/protocol/Encoder.ts"
import { Frontend } from "../../src/protocol/Frame.ts"
import { query, terminate } from "../../src/protocol/Frontend.ts"
import { parse, sync, bind, execute } from "../support/rawClient.ts"
import { answered, make } from "../support/memoryPerseus.ts"

describe("a session that is kept", () => {
  it.effect("a client that keeps its connection and rested for long may send its next query in two pieces", () =>
    Effect.gen(function* () {
      const perseus = yield* make({
        settings: {
          PoolSettings: { MaxOpen: 2, MaxIdle: 2, Mode: "session" },
          LimitSettings: { IdleInTransactionTimeoutSecs: 30 }
        }
      })
      const client = yield* perseus.logIn("red")
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
      yield* perseus.pass(60_000)
      const bytes = query("SELECT 1")
      client.send(bytes.subarray(0, 3))
      yield* perseus.pass(150)
      client.send(bytes.subarray(3))
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
    })
  )

  it.effect("or a Parse, and the rest of its batch behind it", () =>
    Effect.gen(function* () {
      const perseus = yield* make({
        settings: {
          PoolSettings: { MaxOpen: 2, MaxIdle: 2, Mode: "session" },
          LimitSettings: { IdleInTransactionTimeoutSecs: 30 }
        }
      })
      const client = yield* perseus.logIn("red")
      client.ask("SELECT 1")
      yield* perseus.settle
      client.heard()
      yield* perseus.pass(60_000)
      client.send(parse("", "SELECT 1"))
      yield* perseus.pass(150)
      client.send(bind("", ""), execute(), sync)
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["1", "2", "row 1", "done SELECT 1", "ready I"])
    })
  )

  it.effect("with one byte of its next message sent, is idle when the service shuts down", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { PoolSettings: { MaxOpen: 2, MaxIdle: 2, Mode: "session" } } })
      const client = yield* perseus.logIn("red")
      client.ask("SELECT 1")
      yield* perseus.settle
      client.heard()
      client.send(Buffer.from("Q"))
      yield* perseus.settle
      yield* Effect.forkDetach(perseus.shutDown, { startImmediately: true })
      yield* perseus.pass(1000)
      assert.deepStrictEqual(client.heard(), ["FATAL 57P01", "closed"])
    })
  )

  it.effect("after a client in session mode that left while its connection was opened, limits hold for the next", () =>
    Effect.gen(function* () {
      const perseus = yield* make({
        settings: {
          PoolSettings: { MaxOpen: 2, MaxIdle: 2, Mode: "session", MaxIdletimeSecs: 60, ConnCreateTimeoutSecs: 50 },
          LimitSettings: { AcquireTimeoutSecs: 10 }
        }
      })
      const leaver = perseus.beginLogin("red")
      let asked = false
      perseus.server.tamper((bytes) => {
        if (!asked) leaver.memory.vanish()
        asked = true
        return bytes
      })
      yield* perseus.settle
      assert.isTrue(asked)
      const client = yield* perseus.logIn("red")
      client.ask("SELECT 1")
      yield* perseus.settle
      const next = yield* perseus.logIn("red")
      // The connections that are idle go.
      yield* perseus.pass(61_000)
      client.memory.vanish()
      yield* perseus.pass(61_000)
      perseus.server.vanish()
      next.ask("SELECT 1")
      yield* perseus.pass(11_000)
      assert.deepStrictEqual(next.heard(), ["ERROR 53300", "ready I"])
    })
  )
})

/** As pgjdbc refuses a COPY: the Sync behind its Execute, which the server swallows, and another behind CopyFail. */
const copyFail = frame(Frontend.copyFail, Buffer.from("no\0"))

describe("a COPY of the extended protocol that fails", () => {
  const kept: Readonly<Record<string, readonly [mode: string, first: string]>> = {
    "in session mode": ["session", "SELECT 1"],
    "on a pinned connection": ["transaction", "LISTEN news"]
  }
  for (const [where, [Mode, first]] of Object.entries(kept)) {
    it.effect(`leaves its client the connection, and nobody else: ${where}`, () =>
      Effect.gen(function* () {
        const perseus = yield* make({ settings: { PoolSettings: { MaxOpen: 2, MaxIdle: 2, Mode } } })
        const client = yield* perseus.logIn("red")
        client.ask(first)
        yield* perseus.settle
        client.heard()
        client.send(parse("", "COPY t FROM STDIN"), bind("", ""), execute(), sync)
        yield* perseus.settle
        assert.deepStrictEqual(client.heard(), ["1", "2", "G"])
        client.send(copyFail, sync)
        yield* perseus.settle
        assert.deepStrictEqual(client.heard(), ["ERROR 57014", "ready I"])
        client.ask("SELECT 1")
        yield* perseus.settle
        assert.deepStrictEqual(client.heard(), answered)
        client.send(terminate)
        yield* perseus.settle
        const other = yield* perseus.logIn("red")
        other.ask("SELECT 1")
        yield* perseus.settle
        assert.deepStrictEqual(other.heard(), answered)
        const ran = perseus.postgres.log.filter(({ sql }) => [first, "SELECT 1", "COPY t FROM STDIN"].includes(sql))
        const [own, ...rest] = ran.map(({ connection }) => connection)
        const others = rest.pop()
        assert.deepStrictEqual(new Set(rest), new Set([own]))
        assert.notStrictEqual(others, own)
      })
    )
  }
})
