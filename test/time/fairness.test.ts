/**
 * Whose turn it is: a noisy tenant cannot starve a quiet one, and neither can another user's.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { QUANTUM } from "../../src/pool/WaitQueue.ts"
import { answered, type Client, make, type MemoryPerseus } from "../support/memoryPerseus.ts"

const oneConnection = { PoolSettings: { MaxOpen: 1, MaxIdle: 1 }, LimitSettings: { AcquireTimeoutSecs: 60 } }
const QUERY_MS = 10

const logInMany = (perseus: MemoryPerseus, schema: string, count: number) =>
  Effect.forEach(
    Array.from({ length: count }, () => schema),
    (name) => perseus.logIn(name)
  )

/** Each client asks again as soon as it is answered, for so long. */
const askFor = Effect.fnUntraced(function* (perseus: MemoryPerseus, clients: ReadonlyArray<Client>, millis: number) {
  for (const client of clients) client.ask("SELECT 1")
  for (let step = 0; step < millis / QUERY_MS; step++) {
    yield* perseus.pass(QUERY_MS)
    for (const client of clients) {
      const lines = client.heard()
      assert.notInclude(lines, "ERROR 53300")
      if (lines.includes("ready I")) client.ask("SELECT 1")
    }
  }
})

/** How many transactions of each schema ran since statement `from`, up to the first one of `until`. */
const ranBefore = (perseus: MemoryPerseus, from: number, until: string): ReadonlyMap<string, number> => {
  const counts = new Map<string, number>()
  for (const { sql, searchPath } of perseus.postgres.log.slice(from)) {
    if (sql !== "SELECT 1") continue
    if (searchPath === until) return counts
    counts.set(searchPath, (counts.get(searchPath) ?? 0) + 1)
  }
  return counts
}

describe("a quiet tenant over one connection", () => {
  it.effect(
    "waits for no more than QUANTUM transactions of each other tenant, however many of their clients wait",
    () =>
      Effect.gen(function* () {
        const perseus = yield* make({ settings: oneConnection, tenants: { red: {}, blue: {}, green: {} } })
        const [quiet] = yield* logInMany(perseus, "blue", 1)
        const others = [...(yield* logInMany(perseus, "green", 10)), ...(yield* logInMany(perseus, "red", 50))]
        perseus.postgres.delay(() => QUERY_MS)
        for (let turn = 0; turn < 8; turn++) {
          // Away for a round, and back at every moment of the others' visits.
          yield* askFor(perseus, others, 6 * QUANTUM * QUERY_MS)
          yield* perseus.pass(7 * turn)
          for (const client of others) if (client.heard().includes("ready I")) client.ask("SELECT 1")
          const from = perseus.postgres.log.length
          quiet!.ask("SELECT 1")
          while (!quiet!.heard().includes("ready I")) yield* perseus.pass(QUERY_MS)
          for (const [tenant, count] of ranBefore(perseus, from, "blue")) {
            assert.isAtMost(count, QUANTUM, `${tenant} had more than its visit`)
          }
          // All of them answered.
          yield* perseus.pass(others.length * 4 * QUERY_MS)
          for (const client of others) client.heard()
        }
      })
  )

  it.effect(
    "waits no longer where each of the other tenant's transactions leaves settings that have to be undone",
    () =>
      Effect.gen(function* () {
        const perseus = yield* make({ settings: oneConnection })
        const [quiet] = yield* logInMany(perseus, "blue", 1)
        const others = yield* logInMany(perseus, "red", 20)
        const leavesItsMark = "SET statement_timeout = 60000"
        perseus.postgres.delay((sql) => (sql === leavesItsMark ? QUERY_MS : 0))
        for (const client of others) client.ask(leavesItsMark)
        yield* perseus.pass(QUERY_MS)
        const from = perseus.postgres.log.length
        quiet!.ask("SELECT 1")
        for (let step = 0; step < 30 && !quiet!.heard().includes("ready I"); step++) {
          yield* perseus.pass(QUERY_MS)
          for (const client of others) if (client.heard().includes("ready I")) client.ask(leavesItsMark)
        }
        const since = perseus.postgres.log.slice(from)
        const served = since.findIndex(({ sql }) => sql === "SELECT 1")
        assert.notStrictEqual(served, -1, "the quiet tenant starved")
        assert.isAtMost(since.slice(0, served).filter(({ sql }) => sql === leavesItsMark).length, QUANTUM)
      })
  )

  it.effect("loses nobody: in the end all are answered once", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: oneConnection })
      const clients = [...(yield* logInMany(perseus, "red", 50)), ...(yield* logInMany(perseus, "blue", 3))]
      perseus.postgres.delay(() => QUERY_MS)
      for (const client of clients) client.ask("SELECT 1")
      yield* perseus.pass(2000)
      for (const client of clients) assert.deepStrictEqual(client.heard(), answered)
      perseus.whole(1)
    })
  )

  it.effect("shares the connection evenly with one that is as busy", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: oneConnection })
      const clients = [...(yield* logInMany(perseus, "red", 20)), ...(yield* logInMany(perseus, "blue", 20))]
      perseus.postgres.delay((sql) => (sql === "SELECT 1" ? QUERY_MS : 0))
      const from = perseus.postgres.log.length
      yield* askFor(perseus, clients, 3000)
      const ran = ranBefore(perseus, from, "nobody")
      assert.isBelow(Math.abs((ran.get("red") ?? 0) - (ran.get("blue") ?? 0)), 2 * QUANTUM)
    })
  )

  it.effect("has its visits in a row: the connection is switched once for each", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: oneConnection })
      const clients = [...(yield* logInMany(perseus, "red", 40)), ...(yield* logInMany(perseus, "blue", 40))]
      const { statistics } = perseus.pool()
      const before = statistics.tenantSwitches
      perseus.postgres.delay(() => QUERY_MS)
      for (const client of clients) client.ask("SELECT 1")
      yield* perseus.pass(3000)
      assert.isAtMost(statistics.tenantSwitches - before, 80 / QUANTUM + 1)
      perseus.whole(1)
    })
  )
})

describe("two users over one connection", () => {
  it.effect("both make progress, and nobody waits for long", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: oneConnection, tenants: { red: {}, blue: { destUser: "other" } } })
      const [red] = yield* logInMany(perseus, "red", 1)
      yield* perseus.pass(100)
      const blue = perseus.beginLogin("blue")
      yield* perseus.pass(1000)
      assert.strictEqual(blue.heard().at(-1), "ready I")
      const clients = [red!, ...(yield* logInMany(perseus, "red", 9)), blue, ...(yield* logInMany(perseus, "blue", 9))]
      perseus.postgres.delay((sql) => (sql === "SELECT 1" ? QUERY_MS : 0))
      const from = perseus.postgres.log.length
      yield* askFor(perseus, clients, 5000)
      const ran = ranBefore(perseus, from, "nobody")
      // 500 transactions fit into the time; each user has a fair part of them.
      assert.isAbove(ran.get("red") ?? 0, 150)
      assert.isAbove(ran.get("blue") ?? 0, 150)
      assert.strictEqual(perseus.postgres.peakSessions(), 1)
    })
  )

  it.effect("of which one holds the connection idle: it is closed for the other's sake", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: oneConnection, tenants: { red: {}, blue: { destUser: "other" } } })
      const [red] = yield* logInMany(perseus, "red", 1)
      yield* perseus.pass(1000)
      const blue = yield* perseus.logIn("blue")
      for (let round = 0; round < 5; round++) {
        yield* perseus.pass(1000)
        red!.ask("SELECT 1")
        yield* perseus.settle
        assert.deepStrictEqual(red!.heard(), answered)
        yield* perseus.pass(1000)
        blue.ask("SELECT 1")
        yield* perseus.settle
        assert.deepStrictEqual(blue.heard(), answered)
      }
      perseus.whole(1)
    })
  )
})
