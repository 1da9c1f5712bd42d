import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import { TestClock } from "effect/testing"
import { Credential } from "../../src/pool/Credential.ts"
import { noSettings, switchTo } from "../../src/pool/Reset.ts"
import { openAndLogIn } from "../../src/pool/ServerLogin.ts"
import { Frontend } from "../../src/protocol/Frame.ts"
import { cString, frame, untyped, int32 } from "../../src/protocol/Encoder.ts"
import { cancelRequest, query, runUnnamed, sync } from "../../src/protocol/Frontend.ts"
import {
  errorIn,
  letters,
  type Login,
  MemoryClient,
  type Message,
  rowsIn,
  statusIn,
  tagsIn
} from "../../src/testing/MemoryClient.ts"
import * as MemoryNetwork from "../../src/testing/MemoryNetwork.ts"
import * as MemoryPostgres from "../../src/testing/MemoryPostgres.ts"

const address = { host: "db", port: 5432 }
const login: Login = { user: "app", database: "shop", password: "secret" }

const server = (options: Partial<MemoryPostgres.Options> = {}, networkOptions: MemoryNetwork.Options = {}) =>
  Effect.gen(function* () {
    const memory = MemoryNetwork.make(networkOptions)
    const postgres = yield* MemoryPostgres.make({ users: { app: "secret" }, ...options })
    postgres.attach(memory, address.host, address.port)
    const connect = Effect.map(memory.network.connect(address), (transport) => MemoryClient.connect(transport))
    const logIn = (parameters: Readonly<Record<string, string>> = {}) =>
      Effect.tap(connect, (client) => client.startup({ ...login, parameters }))
    return { memory, postgres, connect, logIn }
  })

const processIdOf = (client: MemoryClient): number => client.backendKey?.processId ?? 0

const codeIn = (messages: ReadonlyArray<Message>) => errorIn(messages)?.sqlState

const begin = <A, E>(effect: Effect.Effect<A, E>) => Effect.forkChild(effect, { startImmediately: true })

/** Sends its cancel on a connection of its own, and waits until the server has closed that. */
const cancelOf = (connect: Effect.Effect<MemoryClient, string>, client: MemoryClient) =>
  Effect.gen(function* () {
    const canceller = yield* connect
    const { processId, secretKey } = client.backendKey ?? { processId: 0, secretKey: Buffer.alloc(4) }
    canceller.send(cancelRequest(processId, secretKey))
    return yield* canceller.untilEnded
  })

describe("logging in", () => {
  for (const authentication of ["clear text", "SCRAM-SHA-256", "trust"] as const) {
    it.effect(`greets who proves the password by ${authentication}, and tells the key for cancels`, () =>
      Effect.gen(function* () {
        const { connect, postgres } = yield* server({ authentication })
        const client = yield* connect
        const greeting = yield* client.startup(login)
        assert.match(letters(greeting), /^R+S{15}KZ$/)
        assert.strictEqual(client.parameters.get("server_encoding"), "UTF8")
        assert.strictEqual(processIdOf(client), postgres.sessions()[0]?.processId)
      })
    )
  }

  for (const authentication of ["clear text", "SCRAM-SHA-256"] as const) {
    it.effect(`refuses a wrong password and an unknown user alike by ${authentication}`, () =>
      Effect.gen(function* () {
        const { connect, postgres } = yield* server({ authentication })
        for (const wrong of [
          { ...login, password: "wrong" },
          { ...login, user: "toString", password: "" }
        ]) {
          const client = yield* connect
          const ended = yield* Effect.flip(client.startup(wrong))
          assert.strictEqual(codeIn(ended.received), "28P01")
        }
        assert.deepStrictEqual(postgres.sessions(), [])
      })
    )

    it.effect(`lets the pool's own login in by ${authentication}`, () =>
      Effect.gen(function* () {
        const { memory, postgres } = yield* server({ authentication })
        const credential = new Credential("app", Redacted.make("secret"))
        const policy = { allowTrust: false, allowClearText: false }
        const target = { ...address, database: "shop" }
        const loggedIn = yield* openAndLogIn(memory.network, target, credential, policy, { mode: "disable" })
        assert.strictEqual(loggedIn.processId, postgres.sessions()[0]?.processId)
        assert.strictEqual(loggedIn.parameters.get("search_path"), "")
      })
    )
  }

  it.effect("has no encryption to offer", () =>
    Effect.gen(function* () {
      const { connect } = yield* server()
      const client = yield* connect
      assert.strictEqual(yield* client.negotiate(untyped(int32(80877103))), "N")
      yield* client.startup(login)
    })
  )

  it.effect("refuses an unknown database, a bad startup setting, and more connections than it has room for", () =>
    Effect.gen(function* () {
      const { connect, logIn, postgres } = yield* server({ databases: ["shop"], maxConnections: 1 })
      const refused = (attempt: Login) =>
        Effect.map(
          Effect.flatMap(connect, (client) => Effect.flip(client.startup(attempt))),
          ({ received }) => codeIn(received)
        )
      assert.strictEqual(yield* refused({ ...login, database: "other" }), "3D000")
      assert.strictEqual(yield* refused({ ...login, parameters: { client_encoding: "klingon" } }), "22023")
      yield* logIn()
      assert.strictEqual(yield* refused(login), "53300")
      assert.strictEqual(postgres.peakSessions(), 1)
    })
  )

  it.effect("understands a client that sends byte for byte", () =>
    Effect.gen(function* () {
      const { logIn } = yield* server({}, { split: (chunk) => [...chunk].map((byte) => Buffer.of(byte)) })
      const client = yield* logIn()
      assert.deepStrictEqual(rowsIn(yield* client.query("SELECT 'ä'")), [["ä"]])
    })
  )
})

describe("statements", () => {
  it.effect("are logged with the path that they run under", () =>
    Effect.gen(function* () {
      const seen: Array<string> = []
      const { logIn, postgres } = yield* server({ onStatement: ({ sql }) => void seen.push(sql) })
      const client = yield* logIn({ search_path: "" })
      yield* client.query('SET search_path = "tenant a"; /* 7 */ SELECT whoami')
      assert.deepStrictEqual(
        postgres.log.map(({ searchPath, user, sql }) => [searchPath, user, sql]),
        [
          ["", "app", 'SET search_path = "tenant a"'],
          ['"tenant a"', "app", "/* 7 */ SELECT whoami"]
        ]
      )
      assert.deepStrictEqual(seen, ['SET search_path = "tenant a"', "/* 7 */ SELECT whoami"])
    })
  )

  it.effect("take back with ROLLBACK what was SET, and with COMMIT what was SET LOCAL", () =>
    Effect.gen(function* () {
      const { logIn } = yield* server()
      const client = yield* logIn({ search_path: "first" })
      const path = Effect.map(client.query("SHOW search_path"), (answer) => rowsIn(answer)[0]?.[0])
      yield* client.query("BEGIN; SET search_path = second; ROLLBACK")
      assert.strictEqual(yield* path, "first")
      yield* client.query("BEGIN; SET LOCAL search_path = third")
      assert.strictEqual(yield* path, "third")
      yield* client.query("COMMIT")
      assert.strictEqual(yield* path, "first")
    })
  )

  it.effect("wait on the clock for pg_sleep", () =>
    Effect.gen(function* () {
      const { logIn } = yield* server()
      const client = yield* logIn()
      const sleeping = yield* begin(client.query("SELECT pg_sleep(2)"))
      yield* TestClock.adjust(1999)
      assert.isUndefined(sleeping.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.strictEqual(letters(yield* Fiber.join(sleeping)), "TDCZ")
    })
  )

  it.effect("end with 57014 when statement_timeout passes", () =>
    Effect.gen(function* () {
      const { logIn } = yield* server()
      const client = yield* logIn()
      yield* client.query("SET statement_timeout = '1s'")
      const sleeping = yield* begin(client.query("SELECT pg_sleep(2)"))
      yield* TestClock.adjust("1 second")
      assert.strictEqual(codeIn(yield* Fiber.join(sleeping)), "57014")
    })
  )

  it.effect("stop for a client that does not read, and go on when it does", () =>
    Effect.gen(function* () {
      const { logIn, postgres } = yield* server({}, { highWaterMark: 10_000 })
      const client = yield* logIn()
      client.transport.pause()
      client.send(query("SELECT rows(100, 1000)"))
      yield* Effect.yieldNow
      const before = client.messages.length
      client.transport.resume()
      const answer = yield* client.untilReady
      assert.deepStrictEqual([rowsIn(answer).length, tagsIn(answer)], [100, ["SELECT 100"]])
      assert.strictEqual(postgres.log.length, 1)
      assert.isBelow(before, client.messages.length)
    })
  )

  it.effect("tell who listens, at once or with the next ReadyForQuery", () =>
    Effect.gen(function* () {
      const { logIn, postgres } = yield* server()
      const listener = yield* logIn()
      const sender = yield* logIn()
      yield* listener.query("LISTEN news")
      assert.deepStrictEqual(postgres.sessions()[0]?.channels, ["news"])
      yield* sender.query("NOTIFY news, 'one'")
      assert.strictEqual(letters(yield* listener.until(({ type }) => type === "A")), "A")
      yield* listener.query("BEGIN")
      yield* sender.query("NOTIFY news, 'two'")
      assert.strictEqual(letters(yield* listener.query("COMMIT")), "CAZ")
    })
  )
})

describe("the tenant switch", () => {
  it.effect("is what this server does as PostgreSQL does it, from any state between transactions", () =>
    Effect.gen(function* () {
      const { logIn, postgres } = yield* server()
      const client = yield* logIn({ search_path: "" })
      yield* client.query("SET search_path = a; LISTEN news")
      client.send(runUnnamed("SELECT 1"), sync)
      yield* client.untilReady
      client.send(switchTo(['b"c'], { key: "", list: [["application_name", "it's"]] }).bytes)
      const answer = [...(yield* client.untilReady), ...(yield* client.untilReady)]
      assert.strictEqual(letters(answer), "12CSZ12C12C12CSSZ")
      const [session] = postgres.sessions()
      assert.deepStrictEqual(
        [session?.searchPath, session?.preparedStatements, session?.channels],
        ['"b""c"', [""], []]
      )
      assert.strictEqual(client.parameters.get("application_name"), "it's")
    })
  )

  it.effect("falls back to the startup path when a step of it fails", () =>
    Effect.gen(function* () {
      const { logIn, postgres } = yield* server()
      const client = yield* logIn({ search_path: "" })
      yield* client.query("SET search_path = a")
      client.send(switchTo(["b"], { key: "", list: [["no_such_setting", "1"]] }).bytes)
      yield* client.untilReady
      const answer = yield* client.untilReady
      assert.deepStrictEqual([codeIn(answer), statusIn(answer)], ["42704", "I"])
      assert.strictEqual(postgres.sessions()[0]?.searchPath, "")
    })
  )

  it.effect("fails inside a transaction and leaves it", () =>
    Effect.gen(function* () {
      const { logIn, postgres } = yield* server()
      const client = yield* logIn({ search_path: "a" })
      yield* client.query("BEGIN")
      client.send(switchTo(["b"], noSettings).bytes)
      yield* client.untilReady
      const answer = yield* client.untilReady
      assert.deepStrictEqual([codeIn(answer), statusIn(answer)], ["25001", "E"])
      assert.isTrue(postgres.sessions()[0]?.inTransaction)
    })
  )
})

describe("a CancelRequest", () => {
  it.effect("ends what runs, and its connection is closed when that is done", () =>
    Effect.gen(function* () {
      const { connect, logIn, memory } = yield* server()
      const client = yield* logIn()
      const sleeping = yield* begin(client.query("SELECT pg_sleep(60)"))
      yield* Effect.yieldNow
      assert.strictEqual((yield* cancelOf(connect, client)).reason, null)
      const answer = yield* Fiber.join(sleeping)
      assert.deepStrictEqual([codeIn(answer), statusIn(answer)], ["57014", "I"])
      assert.strictEqual(memory.openTransports().connected, 1)
    })
  )

  it.effect("is ignored between statements, and with a wrong key", () =>
    Effect.gen(function* () {
      const { connect, logIn } = yield* server()
      const client = yield* logIn()
      yield* cancelOf(connect, client)
      assert.strictEqual(letters(yield* client.query("SELECT 1")), "TDCZ")
      const sleeping = yield* begin(client.query("SELECT pg_sleep(1)"))
      yield* Effect.yieldNow
      const stranger = yield* connect
      stranger.send(cancelRequest(processIdOf(client), Buffer.alloc(4)))
      yield* stranger.untilEnded
      yield* TestClock.adjust("1 second")
      assert.strictEqual(letters(yield* Fiber.join(sleeping)), "TDCZ")
    })
  )

  it.effect("that arrives late hits what runs then", () =>
    Effect.gen(function* () {
      const signals: Array<() => void> = []
      const { connect, logIn } = yield* server({ deferCancel: (signal) => void signals.push(signal) })
      const client = yield* logIn()
      const cancelling = yield* begin(cancelOf(connect, client))
      yield* Effect.yieldNow
      const sleeping = yield* begin(client.query("SELECT pg_sleep(60)"))
      yield* Effect.yieldNow
      assert.isUndefined(cancelling.pollUnsafe())
      for (const signal of signals) signal()
      yield* Fiber.join(cancelling)
      assert.strictEqual(codeIn(yield* Fiber.join(sleeping)), "57014")
    })
  )

  it.effect("ends a COPY at its next message", () =>
    Effect.gen(function* () {
      const { connect, logIn } = yield* server()
      const client = yield* logIn()
      client.send(query("COPY t FROM STDIN"))
      yield* client.until(({ type }) => type === "G")
      yield* cancelOf(connect, client)
      client.send(frame(Frontend.copyData, cString("row")))
      assert.strictEqual(codeIn(yield* client.untilReady), "57014")
    })
  )
})

describe("faults", () => {
  it.effect("refuse new logins and leave sessions alone", () =>
    Effect.gen(function* () {
      const { connect, logIn, postgres } = yield* server()
      const client = yield* logIn()
      postgres.refuseLogins("57P03", "the database system is starting up")
      const late = yield* connect
      assert.strictEqual(codeIn((yield* Effect.flip(late.startup(login))).received), "57P03")
      assert.strictEqual(letters(yield* client.query("SELECT 1")), "TDCZ")
      postgres.acceptLogins()
      yield* logIn()
    })
  )

  for (const step of ["startup", "authentication", "statement"] as const) {
    it.effect(`stall at ${step} until it may proceed`, () =>
      Effect.gen(function* () {
        const { connect, postgres } = yield* server()
        postgres.stallAt(step)
        const client = yield* connect
        const asking = yield* begin(Effect.andThen(client.startup(login), client.query("SELECT 1")))
        yield* TestClock.adjust("1 hour")
        assert.isUndefined(asking.pollUnsafe())
        postgres.proceed()
        assert.strictEqual(letters(yield* Fiber.join(asking)), "TDCZ")
      })
    )
  }

  it.effect("make chosen statements slow", () =>
    Effect.gen(function* () {
      const { logIn, postgres } = yield* server()
      const client = yield* logIn()
      postgres.delay((sql) => (sql.startsWith("DISCARD") ? "3 seconds" : 0))
      assert.strictEqual(letters(yield* client.query("SELECT 1")), "TDCZ")
      const discarding = yield* begin(client.query("DISCARD ALL"))
      yield* TestClock.adjust(2999)
      assert.isUndefined(discarding.pollUnsafe())
      yield* TestClock.adjust(1)
      assert.deepStrictEqual(tagsIn(yield* Fiber.join(discarding)), ["DISCARD ALL"])
    })
  )

  it.effect("kill one session with words, or all of them without", () =>
    Effect.gen(function* () {
      const { logIn, memory, postgres } = yield* server()
      const one = yield* logIn()
      const other = yield* logIn()
      assert.isTrue(postgres.kill(processIdOf(one), "clean"))
      const clean = yield* one.untilEnded
      assert.deepStrictEqual([codeIn(clean.received), clean.reason], ["57P01", null])
      assert.isFalse(postgres.kill(processIdOf(one), "clean"))
      const sleeping = yield* begin(Effect.flip(other.query("SELECT pg_sleep(1)")))
      yield* Effect.yieldNow
      postgres.killAll("crash")
      const crash = yield* Fiber.join(sleeping)
      assert.deepStrictEqual([crash.received, crash.reason], [[], "ECONNRESET"])
      assert.deepStrictEqual([postgres.sessions(), memory.openTransports().connected], [[], 0])
    })
  )

  it.effect("stop the server until it is started again", () =>
    Effect.gen(function* () {
      const { connect, logIn, postgres } = yield* server()
      const client = yield* logIn()
      postgres.stop("clean")
      yield* client.untilEnded
      assert.strictEqual(yield* Effect.flip(connect), "ECONNREFUSED")
      postgres.start()
      yield* logIn()
    })
  )

  it.effect("end every session with the scope", () =>
    Effect.gen(function* () {
      const client = yield* Effect.scoped(Effect.flatMap(server(), ({ logIn }) => logIn()))
      assert.strictEqual((yield* client.untilEnded).reason, "ECONNRESET")
    })
  )
})

describe("a client that goes", () => {
  it.effect("with a word or without leaves no session behind", () =>
    Effect.gen(function* () {
      const { logIn, memory, postgres } = yield* server()
      const polite = yield* logIn()
      const killed = yield* logIn()
      polite.disconnect()
      killed.vanish()
      yield* polite.untilEnded
      assert.strictEqual((yield* killed.untilEnded).reason, "vanished")
      yield* Effect.yieldNow
      assert.deepStrictEqual([postgres.sessions(), memory.openTransports().connected], [[], 0])
    })
  )
})
