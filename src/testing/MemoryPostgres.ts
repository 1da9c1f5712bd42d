/**
 * A PostgreSQL server in memory, for tests under TestClock and for simulations: real in its protocol, a stand-in in all else.
 *
 * It takes logins, runs the few statements that `Statement` lists, cancels them, and keeps a log of what ran under which
 * search_path, so that a test can say whether anything crossed from one tenant to another. It has no data. Its faults are the
 * test's to order; its time is Effect's Clock; nothing in it is random.
 *
 * Sessions are fibers in the scope that it was made in, and end with it.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Fiber from "effect/Fiber"
import * as FiberSet from "effect/FiberSet"
import * as Latch from "effect/Latch"
import type * as Scope from "effect/Scope"
import type { ReadFailure } from "../net/ByteReader.ts"
import type { Transport } from "../net/Transport.ts"
import * as Startup from "../protocol/Startup.ts"
import { encodeError, MemoryBackend, type LoggedStatement, type Server } from "./MemoryBackend.ts"
import type { MemoryNetwork } from "./MemoryNetwork.ts"
import { fatal, type ServerError } from "./ServerError.ts"
import { provePassword, type AuthenticationMethod } from "./ServerAuthentication.ts"
import { ServerWire } from "./ServerWire.ts"
import { SessionSettings } from "./SessionSettings.ts"

const FIRST_PROCESS_ID = 1001

const shutdown = fatal("57P01", "terminating connection due to administrator command")

export interface Options {
  /** Name to password. */
  readonly users: Readonly<Record<string, string>>
  /** Default: whichever is named exists. */
  readonly databases?: ReadonlyArray<string> | undefined
  /** Default: clear text. */
  readonly authentication?: AuthenticationMethod | undefined
  /** Logins beyond these get 53300. Default: no limit. */
  readonly maxConnections?: number | undefined
  /** When a CancelRequest's signal arrives, and with it the end of its connection. Default: at once. */
  readonly deferCancel?: ((signal: () => void) => void) | undefined
  /** Called as each statement begins; what it throws ends the session as a defect. */
  readonly onStatement?: ((statement: LoggedStatement) => void) | undefined
}

/** Where a faulty server falls silent: before its first answer, after the password, before a statement does anything. */
export type Step = "startup" | "authentication" | "statement"

/** "clean": with FATAL 57P01, as pg_terminate_backend. "crash": without a word. */
export type Death = "clean" | "crash"

/** A session as the server sees it. */
export interface SessionInfo {
  readonly processId: number
  readonly user: string
  readonly database: string
  readonly searchPath: string
  readonly inTransaction: boolean
  readonly preparedStatements: ReadonlyArray<string>
  readonly channels: ReadonlyArray<string>
}

export interface MemoryPostgres {
  /** Serves under this name from now on. */
  readonly attach: (network: MemoryNetwork, host: string, port: number) => void
  /** Logged in now. */
  readonly sessions: () => ReadonlyArray<SessionInfo>
  /** The most that were logged in at one time. */
  readonly peakSessions: () => number
  /** What has begun to run, in order. */
  readonly log: ReadonlyArray<LoggedStatement>
  /** New logins get this error, until `acceptLogins`. */
  readonly refuseLogins: (sqlState: string, message: string) => void
  readonly acceptLogins: () => void
  /** Whoever comes to this step waits there, until `proceed`. */
  readonly stallAt: (step: Step) => void
  readonly proceed: () => void
  /** How long a statement takes before it does anything; it can be cancelled meanwhile. Null: not at all, the default. */
  readonly delay: (delayOf: ((sql: string) => Duration.Input) | null) => void
  /** Ends one session; false where there is none of this process id. */
  readonly kill: (processId: number, death: Death) => boolean
  /** Ends every connection, those that are not logged in too. */
  readonly killAll: (death: Death) => void
  /** Ends all and is not there any more: connections are refused. */
  readonly stop: (death: Death) => void
  /** Is there again, under every name that it was attached to. */
  readonly start: () => void
}

/** One accepted connection, whatever it turns out to be. */
class Connection {
  readonly wire: ServerWire
  fiber: Fiber.Fiber<void> | null = null
  backend: MemoryBackend | null = null

  constructor(transport: Transport) {
    this.wire = new ServerWire(transport)
  }

  die(death: Death): void {
    if (death === "clean") this.wire.end(encodeError(shutdown))
    else this.wire.destroy()
    this.fiber?.interruptUnsafe()
  }
}

class Postgres implements MemoryPostgres {
  readonly log: Array<LoggedStatement> = []
  readonly #options: Options
  readonly #fork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>
  readonly #connections = new Set<Connection>()
  readonly #attachments: Array<{ readonly network: MemoryNetwork; readonly host: string; readonly port: number }> = []
  #nextProcessId = FIRST_PROCESS_ID
  #peak = 0
  #refusal: ServerError | null = null
  #stall: { readonly step: Step; readonly over: Latch.Latch } | null = null
  #delayOf: ((sql: string) => Duration.Input) | null = null

  constructor(options: Options, fork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>) {
    this.#options = options
    this.#fork = fork
  }

  attach(network: MemoryNetwork, host: string, port: number): void {
    this.#attachments.push({ network, host, port })
    network.serve(host, port, (transport) => this.#accept(transport))
  }

  sessions(): ReadonlyArray<SessionInfo> {
    return this.#backends().map((backend) => ({
      processId: backend.identity.processId,
      user: backend.identity.user,
      database: backend.identity.database,
      searchPath: backend.searchPath,
      inTransaction: backend.inTransaction,
      preparedStatements: backend.statements,
      channels: [...backend.channels]
    }))
  }

  peakSessions(): number {
    return this.#peak
  }

  refuseLogins(sqlState: string, message: string): void {
    this.#refusal = fatal(sqlState, message)
  }

  acceptLogins(): void {
    this.#refusal = null
  }

  stallAt(step: Step): void {
    this.proceed()
    this.#stall = { step, over: Latch.makeUnsafe() }
  }

  proceed(): void {
    this.#stall?.over.openUnsafe()
    this.#stall = null
  }

  delay(delayOf: ((sql: string) => Duration.Input) | null): void {
    this.#delayOf = delayOf
  }

  kill(processId: number, death: Death): boolean {
    const connection = [...this.#connections].find(({ backend }) => backend?.identity.processId === processId)
    connection?.die(death)
    return connection !== undefined
  }

  killAll(death: Death): void {
    for (const connection of this.#connections) connection.die(death)
  }

  stop(death: Death): void {
    for (const { network, host, port } of this.#attachments) network.refuse(host, port)
    this.killAll(death)
  }

  start(): void {
    for (const { network, host, port } of this.#attachments) {
      network.serve(host, port, (transport) => this.#accept(transport))
    }
  }

  #backends(): ReadonlyArray<MemoryBackend> {
    return [...this.#connections].flatMap(({ backend }) => backend ?? [])
  }

  #accept(transport: Transport): void {
    const connection = new Connection(transport)
    this.#connections.add(connection)
    const { wire } = connection
    connection.fiber = this.#fork(
      this.#serve(connection).pipe(
        // The client has gone, or does not speak the protocol: nothing to say.
        Effect.catch((failure) =>
          Effect.sync(() => wire.end(...(failure._tag === "ServerError" ? [encodeError(failure)] : [])))
        ),
        Effect.onExit((exit) =>
          Effect.sync(() => {
            this.#connections.delete(connection)
            if (exit._tag === "Success") wire.end()
            else wire.destroy()
          })
        )
      )
    )
  }

  readonly #serve = Effect.fnUntraced(function* (
    this: Postgres,
    connection: Connection
  ): Effect.fn.Return<void, ServerError | ReadFailure> {
    const { wire } = connection
    const startup = yield* this.#negotiate(wire)
    if (startup === null) return
    yield* this.#stalled("startup")
    const { user = "", database = user, options = "", ...rest } = Object.fromEntries(startup.parameters)
    const processId = this.#nextProcessId++
    yield* this.#admit(database)
    const password = Object.hasOwn(this.#options.users, user) ? this.#options.users[user] : undefined
    yield* provePassword(wire, this.#options.authentication ?? "clear text", {
      user,
      password,
      seed: String(processId)
    })
    yield* this.#stalled("authentication")
    const given = [...(Startup.parseOptions(options) ?? []), ...Object.entries(rest)]
    const settings = yield* Effect.mapError(
      Effect.fromResult(SessionSettings.make(user, given)),
      ({ sqlState, message }) => fatal(sqlState, message)
    )
    const identity = { processId, secretKey: secretKeyOf(processId), user, database }
    connection.backend = new MemoryBackend(identity, settings, wire, this.#services)
    this.#peak = Math.max(this.#peak, this.#backends().length)
    yield* connection.backend.run()
  })

  /** The startup packet, past all requests for encryption; null where it was a CancelRequest, which is over then. */
  readonly #negotiate = Effect.fnUntraced(function* (
    this: Postgres,
    wire: ServerWire
  ): Effect.fn.Return<Startup.StartupMessage | null, ServerError | ReadFailure> {
    while (true) {
      const packet = Startup.decode(yield* wire.packet)
      switch (packet._tag) {
        case "SslRequest":
        case "GssEncRequest":
          wire.sendNow(Buffer.from("N"))
          break
        case "CancelRequest":
          yield* this.#cancel(packet.processId, packet.secretKey)
          return null
        case "Malformed":
          return yield* fatal("08P01", packet.why)
        case "StartupMessage":
          return packet.message
      }
    }
  })

  /** Over when the signal has been delivered. */
  #cancel(processId: number, secretKey: Buffer): Effect.Effect<void> {
    return Effect.callback<void>((resume) => {
      const signal = () => {
        const target = this.#backends().find(({ identity }) => identity.processId === processId)
        if (target?.identity.secretKey.equals(secretKey) === true) target.cancel()
        resume(Effect.void)
      }
      if (this.#options.deferCancel === undefined) signal()
      else this.#options.deferCancel(signal)
    })
  }

  #admit(database: string): Effect.Effect<void, ServerError> {
    const { databases, maxConnections = Number.POSITIVE_INFINITY } = this.#options
    if (this.#refusal !== null) return Effect.fail(this.#refusal)
    if (this.#backends().length >= maxConnections) return Effect.fail(fatal("53300", "sorry, too many clients already"))
    if (databases !== undefined && !databases.includes(database)) {
      return Effect.fail(fatal("3D000", `database "${database}" does not exist`))
    }
    return Effect.void
  }

  #stalled(step: Step): Effect.Effect<void> {
    return this.#stall?.step === step ? Effect.asVoid(this.#stall.over.await) : Effect.void
  }

  readonly #services: Server = {
    log: (statement) => {
      this.log.push(statement)
      this.#options.onStatement?.(statement)
    },
    before: (sql) =>
      Effect.suspend(() => {
        const delay = Duration.fromInputUnsafe(this.#delayOf?.(sql) ?? 0)
        const pause = Duration.isZero(delay) ? Effect.void : Effect.sleep(delay)
        return Effect.andThen(this.#stalled("statement"), pause)
      }),
    notify: (sender, channel, payload) => {
      for (const backend of this.#backends()) backend.hear(sender, channel, payload)
    }
  }
}

/** No secret, but not the process id either: who confuses the two is to fail. */
const secretKeyOf = (processId: number): Buffer => {
  const key = Buffer.alloc(4)
  key.writeUInt32BE(Math.imul(processId, 0x9e3779b1) >>> 0)
  return key
}

export const make = (options: Options): Effect.Effect<MemoryPostgres, never, Scope.Scope> =>
  Effect.map(FiberSet.makeRuntime<never, void, never>(), (fork) => new Postgres(options, fork))
