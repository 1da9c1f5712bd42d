import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { eventually, startPerseus } from "../support/perseus.ts"
import { query } from "../support/rawClient.ts"

describe("notifications", () => {
  it.live(
    "every notification of a real server reaches a pinned client, however often its connection is inspected",
    () =>
      Effect.gen(function* () {
        const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 4, MaxIdle: 4 } } })
        const a = yield* perseus.login("red")
        const b = yield* perseus.login("red")
        yield* a.query("LISTEN news")
        const COUNT = 3000
        const notify = Effect.gen(function* () {
          for (let at = 0; at < COUNT; at += 10) {
            for (let one = at; one < at + 10; one++) b.send(query(`NOTIFY news, '${one}'`))
            yield* b.ready(10)
          }
        })
        let heard = 0
        let over = false
        const inspected = Effect.gen(function* () {
          // oxlint-disable-next-line no-unmodified-loop-condition
          while (!over) heard += (yield* a.query("UNLISTEN nothing")).filter(({ type }) => type === "A").length
        })
        yield* Effect.all([notify.pipe(Effect.andThen(Effect.sync(() => (over = true)))), inspected], {
          concurrency: "unbounded"
        })
        yield* eventually(
          Effect.sync(() => heard + a.received.filter(({ type }) => type === "A").length),
          (count) => count >= COUNT
        )
        // Behind the last of them, and with whatever came twice.
        heard += (yield* a.query("SELECT 1")).filter(({ type }) => type === "A").length
        assert.strictEqual(heard, COUNT)
      })
  )
})
