import { assert, describe, it, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { bytesOf, change, delay, faultyServer, pass } from "../support/faultyServer.ts"
import { eventually, SharedPerseus, startPerseus, whole } from "../support/perseus.ts"
import { connection } from "../support/postgres.ts"
import { seeded } from "../support/random.ts"
import {
  bind,
  cancelRequest,
  closeStatement,
  copyData,
  copyDone,
  copyFail,
  describePortal,
  describeStatement,
  execute,
  fieldsOf,
  flush,
  functionCall,
  gssEncRequest,
  int32,
  message,
  parse,
  password,
  query,
  rowsOf,
  sqlStatesOf,
  sslRequest,
  startup,
  sync,
  terminate,
  text,
  typesOf,
  type RawClient
} from "../support/rawClient.ts"

const MB = 1024 * 1024

layer(SharedPerseus.with({ tenants: ["red", "patient"], config: { PoolSettings: { MaxOpen: 3, MaxIdle: 3 } } }), {
  excludeTestServices: true
})("a connection's beginning", (it) => {
  it.effect("may ask for GSS and for TLS, is told N, and goes on without", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const client = yield* perseus.raw
      client.sendForByte(gssEncRequest)
      assert.strictEqual(typesOf(yield* client.next()), "N")
      client.sendForByte(sslRequest)
      assert.strictEqual(typesOf(yield* client.next()), "N")
      yield* client.logIn(perseus.tenant("red").startup, "sesame")
      assert.deepStrictEqual(rowsOf(yield* client.query("SELECT 1")), ["1"])
    })
  )

  it.effect("with data in one segment behind a request for encryption is refused, and the data never read", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      for (const request of [sslRequest, gssEncRequest]) {
        const client = yield* perseus.raw
        client.send(request, startup(perseus.tenant("red").startup))
        const answers = yield* client.closed()
        assert.deepStrictEqual(sqlStatesOf(answers), ["08P01"])
      }
    })
  )

  it.effect("that asks for encryption twice is refused", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const client = yield* perseus.raw
      client.sendForByte(sslRequest)
      yield* client.next()
      client.send(sslRequest)
      assert.deepStrictEqual(sqlStatesOf(yield* client.closed()), ["08P01"])
    })
  )

  it.effect("with options of the protocol is told which are unknown", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const client = yield* perseus.raw
      const parameters = { ...perseus.tenant("red").startup, "_pq_.one": "1", "_pq_.two": "x" }
      const answers = yield* client.logInWith(startup(parameters, 0x00030002), "sesame")
      assert.strictEqual(answers[0]?.type, "v")
      const expected = Buffer.concat([int32(0x00030002), int32(2), text("_pq_.one"), text("_pq_.two")])
      assert.deepStrictEqual(answers[0]?.body, expected)
      assert.strictEqual(answers.at(-1)?.type, "Z")
      assert.strictEqual(client.key.secretKey.length, 32)
    })
  )

  it.effect("gets AuthenticationOk, the destination's ParameterStatus, one BackendKeyData and ReadyForQuery", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const client = yield* perseus.raw
      const answers = yield* client.logIn({ ...perseus.tenant("red").startup, TimeZone: "Asia/Tokyo" }, "sesame")
      assert.match(typesOf(answers), /^RRS{10,}KZ$/)
      const status = Object.fromEntries(
        answers.filter(({ type }) => type === "S").map(({ body }) => body.toString().split("\0").slice(0, 2))
      )
      const [{ server_version } = { server_version: "" }] = yield* perseus.destination.query("SHOW server_version")
      assert.strictEqual(status["server_version"], server_version)
      assert.strictEqual(status["TimeZone"], "Asia/Tokyo")
      assert.strictEqual(status["client_encoding"], "UTF8")
      assert.strictEqual(status["standard_conforming_strings"], "on")
    })
  )

  for (const [what, bytes] of [
    ["an HTTP request", Buffer.from("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")],
    ["noise", Buffer.from("deadbeefcafe0123456789abcdef00ff", "hex")],
    ["zeros", Buffer.alloc(64)],
    ["a TLS ClientHello without an SSLRequest", Buffer.from("16030100c8010000c40303", "hex")],
    ["a startup packet of 2 GB", Buffer.concat([int32(0x7fffffff), int32(0x00030000)])],
    ["protocol 2.0", Buffer.concat([int32(9), int32(0x00020000), Buffer.of(0)])],
    ["a startup packet without its terminator", Buffer.concat([int32(13), int32(0x00030000), Buffer.from("user\0")])]
  ] as const) {
    it.effect(`that is ${what} is answered with 08P01 and closed`, () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const client = yield* perseus.raw
        client.send(bytes)
        const answers = yield* client.closed()
        assert.strictEqual(typesOf(answers), "E")
        assert.strictEqual(fieldsOf(answers[0]!)["S"], "FATAL")
        assert.deepStrictEqual(sqlStatesOf(answers), ["08P01"])
      })
    )
  }

  for (const type of "BCDEFHPQSXcdf") {
    it.effect(`with a message '${type}' in place of the password is answered with 08P01 and closed`, () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const client = yield* perseus.raw
        client.send(startup(perseus.tenant("red").startup))
        yield* client.next()
        client.send(message(type, text("sesame")))
        assert.deepStrictEqual(sqlStatesOf(yield* client.closed()), ["08P01"])
      })
    )
  }

  it.effect("with a password message of length 0 to 3, or of 2 GB, is answered with 08P01 and closed", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      for (const length of [0, 3, 0x7fffffff, 0xffffffff]) {
        const client = yield* perseus.raw
        client.send(startup(perseus.tenant("red").startup))
        yield* client.next()
        client.send(Buffer.from("p"), int32(length))
        assert.deepStrictEqual(sqlStatesOf(yield* client.closed()), ["08P01"])
      }
    })
  )

  it.effect(
    "may be as long as its packets may be: settings of 9 kB, and a password of 60 kB or another of as many",
    () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const long = "p".repeat(60_000)
        yield* perseus.updateRow("patient", "source_pass_hashed", yield* perseus.hash(long))
        const parameters = { ...perseus.tenant("patient").startup, "my.setting": "s".repeat(9000) }
        const client = yield* perseus.raw
        yield* client.logIn(parameters, long)
        assert.deepStrictEqual(rowsOf(yield* client.query("SELECT length(current_setting('my.setting'))")), ["9000"])
        assert.deepStrictEqual(sqlStatesOf(yield* perseus.refusal(parameters, `${long.slice(1)}q`)), ["28P01"])
      })
  )

  it.effect("may have its first query in the same segment as the password", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const client = yield* perseus.raw
      client.send(startup(perseus.tenant("red").startup), password("sesame"), query("SELECT 'early'"))
      assert.deepStrictEqual(rowsOf(yield* client.ready(2)), ["early"])
    })
  )
})

layer(SharedPerseus.with({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } }), {
  excludeTestServices: true
})("a logged-in client", (it) => {
  for (const [what, bytes] of [
    ["a message type that does not exist", message("z")],
    ["a second password", password("sesame")],
    ["a backend's message", message("Z", Buffer.from("I"))],
    ["a length of 3", Buffer.concat([Buffer.from("Q"), int32(3)])],
    ["a length of 0", Buffer.concat([Buffer.from("P"), int32(0)])],
    ["a negative length", Buffer.concat([Buffer.from("Q"), int32(0xffffffff)])],
    ["a Sync of 1 MB", Buffer.concat([Buffer.from("S"), int32(MB)])],
    ["a Query of 1 GB", Buffer.concat([Buffer.from("Q"), int32(0x40000000)])]
  ] as const) {
    it.effect(`that sends ${what} is answered with 08P01 and closed, and the pool is whole`, () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const idle = yield* perseus.login("red")
        idle.send(bytes)
        assert.deepStrictEqual(sqlStatesOf(yield* idle.closed()), ["08P01"])
        const leased = yield* perseus.login("red")
        yield* leased.query("BEGIN")
        leased.send(bytes)
        assert.deepStrictEqual(sqlStatesOf(yield* leased.closed()), ["08P01"])
        yield* whole(perseus)
        assert.deepStrictEqual(yield* perseus.query("red", "SELECT 1 AS one"), [{ one: 1 }])
      })
    )
  }

  const firsts: ReadonlyArray<readonly [name: string, bytes: Buffer, end: Buffer]> = [
    ["Query", query("SELECT 1"), Buffer.alloc(0)],
    ["FunctionCall", functionCall(177, "1", "2"), Buffer.alloc(0)],
    ["Parse", parse("", "SELECT 1"), sync],
    ["Bind", bind("", ""), sync],
    ["Describe of a statement", describeStatement("none"), sync],
    ["Describe of a portal", describePortal("none"), sync],
    ["Execute", execute("none"), sync],
    ["Close", closeStatement("none"), sync],
    ["Flush", flush, sync],
    ["Sync", sync, Buffer.alloc(0)],
    ["CopyData", copyData("x"), sync],
    ["CopyDone", copyDone, sync],
    ["CopyFail", copyFail("x"), sync]
  ]

  it.effect("may begin with any message, and is ready behind it", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      for (const [name, bytes, end] of firsts) {
        const client = yield* perseus.login("red")
        client.send(bytes, end)
        assert.strictEqual((yield* client.ready()).at(-1)?.body.toString(), "I", name)
        assert.deepStrictEqual(rowsOf(yield* client.query("SELECT 1")), ["1"], name)
        assert.deepStrictEqual(client.received, [], name)
        client.send(terminate)
        yield* client.closed()
      }
      yield* whole(perseus)
    })
  )

  it.effect("may say in a message of its own what closes nothing: Sync, Flush and Close take no connection", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      const holder = yield* perseus.login("red")
      const client = yield* perseus.login("red")
      yield* holder.query("BEGIN")
      assert.strictEqual(typesOf(yield* client.exchange(Buffer.concat([flush, closeStatement("x"), sync]))), "3Z")
      yield* holder.query("COMMIT")
    })
  )

  it.effect("with a malformed Close is told so, with or without a connection of its own", () =>
    Effect.gen(function* () {
      const perseus = yield* SharedPerseus
      for (const malformed of [message("C"), message("C", Buffer.from("S")), message("C", Buffer.from("Sname"))]) {
        const client = yield* perseus.login("red")
        client.send(malformed, sync)
        const [first] = yield* client.next()
        assert.strictEqual(first?.type, "E", malformed.toString("latin1"))
        assert.deepStrictEqual(sqlStatesOf(first === undefined ? [] : [first]), ["08P01"])
      }
    })
  )
})

describe("DEALLOCATE of a statement that was prepared by the protocol", () => {
  for (const [how, ask] of [
    ["by a Query", (sql: string) => query(sql)],
    ["by extended messages", (sql: string) => Buffer.concat([parse("", sql), bind("", ""), execute(), sync])]
  ] as const) {
    it.live(`takes it from this client and from no other: ${how}`, () =>
      Effect.gen(function* () {
        const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
        const mine = yield* perseus.login("red")
        const theirs = yield* perseus.login("red")
        for (const client of [mine, theirs]) {
          client.send(parse("s", "SELECT 'here'"), parse("Odd", "SELECT 'odd'"), sync)
          yield* client.ready()
        }
        const use = (client: RawClient, name: string) => {
          client.send(bind("", name), execute(), sync)
          return client.ready()
        }
        for (const [sql, name] of [
          ["DEALLOCATE S", "s"],
          ['deallocate prepare "Odd";', "Odd"]
        ] as const) {
          mine.send(ask(sql))
          const answers = yield* mine.ready()
          assert.deepStrictEqual(sqlStatesOf(answers), [], sql)
          assert.strictEqual(answers.findLast(({ type }) => type === "C")?.body.toString(), "DEALLOCATE\0")
          assert.deepStrictEqual(sqlStatesOf(yield* use(mine, name)), ["26000"], sql)
          assert.strictEqual(rowsOf(yield* use(theirs, name)).length, 1, sql)
        }
        assert.deepStrictEqual(sqlStatesOf(yield* mine.query("DEALLOCATE nothing")), ["26000"])
      })
    )
  }

  it.live("is refused in a failed transaction, and done in a good one", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const client = yield* perseus.login("red")
      client.send(parse("s", "SELECT 'here'"), sync)
      yield* client.ready()
      yield* client.query("BEGIN; SELECT 1/0")
      const refused = yield* client.query("DEALLOCATE s")
      assert.deepStrictEqual([sqlStatesOf(refused), refused.at(-1)?.body.toString()], [["25P02"], "E"])
      yield* client.query("ROLLBACK")
      yield* client.query("BEGIN")
      client.send(bind("", "s"), execute(), sync, query("DEALLOCATE s"), query("SELECT 'next'"), query("COMMIT"))
      assert.deepStrictEqual(rowsOf(yield* client.ready(4)), ["here", "next"])
    })
  )
})

describe("a plan that a change of the schema broke", () => {
  it.live("is made anew at its next use, under its old name and under a new one", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const client = yield* perseus.login("red")
      yield* client.query("CREATE TABLE t (a int)")
      yield* client.query("INSERT INTO t VALUES (1)")
      client.send(parse("s", "SELECT * FROM t"), bind("", "s"), execute(), sync)
      yield* client.ready()
      const other = yield* perseus.login("red")
      yield* other.query("LISTEN keeps_nothing_here; UNLISTEN *")
      yield* other.query("ALTER TABLE t ADD b int DEFAULT 2")
      const use = (name: string) => Buffer.concat([bind("", name), execute(), sync])
      const there = "SELECT name FROM pg_prepared_statements WHERE statement = 'SELECT * FROM t'"
      const before = rowsOf(yield* client.query(there))
      // Behind something else of the same write there is no trying again without a word.
      client.send(query("SELECT 0"), use("s"))
      const [, first] = [yield* client.ready(), yield* client.ready()]
      assert.deepStrictEqual(sqlStatesOf(first), ["0A000"])
      client.send(use("s"))
      assert.deepStrictEqual(rowsOf(yield* client.ready()), ["1|2"])
      client.send(parse("s2", "SELECT * FROM t"), use("s2"))
      assert.deepStrictEqual(rowsOf(yield* client.ready()), ["1|2"])
      // The broken one is closed, and one new one serves both names.
      const after = rowsOf(yield* client.query(there))
      assert.deepStrictEqual([before.length, after.length], [1, 1])
      assert.notDeepEqual(after, before)
    })
  )
})

describe("protocol 3.2", () => {
  it.live("gives a cancel key of 32 bytes, by which a query is cancelled", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const client = yield* perseus.raw
      client.send(startup(perseus.tenant("red").startup, 0x00030002))
      yield* client.take(({ type }) => type === "R")
      client.send(password("sesame"))
      const greeting = yield* client.ready()
      assert.isFalse(greeting.some(({ type }) => type === "v"))
      const key = greeting.find(({ type }) => type === "K")!.body
      assert.strictEqual(key.length, 36)
      client.send(query("SELECT pg_sleep(600)"))
      yield* eventually(perseus.backends, (backends) => backends.some(({ query }) => query.includes("pg_sleep")))
      const canceller = yield* perseus.raw
      canceller.send(cancelRequest({ processId: key.readInt32BE(0), secretKey: key.subarray(4) }))
      assert.deepStrictEqual(sqlStatesOf(yield* client.ready()), ["57014"])
    })
  )

  it.live("is what a client of a newer one is told to speak", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const client = yield* perseus.raw
      client.send(startup({ ...perseus.tenant("red").startup, "_pq_.x": "1" }, 0x0003270f))
      const [told] = yield* client.take(({ type }) => type === "R")
      assert.strictEqual(told?.type, "v")
      assert.deepStrictEqual([told?.body.readUInt32BE(0), told?.body.readUInt32BE(4)], [0x00030002, 1])
      assert.strictEqual(told?.body.toString("utf8", 8), "_pq_.x\0")
    })
  )
})

describe("a client's prepared statements", () => {
  it.live("follow it from connection to connection, while others hold the ones it was on", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 4, MaxIdle: 4 } } })
      const client = yield* perseus.login("red")
      const other = yield* perseus.login("red")
      yield* client.exchange(Buffer.concat([parse("mine", "SELECT $1::int, pg_backend_pid()"), sync]))
      yield* other.exchange(Buffer.concat([parse("mine", "SELECT 'another''s', $1::text"), sync]))
      const use = Buffer.concat([bind("", "mine", "7"), execute(), sync])
      const pids = new Set<string>()
      for (let turn = 0; turn < 4; turn++) {
        const answers = yield* client.exchange(use)
        const [row = ""] = rowsOf(answers)
        assert.strictEqual(typesOf(answers), "2DCZ")
        assert.match(row, /^7\|/)
        pids.add(row)
        assert.deepStrictEqual(rowsOf(yield* other.exchange(use)), ["another's|7"])
        // Holds the connection that both were on.
        if (turn < 3) yield* (yield* perseus.login("red")).query("BEGIN")
      }
      assert.strictEqual(pids.size, 4)
    })
  )

  it.live("are as many on a connection as the settings say, also when these change", () =>
    Effect.gen(function* () {
      const PoolSettings = { MaxOpen: 1, MaxIdle: 1 }
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings } })
      const client = yield* perseus.login("red")
      const names = Array.from({ length: 6 }, (_, index) => `s${index}`)
      yield* client.exchange(Buffer.concat([...names.map((name) => parse(name, `SELECT '${name}'`)), sync]))
      const there = Effect.map(client.query("SELECT count(*) FROM pg_prepared_statements"), (answers) =>
        Number(rowsOf(answers)[0])
      )
      const use = (name: string) => client.exchange(Buffer.concat([bind("", name), execute(), sync]))
      const useAll = Effect.forEach(names, (name) =>
        Effect.map(use(name), (answers) => assert.deepStrictEqual(rowsOf(answers), [name]))
      )
      assert.strictEqual(yield* there, 6)
      for (const MaxPreparedStatements of [3, 1, 2, 200]) {
        yield* perseus.reload({ PoolSettings: { ...PoolSettings, MaxPreparedStatements } })
        yield* client.exchange(Buffer.concat([parse(`another, of ${MaxPreparedStatements}`, "SELECT 1"), sync]))
        yield* useAll
        assert.strictEqual(yield* there, Math.min(7, MaxPreparedStatements))
      }
      // Names that are not followed any more are unknown, to whoever gave them; and so are they when they are again.
      yield* perseus.reload({ PoolSettings: { ...PoolSettings, MaxPreparedStatements: 0 } })
      assert.deepStrictEqual(sqlStatesOf(yield* use("s0")), ["26000"])
      yield* client.exchange(Buffer.concat([parse("passed", "SELECT 1"), sync]))
      yield* perseus.reload({ PoolSettings: { ...PoolSettings, MaxPreparedStatements: 2 } })
      assert.deepStrictEqual(sqlStatesOf(yield* use("passed")), ["26000"])
      yield* useAll
    })
  )

  it.live("without a name are its own too: another client's is never found in its place", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const one = yield* perseus.login("red")
      const two = yield* perseus.login("red")
      yield* one.exchange(Buffer.concat([parse("", "SELECT 'one'"), describeStatement(""), sync]))
      yield* two.exchange(Buffer.concat([parse("", "SELECT 'two'"), describeStatement(""), sync]))
      const use = Buffer.concat([bind("", ""), execute(), sync])
      assert.deepStrictEqual(rowsOf(yield* one.exchange(use)), ["one"])
      assert.deepStrictEqual(rowsOf(yield* two.exchange(use)), ["two"])
    })
  )

  it.live("are gone with its DEALLOCATE ALL or DISCARD ALL, and no other client's are", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const mine = yield* perseus.login("red")
      const theirs = yield* perseus.login("red")
      yield* theirs.exchange(Buffer.concat([parse("s", "SELECT 'here'"), sync]))
      const use = Buffer.concat([bind("", "s"), execute(), sync])
      for (const sql of ["DEALLOCATE ALL", "DISCARD ALL"]) {
        yield* mine.exchange(Buffer.concat([parse("s", "SELECT 'here'"), sync]))
        assert.deepStrictEqual(sqlStatesOf(yield* mine.query(sql)), [])
        assert.deepStrictEqual(sqlStatesOf(yield* mine.exchange(use)), ["26000"], sql)
        assert.deepStrictEqual(rowsOf(yield* theirs.exchange(use)), ["here"], sql)
      }
    })
  )

  it.live("go on when the connection that they were on is killed", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const client = yield* perseus.login("red")
      const use = Buffer.concat([bind("", "mine", "7"), execute(), sync])
      yield* client.exchange(Buffer.concat([parse("mine", "SELECT $1::int"), sync]))
      const [backend] = yield* perseus.backends
      yield* perseus.destination.query("SELECT pg_terminate_backend($1)", [backend!.pid])
      yield* eventually(Effect.sync(perseus.pool), ({ open }) => open === 0)
      assert.deepStrictEqual(rowsOf(yield* client.exchange(use)), ["7"])
    })
  )

  it.live("are closed on the server when there are too many, and come back when they are used", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const client = yield* perseus.login("red")
      for (let batch = 0; batch < 5; batch++) {
        const names = Array.from({ length: 100 }, (_, index) => batch * 100 + index)
        const parses = names.map((name) => parse(`s${name}`, `SELECT ${name}`))
        assert.strictEqual(typesOf(yield* client.exchange(Buffer.concat([...parses, sync]))), `${"1".repeat(100)}Z`)
      }
      const [count = ""] = rowsOf(yield* client.query("SELECT count(*) FROM pg_prepared_statements"))
      assert.isAtMost(Number(count), 200)
      for (const name of [0, 499, 250, 0]) {
        const answers = yield* client.exchange(Buffer.concat([bind("", `s${name}`), execute(), sync]))
        assert.strictEqual(typesOf(answers), "2DCZ")
        assert.deepStrictEqual(rowsOf(answers), [String(name)])
      }
    })
  )
})

describe("statements in a pipeline", () => {
  it.live("are forwarded without waiting for the answers before them", () =>
    Effect.gen(function* () {
      const server = yield* faultyServer(connection())
      const perseus = yield* startPerseus({ tenants: ["red"], through: server })
      const client = yield* perseus.login("red")
      yield* client.exchange(Buffer.concat([parse("s", "SELECT $1::int"), sync]))
      const answered = Promise.withResolvers<void>()
      let executed = 0
      yield* server.inject({
        fromFrontend: ({ type }) => {
          if (type === "E") executed++
          return pass
        },
        fromBackend: () => delay(answered.promise)
      })
      const turns = Array.from({ length: 7 }, (_, turn) => turn)
      for (const turn of turns) client.send(bind("", "s", String(turn)), execute(), sync)
      yield* eventually(
        Effect.sync(() => executed),
        (count) => count === turns.length
      )
      assert.deepStrictEqual(client.received, [])
      answered.resolve()
      assert.deepStrictEqual(rowsOf(yield* client.ready(turns.length)), turns.map(String))
    })
  )

  it.live("hold their connection behind a Sync that is answered, for what came behind that without one", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const client = yield* perseus.login("red")
      const other = yield* perseus.login("red")
      client.send(parse("a", "SELECT 'a'"), bind("", "a"), execute(), sync, parse("b", "SELECT 'b'"))
      assert.deepStrictEqual(rowsOf(yield* client.ready()), ["a"])
      other.send(query("SELECT 'other'"))
      yield* eventually(Effect.sync(perseus.pool), ({ waiting }) => waiting === 1)
      client.send(bind("", "b"), execute(), sync)
      assert.deepStrictEqual(rowsOf(yield* client.ready()), ["b"])
      assert.deepStrictEqual(rowsOf(yield* other.ready()), ["other"])
    })
  )

  it.live("are answered each with its own, though there are more of them than a connection keeps", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 2, MaxIdle: 2 } } })
      const clients = yield* Effect.forEach([0, 1, 2], () => perseus.login("red"))
      const random = seeded(512)
      const filling = "f".repeat(512)
      yield* Effect.forEach(
        clients,
        (client, who) =>
          Effect.gen(function* () {
            const prepared = new Set<number>()
            for (let round = 0; round < 100; round++) {
              const messages: Array<Buffer> = []
              const expected: Array<string> = []
              const depth = 1 + random.below(9)
              const failing = random.chance(0.2) ? random.below(depth) : -1
              for (let turn = 0; turn < depth; turn++) {
                const name = random.below(300)
                if (!prepared.has(name)) messages.push(parse(`s${name}`, `SELECT ${who}, ${name}, length($1)`))
                prepared.add(name)
                messages.push(bind("", `s${name}`, filling), execute(), sync)
                expected.push(`${who}|${name}|512`)
                if (turn === failing) messages.push(parse("bad", "SELECT * FROM nowhere"), sync)
              }
              const answers = yield* client.exchange(Buffer.concat(messages), depth + (failing === -1 ? 0 : 1))
              assert.deepStrictEqual(rowsOf(answers), expected)
              assert.deepStrictEqual(sqlStatesOf(answers), failing === -1 ? [] : ["42P01"])
            }
          }),
        { concurrency: "unbounded" }
      )
    })
  )
})

describe("a long message", () => {
  const buffers = [4096, 16_384, 65_536]
  const sizes = [...buffers.flatMap((size) => [size / 2, size - 1, size, size + 1, size * 2]), 163_840, 655_360]
  for (const name of ["", "n"]) {
    it.live(
      `is whole as a Parse ${name === "" ? "without" : "with"} a name, of whatever size, behind a short or a long one`,
      () =>
        Effect.gen(function* () {
          const perseus = yield* startPerseus({
            tenants: ["red"],
            config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } }
          })
          const client = yield* perseus.login("red")
          // Each time the client comes, the connection is another's, and gets this one's settings before the Parse.
          const other = yield* perseus.login("red", { TimeZone: "Asia/Tokyo" })
          for (const size of sizes) {
            const sql = (last: string) =>
              `SELECT '${last}', current_setting('TimeZone')`.padEnd(size - parse(name, "").length)
            assert.strictEqual(parse(name, sql("x")).length, size)
            const rest = [bind("", name), execute(), closeStatement(name), sync]
            for (const before of [[], [parse("", "SELECT 1")], [parse("", sql("y"))]]) {
              const [zone = ""] = rowsOf(yield* other.query("SHOW TimeZone"))
              assert.strictEqual(zone, "Asia/Tokyo")
              const [row = ""] = rowsOf(
                yield* client.exchange(Buffer.concat([...before, parse(name, sql("x")), ...rest]))
              )
              assert.match(row, /^x\|(?!Asia\/Tokyo)/, String(size))
            }
          }
        })
    )
  }

  it.live("may be so for its statement's name: it is prepared, described, executed and closed", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const client = yield* perseus.login("red")
      const name = "n".repeat(9000)
      assert.strictEqual(typesOf(yield* client.exchange(Buffer.concat([parse(name, "SELECT 7"), sync]))), "1Z")
      assert.strictEqual(typesOf(yield* client.exchange(Buffer.concat([describeStatement(name), sync]))), "tTZ")
      assert.deepStrictEqual(rowsOf(yield* client.exchange(Buffer.concat([bind("", name), execute(), sync]))), ["7"])
      assert.strictEqual(typesOf(yield* client.exchange(Buffer.concat([closeStatement(name), sync]))), "3Z")
      assert.deepStrictEqual(sqlStatesOf(yield* client.exchange(Buffer.concat([describeStatement(name), sync]))), [
        "26000"
      ])
    })
  )

  it.live("may be so in a server's login", () =>
    Effect.gen(function* () {
      const server = yield* faultyServer(connection())
      const long = message("S", text("my.setting"), text("v".repeat(60_000)))
      yield* server.inject({
        fromBackend: (sent) => (sent.type === "K" ? change(long, bytesOf(sent)) : pass)
      })
      const perseus = yield* startPerseus({ tenants: ["red"], through: server })
      const client = yield* perseus.login("red")
      assert.deepStrictEqual(rowsOf(yield* client.query("SELECT 1")), ["1"])
    })
  )
})

describe("a COPY of the extended protocol that fails behind a Sync which the server may have swallowed", () => {
  it.live("leaves its client the connection on which its transaction has made a temporary table", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 2, MaxIdle: 2 } } })
      const client = yield* perseus.login("red")
      for (const sql of ["BEGIN", "CREATE TEMP TABLE own (id int)", "SAVEPOINT s"]) yield* client.query(sql)
      client.send(parse("", "COPY own FROM STDIN"), bind("", ""), execute(), sync)
      yield* client.take(({ type }) => type === "G")
      client.send(copyFail("no"), sync)
      assert.deepStrictEqual(sqlStatesOf(yield* client.ready()), ["57014"])
      for (const sql of ["ROLLBACK TO s", "COMMIT"]) yield* client.query(sql)
      assert.deepStrictEqual(rowsOf(yield* client.query("SELECT count(*) FROM own")), ["0"])
      client.send(terminate)
      yield* client.closed()
      yield* whole(perseus)
    })
  )
})

describe("a COPY that the server ends before its data has come to its end", () => {
  const bad = copyData("not a number\n".repeat(20_000))

  it.live("gives the connection back: another client has it, and what comes late of the data is nobody's", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const client = yield* perseus.login("red")
      const other = yield* perseus.login("red")
      yield* client.query("CREATE TABLE t (id int)")
      client.send(query("COPY t FROM STDIN"))
      yield* client.take(({ type }) => type === "G")
      client.send(bad)
      assert.deepStrictEqual(sqlStatesOf(yield* client.ready()), ["22P02"])
      assert.deepStrictEqual(rowsOf(yield* other.query("SELECT 'other'")), ["other"])
      client.send(copyData("1\n"), copyDone)
      assert.deepStrictEqual(rowsOf(yield* other.query("SELECT count(*) FROM t")), ["0"])
      assert.deepStrictEqual(rowsOf(yield* client.query("SELECT 'goes on'")), ["goes on"])
      yield* whole(perseus)
    })
  )

  it.live("by a Query in its midst is over, with its client and its connection, and nobody else is", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const client = yield* perseus.login("red")
      const other = yield* perseus.login("red")
      yield* client.query("CREATE TABLE t (id int)")
      const [backend] = rowsOf(yield* client.query("SELECT pg_backend_pid()"))
      client.send(query("COPY t FROM STDIN"))
      yield* client.take(({ type }) => type === "G")
      client.send(copyData("1\n"), query("SELECT 1"))
      assert.include(sqlStatesOf(yield* client.closed()), "08P01")
      const [next] = rowsOf(yield* other.query("SELECT pg_backend_pid()"))
      assert.notStrictEqual(next, backend)
      assert.deepStrictEqual(rowsOf(yield* other.query("SELECT count(*) FROM t")), ["0"])
      yield* whole(perseus)
    })
  )

  it.live("leaves its transaction failed until that is rolled back", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const client = yield* perseus.login("red")
      yield* client.query("CREATE TABLE t (id int)")
      yield* client.query("BEGIN")
      client.send(query("COPY t FROM STDIN"))
      yield* client.take(({ type }) => type === "G")
      client.send(bad)
      assert.deepStrictEqual(sqlStatesOf(yield* client.ready()), ["22P02"])
      client.send(copyDone)
      assert.deepStrictEqual(sqlStatesOf(yield* client.query("SELECT 1")), ["25P02"])
      assert.strictEqual((yield* client.query("ROLLBACK")).at(-1)?.body.toString(), "I")
      yield* whole(perseus)
    })
  )

  for (const name of ["", "named"]) {
    it.live(
      `by extended messages, of ${name === "" ? "the unnamed" : "a named"} statement, is skipped to its Sync`,
      () =>
        Effect.gen(function* () {
          const perseus = yield* startPerseus({
            tenants: ["red"],
            config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } }
          })
          const client = yield* perseus.login("red")
          yield* client.query("CREATE TABLE t (id int)")
          client.send(parse(name, "COPY t FROM STDIN"), bind("", name), execute(), flush)
          yield* client.take(({ type }) => type === "G")
          client.send(bad)
          const failed = yield* client.take(({ type }) => type === "E")
          assert.deepStrictEqual(sqlStatesOf(failed), ["22P02"])
          client.send(copyData("1\n"), copyDone, sync)
          assert.strictEqual(typesOf(yield* client.ready()), "Z")
          assert.deepStrictEqual(rowsOf(yield* client.query("SELECT count(*) FROM t")), ["0"])
          yield* whole(perseus)
        })
    )
  }
})

describe("a setting that a client changed and was told of", () => {
  it.live("holds in its next transaction as it was told", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      for (const [name, value] of [
        ["TimeZone", "Asia/Tokyo"],
        ["client_encoding", "LATIN1"],
        ["standard_conforming_strings", "off"]
      ] as const) {
        const client = yield* perseus.login("red")
        const believed = new Map<string, string>()
        const ask = (sql: string) =>
          Effect.tap(client.query(sql), (answers) =>
            Effect.sync(() => {
              for (const { type, body } of answers) {
                const [key = "", status = ""] = type === "S" ? body.toString().split("\0") : []
                believed.set(key, status)
              }
            })
          )
        yield* ask(`SET ${name} = '${value}'`)
        assert.strictEqual(believed.get(name), value)
        yield* (yield* perseus.login("red")).query("SELECT 1")
        assert.deepStrictEqual(rowsOf(yield* ask(`SHOW ${name}`)), [value], name)
        assert.strictEqual(believed.get(name), value, name)
      }
    })
  )
})

describe("bulk", () => {
  it.live("goes through in pieces: a Bind of 20 MB, a row of 20 MB, 8 MB of COPY both ways", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const client = yield* perseus.login("red")
      const large = "x".repeat(20 * MB)
      const sent = Buffer.concat([parse("", "SELECT length($1::text)"), bind("", "", large), execute(), sync])
      assert.deepStrictEqual(rowsOf(yield* client.exchange(sent)), [String(large.length)])
      const [row = ""] = rowsOf(yield* client.query(`SELECT repeat('y', ${20 * MB})`))
      assert.strictEqual(row.length, 20 * MB)
      yield* client.query("CREATE TABLE t (line text)")
      client.send(query("COPY t FROM STDIN"))
      yield* client.take(({ type }) => type === "G")
      const lines = `${"z".repeat(1023)}\n`.repeat(128)
      for (let chunk = 0; chunk < 64; chunk++) client.send(copyData(lines))
      client.send(copyDone)
      yield* client.ready()
      const out = yield* client.query("COPY t TO STDOUT")
      assert.strictEqual(
        out.filter(({ type }) => type === "d").reduce((sum, { body }) => sum + body.length, 0),
        8 * MB
      )
    })
  )

  it.live("that its client reads slowly stays on the server, and others are served meanwhile", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 2, MaxIdle: 2 } } })
      const slow = yield* perseus.login("red")
      const quick = yield* perseus.login("red")
      const before = process.memoryUsage().rss
      slow.pause()
      slow.send(query("SELECT repeat('x', 65536) FROM generate_series(1, 1024)"))
      yield* eventually(
        perseus.destination.query(
          "SELECT count(*)::int AS n FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND datname = current_database()"
        ),
        ([row]) => row?.["n"] === 1
      )
      for (let turn = 0; turn < 20; turn++) assert.deepStrictEqual(rowsOf(yield* quick.query("SELECT 1")), ["1"])
      assert.isBelow(process.memoryUsage().rss - before, 40 * MB)
      slow.resume()
      const answers = yield* slow.ready()
      assert.strictEqual(answers.filter(({ type }) => type === "D").length, 1024)
      yield* whole(perseus)
    })
  )
})

describe("500 half-open connections", () => {
  it.live("disturb nobody, whether they say nothing, a part of a startup packet, or all but the password", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"] })
      const packet = startup(perseus.tenant("red").startup)
      yield* Effect.forEach(
        Array.from({ length: 500 }, (_, index) => index),
        (index) =>
          Effect.map(perseus.raw, (client) =>
            client.send(packet.subarray(0, [0, 5, packet.length - 1, packet.length][index % 4]))
          ),
        { concurrency: 50, discard: true }
      )
      yield* eventually(
        Effect.sync(() => perseus.service.live.states()),
        ({ login }) => login === 500
      )
      assert.deepStrictEqual(yield* perseus.query("red", "SELECT 1 AS one"), [{ one: 1 }])
    })
  )
})
