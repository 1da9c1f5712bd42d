import { assert, describe, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { environmentOf, isInstalled, PROGRAM_TIMEOUT_MS, run, sourceOf } from "./programs.ts"
import { Targets, type Target } from "./targets.ts"

const CLIENTS = 8

const SEED = 7

/** How each run differs from the others, and how many transactions each of its clients does. */
const manners: ReadonlyArray<readonly [what: string, transactions: number, ...args: ReadonlyArray<string>]> = [
  ["simple", 20, "-M", "simple"],
  ["extended", 20, "-M", "extended"],
  ["prepared", 20, "-M", "prepared"],
  ["a connection for each transaction, simple", 5, "-C", "-M", "simple"],
  ["a connection for each transaction, extended", 5, "-C", "-M", "extended"],
  ["a connection for each transaction, prepared", 5, "-C", "-M", "prepared"],
  ["reading, prepared", 50, "-S", "-M", "prepared"],
  ["pipelines, extended", 20, "-M", "extended", "-f", sourceOf("pipeline.pgbench")],
  ["pipelines, prepared", 20, "-M", "prepared", "-f", sourceOf("pipeline.pgbench")]
]

/** What must be the same however the transactions were interleaved. */
const BALANCES = `SELECT count(*), sum(delta), (SELECT sum(abalance) FROM pgbench_accounts),
  (SELECT sum(hashint8(aid::int8 * 1000003 + abalance)::int8) FROM pgbench_accounts) FROM pgbench_history`

const play = (target: Target) =>
  Effect.gen(function* () {
    const environment = environmentOf(target)
    const filled = yield* run(environment, "pgbench", "-i", "-q")
    assert.strictEqual(filled.code, 0, filled.errors)
    const transcript: Record<string, unknown> = {}
    for (const [what, transactions, ...args] of manners) {
      // A thread for each client: pgbench prepares with blocking calls, and a thread that waits in one would leave the
      // transactions of its other clients open, on all connections there are.
      const load = ["-n", "-c", `${CLIENTS}`, "-j", `${CLIENTS}`, "-t", `${transactions}`, `--random-seed=${SEED}`]
      const ran = yield* run(environment, "pgbench", ...load, ...args)
      const done = /actually processed: (.*)\n/.exec(ran.output)?.[1]
      const failed = /number of failed transactions: (\d+)/.exec(ran.output)?.[1]
      transcript[what] = { code: ran.code, errors: ran.errors, done, failed }
    }
    const balances = yield* run(environment, "psql", "-XAtc", BALANCES)
    return { ...transcript, balances: balances.output }
  })

const isReady = [isInstalled("pgbench", "pgbench", "--version"), isInstalled("psql", "psql", "--version")].every(
  Boolean
)

describe.skipIf(!isReady)("pgbench", { timeout: PROGRAM_TIMEOUT_MS }, () => {
  layer(Targets.layer, { excludeTestServices: true })((it) => {
    it.effect(
      "does all of its transactions, to the same end, with every protocol and with or without a pool of its own",
      () =>
        Effect.gen(function* () {
          const { both } = yield* Targets
          const { directly, pooled } = yield* both(play)
          assert.deepStrictEqual(pooled, directly)
          const { balances, ...runs } = directly
          const errors = `pgbench: setting random seed to ${SEED}\n`
          const done = (transactions: number) => `${CLIENTS * transactions}/${CLIENTS * transactions}`
          assert.deepStrictEqual(
            runs,
            Object.fromEntries(
              manners.map(([what, transactions]) => [what, { code: 0, errors, done: done(transactions), failed: "0" }])
            )
          )
          const writing = manners.filter(([what]) => !what.startsWith("reading"))
          const written = writing.reduce((sum, [, transactions]) => sum + CLIENTS * transactions, 0)
          assert.strictEqual(balances.split("|")[0], String(written))
        })
    )
  })
})
