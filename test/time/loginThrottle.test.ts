/**
 * Logins that keep failing: delayed more and more, then refused for a while; and who must not suffer from it.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { MAX_DELAY_MS, REFUSAL_DELAY_MS } from "../../src/tenant/LoginThrottle.ts"
import { type Client, make, type MemoryPerseus } from "../support/memoryPerseus.ts"

const ATTACKER = "203.0.113.9"
const CUSTOMER = "198.51.100.7"
const STRANGER = "192.0.2.1"
const WINDOW_SECS = 300
const BLOCK_SECS = 60

const limits = (FailuresBeforeDelay: number, FailuresBeforeBlock: number) => ({
  settings: {
    LimitSettings: { ClientLoginTimeoutSecs: 600 },
    LoginSettings: { FailuresBeforeDelay, FailuresBeforeBlock, FailureWindowSecs: WINDOW_SECS, BlockSecs: BLOCK_SECS }
  }
})

const letIn = (client: Client) => client.heard().includes("ready I")
const password = "wrong"

/** A login that is answered within the time that any refusal takes; what it is answered with. */
const attempt = (perseus: MemoryPerseus, schema: string, from: string, right = false) =>
  Effect.gen(function* () {
    const client = perseus.beginLogin(schema, right ? {} : { password }, from)
    yield* perseus.settle
    yield* perseus.pass(REFUSAL_DELAY_MS)
    const heard = client.heard()
    client.memory.vanish()
    yield* perseus.settle
    return heard.includes("ready I") ? "let in" : (heard.at(-2) ?? "")
  })

const attempts = (perseus: MemoryPerseus, count: number, schema: string, from: string) =>
  Effect.forEach(Array.from({ length: count }), () => attempt(perseus, schema, from))

const throttled = (perseus: MemoryPerseus) => perseus.perseus.snapshot().throttledLogins

describe("FailuresBeforeDelay", () => {
  it.effect("lets an address's logins wait longer with each failure, up to a bound, right ones and wrong ones", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(2, 0))
      yield* attempts(perseus, 2, "red", ATTACKER)
      for (const delay of [250, 500, 1000, 2000, 4000, MAX_DELAY_MS, MAX_DELAY_MS]) {
        const client = perseus.beginLogin("red", { password }, ATTACKER)
        yield* perseus.settle
        yield* perseus.falls(delay + REFUSAL_DELAY_MS, {
          late: 0,
          before: () => assert.deepStrictEqual(client.heard(), ["R"]),
          after: () => assert.deepStrictEqual(client.heard(), ["FATAL 28P01", "closed"])
        })
      }
      const right = perseus.beginLogin("blue", {}, ATTACKER)
      yield* perseus.settle
      yield* perseus.falls(MAX_DELAY_MS, {
        late: 0,
        before: () => assert.isFalse(letIn(right)),
        after: () => assert.isTrue(letIn(right))
      })
      assert.deepStrictEqual(throttled(perseus).delayed, { address: 8, tenant: 0 })
    })
  )

  it.effect("delays no other address at another tenant, and this one no more when the window is over", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(1, 0))
      yield* attempts(perseus, 1, "red", ATTACKER)
      assert.strictEqual(yield* attempt(perseus, "blue", STRANGER, true), "let in")
      // One window behind the first failure, of which the test saw the answer.
      yield* perseus.pass(WINDOW_SECS * 1000 - 2 * REFUSAL_DELAY_MS - 1)
      const late = perseus.beginLogin("red", { password }, ATTACKER)
      yield* perseus.settle
      assert.strictEqual(throttled(perseus).delayed.address, 1)
      late.memory.vanish()
      yield* perseus.pass(1)
      assert.strictEqual(yield* attempt(perseus, "red", ATTACKER), "FATAL 28P01")
      assert.strictEqual(throttled(perseus).delayed.address, 1)
    })
  )

  it.effect("lets wait for a tenant, too, whoever fails there, and whether it is there or not", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(2, 0))
      for (const schema of ["red", "nobody"]) {
        for (const from of ["10.0.0.1", "10.0.1.1"]) yield* attempts(perseus, 1, schema, `${from}${schema.length}`)
        const client = perseus.beginLogin(schema, { password }, STRANGER)
        yield* perseus.settle
        yield* perseus.falls(250 + REFUSAL_DELAY_MS, {
          late: 0,
          before: () => assert.deepStrictEqual(client.heard(), ["R"]),
          after: () => assert.deepStrictEqual(client.heard(), ["FATAL 28P01", "closed"])
        })
      }
    })
  )

  it.effect("is off at 0", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(0, 0))
      const answers = yield* attempts(perseus, 30, "red", ATTACKER)
      assert.deepStrictEqual(new Set(answers), new Set(["FATAL 28P01"]))
    })
  )
})

describe("FailuresBeforeBlock", () => {
  it.effect("refuses an address for BlockSecs, unasked and whatever it wants, and then lets it try again", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(0, 3))
      yield* attempts(perseus, 3, "red", ATTACKER)
      for (const schema of ["red", "blue", "nobody"]) {
        const client = perseus.beginLogin(schema, {}, ATTACKER)
        yield* perseus.settle
        assert.deepStrictEqual(client.heard(), ["FATAL 28000", "closed"])
        assert.strictEqual(client.complaint, "too many failed logins from this address")
      }
      yield* perseus.pass(BLOCK_SECS * 1000 - REFUSAL_DELAY_MS - 1)
      assert.strictEqual(yield* attempt(perseus, "blue", ATTACKER, true), "FATAL 28000")
      assert.strictEqual(yield* attempt(perseus, "blue", ATTACKER, true), "let in")
      assert.deepStrictEqual(throttled(perseus).blocked, { address: 4, tenant: 0 })
    })
  )

  it.effect("begins to count anew behind a block, and is not prolonged by what was refused meanwhile", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(0, 3))
      yield* attempts(perseus, 13, "red", ATTACKER)
      yield* perseus.pass(BLOCK_SECS * 1000)
      assert.deepStrictEqual(yield* attempts(perseus, 4, "red", ATTACKER), [
        "FATAL 28P01",
        "FATAL 28P01",
        "FATAL 28P01",
        "FATAL 28000"
      ])
    })
  )

  it.effect("counts an IPv6 network of 64 bits as one address, and a mapped IPv4 address as itself", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(0, 2))
      yield* attempt(perseus, "red", "2001:db8:1:2::a")
      yield* attempt(perseus, "blue", "2001:db8:1:2:ffff::b")
      assert.strictEqual(yield* attempt(perseus, "blue", "2001:db8:1:2:3:4:5:6", true), "FATAL 28000")
      assert.strictEqual(yield* attempt(perseus, "blue", "2001:db8:1:3::a", true), "let in")
    })
  )

  it.effect("refuses guesses at one tenant from everywhere", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(0, 3))
      for (const from of ["10.0.0.1", "10.0.0.2", "10.0.0.3"]) yield* attempt(perseus, "red", from)
      const client = perseus.beginLogin("red", { password }, STRANGER)
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["R", "FATAL 28000", "closed"])
      assert.strictEqual(client.complaint, "too many failed logins to this tenant")
      assert.strictEqual(yield* attempt(perseus, "red", STRANGER, true), "FATAL 28000")
      assert.strictEqual(yield* attempt(perseus, "blue", STRANGER, true), "let in")
      assert.deepStrictEqual(throttled(perseus).blocked, { address: 0, tenant: 2 })
      yield* perseus.pass(BLOCK_SECS * 1000)
      assert.strictEqual(yield* attempt(perseus, "red", STRANGER, true), "let in")
    })
  )

  it.effect("blocks a tenant that is not there as one that is", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(0, 3))
      for (const from of ["10.0.0.1", "10.0.0.2", "10.0.0.3"]) yield* attempt(perseus, "nobody", from)
      const client = perseus.beginLogin("nobody", { password }, STRANGER)
      yield* perseus.settle
      assert.deepStrictEqual(client.heard(), ["R", "FATAL 28000", "closed"])
    })
  )

  it.effect("does not lock out an address that has logged in to the tenant before, though its password is new", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(0, 3))
      assert.strictEqual(yield* attempt(perseus, "red", CUSTOMER, true), "let in")
      for (let guess = 0; guess < 12; guess++) yield* attempt(perseus, "red", `10.0.0.${guess}`)
      perseus.setTenant("red", { sourcePassHashed: "plain:new" })
      yield* perseus.settle
      const client = perseus.beginLogin("red", { password: "new" }, CUSTOMER)
      yield* perseus.settle
      assert.isTrue(letIn(client))
    })
  )

  it.effect("does not refuse a password that was right before, from wherever it comes", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(1, 3))
      assert.strictEqual(yield* attempt(perseus, "red", CUSTOMER, true), "let in")
      for (let guess = 0; guess < 12; guess++) yield* attempt(perseus, "red", `10.0.0.${guess}`)
      const client = perseus.beginLogin("red", {}, STRANGER)
      yield* perseus.settle
      assert.isTrue(letIn(client), "neither refused nor delayed")
    })
  )

  it.effect("counts guesses at such a tenant against their address, though they leave before they are answered", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(0, 5))
      assert.strictEqual(yield* attempt(perseus, "red", CUSTOMER, true), "let in")
      for (let guess = 0; guess < 5; guess++) {
        const client = perseus.beginLogin("red", { password }, ATTACKER)
        yield* perseus.settle
        client.memory.vanish()
        yield* perseus.settle
      }
      assert.strictEqual(yield* attempt(perseus, "red", ATTACKER, true), "FATAL 28000")
    })
  )

  it.effect("counts guesses at a tenant that is blocked against their address, too", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(0, 3))
      assert.strictEqual(yield* attempt(perseus, "red", CUSTOMER, true), "let in")
      for (const from of ["10.0.0.1", "10.0.0.2", "10.0.0.3"]) yield* attempt(perseus, "red", from)
      const answers = []
      for (let guess = 0; guess < 4; guess++) {
        const client = perseus.beginLogin("red", { password }, ATTACKER)
        yield* perseus.settle
        answers.push(client.complaint)
      }
      assert.deepStrictEqual(answers, [
        ...Array<string>(3).fill("too many failed logins to this tenant"),
        "too many failed logins from this address"
      ])
    })
  )

  it.effect(
    "counts an address that has logged in before by itself: it neither locks out others nor its other tenants",
    () =>
      Effect.gen(function* () {
        const perseus = yield* make(limits(0, 3))
        for (const schema of ["red", "blue"]) {
          assert.strictEqual(yield* attempt(perseus, schema, CUSTOMER, true), "let in")
        }
        perseus.setTenant("red", { sourcePassHashed: "plain:new" })
        yield* perseus.settle
        yield* attempts(perseus, 3, "red", CUSTOMER)
        assert.strictEqual(yield* attempt(perseus, "red", CUSTOMER), "FATAL 28000")
        assert.strictEqual(yield* attempt(perseus, "blue", CUSTOMER, true), "let in")
        const elsewhere = perseus.beginLogin("red", { password: "new" }, STRANGER)
        yield* perseus.settle
        assert.isTrue(letIn(elsewhere))
      })
  )

  it.effect("of an address leaves it the tenants to which it has logged in before", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(0, 3))
      assert.strictEqual(yield* attempt(perseus, "red", CUSTOMER, true), "let in")
      yield* attempts(perseus, 3, "nobody", CUSTOMER)
      assert.strictEqual(yield* attempt(perseus, "blue", CUSTOMER, true), "FATAL 28000")
      assert.strictEqual(yield* attempt(perseus, "red", CUSTOMER, true), "let in")
    })
  )

  it.effect("is off at 0, also for who is blocked already", () =>
    Effect.gen(function* () {
      const perseus = yield* make(limits(0, 2))
      yield* attempts(perseus, 2, "red", ATTACKER)
      assert.strictEqual(yield* attempt(perseus, "red", ATTACKER), "FATAL 28000")
      yield* perseus.reload(limits(0, 0).settings)
      assert.strictEqual(yield* attempt(perseus, "red", ATTACKER), "FATAL 28P01")
    })
  )
})
