import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { bytesOf, change, delay, faultyServer, pass, sqlOf } from "../support/faultyServer.ts"
import { eventually, startPerseus, type TestPerseus } from "../support/perseus.ts"
import { connection } from "../support/postgres.ts"
import {
  cancelRequest,
  int32,
  message,
  query,
  rowsOf,
  sqlStatesOf,
  text,
  typesOf,
  type RawClient
} from "../support/rawClient.ts"

const notification = message("A", int32(4711), text("news"), text("the payload of a notification"))
const HALF = 20
const CANCEL_REQUEST_CODE = 80877102

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

/** Ends when the connection was inspected. */
const listens = (perseus: TestPerseus, client: RawClient) =>
  Effect.andThen(
    client.query("LISTEN news"),
    eventually(Effect.sync(perseus.pool), ({ pinned }) => pinned === 1)
  )

describe("a session between two transactions", () => {
  it.live("a notification in the same chunk behind the inspection's ReadyForQuery reaches its client", () =>
    Effect.gen(function* () {
      const { server, perseus } = yield* behind
      const a = yield* perseus.login("red")
      yield* server.inject(behindInspection(notification, Buffer.alloc(0)))
      yield* listens(perseus, a)
      const answers = [...(yield* a.query("SELECT 1"))]
      assert.strictEqual(typesOf(answers), "ATDCZ")
    })
  )

  it.live("one that comes in two halves around it breaks no stream", () =>
    Effect.gen(function* () {
      const { server, perseus } = yield* behind
      const a = yield* perseus.login("red")
      yield* server.inject(behindInspection(notification.subarray(0, HALF), notification.subarray(HALF)))
      yield* listens(perseus, a)
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
      let underWay = false
      yield* server.inject({
        fromFrontend: (sent) => {
          if (sent.type !== "" || sent.body.readUInt32BE(0) !== CANCEL_REQUEST_CODE) return pass
          underWay = true
          return delay(until)
        }
      })
      const locker = yield* perseus.destination.client
      yield* Effect.promise(() => locker.query("SELECT pg_advisory_lock(1)"))
      a.send(query("SET work_mem = '9MB'; SELECT pg_advisory_xact_lock(1)"))
      yield* eventually(perseus.backends, (backends) => backends.some(({ state }) => state === "active"))
      const raw = yield* perseus.raw
      raw.send(cancelRequest(a.key))
      yield* eventually(
        Effect.sync(() => underWay),
        (begun) => begun
      )
      yield* Effect.promise(() => locker.query("SELECT pg_advisory_unlock(1)"))
      assert.deepStrictEqual(sqlStatesOf(yield* a.ready()), [])
      letGo()
      const answers = yield* a.query("SELECT 1")
      assert.deepStrictEqual(rowsOf(answers), ["1"])
    })
  )
})
