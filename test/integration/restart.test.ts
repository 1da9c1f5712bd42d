import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { eventually, startPerseus, whole, type TestPerseus } from "../support/perseus.ts"
import { ownPostgres } from "../support/postgres.ts"
import { fieldsOf, rowsOf, type Message } from "../support/rawClient.ts"

interface Outcome {
  /** Transactions that ended with COMMIT. */
  readonly committed: number
  /** What ended the session, in mid-transaction. */
  readonly lost: string | null
}

/** Runs transactions until told to stop or until the session ends. A statement outside of a transaction may not fail. */
const work = (perseus: TestPerseus, until: { stop: boolean }) =>
  Effect.gen(function* () {
    const client = yield* perseus.login("red")
    let committed = 0
    const step = (sql: string) =>
      Effect.suspend(() => {
        if (client.isClosed) return Effect.succeed(client.received)
        return Effect.raceFirst(client.query(sql), client.closed())
      })
    while (!until.stop) {
      for (const sql of ["BEGIN", "SELECT pg_sleep(0.002)", "SELECT 1", "COMMIT"]) {
        const answers: ReadonlyArray<Message> = yield* Effect.catchDefect(step(sql), () => client.closed())
        const error = answers.find(({ type }) => type === "E")
        if (error !== undefined || client.isClosed) {
          return { committed, lost: error === undefined ? "closed" : (fieldsOf(error)["C"] ?? "") } satisfies Outcome
        }
      }
      committed++
    }
    return { committed, lost: null } satisfies Outcome
  })

describe("a restart of PostgreSQL under load", () => {
  for (const mode of ["fast", "immediate"] as const) {
    it.live(`(${mode}) fails the transactions in flight and no other, then all goes on`, () =>
      Effect.gen(function* () {
        const server = yield* ownPostgres()
        const perseus = yield* startPerseus({
          tenants: ["red"],
          server,
          config: { PoolSettings: { MaxOpen: 3, MaxIdle: 3, ConnCreateTimeoutSecs: 10 } }
        })
        const bystanders = yield* Effect.forEach([1, 2, 3, 4], () => perseus.login("red"))
        const until = { stop: false }
        const workers = Effect.all(
          Array.from({ length: 12 }, () => work(perseus, until)),
          { concurrency: "unbounded" }
        )
        const restart = Effect.gen(function* () {
          yield* eventually(Effect.sync(perseus.pool), ({ statistics }) => statistics.leases > 30)
          yield* server.restart(mode)
          const before = perseus.pool().statistics.leases
          yield* eventually(Effect.sync(perseus.pool), ({ statistics }) => statistics.leases > before + 30)
          until.stop = true
        })
        const [outcomes] = yield* Effect.all([workers, restart], { concurrency: "unbounded" })
        const lost = outcomes.flatMap(({ lost }) => (lost === null ? [] : [lost]))
        assert.isAtMost(lost.length, 3)
        // An immediate stop says 57P02 or nothing, and then the pooler says it.
        for (const state of lost) assert.include(["57P01", "57P02"], state)
        for (const client of bystanders) assert.deepStrictEqual(rowsOf(yield* client.query("SELECT 1")), ["1"])
        assert.isAtMost((yield* whole(perseus)).open, 3)
      })
    )
  }
})
