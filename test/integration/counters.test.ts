/**
 * What is counted, to the last one: logins by how they ended, transactions, leases, and which client is at what.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { eventually, startPerseus, whole } from "../support/perseus.ts"
import { bind, execute, parse, query, sync } from "../support/rawClient.ts"

describe("the counts", () => {
  it.live("are exact: of logins that succeeded and that did not, of transactions and of leases", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: ["red"],
        config: { LoginSettings: { FailuresBeforeDelay: 0, FailuresBeforeBlock: 0 } }
      })
      const { live } = perseus.service
      const clients = yield* Effect.forEach([1, 2, 3], () => perseus.login("red"))
      for (const secret of ["wrong", ""]) yield* perseus.refusal(perseus.tenant("red").startup, secret)
      const logins = Object.fromEntries(live.logins)
      assert.strictEqual(logins["ok"], 3, JSON.stringify(logins))
      assert.strictEqual(
        Object.values(logins).reduce((sum, count) => sum + count, 0),
        5
      )

      const before = { transactions: live.counters.transactions, leases: perseus.pool().statistics.leases }
      for (const client of clients) {
        yield* client.query("SELECT 1")
        yield* client.exchange(Buffer.concat([parse("", "SELECT 2"), bind("", ""), execute(), sync]))
        for (const sql of ["BEGIN", "SELECT 3", "SELECT 4", "COMMIT"]) yield* client.query(sql)
        // An answer without a server is no transaction.
        yield* client.exchange(sync)
      }
      yield* whole(perseus)
      assert.strictEqual(live.counters.transactions - before.transactions, 9)
      assert.strictEqual(perseus.pool().statistics.leases - before.leases, 9)
    })
  )

  it.live("show each client as idle, waiting or active", () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({ tenants: ["red"], config: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const idle = yield* perseus.login("red")
      const active = yield* perseus.login("red")
      const waiting = yield* perseus.login("red")
      yield* active.query("BEGIN")
      waiting.send(query("SELECT 1"))
      const states = Effect.sync(() => perseus.service.live.states())
      yield* eventually(states, (seen) => seen.waiting === 1)
      assert.deepStrictEqual(yield* states, { login: 0, idle: 1, waiting: 1, active: 1 })
      yield* active.query("COMMIT")
      yield* waiting.ready()
      yield* eventually(states, (seen) => seen.idle === 3)
      assert.isFalse(idle.isClosed)
    })
  )
})
