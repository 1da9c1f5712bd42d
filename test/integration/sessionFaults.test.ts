import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { bytesOf, change, delay, faultyServer, pass, sqlOf } from "../support/faultyServer.ts"
import { startPerseus } from "../support/perseus.ts"
import { connection } from "../support/postgres.ts"
import { int32, message, query, rowsOf, text, typesOf, type RawClient } from "../support/rawClient.ts"

const notification = message("A", int32(4711), text("news"), text("the payload of a notification"))
const HALF = 20

const behind = Effect.gen(function* () {
  const server = yield* faultyServer(connection())
  const perseus = yield* startPerseus({
    tenants: ["red"],
    through: server,
    config: { TLSSettings: { ServerMode: "disable" }, PoolSettings: { MaxOpen: 2, MaxIdle: 2, MaxPinned: 1 } }
  })
  return { server, perseus }
})

/** `then` is said behind the ReadyForQuery of the next inspection, in one write; `later` before what comes next. */
const behindInspection = (then: Buffer, later: Buffer) => {
  let asked = false
  let said = false
  return {
    fromFrontend: (sent: { type: string; body: Buffer }) => {
      if (sqlOf(sent)?.includes("pg_listening_channels") === true) asked = true
      return pass
    },
    fromBackend: (said_: { type: string; body: Buffer }) => {
      if (said) {
        said = false
        return change(later, bytesOf(said_))
      }
      if (!asked || said_.type !== "Z") return pass
      asked = false
      said = true
      return change(bytesOf(said_), then)
    }
  }
}

const listens = (client: RawClient) =>
  Effect.gen(function* () {
    yield* client.query("LISTEN news")
    yield* Effect.sleep(100)
  })

describe("a session between two transactions", () => {
  it.live("a notification in the same chunk behind the inspection's ReadyForQuery reaches its client", () =>
    Effect.gen(function* () {
      const { server, perseus } = yield* behind
      const a = yield* perseus.login("red")
      yield* server.inject(behindInspection(notification, Buffer.alloc(0)))
      yield* listens(a)
      const answers = [...(yield* a.query("SELECT 1"))]
      assert.strictEqual(typesOf(answers), "ATDCZ")
    })
  )

  it.live("one that comes in two halves around it breaks no stream", () =>
    Effect.gen(function* () {
      const { server, perseus } = yield* behind
      const a = yield* perseus.login("red")
      yield* server.inject(behindInspection(notification.subarray(0, HALF), notification.subarray(HALF)))
      yield* listens(a)
      const answers = yield* a.query("SELECT 1")
      assert.strictEqual(typesOf(answers), "ATDCZ")
    })
  )

  it.live("a cancel that comes late, to the inspection, ends no session", () =>
    Effect.gen(function* () {
      const { server, perseus } = yield* behind
      const a = yield* perseus.login("red")
      let letGo: () => void = () => undefined
      const until = new Promise<void>((resolve) => (letGo = resolve))
      yield* server.inject({
        fromFrontend: (sent) => {
          if (sent.type === "" && sent.body.readUInt32BE(0) === 80877102) return delay(until)
          return pass
        }
      })
      a.send(query("SET work_mem = '9MB'; SELECT pg_sleep(0.3)"))
      yield* Effect.sleep(100)
      const raw = yield* perseus.raw
      raw.send(Buffer.concat([int32(16), int32(80877102), int32(a.key.processId), a.key.secretKey]))
      yield* a.ready()
      letGo()
      const answers = yield* a.query("SELECT 1")
      assert.deepStrictEqual(rowsOf(answers), ["1"])
    })
  )
})
