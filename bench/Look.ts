/**
 * A look at a target while it is under load, and what two looks and the transactions between them make. Reads `/proc`; drives
 * nothing.
 */
import { connectionsOf, cpuOf, cpuOfTree, memoryOf } from "./Machine.ts"
import { quantile, type Sample } from "./Sample.ts"
import type { Target } from "./stage/Target.ts"

export interface Look {
  /** Milliseconds of the wall clock, as pgbench logs it. */
  readonly at: number
  /** CPU, µs. */
  readonly pooler: number
  readonly server: number
  /** Resident, bytes. */
  readonly memory: number
}

export const look = ({ pid, serverPid }: Target): Look => ({
  at: Date.now(),
  pooler: pid === null ? 0 : cpuOf(pid),
  server: cpuOfTree(serverPid),
  memory: pid === null ? 0 : memoryOf(pid).resident
})

export const perTransaction = (before: Look, after: Look, transactions: number): Sample => {
  const [pooler, server] = [
    (after.pooler - before.pooler) / transactions,
    (after.server - before.server) / transactions
  ]
  return {
    ...(before.pooler > 0 && { cpuPerTx: pooler, memoryMb: after.memory / 2 ** 20 }),
    serverCpuPerTx: server,
    totalCpuPerTx: pooler + server,
    tps: (transactions * 1000) / (after.at - before.at)
  }
}

/** Of milliseconds in any order. */
export const latenciesOf = (millis: ReadonlyArray<number>): Sample => {
  const sorted = Float64Array.from(millis).sort()
  return { p50: quantile(sorted, 0.5), p95: quantile(sorted, 0.95), p99: quantile(sorted, 0.99) }
}

/** Connections that a pooler has to PostgreSQL. */
export const serverConnections = ({ pid, serverPort }: Target): Sample =>
  pid === null ? {} : { serverConnections: connectionsOf(pid, { to: serverPort }) }
