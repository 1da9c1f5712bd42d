import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { TestClock } from "effect/testing"
import * as RowCache from "../../src/tenant/RowCache.ts"

interface Key {
  readonly db: string
  readonly schema: string
}

/** A table in memory that counts what it is asked, and can be made to wait or to fail. */
const fixture = (options: { readonly seconds?: number; readonly capacity?: number } = {}) =>
  Effect.gen(function* () {
    const rows = new Map<string, string>()
    const table = {
      rows,
      asked: 0,
      gate: undefined as Deferred.Deferred<void> | undefined,
      failing: false
    }
    const cache = yield* RowCache.make({
      lookup: ({ db, schema }: Key) =>
        Effect.gen(function* () {
          table.asked++
          // The answer is made when the question is asked; the gate delays only its arrival.
          const row = Option.fromUndefinedOr(rows.get(`${db}/${schema}`))
          if (table.gate !== undefined) yield* Deferred.await(table.gate)
          if (table.failing) return yield* Effect.fail("down")
          return row
        }),
      timeToLive: Duration.seconds(options.seconds ?? 5),
      capacity: options.capacity ?? 100
    })
    const get = (schema: string) => cache.get({ db: "d", schema })
    return { table, cache, get }
  })

const fork = <A, E>(effect: Effect.Effect<A, E>) => Effect.forkChild(effect, { startImmediately: true })

describe("RowCache", () => {
  it.effect("asks again when the time has passed, and not before", () =>
    Effect.gen(function* () {
      const { table, get } = yield* fixture({ seconds: 5 })
      table.rows.set("d/a", "old")
      assert.deepStrictEqual(yield* get("a"), Option.some("old"))
      table.rows.set("d/a", "new")
      yield* TestClock.adjust(4999)
      assert.deepStrictEqual(yield* get("a"), Option.some("old"))
      assert.strictEqual(table.asked, 1)
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* get("a"), Option.some("new"))
      assert.strictEqual(table.asked, 2)
    })
  )

  it.effect("remembers what is absent for one second", () =>
    Effect.gen(function* () {
      const { table, get } = yield* fixture({ seconds: 60 })
      assert.deepStrictEqual(yield* get("a"), Option.none())
      table.rows.set("d/a", "row")
      yield* TestClock.adjust(999)
      assert.deepStrictEqual(yield* get("a"), Option.none())
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(yield* get("a"), Option.some("row"))
      assert.strictEqual(table.asked, 2)
    })
  )

  it.effect("asks each time when the time is zero, but once for those who ask together", () =>
    Effect.gen(function* () {
      const { table, get } = yield* fixture({ seconds: 0 })
      table.rows.set("d/a", "row")
      yield* get("a")
      yield* get("a")
      yield* get("missing")
      yield* get("missing")
      assert.strictEqual(table.asked, 4)
      table.gate = yield* Deferred.make<void>()
      const askers = yield* Effect.forEach(Array.from({ length: 50 }), () => fork(get("a")))
      yield* Deferred.succeed(table.gate, undefined)
      for (const asker of askers) assert.deepStrictEqual(yield* Fiber.join(asker), Option.some("row"))
      assert.strictEqual(table.asked, 5)
    })
  )

  it.effect("gives a failure to all who wait for it, and asks again for the next", () =>
    Effect.gen(function* () {
      const { table, get } = yield* fixture()
      table.rows.set("d/a", "row")
      table.gate = yield* Deferred.make<void>()
      table.failing = true
      const askers = [yield* fork(get("a")), yield* fork(get("a"))]
      yield* Deferred.succeed(table.gate, undefined)
      for (const asker of askers) assert.deepStrictEqual(yield* Fiber.await(asker), Exit.fail("down"))
      table.failing = false
      assert.deepStrictEqual(yield* get("a"), Option.some("row"))
      assert.strictEqual(table.asked, 2)
    })
  )

  it.effect("asks again for a key that was invalidated, and for no other", () =>
    Effect.gen(function* () {
      const { table, cache, get } = yield* fixture()
      for (const schema of ["a", "b"]) table.rows.set(`d/${schema}`, "row")
      yield* get("a")
      yield* get("b")
      yield* cache.invalidate({ db: "d", schema: "a" })
      yield* get("a")
      yield* get("b")
      assert.strictEqual(table.asked, 3)
      yield* cache.invalidateAll
      yield* get("a")
      yield* get("b")
      assert.strictEqual(table.asked, 5)
    })
  )

  for (const all of [false, true]) {
    it.effect(`does not keep the answer of a look-up during which ${all ? "all" : "its key"} was invalidated`, () =>
      Effect.gen(function* () {
        const { table, cache, get } = yield* fixture()
        table.rows.set("d/a", "old")
        const gate = yield* Deferred.make<void>()
        table.gate = gate
        const before = yield* fork(get("a"))
        table.rows.set("d/a", "new")
        yield* all ? cache.invalidateAll : cache.invalidate({ db: "d", schema: "a" })
        table.gate = undefined
        assert.deepStrictEqual(yield* get("a"), Option.some("new"), "who asks afterwards does not join the old look-up")
        yield* Deferred.succeed(gate, undefined)
        assert.deepStrictEqual(yield* Fiber.join(before), Option.some("old"))
        assert.deepStrictEqual(
          yield* get("a"),
          Option.some("new"),
          "the old answer, late, does not replace the new one"
        )
        assert.strictEqual(table.asked, 2)
      })
    )
  }

  it.effect("goes on with a look-up when one asker leaves, and drops it with the last", () =>
    Effect.gen(function* () {
      const { table, get } = yield* fixture()
      table.rows.set("d/a", "row")
      const gate = yield* Deferred.make<void>()
      table.gate = gate
      const [first, second] = [yield* fork(get("a")), yield* fork(get("a"))]
      yield* Fiber.interrupt(first)
      yield* Deferred.succeed(gate, undefined)
      assert.deepStrictEqual(yield* Fiber.join(second), Option.some("row"))
      assert.strictEqual(table.asked, 1)

      table.gate = yield* Deferred.make<void>()
      yield* Fiber.interrupt(yield* fork(get("b")))
      table.gate = undefined
      assert.deepStrictEqual(yield* get("b"), Option.none())
      assert.strictEqual(table.asked, 3)
    })
  )

  it.effect("keeps no more entries than its capacity, and drops the one unused for longest", () =>
    Effect.gen(function* () {
      const { table, get } = yield* fixture({ capacity: 2 })
      for (const schema of ["a", "b", "c"]) table.rows.set(`d/${schema}`, schema)
      for (const schema of ["a", "b", "a", "c"]) yield* get(schema)
      assert.strictEqual(table.asked, 3)
      yield* get("a")
      assert.strictEqual(table.asked, 3)
      yield* get("b")
      assert.strictEqual(table.asked, 4)
    })
  )

  it.effect("tells keys apart whose parts run together to the same text", () =>
    Effect.gen(function* () {
      const { table, cache } = yield* fixture()
      table.rows.set("a/b/c", "row")
      assert.deepStrictEqual(yield* cache.get({ db: "a", schema: "b/c" }), Option.some("row"))
      yield* cache.get({ db: "a/b", schema: "c" })
      assert.strictEqual(table.asked, 2)
    })
  )
})
