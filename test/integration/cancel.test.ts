import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Net from "node:net"
import { delay, faultyServer, pass, sqlOf, type Fault } from "../support/faultyServer.ts"
import { eventually, startPerseus, whole, type TestPerseus } from "../support/perseus.ts"
import { connection } from "../support/postgres.ts"
import {
  bind,
  cancelRequest,
  execute,
  parse,
  query,
  rowsOf,
  sqlStatesOf,
  sync,
  typesOf,
  type CancelKey
} from "../support/rawClient.ts"

const one = { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } }

/** As libpq does it: a connection of its own, closed by the other side without a word. */
const cancel = (perseus: TestPerseus, key: CancelKey) =>
  Effect.scoped(
    Effect.gen(function* () {
      const client = yield* perseus.raw
      client.send(cancelRequest(key))
      assert.deepStrictEqual(yield* client.closed(), [])
    })
  )

/** How the other side leaves the connection of a cancel request: all that a stranger gets to see. */
const farewell = ({ host, port }: TestPerseus, key: CancelKey) =>
  Effect.callback<string>((resume) => {
    let words = ""
    const socket = Net.connect({ host, port }, () => socket.write(cancelRequest(key)))
    const say = (how: string) => resume(Effect.succeed(`${how} after ${JSON.stringify(words)}`))
    socket.on("data", (chunk) => (words += chunk.toString()))
    socket.on("end", () => say("closed in order"))
    socket.on("error", () => say("cut"))
  })

const runs = (perseus: TestPerseus, what: string) =>
  eventually(perseus.backends, (backends) =>
    backends.some(({ query, state }) => state === "active" && query.includes(what))
  )

const behindFaultyServer = Effect.gen(function* () {
  const server = yield* faultyServer(connection())
  const perseus = yield* startPerseus({ tenants: ["red", "green"], through: server, config: one })
  return { server, perseus }
})

const CANCEL_REQUEST_CODE = 80877102

const delayedCancels = (until: Promise<void>): Fault => ({
  fromFrontend: ({ type, body }) => (type === "" && body.readUInt32BE(0) === CANCEL_REQUEST_CODE ? delay(until) : pass)
})

describe("a cancel request", () => {
  it.live("ends the query that its session runs, and the session goes on", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: one })
      const client = yield* perseus.login("red")
      client.send(query("SELECT pg_sleep(600)"))
      yield* runs(perseus, "pg_sleep")
      yield* cancel(perseus, client.key)
      assert.deepStrictEqual(sqlStatesOf(yield* client.ready()), ["57014"])
      assert.deepStrictEqual(rowsOf(yield* client.query("SELECT 1")), ["1"])
      const extended = Buffer.concat([parse("", "SELECT pg_sleep(601)"), bind("", ""), execute(), sync])
      client.send(extended)
      yield* runs(perseus, "pg_sleep(601)")
      yield* cancel(perseus, client.key)
      assert.deepStrictEqual(sqlStatesOf(yield* client.ready()), ["57014"])
      assert.strictEqual((yield* whole(perseus)).statistics.opened, 1)
    })
  )

  it.live("answers a query that waits at once, and it is never sent", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: one })
      const holder = yield* perseus.login("red")
      const waiter = yield* perseus.login("red")
      yield* holder.query("CREATE TABLE t (id int)")
      yield* holder.query("BEGIN")
      waiter.send(query("INSERT INTO t VALUES (1)"))
      yield* eventually(Effect.sync(perseus.pool), ({ waiting }) => waiting === 1)
      yield* cancel(perseus, waiter.key)
      const answers = yield* waiter.ready()
      assert.strictEqual(typesOf(answers), "EZ")
      assert.deepStrictEqual(sqlStatesOf(answers), ["57014"])
      waiter.send(parse("", "INSERT INTO t VALUES (2)"), bind("", ""), execute(), sync)
      yield* eventually(Effect.sync(perseus.pool), ({ waiting }) => waiting === 1)
      yield* cancel(perseus, waiter.key)
      assert.strictEqual(typesOf(yield* waiter.ready()), "EZ")
      yield* holder.query("COMMIT")
      assert.deepStrictEqual(rowsOf(yield* waiter.query("SELECT count(*) FROM t")), ["0"])
      assert.strictEqual((yield* whole(perseus)).statistics.cancelsForwarded, 0)
    })
  )

  it.live("is carried out though the pool is full of queries that are to be cancelled, and then serves who waits", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 5, MaxIdle: 5 } } })
      const clients = yield* Effect.forEach([1, 2, 3, 4, 5], () => perseus.login("red"))
      const waits = yield* perseus.login("red")
      for (const client of clients) client.send(query("SELECT pg_sleep(600)"))
      yield* eventually(
        perseus.backends,
        (backends) =>
          backends.filter(({ query, state }) => state === "active" && query.includes("pg_sleep")).length === 5
      )
      waits.send(query("SELECT 'served'"))
      yield* eventually(Effect.sync(perseus.pool), ({ waiting }) => waiting === 1)
      yield* Effect.forEach(clients, ({ key }) => cancel(perseus, key), { concurrency: "unbounded" })
      for (const client of clients) assert.deepStrictEqual(sqlStatesOf(yield* client.ready()), ["57014"])
      assert.deepStrictEqual(rowsOf(yield* waits.ready()), ["served"])
      yield* whole(perseus)
    })
  )

  it.live("with any key but the session's own has no effect and no answer", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: ["red", "green"],
        config: { PoolSettings: { MaxOpen: 2, MaxIdle: 2 } }
      })
      const finished = yield* Effect.scoped(Effect.map(perseus.login("red"), ({ key }) => key))
      const [red, green, idle] = [
        yield* perseus.login("red"),
        yield* perseus.login("green"),
        yield* perseus.login("red")
      ]
      red.send(query("SELECT pg_sleep(600), 'red'"))
      green.send(query("SELECT pg_sleep(600), 'green'"))
      yield* runs(perseus, "'red'")
      yield* runs(perseus, "'green'")
      const backends = yield* perseus.backends
      const { processId, secretKey } = red.key
      const flipped = (at: number) => Buffer.from(secretKey.map((byte, index) => (index === at ? byte ^ 1 : byte)))
      const guesses: ReadonlyArray<readonly [what: string, key: CancelKey]> = [
        ...[0, 1, 2, 3].map((at) => [`a bit of byte ${at} is wrong`, { processId, secretKey: flipped(at) }] as const),
        ["another session's process id", { processId: green.key.processId, secretKey }],
        ["another session's secret", { processId, secretKey: green.key.secretKey }],
        ["that of a session that is over", finished],
        ["its process id, and the secret of one that is over", { processId, secretKey: finished.secretKey }],
        ["the next process id", { processId: idle.key.processId + 1, secretKey }],
        ["a process id of none", { processId: 0, secretKey: Buffer.alloc(4) }],
        ["a negative process id", { processId: processId | 0x80000000, secretKey }],
        ["one of another process", { processId: processId | 0x01000000, secretKey }],
        ["a secret of nothing but zeros", { processId, secretKey: Buffer.alloc(4) }],
        ["5 bytes that begin like it", { processId, secretKey: Buffer.concat([secretKey, Buffer.of(0)]) }],
        ["256 bytes that begin like it", { processId, secretKey: Buffer.concat([secretKey, Buffer.alloc(252)]) }],
        ...backends.map(({ pid }) => [`a backend's own process id`, { processId: pid, secretKey }] as const)
      ]
      for (const [index, [what, key]] of guesses.entries()) {
        assert.strictEqual(yield* farewell(perseus, key), 'closed in order after ""', what)
        assert.strictEqual(perseus.service.live.cancelsWithoutEffect, index + 1, what)
      }
      assert.strictEqual(perseus.pool().statistics.cancelsForwarded, 0)
      assert.deepStrictEqual(
        (yield* perseus.backends).map(({ pid, state }) => [pid, state]),
        backends.map(({ pid }) => [pid, "active"])
      )

      // The right ones look the same from without.
      assert.strictEqual(yield* farewell(perseus, idle.key), 'closed in order after ""')
      assert.strictEqual(yield* farewell(perseus, red.key), 'closed in order after ""')
      assert.strictEqual(yield* farewell(perseus, green.key), 'closed in order after ""')
      assert.deepStrictEqual(sqlStatesOf(yield* red.ready()), ["57014"])
      assert.deepStrictEqual(sqlStatesOf(yield* green.ready()), ["57014"])
      assert.strictEqual(perseus.pool().statistics.cancelsForwarded, 2)
      assert.strictEqual(perseus.service.live.cancelsWithoutEffect, guesses.length)
    })
  )

  it.live("with a secret of a length that none has has no effect and no answer", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: one })
      const client = yield* perseus.login("red")
      client.send(query("SELECT pg_sleep(600)"))
      yield* runs(perseus, "pg_sleep")
      const { processId, secretKey } = client.key
      for (const length of [0, 3, 257, 9000]) {
        const begun = Buffer.concat([secretKey, Buffer.alloc(length)]).subarray(0, length)
        const right = yield* farewell(perseus, { processId, secretKey: begun })
        const wrong = yield* farewell(perseus, { processId: processId + 1, secretKey: Buffer.alloc(length, 1) })
        assert.strictEqual(right, wrong, `${length} bytes`)
      }
      assert.strictEqual(perseus.pool().statistics.cancelsForwarded, 0)
      assert.strictEqual((yield* perseus.backends)[0]?.state, "active")
    })
  )

  it.live("with the key of a session that is over has no effect on the connection's next", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: one })
      const key = yield* Effect.scoped(Effect.map(perseus.login("red"), (client) => client.key))
      const next = yield* perseus.login("red")
      next.send(query("SELECT pg_sleep(0.5), 'done'"))
      yield* runs(perseus, "pg_sleep")
      yield* eventually(
        Effect.andThen(
          cancel(perseus, key),
          Effect.sync(() => perseus.service.live.cancelsWithoutEffect)
        ),
        (count) => count > 0
      )
      assert.deepStrictEqual(rowsOf(yield* next.ready()), ["|done"])
    })
  )

  it.live("that reaches the server late hits nobody: the connection is lent to no one before it has ended", () =>
    Effect.gen(function* () {
      const { server, perseus } = yield* behindFaultyServer
      const [red, green] = [yield* perseus.login("red"), yield* perseus.login("green")]
      let letGo = () => {}
      yield* server.inject(delayedCancels(new Promise((resolve) => (letGo = resolve))))
      red.send(query("SELECT pg_sleep(0.3), 'red'"))
      yield* runs(perseus, "'red'")
      // Its own end comes with the server's: until then another query of that session could be hit.
      const canceller = yield* Effect.forkChild(cancel(perseus, red.key), { startImmediately: true })
      yield* eventually(Effect.sync(perseus.pool), ({ statistics }) => statistics.cancelsForwarded === 1)
      assert.deepStrictEqual(rowsOf(yield* red.ready()), ["|red"])
      green.send(query("SELECT pg_sleep(0.1), 'green'"))
      yield* eventually(Effect.sync(perseus.pool), ({ waiting }) => waiting === 1)
      assert.isUndefined(canceller.pollUnsafe())
      letGo()
      assert.deepStrictEqual(rowsOf(yield* green.ready()), ["|green"])
      yield* Fiber.join(canceller)
      assert.strictEqual((yield* whole(perseus)).statistics.opened, 1)
    })
  )

  it.live("in the midst of the tenant switch before its query answers that at once, and never reaches the switch", () =>
    Effect.gen(function* () {
      const { server, perseus } = yield* behindFaultyServer
      const [red, green] = [yield* perseus.login("red"), yield* perseus.login("green")]
      yield* red.query("SELECT 1")
      let letGo = () => {}
      const until = new Promise<void>((resolve) => (letGo = resolve))
      let switching = false
      yield* server.inject({
        fromFrontend: (sent) => {
          if (switching || sqlOf(sent) !== "DISCARD ALL") return pass
          switching = true
          return delay(until)
        }
      })
      green.send(query("SELECT 'green'"))
      yield* eventually(
        Effect.sync(() => switching),
        (begun) => begun
      )
      yield* cancel(perseus, green.key)
      assert.deepStrictEqual(sqlStatesOf(yield* green.ready()), ["57014"])
      letGo()
      assert.deepStrictEqual(rowsOf(yield* green.query("SELECT 'green again'")), ["green again"])
      const { cancelsForwarded, opened } = (yield* whole(perseus)).statistics
      assert.deepStrictEqual([cancelsForwarded, opened], [0, 1])
    })
  )

  it.live(
    "at any moment hits its own session's query or nothing, a thousand times",
    () =>
      Effect.gen(function* () {
        const perseus = yield* startPerseus({
          tenants: ["red", "green"],
          config: { PoolSettings: { MaxOpen: 2, MaxIdle: 2 } }
        })
        // The bystanders share the connections with those that are cancelled. They must never see a 57014.
        const victims = { left: 8 }
        const bystander = Effect.fnUntraced(function* (schema: string) {
          const client = yield* perseus.login(schema)
          let queries = 0
          while (victims.left > 0) {
            const answers = yield* client.query("SELECT pg_sleep(0.001), current_schema()")
            assert.deepStrictEqual(sqlStatesOf(answers), [])
            assert.deepStrictEqual(rowsOf(answers), [`|${schema}`])
            queries++
          }
          return queries
        })
        const victim = Effect.fnUntraced(function* (schema: string, index: number) {
          const client = yield* perseus.login(schema)
          for (let round = 0; round < 125; round++) {
            client.send(query(`SELECT pg_sleep(0.00${(round + index) % 4}), ${round}`))
            // From before the query can have arrived to after it can have ended.
            for (let turns = (round * 7) % 40; turns > 0; turns--) yield* Effect.yieldNow
            yield* cancel(perseus, client.key)
            const answers = yield* client.ready()
            const states = sqlStatesOf(answers)
            if (states.length > 0) assert.deepStrictEqual(states, ["57014"])
            else assert.deepStrictEqual(rowsOf(answers), [`|${round}`])
          }
        })
        const bystanders = Effect.all([bystander("red"), bystander("green")], { concurrency: "unbounded" })
        const cancelled = Effect.forEach(
          Array.from({ length: victims.left }, (_, index) => index),
          (index) =>
            victim(index % 2 === 0 ? "red" : "green", index).pipe(Effect.ensuring(Effect.sync(() => victims.left--))),
          { concurrency: "unbounded", discard: true }
        )
        const [queries] = yield* Effect.all([bystanders, cancelled], { concurrency: "unbounded" })
        for (const count of queries) assert.isAbove(count, 10)
        assert.isAtMost((yield* whole(perseus)).open, 2)
      }),
    60_000
  )
})
