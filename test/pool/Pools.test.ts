import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { TestClock } from "effect/testing"
import { decode } from "../../src/config/Decode.ts"
import { LiveConfig } from "../../src/config/LiveConfig.ts"
import { LiveTls, type TlsToServers } from "../../src/config/LiveTls.ts"
import { Credential } from "../../src/pool/Credential.ts"
import { SWEEP_PERIOD_MS } from "../../src/pool/PoolContext.ts"
import { Pools, type Placement } from "../../src/pool/Pools.ts"
import { noSettings } from "../../src/pool/Reset.ts"
import * as MemoryNetwork from "../../src/testing/MemoryNetwork.ts"
import * as MemoryPostgres from "../../src/testing/MemoryPostgres.ts"

const IDLE_SECS = 60

const placement: Placement = {
  destination: { label: "db", host: "db", port: 5432, database: "shop" },
  tenantKey: "red",
  schema: "red",
  credential: new Credential("app", Redacted.make("secret")),
  secret: "",
  mode: null
}

const config = Effect.fromResult(
  Result.mapError(
    decode({
      ListenAddress: "127.0.0.1:5433",
      AuthDBSettings: { AuthDBDSN: "postgres://unused@unused/unused", AuthQueryTimeoutSecs: 2 },
      AWSSettings: { Region: "us-east-1", KMSKeyARN: "arn" },
      PoolSettings: {
        MaxIdle: 4,
        MaxOpen: 4,
        ConnCreateTimeoutSecs: 5,
        ConnCloseTimeoutSecs: 2,
        SchemaExecTimeoutSecs: 3,
        MaxIdletimeSecs: IDLE_SECS
      }
    }),
    (problems) => new Error(problems.join("; "))
  )
)

/** All pools over a server in memory, under a rule of TLS that can be changed. */
const surrounded = Effect.gen(function* () {
  const network = MemoryNetwork.make()
  const postgres = yield* MemoryPostgres.make({ users: { app: "secret" } })
  postgres.attach(network, "db", 5432)
  let rule: TlsToServers = { mode: "disable" }
  const tls = LiveTls.of({ toClients: () => ({ mode: "disable" }), toServers: () => rule })
  const layer = Pools.layer.pipe(
    Layer.provide([LiveConfig.layer(Effect.orDie(config)), Layer.succeed(LiveTls, tls), network.layer])
  )
  const pools = yield* Effect.provide(Pools, yield* Layer.build(layer))
  const changeRule = () => void (rule = { mode: "disable" })
  return { changeRule, ...(yield* pools.place(placement, noSettings)) }
})

describe("a pool in which nothing happens", () => {
  it.effect("closes what was opened under another rule of TLS all the same", () =>
    Effect.gen(function* () {
      const { changeRule, pool, tenant } = yield* surrounded
      yield* pool.greeting(tenant, noSettings)
      yield* TestClock.adjust("10 seconds")
      assert.deepInclude(pool.snapshot(), { open: 1, idle: 1 })
      changeRule()
      yield* TestClock.adjust(SWEEP_PERIOD_MS)
      assert.deepInclude(pool.snapshot(), { idle: 0 })
    })
  )

  it.effect("closes in its time what was opened after a rest", () =>
    Effect.gen(function* () {
      const { pool, tenant } = yield* surrounded
      const greeting = pool.greeting(tenant, noSettings)
      yield* TestClock.adjust("1 second")
      yield* greeting
      assert.deepInclude(pool.snapshot(), { open: 1, idle: 1 })
      yield* TestClock.adjust(IDLE_SECS * 1000 + 2 * SWEEP_PERIOD_MS)
      assert.deepInclude(pool.snapshot(), { idle: 0 })
    })
  )
})
