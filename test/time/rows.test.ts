/**
 * Rows of perseus_auth that change while their clients are connected: who has to leave, and who is served elsewhere.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { terminate } from "../../src/protocol/Frontend.ts"
import * as MemoryPasswordHash from "../../src/testing/MemoryPasswordHash.ts"
import { answered, HOST, make, type MemoryPerseus, OTHER_HOST } from "../support/memoryPerseus.ts"

const goodbye = ["FATAL 57P01", "closed"]
const red = { sourceDb: "shop", sourceSchema: "red" }

/** Of the same tenant: one client idle, one in a transaction; and one of another tenant. */
const three = Effect.fnUntraced(function* () {
  const perseus = yield* make()
  const idle = yield* perseus.logIn("red")
  const active = yield* perseus.logIn("red")
  const other = yield* perseus.logIn("blue")
  active.ask("BEGIN")
  yield* perseus.settle
  active.heard()
  return { perseus, idle, active, other }
})

describe("a row", () => {
  const ends: Readonly<Record<string, (perseus: MemoryPerseus) => void>> = {
    "that is deleted": ({ repo }) => repo.remove(red),
    "whose password was changed": ({ setTenant }) =>
      setTenant("red", { sourcePassHashed: MemoryPasswordHash.stored("another") }),
    "whose source_user was changed": ({ setTenant }) => setTenant("red", { sourceUser: "somebody" })
  }
  for (const [what, change] of Object.entries(ends)) {
    it.effect(`${what} ends its sessions at their transactions' border, and nobody else's`, () =>
      Effect.gen(function* () {
        const { perseus, idle, active, other } = yield* three()
        change(perseus)
        yield* perseus.settle
        assert.deepStrictEqual(idle.heard(), goodbye)
        active.ask("SELECT 1")
        yield* perseus.pass(10_000)
        assert.deepStrictEqual(active.heard(), ["row 1", "done SELECT 1", "ready T"])
        active.ask("COMMIT")
        yield* perseus.settle
        assert.deepStrictEqual(active.heard(), ["done COMMIT", "ready I", ...goodbye])
        other.ask("SELECT 1")
        yield* perseus.settle
        assert.deepStrictEqual(other.heard(), answered)
        const again = perseus.beginLogin("red")
        yield* perseus.pass(250)
        assert.deepStrictEqual(again.heard(), ["R", "FATAL 28P01", "closed"])
        perseus.whole(perseus.pool().idle)
      })
    )
  }

  it.effect("that is written again as it was changes nothing", () =>
    Effect.gen(function* () {
      const { perseus, idle, active } = yield* three()
      const { opened } = perseus.pool().statistics
      perseus.setTenant("red")
      perseus.repo.announceAll()
      yield* perseus.settle
      active.ask("COMMIT")
      yield* perseus.settle
      assert.deepStrictEqual(active.heard(), ["done COMMIT", "ready I"])
      idle.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(idle.heard(), answered)
      assert.strictEqual(perseus.pool().statistics.opened, opened)
    })
  )
})

describe("rows of which it is only known that any may have changed", () => {
  it.effect("are looked up all at once, and then those that have changed", () =>
    Effect.gen(function* () {
      const schemas = ["red", "blue", "green", "grey"]
      const perseus = yield* make({ tenants: Object.fromEntries(schemas.map((schema) => [schema, {}])) })
      const client = yield* perseus.logIn("red")
      const others = [yield* perseus.logIn("blue"), yield* perseus.logIn("green")]
      const before = perseus.repo.finds()
      perseus.repo.announceAll()
      yield* perseus.settle
      assert.strictEqual(perseus.repo.finds(), before + 1)
      perseus.repo.quietly(() => perseus.repo.remove(red))
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), [])
      perseus.repo.announceAll()
      yield* perseus.settle
      assert.strictEqual(perseus.repo.finds(), before + 3)
      assert.deepStrictEqual(client.heard(), goodbye)
      for (const other of others) {
        other.ask("SELECT 1")
        yield* perseus.settle
        assert.deepStrictEqual(other.heard(), answered)
      }
    })
  )

  it.effect("are not looked up where nobody is", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      perseus.repo.announceAll()
      yield* perseus.settle
      assert.strictEqual(perseus.repo.finds(), 0)
    })
  )

  it.effect("are looked up again when the auth database is back", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      const client = yield* perseus.logIn("red")
      perseus.repo.quietly(() => perseus.repo.remove(red))
      perseus.repo.fail()
      perseus.repo.announceAll()
      yield* perseus.pass(60_000)
      assert.deepStrictEqual(client.heard(), [])
      perseus.repo.recover()
      yield* perseus.pass(10_000)
      assert.deepStrictEqual(client.heard(), goodbye)
    })
  )

  it.effect("do not begin anew what is under way already for one of them", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {} } })
      yield* perseus.logIn("red")
      perseus.kms.fail()
      perseus.setTenant("red", { destPassEnc: perseus.kms.encrypt("rotated") })
      yield* perseus.pass(60_000)
      const before = perseus.kms.decrypts()
      for (let times = 0; times < 12; times++) {
        perseus.repo.announceAll()
        yield* perseus.pass(5_000)
      }
      assert.isAtMost(perseus.kms.decrypts() - before, 12)
    })
  )
})

describe("a row that changes while its client logs in", () => {
  it.effect("holds for that client too, however late its greeting comes", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {} } })
      perseus.postgres.stallAt("startup")
      const client = perseus.beginLogin("red")
      yield* perseus.settle
      client.heard()
      perseus.repo.remove(red)
      yield* perseus.settle
      perseus.postgres.proceed()
      yield* perseus.settle
      assert.deepStrictEqual(client.heard().slice(-2), ["FATAL 57P01", "closed"])
    })
  )
})

describe("a new dest_pass_enc", () => {
  it.effect("serves its sessions by new connections, and the old are closed as they come back", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {} } })
      const idle = yield* perseus.logIn("red")
      const active = yield* perseus.logIn("red")
      active.ask("BEGIN")
      yield* perseus.settle
      idle.ask("SELECT 1")
      yield* perseus.settle
      active.heard()
      idle.heard()
      const old = new Set(perseus.postgres.sessions().map(({ processId }) => processId))
      assert.strictEqual(old.size, 2)
      perseus.users["app"] = "rotated"
      perseus.setTenant("red", { destPassEnc: perseus.kms.encrypt("rotated") })
      yield* perseus.settle
      idle.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(idle.heard(), answered)
      assert.isFalse(old.has(perseus.postgres.log.at(-1)?.connection ?? 0))
      active.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(active.heard(), ["row 1", "done SELECT 1", "ready T"])
      active.ask("COMMIT")
      yield* perseus.settle
      assert.deepStrictEqual(active.heard(), ["done COMMIT", "ready I"])
      active.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(active.heard(), answered)
      for (const { processId } of perseus.postgres.sessions()) assert.isFalse(old.has(processId))
      perseus.whole(perseus.pool().idle)
    })
  )

  it.effect("of the same password is a new generation, too", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {} } })
      const client = yield* perseus.logIn("red")
      const [before] = perseus.postgres.sessions()
      // Base64 in lines is another ciphertext to us, and the same to KMS.
      perseus.setTenant("red", { destPassEnc: `${perseus.kms.encrypt("app-secret")}\n` })
      yield* perseus.settle
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
      assert.notStrictEqual(perseus.postgres.sessions()[0]?.processId, before?.processId)
      perseus.whole(1)
    })
  )

  it.effect("does not leave connections with the old password open for those who are not asked for", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {} } })
      yield* perseus.logIn("red")
      perseus.users["app"] = "rotated"
      perseus.setTenant("red", { destPassEnc: perseus.kms.encrypt("rotated") })
      yield* perseus.settle
      perseus.whole(0)
    })
  )
})

describe("a new dest_host", () => {
  it.effect("is where the session's next transaction runs; the one under way ends where it began", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {} } })
      const idle = yield* perseus.logIn("red")
      const active = yield* perseus.logIn("red")
      active.ask("BEGIN")
      yield* perseus.settle
      active.heard()
      perseus.setTenant("red", { destHost: OTHER_HOST })
      yield* perseus.settle
      idle.ask("SELECT whoami")
      active.ask("SELECT whoami")
      yield* perseus.settle
      assert.match(idle.heard()[0] ?? "", /^row red,app,/)
      assert.strictEqual(perseus.other.postgres.log.at(-1)?.sql, "SELECT whoami")
      assert.strictEqual(perseus.postgres.log.at(-1)?.sql, "SELECT whoami")
      active.heard()
      active.ask("COMMIT")
      yield* perseus.settle
      assert.deepStrictEqual(active.heard(), ["done COMMIT", "ready I"])
      assert.strictEqual(perseus.postgres.log.at(-1)?.sql, "COMMIT")
      active.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(active.heard(), answered)
      assert.strictEqual(perseus.other.postgres.log.at(-1)?.sql, "SELECT 1")
      assert.strictEqual(perseus.pool(HOST).inUse + perseus.pool(OTHER_HOST).inUse, 0)
      assert.deepStrictEqual(perseus.postgres.sessions(), [])
    })
  )

  it.effect("lets the old pool go five minutes later, though its sessions go on", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {} } })
      const client = yield* perseus.logIn("red")
      perseus.setTenant("red", { destHost: OTHER_HOST })
      yield* perseus.settle
      client.ask("SELECT 1")
      yield* perseus.pass(301_000)
      assert.deepStrictEqual(client.heard(), answered)
      assert.deepStrictEqual(
        perseus.pools().map(({ destHost }) => destHost),
        [OTHER_HOST]
      )
    })
  )
})

describe("a new dest_user", () => {
  it.effect("is as whom the session's next transaction runs", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {}, blue: {} } })
      const client = yield* perseus.logIn("red")
      yield* perseus.logIn("blue")
      perseus.setTenant("red", { destUser: "other" })
      yield* perseus.settle
      client.ask("SELECT whoami")
      yield* perseus.settle
      assert.match(client.heard()[0] ?? "", /^row red,other,/)
      perseus.whole(perseus.pool().idle)
    })
  )
})

describe("a row that changes while what must be asked does not answer", () => {
  /** Longer than from one try to the next. */
  const RETRY_MS = 10_000

  it.effect("of its secret is followed when KMS is back, by all of its sessions", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {} } })
      const clients = [yield* perseus.logIn("red"), yield* perseus.logIn("red")]
      perseus.kms.fail()
      perseus.users["app"] = "rotated"
      perseus.setTenant("red", { destPassEnc: perseus.kms.encrypt("rotated") })
      yield* perseus.pass(60_000)
      perseus.kms.recover()
      yield* perseus.pass(RETRY_MS)
      // The old password opens nothing any more, and no old connection is left.
      perseus.server.reset()
      yield* perseus.settle
      for (const client of clients) {
        client.ask("SELECT 1")
        yield* perseus.settle
        assert.deepStrictEqual(client.heard(), answered)
      }
      perseus.whole(1)
    })
  )

  it.effect("asks less and less often, and no more when its last session has ended", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {} } })
      const client = yield* perseus.logIn("red")
      perseus.kms.fail()
      perseus.setTenant("red", { destPassEnc: perseus.kms.encrypt("rotated") })
      yield* perseus.pass(60_000)
      const early = perseus.kms.decrypts()
      assert.isAtMost(early, 25)
      yield* perseus.pass(60_000)
      assert.isAtMost(perseus.kms.decrypts() - early, 12)
      client.send(terminate)
      yield* perseus.pass(RETRY_MS)
      const { decrypts } = perseus.kms
      const last = decrypts()
      yield* perseus.pass(60_000)
      assert.strictEqual(decrypts(), last)
    })
  )

  it.effect("that makes no sense leaves its sessions where they are until it does", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {} } })
      const client = yield* perseus.logIn("red")
      perseus.setTenant("red", { destHost: "" })
      yield* perseus.pass(60_000)
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
      assert.strictEqual(perseus.postgres.log.at(-1)?.sql, "SELECT 1")
      perseus.setTenant("red", { destHost: OTHER_HOST })
      yield* perseus.settle
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
      assert.strictEqual(perseus.other.postgres.log.at(-1)?.sql, "SELECT 1")
    })
  )

  it.effect("that is deleted ends its sessions when the auth database is back", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {} } })
      const client = yield* perseus.logIn("red")
      perseus.repo.fail()
      perseus.repo.remove(red)
      yield* perseus.pass(60_000)
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
      perseus.repo.recover()
      yield* perseus.pass(RETRY_MS)
      assert.deepStrictEqual(client.heard(), goodbye)
    })
  )

  it.effect("ends the sessions of a deleted one at once, though KMS does not answer for another's", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      const client = yield* perseus.logIn("red")
      yield* perseus.logIn("blue")
      perseus.slowDownKms("1 minute")
      perseus.setTenant("blue", { destPassEnc: perseus.kms.encrypt("rotated") })
      yield* perseus.settle
      perseus.repo.remove(red)
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), goodbye)
    })
  )

  it.effect("ends its sessions when it is deleted while KMS fails for its new secret", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {} } })
      const client = yield* perseus.logIn("red")
      perseus.slowDownKms("1 minute")
      perseus.setTenant("red", { destPassEnc: perseus.kms.encrypt("rotated") })
      yield* perseus.settle
      perseus.repo.remove(red)
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), goodbye)
    })
  )

  it.effect("is followed by its newest state when it changes while KMS is slow", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {} } })
      const client = yield* perseus.logIn("red")
      perseus.slowDownKms("1 minute")
      perseus.setTenant("red", { destPassEnc: perseus.kms.encrypt("rotated") })
      yield* perseus.pass(30_000)
      perseus.slowDownKms(0)
      perseus.setTenant("red", { destHost: OTHER_HOST, destPassEnc: perseus.kms.encrypt("app-secret") })
      yield* perseus.pass(60_000)
      client.ask("SELECT 1")
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), answered)
      assert.strictEqual(perseus.other.postgres.log.at(-1)?.sql, "SELECT 1")
    })
  )
})
