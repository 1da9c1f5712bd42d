/**
 * How long a connection stays with one tenant while others wait for it: long enough that switches are few, and never for one who
 * does not come back.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { LONG_QUANTUM, QUANTUM } from "../../src/pool/WaitQueue.ts"
import { answered, type Client, make, type MemoryPerseus } from "../support/memoryPerseus.ts"

const SWITCH_MS = 2
const settings = { PoolSettings: { MaxOpen: 1, MaxIdle: 1 }, LimitSettings: { AcquireTimeoutSecs: 60 } }

/** A switch takes so long, and a query of `queryMillis`. */
const slow = (perseus: MemoryPerseus, queryMillis: number): void =>
  perseus.postgres.delay((sql) => (sql === "DISCARD ALL" ? SWITCH_MS : sql === "SELECT 1" ? queryMillis : 0))

/** Each client asks again as soon as it is answered, for so long: how many answers each had. */
const askFor = (perseus: MemoryPerseus, clients: ReadonlyArray<Client>, millis: number) => {
  for (const client of clients) client.ask("SELECT 1")
  return goOnAsking(perseus, clients, millis)
}

const goOnAsking = Effect.fnUntraced(function* (
  perseus: MemoryPerseus,
  clients: ReadonlyArray<Client>,
  millis: number
) {
  const answers = clients.map(() => 0)
  for (let step = 0; step < millis; step++) {
    yield* perseus.pass(1)
    for (const [index, client] of clients.entries()) {
      if (!client.heard().includes("ready I")) continue
      answers[index]!++
      client.ask("SELECT 1")
    }
  }
  return answers
})

const finish = Effect.fnUntraced(function* (perseus: MemoryPerseus) {
  yield* perseus.pass(1000)
  perseus.whole(1)
})

/** How many transactions each visit had, of those that began to run behind statement `from`. */
const visitsSince = (perseus: MemoryPerseus, from: number): ReadonlyArray<number> => {
  const visits: Array<number> = []
  let last: string | null = null
  for (const { sql, searchPath } of perseus.postgres.log.slice(from)) {
    if (sql !== "SELECT 1") continue
    if (searchPath === last) visits.push((visits.pop() ?? 0) + 1)
    else visits.push(1)
    last = searchPath
  }
  return visits
}

/** How long until the client has its answer; at most 1 s. */
const answerTime = Effect.fnUntraced(function* (perseus: MemoryPerseus, client: Client) {
  for (let millis = 0; millis < 1000; millis++) {
    if (client.heard().includes("ready I")) return millis
    yield* perseus.pass(1)
  }
  return assert.fail("no answer")
})

const twoBusy = Effect.fnUntraced(function* (parameters: Readonly<Record<string, string>> = {}) {
  const perseus = yield* make({ settings })
  const red = yield* perseus.logIn("red")
  const blue = yield* perseus.logIn("blue", parameters)
  slow(perseus, 1)
  // Until a switch is known to take as long as it does.
  yield* askFor(perseus, [red, blue], 200)
  yield* perseus.pass(100)
  for (const client of [red, blue]) client.heard()
  return { perseus, red, blue }
})

describe("a connection that two tenants want", () => {
  it.effect("stays with one that asks again at once, for a long visit, and then is the other's as long", () =>
    Effect.gen(function* () {
      const { perseus, red, blue } = yield* twoBusy()
      const { statistics } = perseus.pool()
      const [switches, leases] = [statistics.tenantSwitches, statistics.leases]
      const from = perseus.postgres.log.length
      const [ofRed, ofBlue] = yield* askFor(perseus, [red, blue], 1000)
      assert.isAtMost(statistics.tenantSwitches - switches, (statistics.leases - leases) / LONG_QUANTUM + 2)
      assert.isAtMost(Math.abs(ofRed! - ofBlue!), LONG_QUANTUM)
      assert.isAbove(ofRed!, 400)
      assert.strictEqual(Math.max(...visitsSince(perseus, from)), LONG_QUANTUM)
      yield* finish(perseus)
    })
  )

  it.effect("has visits of QUANTUM where transactions take so long that a switch is nothing beside them", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const clients = yield* Effect.forEach(["red", "red", "red", "blue", "blue", "blue"], (name) =>
        perseus.logIn(name)
      )
      slow(perseus, 100)
      const from = perseus.postgres.log.length
      yield* askFor(perseus, clients, 5000)
      assert.strictEqual(Math.max(...visitsSince(perseus, from)), QUANTUM)
      yield* finish(perseus)
    })
  )

  it.effect("is soon one's again that was idle on it for a minute, when another had just taken it", () =>
    Effect.gen(function* () {
      const { perseus, red, blue } = yield* twoBusy()
      const others = [blue, ...(yield* Effect.forEach(Array(5).fill("blue"), (name: string) => perseus.logIn(name)))]
      for (let offset = 0; offset < 10; offset++) {
        red.ask("SELECT 1")
        yield* perseus.pass(60_000)
        assert.deepStrictEqual(red.heard(), answered)
        for (const other of others) other.ask("SELECT 1")
        yield* goOnAsking(perseus, others, SWITCH_MS + 1 + offset)
        const from = perseus.postgres.log.length
        red.ask("SELECT 1")
        yield* goOnAsking(perseus, others, 100)
        const ran = perseus.postgres.log.slice(from).filter(({ sql }) => sql === "SELECT 1")
        const before = ran.findIndex(({ searchPath }) => searchPath === "red")
        assert.isTrue(before >= 0 && before <= QUANTUM, `${before} at offset ${offset}`)
        assert.deepStrictEqual(red.heard(), answered)
        yield* perseus.pass(500)
        for (const other of others) other.heard()
      }
      yield* finish(perseus)
    })
  )

  it.effect("is a quiet one's after QUANTUM of the other's, where it had no visit for a round", () =>
    Effect.gen(function* () {
      const { perseus, red, blue } = yield* twoBusy()
      const others = [red, ...(yield* Effect.forEach(Array(5).fill("red"), (name: string) => perseus.logIn(name)))]
      for (const other of others) other.ask("SELECT 1")
      for (let offset = 0; offset < LONG_QUANTUM; offset++) {
        yield* goOnAsking(perseus, others, 3 * QUANTUM + offset)
        const from = perseus.postgres.log.length
        blue.ask("SELECT 1")
        yield* goOnAsking(perseus, others, LONG_QUANTUM)
        const ran = perseus.postgres.log.slice(from).filter(({ sql }) => sql === "SELECT 1")
        const before = ran.findIndex(({ searchPath }) => searchPath === "blue")
        assert.isTrue(before >= 0 && before <= QUANTUM, `at offset ${offset}`)
        assert.deepStrictEqual(blue.heard(), answered)
      }
      yield* finish(perseus)
    })
  )
})

describe("a connection that is kept for its tenant", () => {
  it.effect("is the other's when the tenant stays away for longer than two switches take", () =>
    Effect.gen(function* () {
      const { perseus, red, blue } = yield* twoBusy()
      red.ask("SELECT 1")
      blue.ask("SELECT 1")
      yield* perseus.pass(1)
      if (!red.heard().includes("ready I")) assert.fail("red was not first")
      // Kept for red, which does not come; a switch and a query more, and nothing else happens meanwhile.
      assert.isAtMost(yield* answerTime(perseus, blue), 2 * SWITCH_MS + 1 + SWITCH_MS + 1)
      yield* finish(perseus)
    })
  )

  it.effect("is not kept where a switch is due in any case, for its client has changed settings", () =>
    Effect.gen(function* () {
      const { perseus, red, blue } = yield* twoBusy()
      red.ask("SET statement_timeout = 60000")
      blue.ask("SELECT 1")
      yield* perseus.settle
      assert.include(red.heard(), "ready I")
      assert.isAtMost(yield* answerTime(perseus, blue), SWITCH_MS + 1)
      yield* finish(perseus)
    })
  )

  it.effect("is not kept for long for one whose clients do not come back", () =>
    Effect.gen(function* () {
      const { perseus, red, blue } = yield* twoBusy()
      const times: Array<number> = []
      for (let round = 0; round < 6; round++) {
        red.ask("SELECT 1")
        yield* answerTime(perseus, red)
        yield* perseus.pass(50)
        red.ask("SELECT 1")
        blue.ask("SELECT 1")
        yield* perseus.pass(1)
        times.push(yield* answerTime(perseus, blue))
        yield* perseus.pass(50)
        red.heard()
      }
      assert.isAbove(times[0]!, SWITCH_MS + 2)
      assert.isAtMost(times.at(-1)!, SWITCH_MS + 1)
      yield* finish(perseus)
    })
  )

  it.effect("is its client's also where settings have to be set first", () =>
    Effect.gen(function* () {
      const { perseus, red, blue } = yield* twoBusy()
      const tokyo = yield* perseus.logIn("red", { TimeZone: "Asia/Tokyo" })
      yield* perseus.pass(100)
      red.ask("SELECT 1")
      blue.ask("SELECT 1")
      yield* perseus.pass(1)
      assert.deepStrictEqual(red.heard(), answered)
      const switches = perseus.pool().statistics.tenantSwitches
      tokyo.ask("SELECT 1")
      yield* perseus.pass(1)
      assert.deepStrictEqual(tokyo.heard(), answered)
      assert.strictEqual(perseus.pool().statistics.tenantSwitches, switches)
      yield* answerTime(perseus, blue)
      yield* finish(perseus)
    })
  )

  it.effect("is not closed for being one more than MaxIdle, and no other for its sake", () =>
    Effect.gen(function* () {
      const names = ["red", "blue", "green", "brown", "white", "black"]
      const perseus = yield* make({
        settings: { PoolSettings: { MaxOpen: 4, MaxIdle: 1 }, LimitSettings: { AcquireTimeoutSecs: 60 } },
        tenants: Object.fromEntries(names.map((name) => [name, {}]))
      })
      const clients = yield* Effect.forEach([...names, ...names], (name) => perseus.logIn(name))
      slow(perseus, 1)
      yield* askFor(perseus, clients, 300)
      const { opened } = perseus.pool().statistics
      let answers = 0
      const due = new Map<Client, number>()
      for (let step = 0; step < 1000; step++) {
        yield* perseus.pass(1)
        for (const client of clients) {
          // Every fifth time it thinks for a while.
          if (client.heard().includes("ready I")) due.set(client, ++answers % 5 === 0 ? step + (answers % 15) : step)
          if ((due.get(client) ?? Number.POSITIVE_INFINITY) > step) continue
          due.delete(client)
          client.ask("SELECT 1")
        }
      }
      assert.strictEqual(perseus.pool().statistics.opened, opened)
      yield* finish(perseus)
    })
  )

  it.effect("is not closed for another user's client who came later than those who wait for it", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings, tenants: { red: {}, blue: {}, green: { destUser: "other" } } })
      const [red, blue] = [yield* perseus.logIn("red"), yield* perseus.logIn("blue")]
      const green = yield* perseus.logIn("green")
      slow(perseus, 1)
      yield* askFor(perseus, [red, blue], 300)
      yield* perseus.pass(300)
      for (const client of [red, blue]) client.heard()
      const { statistics } = perseus.pool()
      const { opened } = statistics
      red.ask("SELECT 1")
      blue.ask("SELECT 1")
      yield* answerTime(perseus, red)
      assert.deepStrictEqual(blue.heard(), [])
      green.ask("SELECT 1")
      yield* answerTime(perseus, blue)
      yield* answerTime(perseus, green)
      assert.strictEqual(statistics.opened - opened, 1)
      yield* finish(perseus)
    })
  )

  it.effect("harms nobody when it is lost, or its tenant leaves", () =>
    Effect.gen(function* () {
      for (const end of ["lost", "left"] as const) {
        const { perseus, red, blue } = yield* twoBusy()
        red.ask("SELECT 1")
        blue.ask("SELECT 1")
        yield* perseus.pass(1)
        if (end === "lost") perseus.postgres.killAll("clean")
        else red.memory.vanish()
        assert.isAtMost(yield* answerTime(perseus, blue), 20)
        yield* finish(perseus)
      }
    })
  )
})
