/**
 * The server's half of the relay: what comes from the server during a lease goes on to the client, but for answers to messages
 * that were ours; and what was answered here is put in where it belongs.
 *
 * Rows are never decoded: frame borders are found, the original bytes go on, one write a chunk. What ReadyForQuery, tags, errors
 * and reports say is told to whom it concerns. It takes and gives back no connection and ends no session: the relay does. A
 * chunk is valid only during `read`: what is kept of it is copied.
 */
import { ServerConnectionLost, TransactionRefused, type SessionFault } from "../errors.ts"
import type { Connection } from "../pool/PoolTenant.ts"
import { decodeError, decodeParameterStatus, isFatal } from "../protocol/Backend.ts"
import { Backend, HEADER_LENGTH, lengthAt, TransactionStatus } from "../protocol/Frame.ts"
import { SqlState } from "../protocol/SqlState.ts"
import { CommandTags } from "./CommandTags.ts"
import { entries, type Expectations } from "./Expectations.ts"
import { lend, viewOf, type Link } from "./Link.ts"
import type { ParameterReports } from "./ParameterReports.ts"
import type { PreparedStatements } from "./PreparedStatements.ts"
import type { SessionCounters } from "./SessionCounters.ts"
import type { Traces } from "./Traces.ts"
import type { TransactionTimeouts } from "./TransactionTimeouts.ts"

/** A message whose body matters (ReadyForQuery, CommandComplete, ParameterStatus, an error) is kept up to this. */
const CARRIED_LIMIT = 64 * 1024

/** What it goes by, and whom it tells what it hears. */
export interface ServerStreamOptions {
  readonly link: Link
  readonly expectations: Expectations
  readonly statements: PreparedStatements
  readonly traces: Traces
  readonly reports: ParameterReports
  readonly timeouts: TransactionTimeouts
  readonly counters: SessionCounters
}

export class ServerStream {
  readonly #link: Link
  readonly #expectations: Expectations
  readonly #statements: PreparedStatements
  readonly #traces: Traces
  readonly #reports: ParameterReports
  readonly #timeouts: TransactionTimeouts
  readonly #counters: SessionCounters

  #status: number = TransactionStatus.idle
  #saidFatal = false
  /** The unfinished message whose body matters. */
  #carry: Buffer | null = null
  /** Bytes still to come of a message that streams through, and its type. */
  #rest = 0
  #restType = 0
  /** Goes to the client where the server's error stood. */
  #errorInstead: Buffer | null = null

  constructor(options: ServerStreamOptions) {
    this.#link = options.link
    this.#expectations = options.expectations
    this.#statements = options.statements
    this.#traces = options.traces
    this.#reports = options.reports
    this.#timeouts = options.timeouts
    this.#counters = options.counters
  }

  /** What the last ReadyForQuery said. */
  get status(): number {
    return this.#status
  }

  /** The server has said FATAL: its words have gone to the client, so ours are not needed. */
  get saidFatal(): boolean {
    return this.#saidFatal
  }

  /** The client has had the beginning of a message, whose rest is still to come. */
  get midMessage(): boolean {
    return this.#rest > 0
  }

  /** No transaction is open and no message half heard. */
  get atBorder(): boolean {
    return this.#status === TransactionStatus.idle && this.#carry === null && this.#rest === 0
  }

  beginLease(connection: Connection): void {
    this.#status = TransactionStatus.idle
    this.#saidFatal = false
    this.hearPending(connection)
  }

  /** What the server had begun to say while nobody listened, or the pool did. */
  hearPending(connection: Connection): void {
    this.#carry ??= connection.takePending()
  }

  /** A fault ends the session. */
  read(incoming: Buffer): SessionFault | null {
    const chunk = this.#carry === null ? incoming : Buffer.concat([this.#carry, incoming])
    this.#carry = null
    const end = chunk.length
    let at = Math.min(this.#rest, end)
    let from = 0
    if (this.#rest > 0) {
      this.#rest -= at
      if (this.#rest === 0) from = this.#complete(this.#restType, chunk, at, at, from)
    }
    while (end - at >= HEADER_LENGTH) {
      const type = chunk[at]!
      const length = lengthAt(chunk, at + 1)
      if (length < 4 || length > 0x7fffffff || (type === Backend.readyForQuery && length !== 5)) {
        const { name: destination } = this.#link.pool
        return new ServerConnectionLost({ destination, detail: "the server sent an impossible message length" })
      }
      const next = at + 1 + length
      if (next > end) {
        if (bodyMatters(type) && length <= CARRIED_LIMIT) break
        this.#rest = next - end
        this.#restType = type
        at = end
        break
      }
      if (type === Backend.readyForQuery && this.#mustRefuse(chunk[at + HEADER_LENGTH]!)) {
        return new TransactionRefused()
      }
      if (type !== Backend.dataRow && !this.#expectations.passes(type))
        from = this.#complete(type, chunk, at, next, from)
      at = next
    }
    if (at < end) this.#carry = Buffer.from(chunk.subarray(at))
    if (from < at) this.#link.toClient(viewOf(chunk, from, at), lend)
    this.#timeouts.restartIdle()
    return null
  }

  /** In statement mode a transaction must not outlast its statement. */
  #mustRefuse(status: number): boolean {
    return status !== TransactionStatus.idle && this.#link.tenant.mode === "statement"
  }

  /**
   * A message has come to its end at `next`; it began at `at`, or earlier where it streamed through (then `at` is `next`).
   * Answers from where on the chunk is still to be sent.
   */
  #complete(type: number, chunk: Buffer, at: number, next: number, from: number): number {
    const forward = this.#hear(type, chunk, at, next)
    let start = from
    if (!forward) {
      if (start < at) this.#link.toClient(viewOf(chunk, start, at), lend)
      start = next
      if (this.#errorInstead !== null) this.#link.toClient(this.#errorInstead)
      this.#errorInstead = null
    }
    if (!this.#expectations.madeUpIsDue) return start
    if (start < next) this.#link.toClient(viewOf(chunk, start, next), lend)
    this.giveMadeUpAnswers()
    return next
  }

  /** Answers that the client is to have before the server says anything more. Whether there were any. */
  giveMadeUpAnswers(): boolean {
    if (!this.#expectations.madeUpIsDue) return false
    while (this.#expectations.madeUpIsDue) {
      const bytes = this.#expectations.takeMadeUp()
      if (bytes !== null) this.#link.toClient(bytes)
    }
    return true
  }

  /** Whether the message goes to the client. */
  #hear(type: number, chunk: Buffer, at: number, next: number): boolean {
    switch (type) {
      case Backend.readyForQuery:
        this.#status = chunk[at + HEADER_LENGTH] ?? 0
        this.#timeouts.restartBusy()
        return this.#expectations.onAnswer(type)
      case Backend.commandComplete:
        this.#hearCommand(chunk, at, next)
        return this.#expectations.onAnswer(type)
      case Backend.errorResponse: {
        const atBorder = this.#expectations.settled && this.#status === TransactionStatus.idle
        const instead = this.#expectations.head?.errorInstead ?? null
        this.#hearError(chunk, at, next)
        if (instead !== null && !this.#saidFatal) {
          this.#expectations.onError()
          this.#errorInstead = instead
          return false
        }
        // A server that goes says so behind an answer that was complete: no concern of a client that keeps nothing there.
        const concerns = !atBorder || !this.#saidFatal || this.#link.resting || this.#link.keepsServer
        return concerns && this.#expectations.onError()
      }
      case Backend.parameterStatus:
        this.#hearParameter(chunk, at, next)
        return true
      default:
        return this.#expectations.onAnswer(type)
    }
  }

  #hearCommand(chunk: Buffer, at: number, next: number): void {
    // Of a tag that streamed through nothing is known.
    if (at === next) return this.#traces.onCommand(CommandTags.anything)
    const from = at + HEADER_LENGTH
    const tag = CommandTags.read(chunk, from, next)
    if (tag === CommandTags.harmless || this.#expectations.head === entries.localSet) return
    this.#traces.onCommand(tag)
    if (!CommandTags.dropsStatements(chunk, from, next)) return
    this.#link.server!.statements.clear()
    this.#statements.clear()
  }

  #hearError(chunk: Buffer, at: number, next: number): void {
    const error = decodeError(chunk.subarray(Math.min(at + HEADER_LENGTH, next), next))
    const { server } = this.#link
    this.#counters.countError(error.sqlState)
    // A plan that a change of the schema has broken stays broken for all who share it, however often they prepare it anew.
    if (error.sqlState === SqlState.featureNotSupported) server?.statements.breakAll()
    if (error.sqlState === SqlState.undefinedPreparedStatement && server !== null) server.stateKnown = false
    if (isFatal(error)) this.#saidFatal = true
  }

  /** Something that the server reports was changed: by this client, as far as anyone can tell. */
  #hearParameter(chunk: Buffer, at: number, next: number): void {
    const parameter = decodeParameterStatus(chunk.subarray(Math.min(at + HEADER_LENGTH, next), next))
    if (parameter !== null) this.#reports.note(...parameter)
    this.#traces.onReport()
  }
}

/** Those of the server's messages that are looked into; all else may stream through in pieces. */
const bodyMatters = (type: number): boolean =>
  type === Backend.readyForQuery ||
  type === Backend.commandComplete ||
  type === Backend.parameterStatus ||
  type === Backend.errorResponse
