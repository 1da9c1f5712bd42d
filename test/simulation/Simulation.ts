/**
 * One run of the whole service in memory: clients, servers and faults as one seed has them, then the end, then the accounts.
 *
 * What must hold after every run, whatever happened in it (DESIGN §8): no statement ran under another tenant's path or as
 * another's user, no client saw another's row or was answered more or less than it asked, every connection is counted once, and
 * when all clients have left nothing is leased, waiting or open that should not be.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import { decode } from "../../src/config/Decode.ts"
import { LiveConfig } from "../../src/config/LiveConfig.ts"
import { Perseus } from "../../src/Perseus.ts"
import type { PoolSnapshot } from "../../src/pool/PoolStatistics.ts"
import * as MemoryAuthRepo from "../../src/testing/MemoryAuthRepo.ts"
import * as MemoryKms from "../../src/testing/MemoryKms.ts"
import * as MemoryNetwork from "../../src/testing/MemoryNetwork.ts"
import * as MemoryPasswordHash from "../../src/testing/MemoryPasswordHash.ts"
import * as MemoryPostgres from "../../src/testing/MemoryPostgres.ts"
import { SimulatedClient, type SimulatedTenant } from "./SimulatedClient.ts"
import { World } from "./World.ts"

export interface Outcome {
  readonly seed: number
  readonly violations: ReadonlyArray<string>
  readonly answered: number
  readonly errors: number
  readonly switches: number
  /** Statements that ended by a client's own cancel. */
  readonly cancelled: number
}

const HOST = "db.internal"
const PORT = 5432

const allTenants: ReadonlyArray<Omit<SimulatedTenant, "mode">> = [
  { mark: "red", schema: "red", destUser: "app", password: "red-pw" },
  { mark: "odd", schema: 'a"b; drop schema x --', destUser: "app", password: "odd-pw" },
  { mark: "green", schema: "green", destUser: "app", password: "green-pw" },
  { mark: "blue", schema: "blue", destUser: "other", password: "blue-pw" }
]

export const simulate = (seed: number, steps = 220): Outcome => {
  const world = new World(seed)
  const violations: Array<string> = []
  const tenants = Array.from(allTenants, (tenant): SimulatedTenant => {
    const mode = world.chance(0.15) ? "session" : "transaction"
    return { ...tenant, mode }
  })
  const scope = Effect.runSync(Scope.make())
  const run = <A>(effect: Effect.Effect<A, unknown, Scope.Scope>): A => {
    let exit: Exit.Exit<A, unknown> | undefined
    const fiber = Effect.runFork(world.provide(Scope.provide(effect, scope)))
    fiber.addObserver((ended) => {
      exit = ended
    })
    world.settle()
    if (exit === undefined) throw new Error("an effect did not end although nothing is left to happen")
    if (Exit.isFailure(exit)) throw new Error(String(exit.cause))
    return exit.value
  }

  const network = MemoryNetwork.make({
    schedule: world.schedule,
    split: (chunk) => {
      if (chunk.length < 2 || !world.chance(0.2)) return [chunk]
      const cut = 1 + world.below(chunk.length - 1)
      return [chunk.subarray(0, cut), chunk.subarray(cut)]
    },
    losesInFlight: () => world.chance(0.5)
  })
  const postgres = run(
    MemoryPostgres.make({
      users: { app: "app-secret", other: "other-secret" },
      deferCancel: (signal) => (world.chance(0.5) ? world.schedule(signal) : world.later(world.below(300), signal)),
      onStatement: ({ searchPath, user, sql }) => {
        const tenant = tenants.find(({ mark }) => sql.startsWith(`/* ${mark} `))
        if (tenant === undefined) return
        const { schema, destUser } = tenant
        const quoted = `"${schema.replaceAll('"', '""')}"`
        // A client's own SET search_path or DISCARD ALL is answered before it asks again, so the path is always its own.
        if (searchPath !== schema && searchPath !== quoted) violations.push(`${sql} ran under path ${searchPath}`)
        if (user !== destUser) violations.push(`${sql} ran as ${user}`)
      }
    })
  )
  postgres.attach(network, HOST, PORT)
  if (world.chance(0.5)) postgres.delay(() => world.below(60))

  const maxOpen = 1 + world.below(4)
  const config = Result.getOrThrow(
    decode({
      ListenAddress: "127.0.0.1:5433",
      AuthDBSettings: { AuthDBDSN: "postgres://unused@unused/unused", AuthQueryTimeoutSecs: 2 },
      AWSSettings: { Region: "us-east-1", KMSKeyARN: "arn" },
      PoolSettings: {
        MaxIdle: 1 + world.below(maxOpen),
        MaxOpen: maxOpen,
        MaxLifetimeSecs: world.pick([0, 5, 3600]),
        MaxIdletimeSecs: world.pick([0, 3, 300]),
        ConnCreateTimeoutSecs: 2,
        ConnCloseTimeoutSecs: 1,
        SchemaExecTimeoutSecs: 2,
        TenantSwitch: world.pick(["discard", "discard", "reconnect"])
      },
      LimitSettings: {
        AcquireTimeoutSecs: 5,
        CancelTimeoutSecs: 2,
        ClientLoginTimeoutSecs: 10,
        ShutdownTimeoutSecs: 3,
        IdleInTransactionTimeoutSecs: world.pick([2, 4]),
        QueryTimeoutSecs: world.pick([0, 6]),
        MaxServersPerTenant: world.pick([-1, 0, 1]),
        ServerCheckDelaySecs: world.pick([1, 30])
      }
    })
  )
  const kms = MemoryKms.make()
  const repo = run(MemoryAuthRepo.make())
  for (const { schema, destUser, password, mode } of tenants) {
    repo.set({
      sourceDb: "shop",
      sourceSchema: schema,
      sourceUser: "mm",
      sourcePassHashed: MemoryPasswordHash.stored(password),
      destHost: HOST,
      destDb: "shop",
      destUser,
      poolMode: mode,
      destPassEnc: kms.encrypt(`${destUser}-secret`)
    })
  }
  const perseus = run(
    Effect.map(
      Layer.build(
        Perseus.layerNoDeps.pipe(
          Layer.provide([LiveConfig.layerOf(config), network.layer, repo.layer, kms.layer, MemoryPasswordHash.layer])
        )
      ),
      (context) => context
    )
  )
  const service = Effect.runSync(Effect.provide(Perseus, perseus))

  const clients = Array.from(
    { length: 3 + world.below(7) },
    (_, id) => new SimulatedClient(id + 1, world.pick(tenants.slice(0, 2 + world.below(3))), 3 + world.below(12))
  )
  const dial = () => network.dial()

  const checkAccounts = () => {
    for (const pool of service.pools()) {
      if (pool.open !== pool.idle + pool.inUse + pool.closing)
        violations.push(`accounts do not add up: ${describe(pool)}`)
      if (pool.pinned > Math.floor(maxOpen / 2)) violations.push(`more than MaxPinned: ${describe(pool)}`)
      if (pool.open + pool.opening > maxOpen) violations.push(`more than MaxOpen: ${describe(pool)}`)
    }
  }

  for (let step = 0; step < steps; step++) {
    const dice = world.random()
    if (dice < 0.55) {
      if (!world.step()) world.pass(world.below(120))
    } else if (dice < 0.9) {
      const client = world.pick(clients)
      if (client.mayAct) client.act(world, dial)
    } else if (dice < 0.95) {
      world.pass(world.below(700))
    } else if (dice < 0.98) misfortune(world, postgres)
    checkAccounts()
  }

  // All is well again, and everybody is given the time to be answered.
  postgres.proceed()
  postgres.acceptLogins()
  postgres.delay(null)
  postgres.start()
  world.settle()
  // Sleeping statements one after the other on one connection take their time; nobody may need more than a minute.
  for (let second = 0; second < 60 && clients.some((client) => client.owed > 0); second++) {
    // Who keeps a connection in session mode keeps others waiting for as long as it stays.
    for (const client of clients) if (client.owed === 0 && !client.over && client.mayAct) client.leave()
    world.pass(1000)
  }
  for (const client of clients) {
    if (client.owed > 0) violations.push(`client ${client.id} still waits for ${client.owed} answers`)
    if (client.over) continue
    if (client.mayAct) client.leave()
    else client.vanish()
  }
  world.settle()
  // What was asked before a goodbye still runs, one sleep after the other where there is one connection.
  const isBusy = () => service.live.count > 0 || service.pools().some((pool) => pool.inUse + pool.closing > 0)
  for (let second = 0; second < 60 && (second < 3 || isBusy()); second++) world.pass(1000)
  checkAccounts()
  for (const pool of service.pools()) {
    if (pool.inUse > 0 || pool.pinned > 0 || pool.waiting > 0 || pool.opening > 0 || pool.closing > 0) {
      violations.push(`not at rest when all have left: ${describe(pool)}`)
    }
    if (pool.idle !== network.openTransports().connected) {
      violations.push(`${network.openTransports().connected} connections are open, the pool knows ${pool.idle}`)
    }
  }
  if (service.live.count > 0) violations.push(`${service.live.count} sessions are left`)
  if (service.live.loginsUnderWay > 0) violations.push(`${service.live.loginsUnderWay} logins are not forgotten`)
  const switches = service.pools().reduce((sum, pool) => sum + pool.statistics.tenantSwitches, 0)

  Effect.runFork(world.provide(Scope.close(scope, Exit.void)))
  world.settle()
  for (let second = 0; second < 8; second++) world.pass(1000)
  const open = network.openTransports()
  if (open.accepted + open.connected + open.connecting > 0)
    violations.push("something is open behind the service's end")
  for (const client of clients) violations.push(...client.violations)
  return {
    seed,
    violations,
    answered: clients.reduce((sum, client) => sum + client.answered, 0),
    errors: clients.reduce((sum, client) => sum + client.errors, 0),
    switches,
    cancelled: clients.reduce((sum, client) => sum + client.cancelled, 0)
  }
}

const misfortune = (world: World, postgres: MemoryPostgres.MemoryPostgres): void => {
  switch (world.below(8)) {
    case 0:
      return postgres.killAll(world.pick(["clean", "crash"]))
    case 1: {
      const sessions = postgres.sessions()
      if (sessions.length > 0) postgres.kill(world.pick(sessions).processId, world.pick(["clean", "crash"]))
      return
    }
    case 2:
      return postgres.refuseLogins(world.pick(["53300", "57P03", "28P01"]), "no")
    case 3:
      return postgres.stallAt(world.pick(["startup", "authentication", "statement"]))
    case 4:
      return postgres.stop(world.pick(["clean", "crash"]))
    case 5:
      return postgres.delay(() => world.below(900))
    default:
      postgres.proceed()
      postgres.acceptLogins()
      postgres.delay(null)
      return postgres.start()
  }
}

const describe = (pool: PoolSnapshot): string => JSON.stringify({ ...pool, statistics: undefined })
