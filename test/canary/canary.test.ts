import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { change, faultyServer, noFault, pass, sqlOf, withSql, type Fault } from "../support/faultyServer.ts"
import { startPerseus, whole } from "../support/perseus.ts"
import { connection } from "../support/postgres.ts"
import { newTally, release, tablesOf } from "./Canary.ts"

/** Another one: `PERSEUS_SEED=123 npx vitest run test/canary`. */
const SEED = Number(process.env["PERSEUS_SEED"] ?? 1)

interface Flock {
  readonly tenants: number
  readonly clients: number
  readonly transactions: number
  readonly MaxOpen: number
  /** That the tenants have in turn. */
  readonly roles?: number
  readonly fault?: Fault
}

/** All on one destination, which may be a faulty server. */
const fly = Effect.fnUntraced(function* ({ tenants, clients, transactions, MaxOpen, roles = 1, fault }: Flock) {
  const marks = Array.from({ length: tenants }, (_, index) => `tenant_${index}`)
  const server = fault === undefined ? undefined : yield* faultyServer(connection())
  const perseus = yield* startPerseus({
    tenants: marks.map((schema, index) => ({ schema, destUser: `role_${index % roles}` })),
    through: server,
    config: {
      PoolSettings: { MaxOpen, MaxIdle: MaxOpen, MaxPinned: MaxOpen },
      LimitSettings: { AcquireTimeoutSecs: 60 }
    }
  })
  const all = marks.map((mark) => ({ mark, ...perseus.tenant(mark) }))
  yield* perseus.destination.script(
    all.map((tenant) => `SET ROLE ${tenant.role}; ${tablesOf(tenant)} RESET ROLE`).join(";")
  )
  yield* server?.inject(fault ?? noFault) ?? Effect.void
  const tally = newTally()
  yield* Effect.promise((signal) =>
    release({ address: perseus, tenants: all, clients, transactions, seed: SEED }, tally, signal)
  ).pipe(
    Effect.timeoutOrElse({
      duration: "150 seconds",
      orElse: () => Effect.die(new Error(`stuck: ${JSON.stringify([...tally.busy])} ${JSON.stringify(tally)}`))
    })
  )
  return { perseus, tally, marks }
})

describe("a flock of canaries", () => {
  it.live(
    "sees no other tenant's mark in 100 000 transactions with cancels and disconnects",
    () =>
      Effect.gen(function* () {
        const { perseus, tally, marks } = yield* fly({
          // So many that visits are short: each client's tenant mostly has nobody else.
          tenants: 220,
          clients: 300,
          transactions: 100_000,
          MaxOpen: 6
        })
        const { transactions, rows, logins, disconnects, cancels, cancelled } = tally
        const { tenantSwitches, opened } = (yield* whole(perseus)).statistics
        process.stdout.write(
          `canary, seed ${SEED}: ${transactions} transactions, ${rows} rows, ${tenantSwitches} tenant switches, ` +
            `${opened} server connections, ${logins} logins, ${disconnects} disconnects, ${cancels} cancels ` +
            `(${cancelled} hit), wrong marks: ${tally.wrongMarks.length}\n`
        )
        assert.deepStrictEqual(tally.wrongMarks, [])
        assert.deepStrictEqual(tally.unexpected, [])
        for (const count of [transactions, rows]) assert.isAtLeast(count, 100_000)
        for (const count of [disconnects, cancels, cancelled]) assert.isAbove(count, 500)
        assert.isAbove(tenantSwitches, 10_000)
        // What they wrote lies where it belongs.
        let writers = 0
        for (const mark of marks) {
          const written = yield* perseus.destination.query(`SELECT DISTINCT mark FROM "${mark}".visit`)
          if (written.length === 0) continue
          assert.deepStrictEqual(written, [{ mark }])
          writers++
        }
        assert.isAbove(writers, marks.length * 0.9)
      }),
    240_000
  )
})

describe("a canary", () => {
  /** The first switch on each connection passes: without a path there would be nothing to see. */
  const spoiledSwitch = (fits: (sql: string) => boolean): Fault => {
    const pathSet = new Set<number>()
    return {
      fromFrontend: (sent, connection) => {
        const sql = sent.type === "P" ? (sqlOf(sent) ?? "") : ""
        if (pathSet.has(connection) && fits(sql)) return change(withSql(sent, "SELECT 'harmless'"))
        if (sql.startsWith("SET search_path = ")) pathSet.add(connection)
        return pass
      }
    }
  }
  const small = { tenants: 5, clients: 20, transactions: 20_000, MaxOpen: 2 }

  const isReset = (sql: string) => sql === "RESET ALL" || sql === "DISCARD ALL"
  for (const [what, fits] of [
    ["nothing of the switch is done", (sql: string) => isReset(sql) || sql.startsWith("SET search_path = ")],
    ["nothing is reset", isReset]
  ] as const) {
    it.live(`falls silent at once where ${what} for the next tenant`, () =>
      Effect.gen(function* () {
        const { tally } = yield* fly({ ...small, fault: spoiledSwitch(fits) })
        assert.isAbove(tally.wrongMarks.length, 0)
        assert.match(tally.wrongMarks[0] ?? "", /^tenant_\d was shown "tenant_\d"$/)
      })
    )
  }

  it.live("sings on behind a server without fault, whose connections are of several roles", () =>
    Effect.gen(function* () {
      const { tally } = yield* fly({ ...small, transactions: 1000, roles: 2, fault: noFault })
      assert.deepStrictEqual([tally.wrongMarks, tally.unexpected], [[], []])
    })
  )
})
