/**
 * Many tenants share few server connections: what a switch costs, and what it saves PostgreSQL to have 20 connections in place of
 * 250. pgbouncer has an entry for each tenant, as somebody would set it up whose tenants are schemas.
 */
import * as Effect from "effect/Effect"
import { drive } from "../Pgbench.ts"
import { OURS, type Bar, type Case, type Scenario } from "../Scenario.ts"
import * as PerseusDaemon from "../stage/PerseusDaemon.ts"
import * as Pgbouncer from "../stage/Pgbouncer.ts"
import { TENANTS, tenantNames } from "../stage/Stage.ts"
import type { Target } from "../stage/Target.ts"

const CLIENTS_OF_TENANT = 5
const BURST = 20
const EACH_TIME = "switch each time"

const oneRow = "\\set aid random(1, 1000)\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"

const scripts = {
  uniform: { text: oneRow, transactions: 1 },
  bursts: { text: `${oneRow.repeat(BURST)}\\sleep 500 ms\n`, transactions: BURST }
} as const

type Pattern = keyof typeof scripts

export const tenants: Scenario = {
  name: "tenants",
  title: `${TENANTS} tenants with ${CLIENTS_OF_TENANT} clients each; pgbouncer with an entry of ${CLIENTS_OF_TENANT} connections for each`,
  cases: Effect.fnUntraced(function* (stage, { seconds }) {
    const pgbouncer = yield* Pgbouncer.startWhereInstalled(stage, {
      poolSize: CLIENTS_OF_TENANT,
      entries: "each tenant"
    })
    const run = (target: Target, pattern: Pattern) =>
      drive(
        target,
        tenantNames.map((tenant) => ({
          login: target.login(tenant),
          clients: CLIENTS_OF_TENANT,
          script: scripts[pattern],
          // What this script takes holds its pause.
          untimed: pattern === "bursts"
        })),
        seconds
      )
    const cases: Array<Case> = []
    for (const poolSize of [20, 50]) {
      const perseus = yield* PerseusDaemon.start(stage, poolSize)
      const eachTime = yield* PerseusDaemon.start(
        stage,
        poolSize,
        { PoolSettings: { TenantSwitch: "always" } },
        EACH_TIME
      )
      const caseOf = (pattern: Pattern): Case => ({
        variant: `${pattern}, pool ${poolSize}`,
        clients: TENANTS * CLIENTS_OF_TENANT,
        runs: {
          [OURS]: run(perseus, pattern),
          ...(pgbouncer !== null && { pgbouncer: run(pgbouncer, pattern) }),
          [EACH_TIME]: run(eachTime, pattern)
        },
        bars: pattern === "bursts" && poolSize === 20 ? bars : []
      })
      cases.push(caseOf("uniform"), caseOf("bursts"))
    }
    return cases
  })
}

const bars: ReadonlyArray<Bar> = [
  { measure: "totalCpuPerTx", against: "pgbouncer", atMost: 0.85 },
  { measure: "totalCpuPerTx", against: EACH_TIME, atMost: 0.6 }
]
