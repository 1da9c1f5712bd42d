/**
 * The relay where a client or a server does what few do: farewells behind an answer, statements that grow on their way, names
 * that never end, clients that leave without having read. In the whole service in memory, for what counts is what becomes of
 * the lease.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { errorResponse } from "../../src/protocol/Backend.ts"
import { int32 } from "../../src/protocol/Encoder.ts"
import { Frontend } from "../../src/protocol/Frame.ts"
import { query, runUnnamed, sync, terminate } from "../../src/protocol/Frontend.ts"
import { answered, type Client, make, type MemoryPerseus, OTHER_HOST } from "../support/memoryPerseus.ts"
import { bind, execute, parse } from "../support/rawClient.ts"

const ACQUIRE_MS = 10_000
const settings = {
  PoolSettings: { MaxOpen: 1, MaxIdle: 1 },
  LimitSettings: { AcquireTimeoutSecs: ACQUIRE_MS / 1000 }
}
/** What a client may send while it waits, and is read. */
const HELD_LIMIT = 64 * 1024

const long = query(`SELECT 1 /* ${"x".repeat(HELD_LIMIT)} */`)

const sum = (numbers: ReadonlyArray<number>) => numbers.reduce((total, number) => total + number, 0)

/** The only connection is held by a transaction of `holder`, and another client of the tenant has been greeted. */
const crowded = Effect.fnUntraced(function* () {
  const perseus = yield* make({ settings })
  const waiter = yield* perseus.logIn("red")
  const holder = yield* perseus.logIn("red")
  holder.ask("BEGIN")
  yield* perseus.settle
  holder.heard()
  return { perseus, holder, waiter }
})

const commit = Effect.fnUntraced(function* (perseus: MemoryPerseus, holder: Client) {
  holder.ask("COMMIT")
  yield* perseus.settle
  assert.deepStrictEqual(holder.heard(), ["done COMMIT", "ready I"])
})

/** It is served, by whichever connection. */
const isServed = Effect.fnUntraced(function* (perseus: MemoryPerseus, client: Client) {
  client.ask("SELECT 1")
  yield* perseus.settle
  assert.deepStrictEqual(client.heard(), answered)
})

const answersEndInReady = (bytes: Buffer) => bytes.subarray(-6).equals(Buffer.from("Z\0\0\0\x05I", "latin1"))

describe("a server that says FATAL 57P01 in the same breath as a complete answer", () => {
  const farewell = errorResponse({
    severity: "FATAL",
    sqlState: "57P01",
    message: "terminating connection due to administrator command"
  })

  it.effect("ends no session: the client has its answer and goes on, and nobody is lent the connection again", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      const [going] = perseus.postgres.sessions()
      perseus.server.tamper((bytes) => (answersEndInReady(bytes) ? Buffer.concat([bytes, farewell]) : bytes))
      client.ask("SELECT 1")
      yield* perseus.settle
      perseus.server.tamper((bytes) => bytes)
      assert.deepStrictEqual(client.heard(), answered)
      yield* isServed(perseus, client)
      assert.notStrictEqual(perseus.postgres.log.at(-1)?.connection, going?.processId)
      perseus.whole(1)
    })
  )

  for (const [where, Mode, sql] of [
    ["in session mode", "session", "SELECT 1"],
    ["that has a pinned connection", "transaction", "LISTEN news"]
  ] as const) {
    it.effect(`ends the session of a client ${where}: what it keeps there is lost`, () =>
      Effect.gen(function* () {
        const perseus = yield* make({ settings: { PoolSettings: { MaxOpen: 2, MaxIdle: 1, Mode } } })
        const client = yield* perseus.logIn("red")
        client.ask(sql)
        yield* perseus.settle
        client.heard()
        perseus.server.tamper((bytes) => (answersEndInReady(bytes) ? Buffer.concat([bytes, farewell]) : bytes))
        client.ask("SELECT 1")
        yield* perseus.settle
        perseus.server.breakNewest()
        yield* perseus.settle
        assert.deepStrictEqual(client.heard(), [...answered, "FATAL 57P01", "closed"])
        // A reset would take with it what is under way: this client has not left.
        assert.isNull((yield* client.memory.untilEnded).reason)
      })
    )
  }

  it.effect("serves nobody who waits for the connection: they have another", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      const [going] = perseus.postgres.sessions()
      waiter.ask("SELECT 1")
      yield* perseus.settle
      let said = false
      perseus.server.tamper((bytes) => {
        if (said || !answersEndInReady(bytes)) return bytes
        said = true
        return Buffer.concat([bytes, farewell])
      })
      yield* commit(perseus, holder)
      assert.deepStrictEqual(waiter.heard(), answered)
      assert.notStrictEqual(perseus.postgres.log.at(-1)?.connection, going?.processId)
      assert.strictEqual(perseus.pool().statistics.discarded, 1)
      perseus.whole(1)
    })
  )
})

describe("Binds that each have a long statement prepared anew", () => {
  it.effect("go to the server in writes of 256 KiB, each when it has taken the one before, and all are answered", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      // One more than a connection keeps: used in turn, each is closed there before it is used again.
      const names = Array.from({ length: 201 }, (_, index) => `s${index}`)
      const text = `SELECT 1 /* ${"x".repeat(20_000)} */`
      for (const name of names) {
        client.send(parse(name, `${text} /* ${name} */`), sync)
        yield* perseus.settle
      }
      client.heard()
      perseus.server.hang()
      const binds = Buffer.concat([...names.flatMap((name) => [bind("", name), execute()]), sync])
      const before = perseus.written.length
      client.send(binds)
      yield* perseus.settle
      const most = 256 * 1024 + text.length + 200
      assert.isAtMost(sum(perseus.written.slice(before)), binds.length + most)
      perseus.server.wake()
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), [...names.flatMap(() => ["2", "row 1", "done SELECT 1"]), "ready I"])
      const writes = perseus.written.slice(before)
      assert.isAtMost(Math.max(...writes), most)
      assert.isAbove(sum(writes), names.length * text.length)
      perseus.whole(1)
    })
  )
})

describe("a Bind whose names never end", () => {
  const LENGTH = 1024 * 1024
  const PIECE = 16 * 1024
  const names: Readonly<Record<string, Buffer>> = {
    portal: Buffer.alloc(LENGTH, "x"),
    statement: Buffer.concat([Buffer.of(0), Buffer.alloc(LENGTH - 1, "x")])
  }
  for (const [which, body] of Object.entries(names)) {
    it.effect(`(its ${which}) streams through with no more than 64 KiB of it held, for the server to refuse`, () =>
      Effect.gen(function* () {
        const perseus = yield* make({ settings })
        const client = yield* perseus.logIn("red")
        const before = perseus.written.length
        client.send(Buffer.of(Frontend.bind), int32(LENGTH + 4), body.subarray(0, PIECE))
        for (let sent = PIECE; sent < LENGTH; sent += PIECE) {
          yield* perseus.settle
          const forwarded = sum(perseus.written.slice(before)) - sent
          assert.isAtLeast(forwarded, sent - HELD_LIMIT - PIECE)
          client.send(body.subarray(sent, sent + PIECE))
        }
        client.send(sync)
        yield* perseus.settle
        assert.deepStrictEqual(client.heard(), ["ERROR 08P01", "ready I"])
        yield* isServed(perseus, client)
        perseus.whole(1)
      })
    )
  }
})

describe("a client that says goodbye and goes", () => {
  /** It has asked for more than it reads, and its server waits for it. */
  const stalled = Effect.fnUntraced(function* () {
    const perseus = yield* make({ settings })
    const client = yield* perseus.logIn("red")
    client.memory.transport.pause()
    client.send(query("SELECT rows(1000, 1000)"), query("INSERT INTO t VALUES (1)"))
    yield* perseus.settle
    assert.strictEqual(perseus.pool().inUse, 1)
    client.send(Buffer.from(terminate))
    yield* perseus.settle
    assert.strictEqual(perseus.pool().inUse, 1)
    assert.strictEqual(perseus.postgres.log.at(-1)?.sql, "SELECT rows(1000, 1000)")
    return { perseus, client }
  })

  it.effect("with nothing asked is not waited for", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const client = yield* perseus.logIn("red")
      // It would not answer an end.
      client.memory.transport.pause()
      client.send(terminate)
      yield* perseus.settle
      assert.strictEqual(perseus.network.openTransports().accepted, 0)
    })
  )

  it.effect("without having read has all that it asked run to its end, and holds nothing any more", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* stalled()
      client.memory.vanish()
      yield* perseus.settle
      assert.strictEqual(perseus.postgres.log.at(-1)?.sql, "INSERT INTO t VALUES (1)")
      perseus.whole(0)
      yield* perseus.logIn("red")
    })
  )

  it.effect("holds nothing any more though the server never says that it is done", () =>
    Effect.gen(function* () {
      const { perseus, client } = yield* stalled()
      perseus.server.tamper((bytes) => (answersEndInReady(bytes) ? bytes.subarray(0, -6) : bytes))
      client.memory.vanish()
      yield* perseus.settle
      perseus.whole(0)
    })
  )

  it.effect("while it waits for a connection has what it asked run, and holds nothing any more", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      waiter.send(query("INSERT INTO t VALUES (1)"), terminate)
      yield* perseus.settle
      waiter.memory.vanish()
      yield* perseus.settle
      let dropped = false
      perseus.server.tamper((bytes) => {
        const owed = perseus.postgres.log.at(-1)?.sql.startsWith("INSERT") === true && answersEndInReady(bytes)
        dropped ||= owed
        return owed ? bytes.subarray(0, -6) : bytes
      })
      yield* commit(perseus, holder)
      assert.strictEqual(perseus.postgres.log.at(-1)?.sql, "INSERT INTO t VALUES (1)")
      assert.isTrue(dropped, "the server was to owe its ReadyForQuery")
      perseus.whole(0)
    })
  )

  it.effect("while it waits, in what turns out to be half of a query, holds nothing any more", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      waiter.send(long.subarray(0, 30_000), terminate)
      yield* perseus.settle
      assert.strictEqual(perseus.pool().waiting, 1)
      waiter.memory.vanish()
      yield* perseus.settle
      assert.strictEqual(perseus.pool().waiting, 1)
      yield* commit(perseus, holder)
      perseus.whole(0)
      yield* isServed(perseus, holder)
    })
  )

  it.effect("while it waits, in what turns out to be half of a query, is over when that query is refused", () =>
    Effect.gen(function* () {
      const { perseus, waiter } = yield* crowded()
      waiter.send(long.subarray(0, 30_000), terminate)
      yield* perseus.settle
      waiter.memory.vanish()
      yield* perseus.settle
      assert.strictEqual(perseus.perseus.live.count, 2)
      yield* perseus.pass(ACQUIRE_MS + 100)
      assert.strictEqual(perseus.perseus.live.count, 1)
    })
  )

  it.effect("while it waits, behind a batch without its Sync, has nothing of it committed and holds nothing", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      waiter.send(runUnnamed("INSERT INTO t VALUES (1)"), terminate)
      yield* perseus.settle
      waiter.memory.vanish()
      yield* perseus.settle
      yield* commit(perseus, holder)
      perseus.whole(0)
      yield* isServed(perseus, holder)
    })
  )
})

describe("a client that waits and is not read any more, for all that it has sent", () => {
  it.effect("goes on where its row says that it is served elsewhere", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      waiter.send(long)
      yield* perseus.settle
      waiter.send(query("SELECT whoami"), query("SELECT 1"))
      yield* perseus.settle
      assert.deepStrictEqual(waiter.heard(), [])
      perseus.setTenant("red", { destHost: OTHER_HOST })
      yield* perseus.settle
      const [first, ...rest] = waiter.heard().filter((line) => !line.startsWith("row red,app,"))
      assert.deepStrictEqual([first, ...rest], [...answered, "done SELECT 1", "ready I", ...answered])
      const ran = perseus.other.postgres.log.map(({ sql }) => sql)
      assert.include(ran, "SELECT 1")
      assert.strictEqual(perseus.pool().waiting, 0)
      yield* commit(perseus, holder)
    })
  )

  it.effect("is read on where its query is refused, and heard again behind it", () =>
    Effect.gen(function* () {
      const { perseus, holder, waiter } = yield* crowded()
      waiter.send(long.subarray(0, -10))
      yield* perseus.settle
      waiter.send(long.subarray(-10), sync)
      yield* perseus.settle
      perseus.cancel(waiter)
      yield* perseus.settle
      assert.deepStrictEqual(waiter.heard(), ["ERROR 57014", "ready I", "ready I"])
      yield* commit(perseus, holder)
      yield* isServed(perseus, waiter)
      perseus.whole(1)
    })
  )
})
