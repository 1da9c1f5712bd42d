import { assert, describe, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { Hold } from "../../src/pool/Inspection.ts"
import { eventually, SharedPerseus, startPerseus, type TestPerseus } from "../support/perseus.ts"
import {
  bind,
  execute,
  fieldsOf,
  parse,
  query,
  rowsOf,
  sqlStatesOf,
  sync,
  typesOf,
  type RawClient
} from "../support/rawClient.ts"

const four = { PoolSettings: { MaxOpen: 4, MaxIdle: 4 } }

const pid = (client: RawClient) => Effect.map(client.query("SELECT pg_backend_pid()"), (answers) => rowsOf(answers)[0])
const pinned = (perseus: TestPerseus) => Effect.sync(() => perseus.pool().pinned)

interface Case {
  readonly what: Hold
  readonly make: string
  /** Shows that it is there. */
  readonly use: string
  readonly undo: string
}

const cases: ReadonlyArray<Case> = [
  { what: "LISTEN", make: "LISTEN news", use: "SELECT * FROM pg_listening_channels()", undo: "UNLISTEN news" },
  {
    what: "cursor WITH HOLD",
    make: "DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 9)",
    use: "FETCH 1 FROM c",
    undo: "CLOSE c"
  },
  { what: "PREPARE", make: "PREPARE p AS SELECT 'prepared'", use: "EXECUTE p", undo: "DEALLOCATE p" },
  { what: "temporary object", make: "CREATE TEMP TABLE t AS SELECT 1", use: "SELECT * FROM t", undo: "DROP TABLE t" },
  {
    what: "temporary object",
    make: "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    use: "SELECT pg_temp.f()",
    undo: "DROP FUNCTION pg_temp.f()"
  },
  {
    what: "advisory lock",
    make: "SELECT pg_advisory_lock(7)",
    use: "SELECT objid FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    undo: "SELECT pg_advisory_unlock(7)"
  }
]

layer(SharedPerseus.with({ tenants: ["red"], config: four }), { excludeTestServices: true })(
  "a client's connection stays with it",
  (it) => {
    for (const { what, make, use, undo } of cases) {
      it.effect(`while it has a ${what}, and no longer: ${make}`, () =>
        Effect.gen(function* () {
          const perseus = yield* SharedPerseus
          const counted = () => perseus.service.live.counters.pinnedBy.get(what) ?? 0
          const before = counted()
          const client = yield* perseus.login("red")
          const others = yield* Effect.forEach([1, 2, 3], () => perseus.login("red"))
          yield* client.query(make)
          yield* eventually(pinned(perseus), (count) => count === 1)
          const mine = yield* pid(client)
          for (let round = 0; round < 2; round++) {
            const theirs = yield* Effect.forEach(others, pid, { concurrency: "unbounded" })
            assert.notInclude(theirs, mine)
            assert.strictEqual(rowsOf(yield* client.query(use)).length, 1)
          }
          assert.isTrue(perseus.log.some((line) => line.includes(`pinned to its client: ${what}`)))
          assert.strictEqual(counted(), before + 1)
          yield* client.query(undo)
          yield* eventually(Effect.sync(perseus.pool), (pool) => pool.pinned === 0 && pool.idle === pool.open)
        })
      )
    }

    it.effect("until it leaves, and then nothing of it is left for the next", () =>
      Effect.gen(function* () {
        const perseus = yield* startPerseus({ tenants: ["red"], config: four })
        const client = yield* perseus.login("red")
        for (const { make } of cases) yield* client.query(make)
        const mine = yield* pid(client)
        client.vanish()
        yield* eventually(Effect.sync(perseus.pool), (pool) => pool.pinned === 0 && pool.idle === pool.open)
        const left = yield* perseus.destination.query(
          "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = $1",
          [mine]
        )
        assert.deepStrictEqual(left, [])
        const next = yield* perseus.login("red")
        assert.strictEqual(yield* pid(next), mine)
        const rest =
          "SELECT (SELECT count(*) FROM pg_listening_channels()), (SELECT count(*) FROM pg_cursors), (SELECT count(*) FROM pg_prepared_statements)"
        assert.deepStrictEqual(rowsOf(yield* next.query(rest)), ["0|0|0"])
      })
    )

    it.effect("and hears what is notified between its transactions", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const listener = yield* perseus.login("red")
        const speaker = yield* perseus.login("red")
        yield* listener.query("LISTEN news")
        yield* speaker.query("NOTIFY news, 'hello'")
        const heard = yield* listener.take(({ type }) => type === "A")
        assert.include(heard.at(-1)!.body.toString(), "news\0hello\0")
      })
    )

    it.effect("with its path and settings, also behind RESET ALL and DISCARD", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const client = yield* perseus.login("red", { TimeZone: "Asia/Tokyo" })
        yield* client.query("LISTEN news")
        yield* client.query("SET work_mem = '9MB'")
        yield* client.query("RESET ALL")
        const state = "SELECT current_setting('search_path'), current_setting('TimeZone'), current_setting('work_mem')"
        assert.deepStrictEqual(rowsOf(yield* client.query(state)), ["red|Asia/Tokyo|4MB"])
        assert.strictEqual(yield* pinned(perseus), 1)
      })
    )

    it.effect("and is told so by a NOTICE where PinningNotice is set", () =>
      Effect.gen(function* () {
        const perseus = yield* startPerseus({
          tenants: ["red"],
          config: { PoolSettings: { ...four.PoolSettings, PinningNotice: true } }
        })
        const client = yield* perseus.login("red")
        client.send(query("LISTEN news"))
        const heard = yield* client.take(({ type }) => type === "N")
        assert.include(fieldsOf(heard.at(-1)!)["M"], "LISTEN")
      })
    )
  }
)

describe("MaxPinned", () => {
  it.live("is half of MaxOpen by default; the client beyond it is told and ended, and others go on", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: four })
      const clients = yield* Effect.forEach([1, 2, 3], () => perseus.login("red"))
      yield* clients[0]!.query("LISTEN a")
      yield* clients[1]!.query("LISTEN b")
      yield* eventually(pinned(perseus), (count) => count === 2)
      clients[2]!.send(query("LISTEN c"))
      const answers = yield* clients[2]!.closed()
      assert.deepStrictEqual(sqlStatesOf(answers), ["53300"])
      assert.strictEqual(typesOf(answers), "CZE")
      assert.deepStrictEqual(yield* perseus.query("red", "SELECT 1 AS one"), [{ one: 1 }])
      assert.deepStrictEqual(rowsOf(yield* clients[0]!.query("SELECT 'still'")), ["still"])
    })
  )

  it.live("leaves nothing to the next of what the client beyond it had", () =>
    Effect.gen(function* () {
      const config = { PoolSettings: { MaxOpen: 1, MaxIdle: 1, MaxPinned: 0 } }
      const perseus = yield* startPerseus({ tenants: ["red"], config })
      const next = yield* perseus.login("red")
      const held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
      for (const sql of ["SELECT pg_advisory_lock(1)", "CREATE TEMP TABLE mine (id int)"]) {
        const client = yield* perseus.login("red")
        client.send(query(sql))
        assert.deepStrictEqual(sqlStatesOf(yield* client.closed()), ["53300"])
        assert.deepStrictEqual(rowsOf(yield* next.query(held)), ["0"])
        assert.deepStrictEqual(sqlStatesOf(yield* next.query("SELECT * FROM mine")), ["42P01"])
      }
    })
  )
})

const off = { PoolSettings: { MaxOpen: 2, MaxIdle: 2, Pinning: "off" } }

layer(SharedPerseus.with({ tenants: ["red"], config: off }), { excludeTestServices: true })("Pinning off", (it) => {
  it.effect("refuses what needs a session with 0A000, and says how to go on", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const client = yield* perseus.login("red")
      for (const { make } of cases) {
        const answers = yield* client.query(make)
        assert.deepStrictEqual(sqlStatesOf(answers), ["0A000"], make)
        assert.strictEqual(typesOf(answers), "EZ")
        assert.include(fieldsOf(answers[0]!)["H"], "session")
        client.send(parse("", make), bind("", ""), execute(), sync)
        const extended = yield* client.ready()
        assert.deepStrictEqual([typesOf(extended), sqlStatesOf(extended)], ["EZ", ["0A000"]], make)
      }
      assert.deepStrictEqual(rowsOf(yield* client.query("SELECT 'fine'")), ["fine"])
    })
  )

  it.effect("has the transaction fail that it was part of", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const client = yield* perseus.login("red")
      yield* client.query("BEGIN")
      assert.deepStrictEqual(sqlStatesOf(yield* client.query("LISTEN news")), ["0A000"])
      assert.deepStrictEqual(sqlStatesOf(yield* client.query("SELECT 1")), ["25P02"])
      yield* client.query("ROLLBACK")
      assert.deepStrictEqual(rowsOf(yield* client.query("SELECT 'fine'")), ["fine"])
    })
  )

  it.effect("lets through what ends with its transaction", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const client = yield* perseus.login("red")
      for (const sql of [
        "BEGIN; CREATE TEMP TABLE t (id int) ON COMMIT DROP; COMMIT",
        "SELECT pg_advisory_xact_lock(1)",
        "BEGIN; DECLARE c CURSOR FOR SELECT 1; COMMIT",
        "SELECT 'listen, prepare and hold' AS listen"
      ]) {
        assert.deepStrictEqual(sqlStatesOf(yield* client.query(sql)), [], sql)
      }
    })
  )
})
