/**
 * Settings that change while the service runs: what is idle beyond them is closed at once, the rest as it comes back, and who
 * could be served is served.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { SWEEP_PERIOD_MS } from "../../src/pool/PoolContext.ts"
import { answered, type Client, HOST, make, type MemoryPerseus, OTHER_HOST } from "../support/memoryPerseus.ts"

const hold = Effect.fnUntraced(function* (perseus: MemoryPerseus, clients: ReadonlyArray<Client>) {
  for (const client of clients) client.ask("BEGIN")
  yield* perseus.settle
})

const release = Effect.fnUntraced(function* (perseus: MemoryPerseus, clients: ReadonlyArray<Client>) {
  for (const client of clients) client.ask("COMMIT")
  yield* perseus.settle
})

const four = Effect.fnUntraced(function* (perseus: MemoryPerseus) {
  const clients = yield* Effect.forEach(["red", "red", "red", "red"], (schema) => perseus.logIn(schema))
  yield* hold(perseus, clients)
  assert.strictEqual(perseus.pool().inUse, 4)
  return clients
})

const whoami = Effect.fnUntraced(function* (perseus: MemoryPerseus, client: Client) {
  client.heard()
  client.ask("SELECT whoami")
  yield* perseus.settle
  return (client.heard()[0] ?? "").replace(/,\d+$/, "")
})

describe("MaxOpen", () => {
  it.effect("lowered closes what is idle at once, and what is leased as it comes back", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      const clients = yield* four(perseus)
      yield* release(perseus, clients.slice(0, 2))
      yield* perseus.reload({ PoolSettings: { MaxOpen: 1, MaxIdle: 1 } })
      const { open, inUse, idle } = perseus.pool()
      assert.deepStrictEqual({ open, inUse, idle }, { open: 2, inUse: 2, idle: 0 })
      assert.strictEqual(perseus.pool().maxOpen, 1)
      yield* release(perseus, clients.slice(2, 3))
      assert.strictEqual(perseus.pool().open, 1)
      yield* release(perseus, clients.slice(3))
      perseus.whole(1)
      yield* hold(perseus, clients)
      assert.strictEqual(perseus.pool().open, 1)
      assert.strictEqual(perseus.pool().waiting, 3)
    })
  )

  it.effect("raised serves those who wait at once", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const clients = yield* Effect.forEach(["red", "blue", "red"], (schema) => perseus.logIn(schema))
      yield* hold(perseus, clients)
      assert.strictEqual(perseus.pool().waiting, 2)
      yield* perseus.reload({ PoolSettings: { MaxOpen: 3, MaxIdle: 3 } })
      for (const client of clients) assert.deepStrictEqual(client.heard(), ["done BEGIN", "ready T"])
      yield* release(perseus, clients)
      perseus.whole(3)
    })
  )

  it.effect("of 0 is no limit", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const clients = yield* Effect.forEach(
        Array.from({ length: 12 }, () => "red"),
        (schema) => perseus.logIn(schema)
      )
      yield* hold(perseus, clients)
      yield* perseus.reload({ PoolSettings: { MaxOpen: 0, MaxIdle: 1 } })
      assert.strictEqual(perseus.pool().inUse, 12)
      yield* release(perseus, clients)
      perseus.whole(1)
    })
  )
})

describe("TLS to servers", () => {
  it.effect("changed closes what is idle, and what is leased as it comes back; those who come then are served", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { TLSSettings: { ServerMode: "disable" } } })
      const clients = yield* four(perseus)
      yield* release(perseus, clients.slice(0, 2))
      yield* perseus.reload({ TLSSettings: { ServerMode: "prefer" } })
      yield* perseus.pass(SWEEP_PERIOD_MS)
      const { open, inUse, idle } = perseus.pool()
      assert.deepStrictEqual({ open, inUse, idle }, { open: 2, inUse: 2, idle: 0 })
      for (const client of clients) client.heard()
      yield* release(perseus, clients.slice(2))
      for (const client of clients.slice(2)) assert.deepStrictEqual(client.heard(), ["done COMMIT", "ready I"])
      perseus.whole(0)
      assert.strictEqual(yield* whoami(perseus, clients[0]!), "row red,app")
      perseus.whole(1)
    })
  )

  it.effect("that stays as it is closes nothing, whatever else is reloaded", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { TLSSettings: { ServerMode: "disable" } } })
      yield* release(perseus, yield* four(perseus))
      yield* perseus.reload({ TLSSettings: { ServerMode: "disable" }, LimitSettings: { QueryTimeoutSecs: 7 } })
      yield* perseus.pass(10 * SWEEP_PERIOD_MS)
      perseus.whole(4)
      assert.strictEqual(perseus.pool().statistics.opened, 4)
    })
  )
})

describe("other settings", () => {
  it.effect("MaxIdle lowered closes the surplus at once", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      yield* release(perseus, yield* four(perseus))
      perseus.whole(4)
      yield* perseus.reload({ PoolSettings: { MaxIdle: 1 } })
      perseus.whole(1)
    })
  )

  it.effect("MaxLifetimeSecs and MaxIdletimeSecs hold for connections that are there", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      yield* perseus.logIn("red")
      yield* perseus.pass(60_000)
      yield* perseus.reload({ PoolSettings: { MaxIdletimeSecs: 30 } })
      yield* perseus.pass(100)
      perseus.whole(0)
    })
  )

  it.effect("AcquireTimeoutSecs holds for those who wait already", () =>
    Effect.gen(function* () {
      const pool = { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } }
      const perseus = yield* make({ settings: { ...pool, LimitSettings: { AcquireTimeoutSecs: 60 } } })
      const [holder, waiter] = [yield* perseus.logIn("red"), yield* perseus.logIn("red")]
      yield* hold(perseus, [holder])
      waiter.ask("SELECT 1")
      yield* perseus.pass(2000)
      yield* perseus.reload({ ...pool, LimitSettings: { AcquireTimeoutSecs: 3 } })
      yield* perseus.falls(1000, {
        before: () => assert.deepStrictEqual(waiter.heard(), []),
        after: () => assert.deepStrictEqual(waiter.heard(), ["ERROR 53300", "ready I"])
      })
    })
  )

  it.effect("IdleInTransactionTimeoutSecs and QueryTimeoutSecs hold for what runs already", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      const [idle, busy] = [yield* perseus.logIn("red"), yield* perseus.logIn("red")]
      yield* hold(perseus, [idle])
      busy.ask("SELECT pg_sleep(600)")
      yield* perseus.pass(2000)
      idle.heard()
      yield* perseus.reload({ LimitSettings: { IdleInTransactionTimeoutSecs: 3, QueryTimeoutSecs: 4 } })
      yield* perseus.pass(1100)
      assert.deepStrictEqual([...idle.heard(), ...busy.heard()], ["FATAL 25P03", "closed"])
      yield* perseus.pass(1000)
      assert.deepStrictEqual(busy.heard(), ["FATAL 57014", "closed"])
      perseus.whole(0)
    })
  )

  it.effect("MaxServersPerTenant raised serves those who wait", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { LimitSettings: { MaxServersPerTenant: 1 } } })
      const clients = yield* Effect.forEach(["red", "red"], (schema) => perseus.logIn(schema))
      yield* hold(perseus, clients)
      assert.strictEqual(perseus.pool().waiting, 1)
      yield* perseus.reload({ LimitSettings: { MaxServersPerTenant: 2 } })
      assert.strictEqual(perseus.pool().inUse, 2)
    })
  )

  it.effect("a file that cannot be used changes nothing", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      const clients = yield* four(perseus)
      yield* perseus.reload({ PoolSettings: { MaxOpen: 1, MaxIdle: 2 } })
      assert.strictEqual(perseus.pool().maxOpen, 4)
      yield* release(perseus, clients)
      perseus.whole(4)
    })
  )
})

describe("OverrideSettings", () => {
  it.effect("changed live hold for their destination, the closer name first, and for no other", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ tenants: { red: {}, blue: { destHost: OTHER_HOST } } })
      yield* perseus.logIn("red")
      yield* perseus.logIn("blue")
      const limits = () => [perseus.pool(HOST).maxOpen, perseus.pool(OTHER_HOST).maxOpen]
      assert.deepStrictEqual(limits(), [4, 4])
      yield* perseus.reload({ OverrideSettings: { [`${HOST}/shop`]: { MaxOpen: 6 }, shop: { MaxOpen: 5 } } })
      assert.deepStrictEqual(limits(), [6, 5])
      yield* perseus.reload({ OverrideSettings: { [`${HOST}/shop`]: { MaxOpen: 7 } } })
      assert.deepStrictEqual(limits(), [7, 4])
      yield* perseus.reload({})
      assert.deepStrictEqual(limits(), [4, 4])
    })
  )

  it.effect("of ever more destinations, and then of none, harm nobody who is there", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      const clients = yield* four(perseus)
      for (let reload = 1; reload <= 14; reload++) {
        const others = Array.from({ length: reload * 10 }, (_, index) => [`other${index}`, { MaxOpen: index + 4 }])
        yield* perseus.reload({ OverrideSettings: { ...Object.fromEntries(others), shop: { MaxOpen: 4 + reload } } })
        assert.strictEqual(perseus.pool().maxOpen, 4 + reload)
        clients.push(yield* perseus.logIn("blue"))
        yield* hold(perseus, clients.slice(-1))
        assert.strictEqual(perseus.pool().inUse, 4 + reload)
      }
      yield* perseus.reload({})
      yield* release(perseus, clients)
      perseus.whole(4)
    })
  )

  it.effect("that lower MaxOpen close what is over it", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      yield* release(perseus, yield* four(perseus))
      yield* perseus.reload({ OverrideSettings: { shop: { MaxOpen: 2, MaxIdle: 2 } } })
      perseus.whole(2)
    })
  )

  it.effect("hold for a pool that is made later", () =>
    Effect.gen(function* () {
      const perseus = yield* make()
      yield* perseus.reload({ OverrideSettings: { shop: { MaxOpen: 9 } } })
      yield* perseus.logIn("red")
      assert.strictEqual(perseus.pool().maxOpen, 9)
    })
  )
})

describe("ExtraSchemas", () => {
  it.effect("stand behind the tenant's own, each once", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { PoolSettings: { ExtraSchemas: ["extensions", "red"] } } })
      const red = yield* perseus.logIn("red")
      const blue = yield* perseus.logIn("blue")
      assert.strictEqual(yield* whoami(perseus, red), "row red, extensions,app")
      assert.strictEqual(yield* whoami(perseus, blue), "row blue, extensions, red,app")
    })
  )

  it.effect("changed live hold from the next transaction on, for sessions and connections that are there", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const client = yield* perseus.logIn("red")
      assert.strictEqual(yield* whoami(perseus, client), "row red,app")
      yield* hold(perseus, [client])
      yield* perseus.reload({ PoolSettings: { MaxOpen: 1, MaxIdle: 1, ExtraSchemas: ["extensions"] } })
      assert.strictEqual(yield* whoami(perseus, client), "row red,app")
      yield* release(perseus, [client])
      assert.strictEqual(yield* whoami(perseus, client), "row red, extensions,app")
      yield* perseus.reload({ PoolSettings: { MaxOpen: 1, MaxIdle: 1 } })
      assert.strictEqual(yield* whoami(perseus, client), "row red,app")
      perseus.whole(1)
    })
  )

  it.effect("changed while a switch is under way hold from the next transaction on, too", () =>
    Effect.gen(function* () {
      const perseus = yield* make({ settings: { PoolSettings: { MaxOpen: 1, MaxIdle: 1 } } })
      const client = yield* perseus.logIn("red")
      yield* perseus.logIn("blue")
      perseus.postgres.delay(() => 100)
      client.ask("SELECT 1")
      yield* perseus.pass(150)
      yield* perseus.reload({ PoolSettings: { MaxOpen: 1, MaxIdle: 1, ExtraSchemas: ["extensions"] } })
      yield* perseus.pass(1000)
      assert.deepStrictEqual(client.heard(), answered)
      perseus.postgres.delay(null)
      assert.strictEqual(yield* whoami(perseus, client), "row red, extensions,app")
    })
  )
})
