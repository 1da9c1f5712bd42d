/**
 * The tenant switch: what is said to a server connection before it serves somebody else, how long that may take, and that
 * nothing is said where nothing has to be.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { commandComplete } from "../../src/testing/ServerMessages.ts"
import { answered, type Client, make, type MemoryPerseus } from "../support/memoryPerseus.ts"

/** The first such message taken out. */
const without = (bytes: Buffer, message: Buffer): Buffer => {
  const at = bytes.indexOf(message)
  return at === -1 ? bytes : Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + message.length)])
}

const oneConnection = { MaxOpen: 1, MaxIdle: 1 }

/** Asks, and is answered without time passing. */
const served = Effect.fnUntraced(function* (perseus: MemoryPerseus, client: Client, sql = "SELECT 1") {
  client.ask(sql)
  yield* perseus.settle
  const lines = client.heard()
  assert.strictEqual(lines.at(-1), "ready I")
  return lines
})

describe("SchemaExecTimeoutSecs", () => {
  const settings = { PoolSettings: { ...oneConnection, SchemaExecTimeoutSecs: 3 } }

  it.effect(
    "closes a connection whose switch the server does not end, and answers where the next one's does not either",
    () =>
      Effect.gen(function* () {
        const perseus = yield* make({ settings })
        const blue = yield* perseus.logIn("blue")
        yield* perseus.logIn("red")
        perseus.postgres.stallAt("statement")
        blue.ask("SELECT 1")
        yield* perseus.falls(3000, {
          before: () => assert.strictEqual(perseus.pool().statistics.opened, 1),
          after: () => assert.strictEqual(perseus.pool().statistics.opened, 2)
        })
        assert.deepStrictEqual(blue.heard(), [])
        yield* perseus.pass(3000)
        assert.deepStrictEqual(blue.heard(), ["ERROR 08001", "ready I"])
        perseus.whole(0)
        perseus.postgres.proceed()
        // What did not do its work was not reached: it is dialled again after a pause.
        blue.ask("SELECT 1")
        yield* perseus.pass(1000)
        assert.deepStrictEqual(blue.heard(), answered)
        perseus.whole(1)
      })
  )

  it.effect("is noticed by nobody where only the first server connection does not answer", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const blue = yield* perseus.logIn("blue")
      yield* perseus.logIn("red")
      perseus.postgres.stallAt("statement")
      blue.ask("SELECT 1")
      yield* perseus.falls(3000, {
        before: () => assert.deepStrictEqual(blue.heard(), []),
        after: () => perseus.postgres.proceed()
      })
      yield* perseus.settle
      assert.deepStrictEqual(blue.heard(), answered)
      assert.strictEqual(perseus.pool().statistics.opened, 2)
      perseus.whole(1)
    })
  )

  it.effect("fails the login behind a switch that the server does not end", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      perseus.postgres.stallAt("statement")
      const client = perseus.beginLogin("red")
      yield* perseus.falls(3000, {
        before: () => assert.deepStrictEqual(client.heard(), ["R"]),
        after: () => assert.deepStrictEqual(client.heard(), ["FATAL 08001", "closed"])
      })
      perseus.whole(0)
    })
  )

  it.effect(
    "closes the connection whose switch does not end though its client has gone, and others are served then",
    () =>
      Effect.gen(function* () {
        const perseus = yield* make({ settings })
        const blue = yield* perseus.logIn("blue")
        const red = yield* perseus.logIn("red")
        perseus.postgres.stallAt("statement")
        blue.ask("SELECT 1")
        yield* perseus.settle
        blue.memory.vanish()
        red.ask("SELECT 1")
        yield* perseus.pass(2999)
        perseus.postgres.proceed()
        yield* perseus.pass(101)
        assert.deepStrictEqual(red.heard(), answered)
        perseus.whole(1)
      })
  )

  it.effect("does not count while the switch makes its way in time", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings })
      const blue = yield* perseus.logIn("blue")
      yield* perseus.logIn("red")
      // RESET ALL, DISCARD ALL and SET, each 900 ms.
      perseus.postgres.delay((sql) => (sql === "SELECT 1" ? 5000 : 900))
      blue.ask("SELECT 1")
      yield* perseus.pass(8000)
      assert.deepStrictEqual(blue.heard(), answered)
      perseus.whole(1)
    })
  )
})

describe("what is said before a lease", () => {
  it.effect("is nothing where the tenant's own connection is there, for another client of it too", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { PoolSettings: oneConnection } })
      const first = yield* perseus.logIn("red")
      const second = yield* perseus.logIn("red")
      perseus.statements()
      for (const client of [first, second, first, second]) yield* served(perseus, client)
      assert.deepStrictEqual(
        perseus.statements(),
        Array.from({ length: 4 }, () => "red: SELECT 1")
      )
    })
  )

  it.effect("is the whole switch where another tenant was there", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { PoolSettings: oneConnection } })
      const red = yield* perseus.logIn("red", { TimeZone: "Asia/Tokyo" })
      yield* perseus.logIn("blue")
      perseus.statements()
      yield* served(perseus, red)
      assert.deepStrictEqual(perseus.statements(), [
        "blue: RESET ALL",
        ": DISCARD ALL",
        ': SET search_path = "red"',
        `red: SET "timezone" = 'Asia/Tokyo'`,
        "red: SELECT 1"
      ])
    })
  )

  it.effect("is only the difference where the tenant's last client had other settings", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { PoolSettings: oneConnection } })
      const plain = yield* perseus.logIn("red", { application_name: "app" })
      const tokyo = yield* perseus.logIn("red", { application_name: "app", TimeZone: "Asia/Tokyo" })
      perseus.statements()
      yield* served(perseus, plain)
      assert.deepStrictEqual(perseus.statements(), [`red: RESET "timezone"`, "red: SELECT 1"])
      yield* served(perseus, tokyo)
      assert.deepStrictEqual(perseus.statements(), [`red: SET "timezone" = 'Asia/Tokyo'`, "red: SELECT 1"])
      yield* served(perseus, tokyo)
      assert.deepStrictEqual(perseus.statements(), ["red: SELECT 1"])
    })
  )

  for (const sql of ["SET statement_timeout = 5000", "SET search_path = blue", "RESET ALL", "DISCARD ALL"]) {
    it.effect(`is the whole switch behind a client's ${sql}, for the same tenant too`, () =>
      Effect.gen(function* () {
        const perseus = yield* make({ settings: { PoolSettings: oneConnection } })
        const first = yield* perseus.logIn("red")
        const second = yield* perseus.logIn("red")
        yield* served(perseus, first, sql)
        perseus.statements()
        yield* served(perseus, second, "SELECT whoami")
        const said = perseus.statements().map((line) => line.slice(line.indexOf(":") + 2))
        assert.deepStrictEqual(said, ["RESET ALL", "DISCARD ALL", `SET search_path = "red"`, "SELECT whoami"])
        assert.isTrue(perseus.postgres.log.at(-1)?.searchPath === "red")
      })
    )
  }
})

describe("a connection on which a client was told of a statement that is no more", () => {
  const heard: Readonly<Record<string, readonly [sqlState: string, resets: boolean]>> = {
    "26000, prepared statement does not exist": ["26000", true],
    "22012, which says nothing of that": ["22012", false]
  }
  for (const [what, [sqlState, resets]] of Object.entries(heard)) {
    it.effect(`(${what}) is ${resets ? "set anew before its next lease" : "lent as it is"}`, () =>
      Effect.gen(function* () {
        const perseus = yield* make({ settings: { PoolSettings: oneConnection } })
        const client = yield* perseus.logIn("red")
        perseus.server.tamper((bytes) =>
          Buffer.from(bytes.toString("latin1").replace("C22012", `C${sqlState}`), "latin1")
        )
        assert.deepStrictEqual(yield* served(perseus, client, "SELECT error"), [`ERROR ${sqlState}`, "ready I"])
        perseus.statements()
        yield* served(perseus, client)
        const anew = ["red: RESET ALL", ": DISCARD ALL", `: SET search_path = "red"`]
        assert.deepStrictEqual(perseus.statements(), [...(resets ? anew : []), "red: SELECT 1"])
        perseus.whole(1)
      })
    )
  }
})

describe("a switch whose answers are not those that it asked for", () => {
  const setAnswer = commandComplete("SET")
  const changes: Readonly<Record<string, (bytes: Buffer) => Buffer>> = {
    "one too few": (bytes) => without(bytes, setAnswer),
    "one too many": (bytes) => (bytes.includes(setAnswer) ? Buffer.concat([setAnswer, bytes]) : bytes)
  }
  for (const [what, change] of Object.entries(changes)) {
    it.effect(`(${what}) is not believed: its connection is closed, and the client has another`, () =>
      Effect.gen(function* () {
        const perseus = yield* make({ settings: { PoolSettings: oneConnection } })
        const blue = yield* perseus.logIn("blue")
        yield* perseus.logIn("red")
        const [doubtful] = perseus.postgres.sessions()
        perseus.server.tamper((bytes) => {
          const changed = change(bytes)
          if (!changed.equals(bytes)) perseus.server.tamper((as) => as)
          return changed
        })
        assert.deepStrictEqual(yield* served(perseus, blue), answered)
        const ran = perseus.postgres.log.filter(({ sql }) => sql === "SELECT 1")
        assert.strictEqual(ran.length, 1)
        assert.strictEqual(ran[0]?.searchPath, "blue")
        assert.notStrictEqual(ran[0]?.connection, doubtful?.processId)
        perseus.whole(1)
      })
    )
  }
})

describe("TenantSwitch reconnect", () => {
  it.effect("never gives a tenant a connection that another tenant has had", () =>
    Effect.gen(function* () {
      const settings = { PoolSettings: { ...oneConnection, TenantSwitch: "reconnect" } }
      const perseus = yield* make({ settings, tenants: { red: {}, blue: {}, green: {} } })
      const clients = [yield* perseus.logIn("red"), yield* perseus.logIn("blue"), yield* perseus.logIn("green")]
      for (let round = 0; round < 4; round++) {
        for (const client of clients) client.ask("SELECT 1")
        yield* perseus.pass(1000)
        for (const client of clients) assert.deepStrictEqual(client.heard(), answered)
      }
      const tenants = new Map<number, Set<string>>()
      for (const { connection, searchPath } of perseus.postgres.log) {
        if (searchPath === '""' || searchPath === "") continue
        tenants.set(connection, (tenants.get(connection) ?? new Set()).add(searchPath))
      }
      for (const served of tenants.values()) assert.strictEqual(served.size, 1)
      assert.strictEqual(perseus.postgres.peakSessions(), 1)
      perseus.whole(1)
    })
  )
})

describe("tenants with different dest_users", () => {
  it.effect("never share a connection, though there is room for one alone", () =>
    Effect.gen(function* () {
      const perseus = yield* make({
        settings: { PoolSettings: oneConnection },
        tenants: { red: {}, blue: { destUser: "other" } }
      })
      const red = yield* perseus.logIn("red")
      yield* perseus.pass(100)
      const blue = yield* perseus.logIn("blue")
      for (let round = 0; round < 5; round++) {
        red.ask("SELECT whoami")
        blue.ask("SELECT whoami")
        yield* perseus.pass(500)
        assert.match(red.heard()[0] ?? "", /^row red,app,/)
        assert.match(blue.heard()[0] ?? "", /^row blue,other,/)
      }
      const users = new Map<number, Set<string>>()
      for (const { connection, user } of perseus.postgres.log) {
        users.set(connection, (users.get(connection) ?? new Set()).add(user))
      }
      for (const loggedInAs of users.values()) assert.strictEqual(loggedInAs.size, 1)
      assert.strictEqual(perseus.postgres.peakSessions(), 1)
    })
  )

  it.effect("have connections side by side where there is room", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {}, blue: { destUser: "other" } } })
      const red = yield* perseus.logIn("red")
      const blue = yield* perseus.logIn("blue")
      perseus.statements()
      for (const client of [red, blue, red, blue]) yield* served(perseus, client)
      assert.deepStrictEqual(perseus.statements(), [
        "red: SELECT 1",
        "blue: SELECT 1",
        "red: SELECT 1",
        "blue: SELECT 1"
      ])
      perseus.whole(2)
    })
  )
})
