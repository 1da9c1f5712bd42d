import { assert, describe, it } from "@effect/vitest"
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { ConnectionError, SqlError } from "effect/sql/SqlError"
import { TestClock } from "effect/testing"
import * as AuthConnections from "../../src/tenant/AuthConnections.ts"

const settings = {
  minConnections: 2,
  maxConnections: 4,
  maxConnectionLifetime: Duration.hours(1),
  maxConnectionLifetimeJitter: Duration.zero,
  maxConnectionIdleTime: Duration.minutes(30),
  healthCheckPeriod: Duration.minutes(1)
}

const refused = new SqlError({
  reason: new ConnectionError({ cause: new Error("refused"), message: "refused", operation: "connect" })
})

const nothing: PgConnection.Result = { command: "SELECT", rowCount: 0, oid: null, rows: [], fields: [] }

/** A database that can be down, and what is open there. */
class Database {
  isDown = false
  dials = 0
  open = 0

  readonly connect = Effect.acquireRelease(
    Effect.suspend(() => {
      this.dials++
      if (this.isDown) return Effect.fail(refused)
      this.open++
      return Effect.succeed({ query: () => Effect.succeed(nothing) })
    }),
    () => Effect.sync(() => this.open--)
  )
}

describe("a database that is down when its connections are to be opened", () => {
  it.effect("is not tried over and over, and is used when it is back", () =>
    Effect.gen(function* () {
      const database = new Database()
      database.isDown = true
      const connections = yield* AuthConnections.make(database.connect, settings)
      yield* TestClock.adjust("10 minutes")
      assert.strictEqual(database.dials, 2)
      database.isDown = false
      const query = connections.query("SELECT 1", [])
      yield* Effect.all([query, query, query], { concurrency: 3 })
      yield* TestClock.adjust("10 minutes")
      assert.isAtLeast(database.open, 1)
    })
  )

  it.effect("fails what is asked meanwhile, each with one attempt more at most", () =>
    Effect.gen(function* () {
      const database = new Database()
      database.isDown = true
      const connections = yield* AuthConnections.make(database.connect, settings)
      for (let asked = 0; asked < 20; asked++) yield* Effect.flip(connections.query("SELECT 1", []))
      assert.isAtMost(database.dials, 22)
      database.isDown = false
      yield* connections.query("SELECT 1", [])
    })
  )
})

describe("a lifetime of 0", () => {
  it.effect("opens connections anew each period, and not over and over", () =>
    Effect.gen(function* () {
      const database = new Database()
      yield* AuthConnections.make(database.connect, { ...settings, maxConnectionLifetime: Duration.zero })
      yield* TestClock.adjust("10 minutes")
      assert.isAtMost(database.dials, 22)
      assert.strictEqual(database.open, 2)
    })
  )
})
