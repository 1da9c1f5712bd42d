/**
 * The whole service in memory under TestClock: tenants with rows of their own, PostgreSQL servers that can be broken, and
 * clients that note what they hear, in words.
 *
 * Time passes only in `pass`, which stops at every moment for which anything sleeps and lets all that follows come to rest
 * before it goes on. So what a test sees at a moment is all that happens at it, and every run is the same run. Nothing here
 * waits for anything real, and nothing judges what it sees.
 */
import { assert } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as References from "effect/References"
import * as Result from "effect/Result"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { decode } from "../../src/config/Decode.ts"
import { LiveConfig } from "../../src/config/LiveConfig.ts"
import { ConfigInvalid } from "../../src/errors.ts"
import type { Transport } from "../../src/net/Transport.ts"
import { Perseus } from "../../src/Perseus.ts"
import { SWEEP_PERIOD_MS } from "../../src/pool/PoolContext.ts"
import type { PoolSnapshot } from "../../src/pool/PoolStatistics.ts"
import { cancelRequest, query } from "../../src/protocol/Frontend.ts"
import { KmsDecrypt } from "../../src/tenant/KmsDecrypt.ts"
import * as MemoryAuthRepo from "../../src/testing/MemoryAuthRepo.ts"
import { errorIn, type Login, MemoryClient, type Message, rowsIn, tagsIn } from "../../src/testing/MemoryClient.ts"
import * as MemoryKms from "../../src/testing/MemoryKms.ts"
import * as MemoryNetwork from "../../src/testing/MemoryNetwork.ts"
import * as MemoryPasswordHash from "../../src/testing/MemoryPasswordHash.ts"
import * as MemoryPostgres from "../../src/testing/MemoryPostgres.ts"

const DATABASE = "shop"
const USER = "mm"
const PASSWORD = "password"
export const HOST = "db.internal"
export const OTHER_HOST = "other.internal"
const PORT = 5432
/** More turns of the event loop without rest than any test here needs. */
const RESTLESS = 10_000

/** Keys of config.json, by section. */
export interface Settings {
  readonly PoolSettings?: Readonly<Record<string, unknown>> | undefined
  readonly LimitSettings?: Readonly<Record<string, unknown>> | undefined
  readonly LoginSettings?: Readonly<Record<string, unknown>> | undefined
  readonly TLSSettings?: Readonly<Record<string, unknown>> | undefined
  readonly OverrideSettings?: Readonly<Record<string, Readonly<Record<string, unknown>>>> | undefined
}

/** What differs from the row that every tenant has. */
export type RowChange = Partial<Omit<MemoryAuthRepo.MemoryRow, "sourceDb" | "sourceSchema">>

export interface Options {
  readonly settings?: Settings | undefined
  /** By schema. Default: `red` and `blue`, both served as `app`. */
  readonly tenants?: Readonly<Record<string, RowChange>> | undefined
  /** As MemoryPostgres has it: when a CancelRequest's signal arrives. */
  readonly deferCancel?: MemoryPostgres.Options["deferCancel"]
}

const config = ({
  PoolSettings,
  LimitSettings,
  LoginSettings = {},
  TLSSettings = {},
  OverrideSettings = {}
}: Settings) =>
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
      ...PoolSettings
    },
    LimitSettings: { AcquireTimeoutSecs: 10, ServerCheckDelaySecs: 0, ...LimitSettings },
    LoginSettings,
    TLSSettings,
    OverrideSettings
  })

/** One client, and what it has heard since it was last asked. */
export class Client {
  readonly memory: MemoryClient
  #heard = 0
  #closed = false

  constructor(transport: Transport) {
    this.memory = MemoryClient.connect(transport)
  }

  send(...bytes: ReadonlyArray<Uint8Array>): void {
    this.memory.send(...bytes)
  }

  ask(sql: string): void {
    this.send(query(sql))
  }

  /**
   * One line a message, "closed" at the end: `row a,b`, `done SELECT 1`, `ready I`, `ERROR 53300`, or the type's letter for what
   * has no more to tell. ParameterStatus is passed over.
   */
  heard(): ReadonlyArray<string> {
    const lines = this.#news().flatMap(wordsFor)
    if (!this.memory.ended || this.#closed) return lines
    this.#closed = true
    return [...lines, "closed"]
  }

  /** The text of the last error, as the client's user reads it. */
  get complaint(): string | null {
    return errorIn(this.memory.messages.toReversed())?.message ?? null
  }

  #news(): ReadonlyArray<Message> {
    const news = this.memory.messages.slice(this.#heard)
    this.#heard = this.memory.messages.length
    return news
  }
}

const wordsFor = (message: Message): ReadonlyArray<string> => {
  switch (message.type) {
    case "S":
    case "T":
      return []
    case "Z":
      return [`ready ${message.body.toString("latin1")}`]
    case "C":
      return tagsIn([message]).map((tag) => `done ${tag}`)
    case "D":
      return rowsIn([message]).map((row) => `row ${row.join(",")}`)
    case "E": {
      const error = errorIn([message])
      return error === null ? [] : [`${error.severity} ${error.sqlState}`]
    }
    default:
      return [message.type]
  }
}

/** What `SELECT 1` is answered with, outside of a transaction. */
export const answered = ["row 1", "done SELECT 1", "ready I"]

/** Time, and what is under way in it: deliveries of the network and steps of fibers. */
class Passage {
  readonly #clock: Clock.Clock
  readonly #scheduler: Scheduler.Scheduler
  readonly #wakes = new Set<number>()
  #pending = 0

  constructor(clock: Clock.Clock, scheduler: Scheduler.Scheduler) {
    this.#clock = clock
    this.#scheduler = scheduler
  }

  readonly schedule = (task: () => void): void => {
    queueMicrotask(this.#counted(task))
  }

  /** What lives in it is waited for by `settle`, and stopped for by `pass`. */
  readonly provide = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
    const clock = this.#clock
    const remembering: Clock.Clock = {
      currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe(),
      currentTimeMillis: clock.currentTimeMillis,
      currentTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe(),
      currentTimeNanos: clock.currentTimeNanos,
      monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe(),
      monotonicTimeNanos: clock.monotonicTimeNanos,
      sleep: (duration) =>
        Effect.suspend(() => {
          this.#wakes.add(clock.currentTimeMillisUnsafe() + Duration.toMillis(duration))
          return clock.sleep(duration)
        })
    }
    const scheduler: Scheduler.Scheduler = {
      executionMode: this.#scheduler.executionMode,
      shouldYield: (fiber) => this.#scheduler.shouldYield(fiber),
      makeDispatcher: () => {
        const dispatcher = this.#scheduler.makeDispatcher()
        return {
          scheduleTask: (task, priority) => dispatcher.scheduleTask(this.#counted(task), priority),
          flush: () => dispatcher.flush()
        }
      }
    }
    return effect.pipe(
      Effect.provideService(Clock.Clock, remembering),
      Effect.provideService(Scheduler.Scheduler, scheduler),
      Effect.provideService(References.MinimumLogLevel, "None")
    )
  }

  /** All that happens without time passing. At rest: a whole turn of the event loop in which nothing is left to do. */
  readonly settle: Effect.Effect<void> = Effect.gen({ self: this }, function* () {
    for (let turns = 0, quiet = 0; quiet < 2; turns++) {
      yield* Effect.yieldNow
      quiet = this.#pending === 0 ? quiet + 1 : 0
      assert.isBelow(turns, RESTLESS, "something reschedules itself for ever")
    }
  })

  pass(millis: number): Effect.Effect<void> {
    return Effect.gen({ self: this }, function* () {
      yield* this.settle
      const until = this.#clock.currentTimeMillisUnsafe() + millis
      while (true) {
        const next = Math.min(until, ...this.#wakes)
        this.#wakes.delete(next)
        yield* TestClock.setTime(next)
        yield* this.settle
        if (next === until) return
      }
    })
  }

  #counted(task: () => void): () => void {
    this.#pending++
    return () => {
      this.#pending--
      task()
    }
  }
}

/** PostgreSQL under one name, with the faults of the machine that it runs on. */
interface Server {
  readonly postgres: MemoryPostgres.MemoryPostgres
  /** Connections that it accepted, cancels included. */
  readonly accepted: () => number
  /** What it says from now on is changed on its way, one write at a time. */
  readonly tamper: (change: (bytes: Buffer) => Buffer) => void
  /** Does not hear or answer any more, on none of the connections that it has now. */
  readonly hang: () => void
  /** Those that hung hear again. */
  readonly wake: () => void
  /** Breaks the connection that it accepted last. */
  readonly breakNewest: () => void
  /** What its hung connections were told is answered by a reset. */
  readonly reset: () => void
  /** Connects are not answered from now on. */
  readonly vanish: () => void
  /** Connects are refused from now on. */
  readonly refuse: () => void
}

const serverAt = Effect.fnUntraced(function* (
  network: MemoryNetwork.MemoryNetwork,
  host: string,
  { users, deferCancel }: MemoryPostgres.Options
) {
  const postgres = yield* MemoryPostgres.make({ users, deferCancel })
  const ends: Array<Transport> = []
  let change = (bytes: Buffer) => bytes
  const watched: MemoryNetwork.MemoryNetwork = {
    ...network,
    serve: (name, port, onConnection) =>
      network.serve(name, port, (transport) => {
        const write = transport.write.bind(transport)
        transport.write = (bytes) => write(change(Buffer.from(bytes)))
        ends.push(transport)
        onConnection(transport)
      })
  }
  postgres.attach(watched, host, PORT)
  return {
    postgres,
    accepted: () => ends.length,
    tamper: (next) => {
      change = next
    },
    hang: () => ends.forEach((end) => end.pause()),
    wake: () => ends.forEach((end) => end.resume()),
    breakNewest: () => ends.at(-1)?.destroy(),
    reset: () => ends.forEach((end) => end.destroy()),
    vanish: () => network.stall(host, PORT),
    refuse: () => network.refuse(host, PORT)
  } satisfies Server
})

export const make = Effect.fnUntraced(function* (options: Options = {}) {
  const { settings = {}, tenants = { red: {}, blue: {} }, deferCancel } = options
  const passage = new Passage(yield* Clock.Clock, yield* Scheduler.Scheduler)
  const { pass, settle } = { pass: (millis: number) => passage.pass(millis), settle: passage.settle }
  const scope = yield* Scope.make()
  const users: Record<string, string> = { app: "app-secret", other: "other-secret" }
  const written: Array<number> = []
  const network = MemoryNetwork.make({
    schedule: passage.schedule,
    split: (chunk) => {
      written.push(chunk.length)
      return [chunk]
    }
  })
  const server = yield* passage.provide(serverAt(network, HOST, { users, deferCancel }))
  const other = yield* passage.provide(serverAt(network, OTHER_HOST, { users, deferCancel }))
  const repo = yield* MemoryAuthRepo.make()
  const kms = MemoryKms.make()
  const rows = new Map<string, RowChange>()
  let current = settings
  let kmsDelay: Duration.Input = 0

  /** Makes the tenant's row, or changes these columns of it. */
  const setTenant = (schema: string, change: RowChange = {}): void => {
    const row = { ...rows.get(schema), ...change }
    rows.set(schema, row)
    const destUser = row.destUser ?? "app"
    repo.set({
      sourceDb: DATABASE,
      sourceSchema: schema,
      sourceUser: USER,
      sourcePassHashed: MemoryPasswordHash.stored(PASSWORD),
      destHost: HOST,
      destDb: DATABASE,
      destUser,
      destPassEnc: kms.encrypt(`${destUser}-secret`),
      ...row
    })
  }
  for (const [schema, change] of Object.entries(tenants)) setTenant(schema, change)

  const load = Effect.suspend(() =>
    Effect.fromResult(
      Result.mapError(config(current), (problems) => new ConfigInvalid({ source: "the test's settings", problems }))
    )
  )
  const slowKms = Layer.succeed(
    KmsDecrypt,
    KmsDecrypt.of({
      ...kms.kmsDecrypt,
      decrypt: (ciphertext) => Effect.andThen(Effect.sleep(kmsDelay), kms.kmsDecrypt.decrypt(ciphertext))
    })
  )
  const context = yield* Perseus.layerNoDeps.pipe(
    Layer.provideMerge(LiveConfig.layer(load)),
    Layer.provide([network.layer, repo.layer, slowKms, MemoryPasswordHash.layer]),
    Layer.buildWithScope(scope),
    passage.provide
  )
  const perseus = yield* Effect.provide(Perseus, context)
  const liveConfig = yield* Effect.provide(LiveConfig, context)
  /** Shuts the service down; ends when it is down, which may take time. */
  const shutDown = passage.provide(Scope.close(scope, Exit.void))

  const dial = (from?: string) => new Client(network.dial(undefined, from))

  /** Sends a login and what it is asked for; nobody waits for its end. `from`: another address than the other clients'. */
  const beginLogin = (schema: string, change: Partial<Login> = {}, from?: string): Client => {
    const client = dial(from)
    const parameters = { schema_search_path: schema, ...change.parameters }
    const login = { user: USER, database: DATABASE, password: PASSWORD, ...change, parameters }
    Effect.runFork(Effect.ignore(client.memory.startup(login)))
    return client
  }

  /** Logged in and greeted, without time passing. */
  const logIn = Effect.fnUntraced(function* (schema: string, parameters: Readonly<Record<string, string>> = {}) {
    const client = beginLogin(schema, { parameters })
    yield* settle
    const lines = client.heard()
    assert.strictEqual(lines.at(-1), "ready I", `the login of ${schema} was answered by ${lines.join(", ")}`)
    return client
  })

  /** A cancel with this client's key, on a connection of its own. */
  const cancel = (client: Client): void => {
    const key = client.memory.backendKey
    if (key !== null) dial().send(cancelRequest(key.processId, key.secretKey))
  }

  const pools = (): ReadonlyArray<PoolSnapshot> => perseus.pools()
  const pool = (host = HOST): PoolSnapshot => {
    const found = pools().find(({ destHost }) => destHost === host)
    assert.isDefined(found, `there is no pool for ${host}`)
    return found
  }

  /** Nobody holds, waits or opens; so many connections are idle, and none is open that no pool knows of. */
  const whole = (idle: number): void => {
    const sum = { open: 0, idle: 0, inUse: 0, closing: 0, opening: 0, waiting: 0 }
    for (const snapshot of pools()) {
      for (const key of Object.keys(sum) as Array<keyof typeof sum>) sum[key] += snapshot[key]
    }
    assert.deepStrictEqual(sum, { open: idle, idle, inUse: 0, closing: 0, opening: 0, waiting: 0 })
    const { connected, connecting } = network.openTransports()
    assert.deepStrictEqual({ connected, connecting }, { connected: idle, connecting: 0 })
  }

  /** Runs `before` 1 ms before the moment and `after` at most `late` ms behind it. */
  const falls = (
    moment: number,
    { before, after, late = SWEEP_PERIOD_MS }: { before: () => void; after: () => void; late?: number | undefined }
  ): Effect.Effect<void> =>
    Effect.gen(function* () {
      yield* pass(moment - 1)
      before()
      yield* pass(1 + late)
      after()
    })

  yield* Effect.addFinalizer(() =>
    // The test's own end: whoever is left is cut off, and the clock need not move for it.
    Effect.gen(function* () {
      const end = yield* Effect.forkDetach(shutDown, { startImmediately: true })
      yield* perseus.cut
      yield* pass(10_000)
      assert.isDefined(end.pollUnsafe(), "the service does not go down")
    })
  )

  // Not on the sweep's own moment, where lateness would not show.
  yield* pass(30)

  return {
    network,
    /** How many bytes each write had, from whichever end of whichever connection. */
    written,
    postgres: server.postgres,
    server,
    other,
    /** The servers' roles and their passwords; what is changed here holds from the next login on. */
    users,
    repo,
    kms,
    perseus,
    pass,
    settle,
    dial,
    beginLogin,
    logIn,
    cancel,
    setTenant,
    pools,
    pool,
    whole,
    falls,
    shutDown,
    /** How long each decryption takes from now on. */
    slowDownKms: (delay: Duration.Input) => {
      kmsDelay = delay
    },
    /** The file has changed, and the service reads it again. */
    reload: (next: Settings) =>
      Effect.suspend(() => {
        current = next
        return Effect.andThen(passage.provide(liveConfig.reload), settle)
      }),
    /** What has begun to run, as `search_path: statement`, since this was last asked. */
    statements: statementsOf(server.postgres),
    now: Clock.currentTimeMillis
  }
})

export type MemoryPerseus = Effect.Success<ReturnType<typeof make>>

const statementsOf = ({ log }: MemoryPostgres.MemoryPostgres) => {
  let told = 0
  return (): ReadonlyArray<string> => {
    const news = log.slice(told)
    told = log.length
    return news.map(({ searchPath, sql }) => `${searchPath}: ${sql}`)
  }
}
