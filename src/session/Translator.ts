/**
 * What a client's message becomes on its way to the server: itself, something in its place, or nothing; and what is expected in
 * answer to it.
 *
 * Messages that name a prepared statement are rewritten, DEALLOCATE of one is answered here, and with `Pinning: "off"` what
 * needs a connection of its client's own is refused. All else passes untouched, in pieces if it comes in pieces. Looks at
 * bytes where they lie, keeps none, sends none: the relay does.
 */
import { FeatureNotSupported, NeedsSession } from "../errors.ts"
import type { Connection, PoolTenant } from "../pool/PoolTenant.ts"
import { commandComplete, errorResponse, readyForQuery } from "../protocol/Backend.ts"
import { Frontend, HEADER_LENGTH, indexOfNul, TransactionStatus } from "../protocol/Frame.ts"
import { parse, query } from "../protocol/Frontend.ts"
import { SqlState } from "../protocol/SqlState.ts"
import { entries, entry, Expected, type Expectations } from "./Expectations.ts"
import { INCOMPLETE, mayBeNamed, namedPart, statementNameAt } from "./NamedMessages.ts"
import { needsSession } from "./NeedsSession.ts"
import type { Outgoing } from "./Outgoing.ts"
import type { PreparedStatements } from "./PreparedStatements.ts"
import { deallocated, isPlain } from "./SqlText.ts"
import { anyHint, hintOf, hintOfBytes, type Traces } from "./Traces.ts"

/** Where the message goes, and what holds there. */
export interface Lease {
  readonly connection: Connection
  readonly tenant: PoolTenant
  /** Names of statements mean on the connection what the client says. */
  readonly passesNames: boolean
  /** What needs a connection of its client's own is refused. */
  readonly refusesHolds: boolean
}

/**
 * Null: the message goes, as it is but for what was said to Outgoing. "incomplete": too little of it has come. A fault ends the
 * session.
 */
export type Translation = null | "incomplete" | FeatureNotSupported

export interface State {
  readonly expectations: Expectations
  readonly statements: PreparedStatements
  readonly traces: Traces
  /** What the server's last ReadyForQuery said. */
  readonly server: { readonly status: number }
}

/** No SQL, whatever the server's version. */
const REFUSED = "refused by perseus"
const refusedQuery = query(REFUSED)
const refusedParse = parse("", Buffer.from(`${REFUSED}\0\0\0`))

const transactionFailed = errorResponse({
  severity: "ERROR",
  sqlState: SqlState.inFailedTransaction,
  message: "current transaction is aborted, commands ignored until end of transaction block"
})

export class Translator {
  readonly #state: State

  constructor(state: State) {
    this.#state = state
  }

  /** The message at `at` of a chunk, which ends at `next`, perhaps not in this chunk; `length` is its length word. */
  translate(
    lease: Lease,
    type: number,
    chunk: Buffer,
    at: number,
    next: number,
    length: number,
    out: Outgoing
  ): Translation {
    if (type === Frontend.query) return this.#query(lease, chunk, at, next, out)
    if (!mayBeNamed(type)) {
      this.#expect(type)
      return null
    }
    if (lease.refusesHolds && type === Frontend.parse) {
      if (this.#refusesParse(chunk, at, next, out)) return null
    }
    if (lease.passesNames) {
      // A name that is not followed must not meet another client.
      if (type === Frontend.parse) this.#passParse(lease, chunk, at, next)
      this.#state.expectations.pushExtended(plainEntries[type]!)
      return null
    }
    return this.#extended(lease.connection, type, chunk, at, next, length, out)
  }

  #passParse({ connection, tenant }: Lease, chunk: Buffer, at: number, next: number): void {
    if (tenant.mode === "session") return
    connection.stateKnown = false
    const whole = next <= chunk.length
    const nameEnd = indexOfNul(chunk, at + HEADER_LENGTH, Math.min(next, chunk.length))
    const textEnd = indexOfNul(chunk, nameEnd + 1, Math.min(next, chunk.length))
    this.#state.traces.onStatement(whole && textEnd !== -1 ? hintOfBytes(chunk, nameEnd + 1, textEnd) : anyHint)
  }

  #expect(type: number): void {
    const { expectations, statements, traces } = this.#state
    switch (type) {
      case Frontend.sync:
        statements.onSync()
        return expectations.pushSync()
      case Frontend.execute:
        return expectations.pushExtended(entries.execute)
      case Frontend.flush:
        return expectations.pushFlush()
      case Frontend.copyDone:
      case Frontend.copyFail:
        return expectations.pushCopyEnd()
      case Frontend.functionCall:
        // It has neither text nor tag.
        traces.onStatement(anyHint)
        return expectations.pushSimple(entries.functionCall)
    }
  }

  // ---- simple

  #query(lease: Lease, chunk: Buffer, at: number, next: number, out: Outgoing): null {
    const { expectations, statements, traces } = this.#state
    statements.dropUnnamed()
    if (next > chunk.length) {
      traces.onStatement(anyHint)
      expectations.pushSimple(entries.query)
      return null
    }
    if (isPlain(chunk, at + HEADER_LENGTH, next - 1) && !lease.refusesHolds) {
      expectations.pushSimple(entries.query)
      return null
    }
    const text = chunk.toString("latin1", at + HEADER_LENGTH, next - 1)
    const whole = next - at
    if (statements.size > 0 && !lease.passesNames) {
      const name = deallocated(text)
      if (name !== null && statements.has(name)) {
        this.#deallocate(name)
        out.replace(chunk, at, whole)
        return null
      }
    }
    const hint = hintOf(text)
    traces.onStatement(hint)
    const need = lease.refusesHolds ? needsSession(text) : null
    if (need === null) {
      expectations.pushSimple(hint.setsLocally ? entries.localSet : entries.query)
      return null
    }
    expectations.pushSimple(entry(Expected.query, { errorInstead: errorFor(need) }))
    out.replace(chunk, at, whole)
    out.add(refusedQuery)
    return null
  }

  /** Only this client's name goes, as by Close: others may use what it says. The answer is PostgreSQL's. */
  #deallocate(name: string): void {
    const { expectations, statements, server } = this.#state
    expectations.pushMadeUpQuery(() => {
      const failed = server.status === TransactionStatus.failed
      if (!failed) statements.deallocate(name)
      return Buffer.concat([failed ? transactionFailed : commandComplete("DEALLOCATE"), readyForQuery(server.status)])
    })
  }

  // ---- what needs a session

  /** The server is made to refuse something in its place, so that a transaction fails there as well. */
  #refusesParse(chunk: Buffer, at: number, next: number, out: Outgoing): boolean {
    if (next > chunk.length) return false
    const nameEnd = indexOfNul(chunk, at + HEADER_LENGTH, next)
    const need = needsSession(chunk.toString("latin1", nameEnd + 1, next))
    if (need === null) return false
    const { expectations, statements } = this.#state
    // As any Parse that fails, it does away with the unnamed statement.
    const onSkipped = () => statements.dropUnnamed()
    expectations.pushExtended(entry(Expected.parse, { errorInstead: errorFor(need), onSkipped }))
    out.replace(chunk, at, next - at)
    out.add(refusedParse)
    return true
  }

  // ---- extended, with statements that are followed

  #extended(
    connection: Connection,
    type: number,
    chunk: Buffer,
    at: number,
    next: number,
    length: number,
    out: Outgoing
  ): Translation {
    const { expectations, statements } = this.#state
    const name = statementNameAt(type, chunk, at, Math.min(next, chunk.length))
    if (name === INCOMPLETE) return "incomplete"
    if (name < 0 || chunk[name] === 0) {
      if (type === Frontend.parse) return this.#unnamedParse(connection, chunk, at, next, out)
      const isOfUnnamed = name >= 0 && type !== Frontend.close
      if (!isOfUnnamed || !statements.unnamedIsElsewhere(type)) {
        expectations.pushExtended(plainEntries[type]!)
        return null
      }
    } else if (type === Frontend.parse && statements.wouldExceed(length)) return tooManyStatements
    const message = namedPart(type, chunk, at, next)
    if (message === null) return "incomplete"
    out.replace(chunk, at, message.length)
    this.#rewrite(connection, type, message, length, out)
    return null
  }

  #unnamedParse(connection: Connection, chunk: Buffer, at: number, next: number, out: Outgoing): null {
    const { expectations, statements } = this.#state
    const gone = this.#deallocatedBy(chunk, at, next)
    if (gone !== null) {
      out.replace(chunk, at, next - at)
      statements.deallocateThere(gone, connection, expectations, out)
      return null
    }
    statements.onUnnamedParse(next <= chunk.length ? copyOf(chunk, at, next) : null)
    expectations.pushExtended(statements.unnamedEntry)
    return null
  }

  /** The client's statement that an unnamed Parse would deallocate. */
  #deallocatedBy(chunk: Buffer, at: number, next: number): string | null {
    const { statements } = this.#state
    if (statements.size === 0 || next > chunk.length) return null
    const from = at + HEADER_LENGTH + 1
    if (isPlain(chunk, from, next)) return null
    const name = deallocated(chunk.toString("latin1", from, indexOfNul(chunk, from, next)))
    return name !== null && statements.has(name) ? name : null
  }

  #rewrite(connection: Connection, type: number, message: Buffer, length: number, out: Outgoing): void {
    const { expectations, statements } = this.#state
    switch (type) {
      case Frontend.parse:
        return statements.parse(message, connection, expectations, out)
      case Frontend.bind:
        return statements.bind(message, length, connection, expectations, out)
      case Frontend.describe:
        return statements.describe(message, connection, expectations, out)
      default:
        return statements.close(message, expectations, out)
    }
  }
}

/** Without a view of it first, which takes as long as the copy. */
const copyOf = (chunk: Buffer, from: number, to: number): Buffer => {
  const copy = Buffer.allocUnsafe(to - from)
  chunk.copy(copy, 0, from, to)
  return copy
}

const plainEntries = {
  [Frontend.parse]: entries.parse,
  [Frontend.bind]: entries.bind,
  [Frontend.describe]: entries.describe,
  [Frontend.close]: entries.close
} as const satisfies Readonly<Record<number, unknown>> as Readonly<Record<number, (typeof entries)["parse"]>>

const tooManyStatements = new FeatureNotSupported({
  feature: "this many prepared statements in one session",
  advice: "Close (DEALLOCATE) statements that are not used any more."
})

const errorFor = (need: string): Buffer => {
  const { sqlState, clientMessage, hint } = new NeedsSession({ need })
  return errorResponse({ severity: "ERROR", sqlState, message: clientMessage, hint })
}
