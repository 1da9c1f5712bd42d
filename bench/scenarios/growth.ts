/**
 * Whether a transaction costs more where there is more of something: clients, tenants, pools, prepared statements. One, ten and so
 * on up to ten thousand are there; the next transaction is that of a random one, eight are under way at a time.
 *
 * Compared are counts between which nothing but the count differs. With up to 20 tenants each finds a connection that served
 * it last; with a hundred nearly every transaction needs a switch. That is a step and no growth: tenants are compared from a
 * hundred up.
 */
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import { randomBytes, scryptSync } from "node:crypto"
import * as EasyScrypt from "../../src/tenant/EasyScrypt.ts"
import { openFilesLimit } from "../Machine.ts"
import { only, type Sample } from "../Sample.ts"
import { OURS, type BenchFailed, type Case, type Scenario } from "../Scenario.ts"
import * as BareRelay from "../stage/BareRelay.ts"
import * as Driver from "../stage/Driver.ts"
import * as PerseusDaemon from "../stage/PerseusDaemon.ts"
import { DATABASE, PASSWORD, type Stage } from "../stage/Stage.ts"
import * as Stub from "../stage/Stub.ts"
import type { Target } from "../stage/Target.ts"
import type { Group } from "../wire/Order.ts"

const POOL_SIZE = 20
const IN_FLIGHT = 8
const COUNTS = [1, 10, 100, 1000, 10_000]
/** What a cache of the processor holds of one thing it does not hold of ten thousand. */
const AT_MOST = 1.2

/** Files that a process has open beside clients and servers. */
const SPARE_FILES = 300

const TENANTS = "growth-tenants"
const POOLS = "growth-pools"
const STATEMENTS = "growth-statements"

const names = (count: number) => Array.from({ length: count }, (_, index) => `g${index + 1}`)

/** Its derivation costs nothing: ten thousand real ones would take minutes. */
const cheapHash = (): string => {
  const salt = randomBytes(EasyScrypt.saltLength)
  const cost = { N: 2, r: 1, p: 1 }
  return EasyScrypt.encode({ key: scryptSync(PASSWORD, salt, 32, cost), salt, ...cost })
}

/** What is driven, once it is there. */
interface Ready {
  readonly target: Target
  readonly driver: Driver.Driver
  readonly what: Parameters<typeof Driver.drive>[2]
}

type Setup = (count: number) => Effect.Effect<Ready, BenchFailed, Scope.Scope>

interface Variation {
  /** Of what there is the most. */
  readonly most?: number
  /** The least with which the most is compared. */
  readonly from?: number
  /** Baselines that are no Perseus. */
  readonly beside?: Readonly<Record<string, ReturnType<Setup>>>
}

const QUERY = { sql: "SELECT 1", inFlight: IN_FLIGHT }

export const growth: Scenario = {
  name: "growth",
  title: `CPU for a transaction with more and more of something, ${IN_FLIGHT} under way at a time, a pool of ${POOL_SIZE}`,
  cases: Effect.fnUntraced(function* (stage, { seconds }) {
    const hash = cheapHash()
    const host = `${stage.direct.host}:${stage.direct.port}`
    const withTenants = yield* Effect.cached(
      stage.addRows({ database: TENANTS, hash, places: names(COUNTS.at(-1)!).map((schema) => ({ schema, host })) })
    )
    // Lives as long as the scenario: rows name its port.
    const scope = yield* Effect.scope
    const stub = yield* Effect.cached(Effect.provideService(Stub.start, Scope.Scope, scope))
    const withPools = yield* Effect.cached(
      Effect.flatMap(stub, (port) => {
        const places = names(COUNTS.at(-1)!).map((schema) => ({ schema, host: `127.0.0.1:${port}`, database: schema }))
        return stage.addRows({ database: POOLS, hash, places })
      })
    )
    const withStatements = yield* Effect.cached(
      Effect.flatMap(stub, (port) =>
        stage.addRows({ database: STATEMENTS, hash, places: [{ schema: "t1", host: `127.0.0.1:${port}` }] })
      )
    )
    const clients: Setup = (count) => atPerseus(stage, [{ database: DATABASE, schema: "t1", count }])
    const relayed: Setup = (count) =>
      Effect.flatMap(BareRelay.start(stage, POOL_SIZE), (relay) => opened(relay, [{ login: relay.login("t1"), count }]))
    const oneEach = (database: string, count: number) =>
      atPerseus(
        stage,
        names(count).map((schema) => ({ database, schema, count: 1 }))
      )
    const statements: Setup = Effect.fnUntraced(function* (count) {
      yield* withStatements
      const groups = [{ database: STATEMENTS, schema: "t1", count: IN_FLIGHT }]
      const ready = yield* atPerseus(stage, groups, { MaxPreparedStatements: count })
      yield* ready.driver.tell({ do: "prepare", statements: count })
      return { ...ready, what: { statements: count, inFlight: IN_FLIGHT } }
    })
    const caseOf = (
      variant: string,
      setup: Setup,
      { most = COUNTS.at(-1)!, from = 10, beside = {} }: Variation = {}
    ): Effect.Effect<Case> =>
      Effect.gen(function* () {
        const runs: Record<string, Effect.Effect<Sample, BenchFailed, Scope.Scope>> = {}
        for (const count of COUNTS.slice(0, -1)) runs[count] = yield* driven(setup(count), seconds)
        runs[OURS] = yield* driven(setup(most), seconds)
        for (const [name, other] of Object.entries(beside)) runs[name] = yield* driven(other, seconds)
        return {
          variant,
          clients: most,
          of: variant,
          runs,
          bars: [{ measure: "cpuPerTx", against: `${from}`, atMost: AT_MOST }]
        }
      })
    // Of each pool the pooler has a client and a server.
    const mostPools = Math.min(COUNTS.at(-1)!, Math.floor((openFilesLimit() - SPARE_FILES) / 2))
    return [
      yield* caseOf("clients", clients, {
        beside: { relay: relayed(COUNTS.at(-1)!), "relay with 10": relayed(10) }
      }),
      yield* caseOf("tenants", (count) => Effect.andThen(withTenants, oneEach(TENANTS, count)), { from: 100 }),
      yield* caseOf("pools", (count) => Effect.andThen(withPools, oneEach(POOLS, count)), { most: mostPools }),
      yield* caseOf("statements", statements)
    ]
  })
}

/** Set up once, before it is driven for the first time. */
const driven = (setup: ReturnType<Setup>, seconds: number) =>
  Effect.map(Effect.cached(setup), (ready) =>
    Effect.gen(function* () {
      const { target, driver, what } = yield* ready
      // PostgreSQL's part is the same whatever there is more of, and the stub's is none.
      return only(yield* Driver.drive(driver, target, what, seconds), "cpuPerTx", "tps", "memoryMb")
    })
  )

const opened = Effect.fnUntraced(function* (
  target: Target,
  groups: ReadonlyArray<Group>
): Effect.fn.Return<Ready, BenchFailed, Scope.Scope> {
  const driver = yield* Driver.start
  yield* driver.tell({ do: "open", at: target, groups })
  return { target, driver, what: QUERY }
})

/** A Perseus of its own, with so many clients of each tenant. */
const atPerseus = Effect.fnUntraced(function* (
  stage: Stage,
  groups: ReadonlyArray<{ readonly database: string; readonly schema: string; readonly count: number }>,
  PoolSettings: Readonly<Record<string, unknown>> = {}
): Effect.fn.Return<Ready, BenchFailed, Scope.Scope> {
  // Between two rounds a connection is idle for longer, and would be tested at its next transaction.
  const LimitSettings = { ServerCheckDelaySecs: 0 }
  const perseus = yield* PerseusDaemon.start(stage, POOL_SIZE, { PoolSettings, LimitSettings })
  return yield* opened(
    perseus,
    groups.map(({ database, schema, count }) => ({ login: { ...perseus.login(schema), database }, count }))
  )
})
