/**
 * One session of the in-memory server, from AuthenticationOk on: what a PostgreSQL backend process is.
 *
 * Its protocol is real: messages in PostgreSQL's order, errors that skip to Sync, statements and portals, implicit and explicit
 * transactions, output that is held back until Sync, Flush or an error. Its SQL is that of `Statement`. Of other sessions
 * it knows what its `Server` hands it, and no fault is its own idea.
 */
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { ReadFailure } from "../net/ByteReader.ts"
import {
  authenticationOk,
  backendKeyData,
  closeComplete,
  errorResponse,
  parameterStatus,
  parseComplete
} from "../protocol/Backend.ts"
import { Frontend, TransactionStatus, type Frame } from "../protocol/Frame.ts"
import { error, fatal, type ServerError } from "./ServerError.ts"
import * as Messages from "./ServerMessages.ts"
import type { ServerWire } from "./ServerWire.ts"
import { durationMs, type SessionSettings } from "./SessionSettings.ts"
import * as Statement from "./Statement.ts"

/** A statement that is run, and as whom. */
export interface LoggedStatement {
  /** The connection's process id. */
  readonly connection: number
  readonly user: string
  readonly database: string
  /** As it is when the statement begins. */
  readonly searchPath: string
  readonly sql: string
}

/** What a session needs of its server. */
export interface Server {
  readonly log: (statement: LoggedStatement) => void
  /** What a statement waits for before it does anything: a fault of the test's choice. */
  readonly before: (sql: string) => Effect.Effect<void>
  readonly notify: (sender: number, channel: string, payload: string) => void
}

export interface Identity {
  readonly processId: number
  readonly secretKey: Buffer
  readonly user: string
  readonly database: string
}

interface Prepared {
  readonly sql: string
  readonly statement: Statement.Statement
}

interface Portal extends Prepared {
  readonly parameters: ReadonlyArray<string | null>
  /** Null before it is first executed. */
  outcome: Outcome | null
}

type Row = ReadonlyArray<string | null>

interface Outcome {
  readonly rows: Iterator<Row>
  /** The command's tag, given the number of rows. */
  readonly tag: (rows: number) => string
}

const selected = (rows: Iterable<Row>): Outcome => ({
  rows: rows[Symbol.iterator](),
  tag: (count) => `SELECT ${count}`
})
const done = (tag: string): Outcome => ({ rows: [][Symbol.iterator](), tag: () => tag })

const endsTransaction = (statement: Statement.Statement): boolean =>
  statement._tag === "Commit" || statement._tag === "Rollback"

export const encodeError = ({ severity, sqlState, message }: ServerError): Buffer =>
  errorResponse({ severity, sqlState, message })

export class MemoryBackend {
  readonly identity: Identity
  readonly channels = new Set<string>()
  readonly #settings: SessionSettings
  readonly #wire: ServerWire
  readonly #server: Server
  readonly #statements = new Map<string, Prepared>()
  readonly #portals = new Map<string, Portal>()
  #status: number = TransactionStatus.idle
  /** An extended request failed: nothing is heard before the next Sync. */
  #skipping = false
  /** Something was executed since the last Sync: what must be alone in its batch is refused. */
  #pipelined = false
  /** Fails once the statement that runs is cancelled; null between statements. */
  #cancelled: Deferred.Deferred<never, ServerError> | null = null
  /** All answers are given, and no request has come. */
  #waiting = false
  #notifications: Array<Buffer> = []

  constructor(identity: Identity, settings: SessionSettings, wire: ServerWire, server: Server) {
    this.identity = identity
    this.#settings = settings
    this.#wire = wire
    this.#server = server
  }

  get searchPath(): string {
    return this.#settings.get("search_path") ?? ""
  }

  get inTransaction(): boolean {
    return this.#status !== TransactionStatus.idle
  }

  /** Names of the statements that are prepared. */
  get statements(): ReadonlyArray<string> {
    return [...this.#statements.keys()]
  }

  /** Greets and serves until the client says goodbye or is gone. A FATAL error ends it as a failure. */
  readonly run = Effect.fnUntraced(function* (this: MemoryBackend): Effect.fn.Return<void, ServerError | ReadFailure> {
    const { processId, secretKey } = this.identity
    this.#wire.put(authenticationOk)
    this.#report()
    this.#wire.put(backendKeyData(processId, secretKey))
    yield* this.#ready
    while (true) {
      const frame = yield* this.#wire.frame
      this.#waiting = false
      if (frame.type === Frontend.terminate) return
      if (!this.#skipping || frame.type === Frontend.sync) yield* this.#handle(frame)
    }
  })

  /** The signal of a CancelRequest. Between statements nothing happens. */
  cancel(): void {
    if (this.#cancelled === null) return
    Deferred.doneUnsafe(this.#cancelled, Effect.fail(error("57014", "canceling statement due to user request")))
  }

  /** Told at once between transactions, else with the next ReadyForQuery. */
  hear(sender: number, channel: string, payload: string): void {
    if (!this.channels.has(channel)) return
    const message = Messages.notificationResponse(sender, channel, payload)
    if (this.#waiting && !this.inTransaction) this.#wire.sendNow(message)
    else this.#notifications.push(message)
  }

  // ---- requests

  #handle({ type, body }: Frame): Effect.Effect<void, ServerError | ReadFailure> {
    switch (type) {
      case Frontend.query:
        return this.#query(body)
      case Frontend.parse:
        return this.#extended(this.#parse(body))
      case Frontend.bind:
        return this.#extended(this.#bind(body))
      case Frontend.describe:
        return this.#extended(this.#describe(body))
      case Frontend.execute:
        return this.#extended(this.#run(this.#execute(body)))
      case Frontend.close:
        return this.#extended(this.#close(body))
      case Frontend.sync:
        this.#skipping = false
        this.#endImplicitTransaction()
        return this.#ready
      case Frontend.flush:
        return this.#wire.flush
      case Frontend.functionCall:
        return Effect.andThen(this.#fail(error("42883", "function does not exist")), this.#ready)
      case Frontend.copyData:
      case Frontend.copyDone:
      case Frontend.copyFail:
        // Left over from a COPY that failed.
        return Effect.void
      default:
        return Effect.fail(fatal("08P01", `invalid frontend message type ${type}`))
    }
  }

  readonly #query = Effect.fnUntraced(function* (this: MemoryBackend, body: Buffer) {
    const { sql } = yield* orMalformed(Messages.decodeQuery(body))
    this.#statements.delete("")
    this.#portals.delete("")
    yield* this.#recover(this.#runAll(Statement.split(sql)))
    this.#endImplicitTransaction()
    yield* this.#ready
  })

  readonly #runAll = Effect.fnUntraced(function* (this: MemoryBackend, texts: ReadonlyArray<string>) {
    if (texts.length === 0) this.#wire.put(Messages.emptyQueryResponse)
    this.#pipelined = texts.length > 1
    for (const sql of texts) yield* this.#run(this.#runOne(sql))
  })

  readonly #runOne = Effect.fnUntraced(function* (this: MemoryBackend, sql: string) {
    const statement = yield* this.#admit(sql)
    const columns = Statement.columnsOf(statement)
    const description = columns === null ? [] : [Messages.rowDescription(columns)]
    // PostgreSQL finds the other statements' errors while it plans: before it describes their rows.
    const describedFirst = statement._tag === "Sleep"
    if (describedFirst) this.#wire.put(...description)
    const outcome = yield* this.#perform({ sql, statement }, [])
    if (!describedFirst) this.#wire.put(...description)
    yield* this.#send(statement, outcome, 0)
  })

  /** What `request` fails with is told to the client, and what follows is skipped. */
  #extended(request: Effect.Effect<void, ServerError | ReadFailure>): Effect.Effect<void, ServerError | ReadFailure> {
    return Effect.map(this.#recover(request), (succeeded) => {
      this.#skipping = !succeeded
    })
  }

  readonly #parse = Effect.fnUntraced(function* (this: MemoryBackend, body: Buffer) {
    const { statement: name, sql } = yield* orMalformed(Messages.decodeParse(body))
    if (Statement.split(sql).length > 1) {
      return yield* error("42601", "cannot insert multiple commands into a prepared statement")
    }
    const statement = yield* this.#admit(sql)
    if (name !== "" && this.#statements.has(name)) {
      return yield* error("42P05", `prepared statement "${name}" already exists`)
    }
    this.#statements.set(name, { sql, statement })
    this.#wire.put(parseComplete)
  })

  readonly #bind = Effect.fnUntraced(function* (this: MemoryBackend, body: Buffer) {
    const bind = yield* orMalformed(Messages.decodeBind(body))
    const prepared = yield* this.#preparedAs(bind.statement)
    const needed = Statement.parameterCountOf(prepared.statement)
    if (bind.parameters.length !== needed) {
      const counts = `supplies ${bind.parameters.length} parameters, but prepared statement "${bind.statement}" requires ${needed}`
      return yield* error("08P01", `bind message ${counts}`)
    }
    yield* this.#refuseInFailed(prepared.statement)
    if (bind.portal !== "" && this.#portals.has(bind.portal)) {
      return yield* error("42P03", `cursor "${bind.portal}" already exists`)
    }
    this.#portals.set(bind.portal, { ...prepared, parameters: bind.parameters, outcome: null })
    this.#wire.put(Messages.bindComplete)
  })

  readonly #describe = Effect.fnUntraced(function* (this: MemoryBackend, body: Buffer) {
    const { kind, name } = yield* orMalformed(Messages.decodeNamed(body))
    const { statement } = yield* kind === "statement" ? this.#preparedAs(name) : this.#portalNamed(name)
    const columns = Statement.columnsOf(statement)
    if (kind === "statement") this.#wire.put(Messages.parameterDescription(Statement.parameterCountOf(statement)))
    this.#wire.put(columns === null ? Messages.noData : Messages.rowDescription(columns))
  })

  readonly #execute = Effect.fnUntraced(function* (this: MemoryBackend, body: Buffer) {
    const { portal: name, maxRows } = yield* orMalformed(Messages.decodeExecute(body))
    const portal = yield* this.#portalNamed(name)
    yield* this.#refuseInFailed(portal.statement)
    portal.outcome ??= yield* this.#perform(portal, portal.parameters)
    yield* this.#send(portal.statement, portal.outcome, maxRows)
    // DISCARD ALL commits by itself, so that it does not count as part of a pipeline.
    this.#pipelined = portal.statement._tag !== "DiscardAll"
  })

  readonly #close = Effect.fnUntraced(function* (this: MemoryBackend, body: Buffer) {
    const { kind, name } = yield* orMalformed(Messages.decodeNamed(body))
    if (kind === "statement") this.#statements.delete(name)
    else this.#portals.delete(name)
    this.#wire.put(closeComplete)
  })

  #preparedAs(name: string): Effect.Effect<Prepared, ServerError> {
    const prepared = this.#statements.get(name)
    if (prepared !== undefined) return Effect.succeed(prepared)
    const which = name === "" ? "unnamed prepared statement" : `prepared statement "${name}"`
    return Effect.fail(error("26000", `${which} does not exist`))
  }

  #portalNamed(name: string): Effect.Effect<Portal, ServerError> {
    const portal = this.#portals.get(name)
    return portal === undefined
      ? Effect.fail(error("34000", `portal "${name}" does not exist`))
      : Effect.succeed(portal)
  }

  /** The statement, if it is one and may be run now. */
  #admit(sql: string): Effect.Effect<Statement.Statement, ServerError> {
    return Effect.tap(Effect.fromResult(Statement.parse(sql)), (statement) => this.#refuseInFailed(statement))
  }

  #refuseInFailed(statement: Statement.Statement): Effect.Effect<void, ServerError> {
    return this.#status !== TransactionStatus.failed || endsTransaction(statement) || statement._tag === "Empty"
      ? Effect.void
      : Effect.fail(error("25P02", "current transaction is aborted, commands ignored until end of transaction block"))
  }

  // ---- statements

  #perform(
    { sql, statement }: Prepared,
    parameters: ReadonlyArray<string | null>
  ): Effect.Effect<Outcome, ServerError | ReadFailure> {
    return Effect.suspend(() => {
      const { processId: connection, user, database } = this.identity
      this.#server.log({ connection, user, database, searchPath: this.searchPath, sql })
      return Effect.andThen(this.#wait(this.#server.before(sql)), this.#carryOut(statement, parameters))
    })
  }

  /** A statement: from its first moment to its last answer it can be cancelled. */
  #run(statement: Effect.Effect<void, ServerError | ReadFailure>): Effect.Effect<void, ServerError | ReadFailure> {
    return Effect.suspend(() => {
      this.#cancelled = Deferred.makeUnsafe()
      return Effect.ensuring(
        statement,
        Effect.sync(() => {
          this.#cancelled = null
        })
      )
    })
  }

  /** Where nothing is waited for, a cancel is noticed here. */
  get #cancellationPoint(): Effect.Effect<void, ServerError> {
    const cancelled = this.#cancelled
    return cancelled !== null && Deferred.isDoneUnsafe(cancelled) ? Deferred.await(cancelled) : Effect.void
  }

  /** Until it is over, the statement is cancelled, or statement_timeout has passed. */
  #wait(wait: Effect.Effect<void>): Effect.Effect<void, ServerError> {
    const timeout = durationMs(this.#settings.get("statement_timeout") ?? "0") ?? 0
    const timed =
      timeout === 0
        ? wait
        : Effect.timeoutOrElse(wait, {
            duration: Duration.millis(timeout),
            orElse: () => Effect.fail(error("57014", "canceling statement due to statement timeout"))
          })
    return this.#cancelled === null ? timed : Effect.raceFirst(timed, Deferred.await(this.#cancelled))
  }

  #carryOut(
    statement: Statement.Statement,
    parameters: ReadonlyArray<string | null>
  ): Effect.Effect<Outcome, ServerError | ReadFailure> {
    switch (statement._tag) {
      case "Empty":
        return Effect.succeed(done(""))
      case "Begin":
        return Effect.sync(() => this.#begin())
      case "Commit":
        return Effect.sync(() => this.#endTransaction("COMMIT"))
      case "Rollback":
        return Effect.sync(() => this.#endTransaction("ROLLBACK"))
      case "Set": {
        const { name, value, local } = statement
        const set = Effect.suspend(() => Effect.fromResult(this.#settings.set(name, value, local)))
        return Effect.as(set, done(statement.reset ? "RESET" : "SET"))
      }
      case "ResetAll":
        return Effect.sync(() => {
          this.#settings.resetAll()
          return done("RESET")
        })
      case "DiscardAll":
        return Effect.as(this.#discardAll, done("DISCARD ALL"))
      case "Deallocate":
        return Effect.as(
          this.#deallocate(statement.name),
          done(statement.name === null ? "DEALLOCATE ALL" : "DEALLOCATE")
        )
      case "Listen":
        return Effect.sync(() => {
          this.channels.add(statement.channel)
          return done("LISTEN")
        })
      case "Unlisten":
        return Effect.sync(() => {
          if (statement.channel === null) this.channels.clear()
          else this.channels.delete(statement.channel)
          return done("UNLISTEN")
        })
      case "Notify":
        return Effect.sync(() => {
          this.#server.notify(this.identity.processId, statement.channel, statement.payload)
          return done("NOTIFY")
        })
      case "Write":
        return Effect.succeed(done(statement.commandTag))
      case "CopyIn":
        return this.#copyIn()
      default:
        return this.#select(statement, parameters)
    }
  }

  #select(query: Statement.Query, parameters: ReadonlyArray<string | null>): Effect.Effect<Outcome, ServerError> {
    const oneRow = (...row: Row) => Effect.succeed(selected([row]))
    switch (query._tag) {
      case "Show": {
        const value = this.#settings.get(query.name)
        return value === null
          ? Effect.fail(error("42704", `unrecognized configuration parameter "${query.name}"`))
          : Effect.succeed({ ...selected([[value]]), tag: () => "SHOW" })
      }
      case "Inspection":
        return Effect.succeed(selected(this.#inspect(query.settings, query.holds)))
      case "Whoami":
        return oneRow(this.searchPath, this.identity.user, String(this.identity.processId))
      case "Value":
        return oneRow(query.value)
      case "Parameter":
        return oneRow(parameters[query.index] ?? null)
      case "Failure":
        return Effect.fail(error("22012", "division by zero"))
      case "Sleep":
        return Effect.as(this.#wait(Effect.sleep(Duration.seconds(query.seconds))), selected([[""]]))
      case "Rows":
        return Effect.succeed(selected(rowsOf(query.count, "x".repeat(query.size))))
    }
  }

  *#inspect(settings: boolean, holds: boolean): Iterable<Row> {
    if (settings) {
      for (const [name, value] of this.#settings.changed) yield ["setting", name, Buffer.from(value).toString("hex")]
    }
    if (holds && this.channels.size > 0) yield ["hold", "LISTEN", null]
  }

  /** Rows until `maxRows` (0: all), with room made for each; then how it stands. */
  readonly #send = Effect.fnUntraced(function* (
    this: MemoryBackend,
    statement: Statement.Statement,
    outcome: Outcome,
    maxRows: number
  ) {
    if (statement._tag === "Empty") return this.#wire.put(Messages.emptyQueryResponse)
    const limit = maxRows === 0 ? Number.POSITIVE_INFINITY : maxRows
    for (let count = 0; count < limit; count++) {
      const next = outcome.rows.next()
      if (next.done === true) return this.#wire.put(Messages.commandComplete(outcome.tag(count)))
      this.#wire.put(Messages.dataRow(next.value))
      yield* this.#wire.relieve
      yield* this.#cancellationPoint
    }
    this.#wire.put(Messages.portalSuspended)
  })

  readonly #copyIn = Effect.fnUntraced(function* (this: MemoryBackend) {
    this.#wire.put(Messages.copyInResponse)
    yield* this.#wire.flush
    let count = 0
    while (true) {
      const { type, body } = yield* this.#wire.frame
      yield* this.#cancellationPoint
      switch (type) {
        case Frontend.copyData:
          count++
          break
        case Frontend.copyDone:
          return done(`COPY ${count}`)
        case Frontend.copyFail: {
          const { why } = yield* orMalformed(Messages.decodeCopyFail(body))
          return yield* error("57014", `COPY from stdin failed: ${why}`)
        }
        case Frontend.sync:
        case Frontend.flush:
          break
        default:
          return yield* error("08P01", `unexpected message type 0x${type.toString(16)} during COPY from stdin`)
      }
    }
  })

  readonly #discardAll = Effect.gen({ self: this }, function* () {
    if (this.inTransaction) return yield* error("25001", "DISCARD ALL cannot run inside a transaction block")
    if (this.#pipelined) return yield* error("25001", "DISCARD ALL cannot be executed within a pipeline")
    this.#settings.resetAll()
    this.#settings.commit()
    this.#statements.clear()
    this.#portals.clear()
    this.channels.clear()
  })

  #deallocate(name: string | null): Effect.Effect<void, ServerError> {
    return Effect.suspend(() => {
      if (name === null) this.#statements.clear()
      else if (!this.#statements.delete(name)) {
        return Effect.fail(error("26000", `prepared statement "${name}" does not exist`))
      }
      return Effect.void
    })
  }

  // ---- transactions

  #begin(): Outcome {
    if (this.inTransaction) this.#wire.put(Messages.warning("25001", "there is already a transaction in progress"))
    this.#status = TransactionStatus.inTransaction
    return done("BEGIN")
  }

  #endTransaction(how: "COMMIT" | "ROLLBACK"): Outcome {
    if (!this.inTransaction) this.#wire.put(Messages.warning("25P01", "there is no transaction in progress"))
    const tag = this.#status === TransactionStatus.failed ? "ROLLBACK" : how
    if (tag === "COMMIT") this.#settings.commit()
    else this.#settings.rollback()
    this.#status = TransactionStatus.idle
    this.#portals.clear()
    return done(tag)
  }

  /** What was not inside BEGIN is a transaction up to here. */
  #endImplicitTransaction(): void {
    this.#pipelined = false
    if (this.inTransaction) return
    this.#settings.commit()
    this.#portals.clear()
  }

  /** Tells the client of an error and aborts the transaction; whether there was none. FATAL ones pass. */
  #recover(request: Effect.Effect<void, ServerError | ReadFailure>): Effect.Effect<boolean, ServerError | ReadFailure> {
    return request.pipe(
      Effect.as(true),
      Effect.catchIf(isRefusal, (refusal) => Effect.as(this.#fail(refusal), false))
    )
  }

  #fail(failure: ServerError): Effect.Effect<void> {
    return Effect.suspend(() => {
      if (this.inTransaction) this.#status = TransactionStatus.failed
      else this.#settings.rollback()
      this.#wire.put(encodeError(failure))
      return this.#wire.flush
    })
  }

  get #ready(): Effect.Effect<void> {
    return Effect.suspend(() => {
      this.#report()
      if (!this.inTransaction) this.#wire.put(...this.#notifications.splice(0))
      this.#wire.put(Messages.readyForQuery(this.#status))
      this.#waiting = true
      return this.#wire.flush
    })
  }

  #report(): void {
    this.#wire.put(...this.#settings.takeReports().map(([name, value]) => parameterStatus(name, value)))
  }
}

const isRefusal = (failure: ServerError | ReadFailure): failure is ServerError =>
  failure._tag === "ServerError" && failure.severity === "ERROR"

function* rowsOf(count: number, value: string): Iterable<Row> {
  for (let index = 0; index < count; index++) yield [value]
}

const orMalformed = <A>(message: A | null): Effect.Effect<A, ServerError> =>
  message === null ? Effect.fail(error("08P01", "invalid message format")) : Effect.succeed(message)
