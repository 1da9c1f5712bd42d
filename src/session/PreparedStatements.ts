/**
 * A client's named statements, wherever it is served: what each name says is remembered here, and prepared on a server
 * connection when it is first needed there, under a name that all clients share who said the same.
 *
 * A statement is shared only within one tenant (a tenant switch drops all of a connection's statements, and what a plan reads
 * depends on the search path) and under the same settings (`'01/02/2020'::date` is fixed when it is parsed). Unnamed
 * statements pass untouched, unless one was parsed in one lease and is bound in another: there it is treated as if it had a
 * name, for what lies unnamed on that connection is somebody else's. Pure bookkeeping: what the server is to have in place of a
 * client's message, if anything, goes to Outgoing.
 */
import { createHash, randomBytes } from "node:crypto"
import { closeComplete, parseComplete } from "../protocol/Backend.ts"
import { frame } from "../protocol/Encoder.ts"
import { Frontend, HEADER_LENGTH, indexOfNul } from "../protocol/Frame.ts"
import { closeStatement, parse } from "../protocol/Frontend.ts"
import type { Connection } from "../pool/PoolTenant.ts"
import { anyHint, hintOfBytes, type Hint, type Traces } from "./Traces.ts"
import { Answer, entries, entry, Expected, type Entry, type Expectations } from "./Expectations.ts"
import type { Outgoing } from "./Outgoing.ts"

/** Statements that one client may have, and their bytes: more is a leak in the application. */
export const MAX_STATEMENTS_PER_CLIENT = 10_000
export const MAX_STATEMENT_BYTES_PER_CLIENT = 16 * 1024 * 1024

/** Beyond what a connection may have, for as long as the client has not heard of them. */
const MAX_UNANSWERED = 100

/** Nobody can guess the names that stand on a server connection, so no client can name another's statement. */
const serverNamePrefix = `perseus_${randomBytes(6).toString("hex")}_`
let serverNames = 0
let leases = 0

const newName = (key: string, { statements }: Connection): string => {
  const name = `${serverNamePrefix}${++serverNames}`
  statements.add(key, name)
  return name
}

/** Settings under which it was looked for last, and its key under them: a string that is made anew has to be hashed anew. */
interface Keyed {
  readonly settings: string
  readonly key: string
}

interface Statement {
  /** Query text and parameter types, as they stood in the client's Parse. */
  readonly rest: Buffer
  readonly digest: string
  readonly hint: Hint
  keyed: Keyed | null
}

/** Never written to: for those that have none, of ten thousand idle clients most. A map of its own takes 200 bytes. */
const noStatements = new Map<string, Statement>()
const noBatches = new Map<string, number>()
const noneUnanswered = new Set<string>()

/** Where the client is served: how many statements a connection may have there. PostgreSQL needs 5 to 50 kB for each. */
export interface Limits {
  readonly pool: { readonly maxPreparedStatements: number }
}

export class PreparedStatements {
  #byName = noStatements
  #bytes = 0
  /**
   * Where the client's unnamed statement is: on the connection that it holds; on its way there, behind messages of its batch
   * which may fail and have it skipped; or not there.
   */
  #unnamed: "elsewhere" | "sent" | "there" = "elsewhere"
  /** The last unnamed Parse of this lease. Kept where it may be bound in another, or where it may have been skipped. */
  #unnamedParse: Buffer | null = null
  #unnamedBound = false
  #unnamedBehindSync = false
  /** Unnamed Parses that are not answered. */
  #unnamedOwed = 0
  /** Sent and not answered: statements of this lease by their key, and in which batch they were sent. */
  #inBatch = noBatches
  #batch = 0
  /** The client's own, by their key, that are not answered. Whether they are there is the server's to say. */
  #unanswered = noneUnanswered
  /** Tells one lease with changed settings from every other. */
  #lease = 0
  readonly #traces: Traces
  readonly #limits: Limits
  #unnamedEntry: Entry | null = null

  constructor(traces: Traces, limits: Limits) {
    this.#traces = traces
    this.#limits = limits
  }

  get size(): number {
    return this.#byName.size
  }

  clear(): void {
    this.#byName.clear()
    this.#bytes = 0
  }

  // ---- the unnamed statement

  beginLease(): void {
    this.#unnamed = "elsewhere"
    this.#unnamedParse = null
    this.#unnamedOwed = 0
    if (this.#inBatch.size > 0) this.#inBatch.clear()
    if (this.#unanswered.size > 0) this.#unanswered.clear()
    this.#traces.changes = 0
    this.#lease = ++leases
  }

  /** What is expected for an unnamed Parse. */
  get unnamedEntry(): Entry {
    this.#unnamedEntry ??= entry(Expected.parse, {
      onAnswered: () => {
        if (--this.#unnamedOwed > 0 || this.#unnamed !== "sent") return
        this.#unnamed = "there"
        if (this.#unnamedBound) this.#unnamedParse = null
      },
      // What was there before it may still be; nobody counts on that.
      onSkipped: () => {
        // One that was sent behind it may stand.
        if (--this.#unnamedOwed === 0) this.dropUnnamed()
      }
    })
    return this.#unnamedEntry
  }

  /** `message`: the whole Parse, which is ours from now on; null where it came in pieces. */
  onUnnamedParse(message: Buffer | null): void {
    this.#forget("")
    this.#unnamed = "sent"
    this.#unnamedBound = this.#unnamedBehindSync = false
    this.#unnamedOwed++
    this.#unnamedParse = message
    this.#traces.onStatement(message === null ? anyHint : hintOfBytes(message, HEADER_LENGTH + 1, message.length))
  }

  /**
   * Behind a Sync the server goes on where it skipped before: what was sent and skipped would not be what is bound next, but
   * somebody else's leftover.
   */
  onSync(): void {
    this.#batch++
    if (this.#unnamed === "sent") this.#unnamedBehindSync = true
  }

  /** Whether a Bind or Describe of the unnamed statement needs another's place: the client's own is not there. */
  unnamedIsElsewhere(type: number): boolean {
    const inDoubt = this.#unnamed === "sent" && this.#unnamedBehindSync
    if (inDoubt && this.#unnamedParse !== null) this.#rememberUnnamed()
    if (this.#unnamed === "elsewhere") return true
    if (type !== Frontend.bind) return false
    this.#unnamedBound = true
    if (this.#unnamed === "there") this.#unnamedParse = null
    return false
  }

  /** As if it had a name. */
  #rememberUnnamed(): void {
    this.#unnamed = "elsewhere"
    if (this.#unnamedParse === null) return
    const rest = this.#unnamedParse.subarray(HEADER_LENGTH + 1)
    this.#unnamedParse = null
    if (!this.wouldExceed(rest.length)) this.#remember("", statementOf(rest))
  }

  /** A simple Query does away with it. */
  dropUnnamed(): void {
    this.#forget("")
    this.#unnamed = "elsewhere"
    this.#unnamedParse = null
  }

  endLease(): void {
    if (!this.#unnamedBound) this.#rememberUnnamed()
  }

  // ---- named statements

  /** True where one more statement of this length would be too many. */
  wouldExceed(length: number): boolean {
    return this.#byName.size >= MAX_STATEMENTS_PER_CLIENT || this.#bytes + length > MAX_STATEMENT_BYTES_PER_CLIENT
  }

  /** A whole Parse with a name. */
  parse(message: Buffer, connection: Connection, expectations: Expectations, out: Outgoing): void {
    const nameEnd = indexOfNul(message, HEADER_LENGTH, message.length)
    if (nameEnd === -1) return this.#asItIs(message, entries.parse, expectations, out)
    const name = nameOf(message, HEADER_LENGTH, nameEnd)
    const before = this.#byName.get(name)
    if (before !== undefined) {
      // The server itself is to say that the name is taken (42P05), so that the transaction fails there as well.
      const serverName = this.#ensure(before, connection, expectations, out)
      expectations.pushExtended(entries.parse)
      return out.add(parse(serverName, message.subarray(nameEnd + 1)))
    }
    const rest = Buffer.from(message.subarray(nameEnd + 1))
    const statement = statementOf(rest)
    this.#remember(name, statement)
    const key = this.#keyOn(connection, statement)
    if (this.#nameThere(key, connection) !== undefined) {
      const onSkipped = () => this.#forget(name)
      return expectations.pushExtended(
        entry(Expected.parse, { answer: Answer.makeUp, bytes: parseComplete, onSkipped })
      )
    }
    this.#makeRoom(connection, expectations, out)
    const serverName = newName(key, connection)
    this.#expectParse(expectations, connection, key, serverName, Answer.forward, () => this.#forget(name))
    out.add(parse(serverName, rest))
  }

  /** Bind: `message` reaches at least to the end of both names, `length` is its length word; the rest follows as it is. */
  bind(message: Buffer, length: number, connection: Connection, expectations: Expectations, out: Outgoing): void {
    const portalEnd = indexOfNul(message, HEADER_LENGTH, message.length)
    const nameEnd = indexOfNul(message, portalEnd + 1, message.length)
    if (nameEnd === -1) return this.#asItIs(message, entries.bind, expectations, out)
    const serverName = this.#find(nameOf(message, portalEnd + 1, nameEnd), connection, expectations, out)
    expectations.pushExtended(entries.bind)
    // The limit on a Bind's length leaves room for the longer name: it cannot wrap.
    out.addHeader(Frontend.bind, length + serverName.length + 1 - (nameEnd - portalEnd))
    out.add(message, HEADER_LENGTH, portalEnd + 1)
    out.addName(serverName)
    out.add(message, nameEnd + 1)
  }

  /** A whole Describe of a named statement. */
  describe(message: Buffer, connection: Connection, expectations: Expectations, out: Outgoing): void {
    const name = nameOf(message, HEADER_LENGTH + 1, message.length - 1)
    const serverName = this.#find(name, connection, expectations, out)
    expectations.pushExtended(entries.describe)
    out.add(frame(Frontend.describe, Buffer.of(0x53), nameBytes(serverName)))
  }

  /** A whole Close of a named statement: only this client's name goes, others may use what it says. */
  close(message: Buffer, expectations: Expectations, out: Outgoing): void {
    const name = nameOf(message, HEADER_LENGTH + 1, message.length - 1)
    const statement = this.#byName.get(name)
    if (statement === undefined) return this.#asItIs(message, entries.close, expectations, out)
    this.#forget(name)
    const onSkipped = () => this.#remember(name, statement)
    expectations.pushExtended(entry(Expected.close, { answer: Answer.makeUp, bytes: closeComplete, onSkipped }))
  }

  has(name: string): boolean {
    return this.#byName.has(name)
  }

  /** As Close, by SQL: the client's name goes. */
  deallocate(name: string): void {
    this.#forget(name)
  }

  /** An unnamed Parse of DEALLOCATE: it takes the name that the statement has on this connection, and others prepare it anew. */
  deallocateThere(name: string, connection: Connection, expectations: Expectations, out: Outgoing): void {
    const statement = this.#byName.get(name)!
    const serverName = this.#ensure(statement, connection, expectations, out)
    this.#forget(name)
    connection.statements.delete(this.#keyOn(connection, statement))
    this.onUnnamedParse(null)
    expectations.pushExtended(this.unnamedEntry)
    out.add(parse("", Buffer.from(`DEALLOCATE "${serverName}"\0\0\0`)))
  }

  /** Close of a named statement while nothing is leased. */
  closeWithoutLease(message: Buffer): void {
    this.#forget(nameOf(message, HEADER_LENGTH + 1, message.length - 1))
  }

  /**
   * What the client's name stands for on this connection. A name that it never gave may be one of SQL's PREPARE in this very
   * transaction; but neither what lies there unnamed nor what others prepared is ever found by it: the server answers 26000.
   */
  #find(name: string, connection: Connection, expectations: Expectations, out: Outgoing): string {
    const statement = this.#byName.get(name)
    if (statement !== undefined) return this.#ensure(statement, connection, expectations, out)
    if (name !== "") return name.startsWith(serverNamePrefix) ? `${serverNamePrefix}none` : name
    expectations.pushExtended(entry(Expected.close, { answer: Answer.drop }))
    out.add(closeStatement(""))
    return ""
  }

  #asItIs(message: Buffer, entry: Entry, expectations: Expectations, out: Outgoing): void {
    expectations.pushExtended(entry)
    out.add(message)
  }

  #remember(name: string, statement: Statement): void {
    if (this.#byName === noStatements) this.#byName = new Map()
    this.#byName.set(name, statement)
    this.#bytes += statement.rest.length
  }

  #forget(name: string): void {
    const statement = this.#byName.get(name)
    if (statement === undefined) return
    this.#byName.delete(name)
    this.#bytes -= statement.rest.length
  }

  /** The statement's name on this connection, where it is prepared first if it is not there. */
  #ensure(statement: Statement, connection: Connection, expectations: Expectations, out: Outgoing): string {
    const key = this.#keyOn(connection, statement)
    // Behind the key: what it may change holds for those that come after it.
    this.#traces.onStatement(statement.hint)
    const nameThere = this.#nameThere(key, connection)
    if (nameThere !== undefined) return nameThere
    this.#makeRoom(connection, expectations, out)
    const serverName = newName(key, connection)
    this.#expectParse(expectations, connection, key, serverName, Answer.drop, () => {})
    out.add(parse(serverName, statement.rest))
    return serverName
  }

  /**
   * Its name, if the connection has it; to be used now. One that was sent in an earlier batch and is not answered may have been
   * skipped there: then it is prepared once more, under another name.
   */
  #nameThere(key: string, { statements }: Connection): string | undefined {
    const name = statements.use(key)
    if (name === undefined || this.#inBatch.size === 0) return name
    const batch = this.#inBatch.get(key)
    if (batch === undefined || batch === this.#batch) return name
    statements.delete(key)
    statements.broken.push(name)
    return undefined
  }

  #expectParse(
    expectations: Expectations,
    { statements }: Connection,
    key: string,
    serverName: string,
    answer: Answer,
    onSkipped: () => void
  ): void {
    // A client's own Parse that was skipped is not there for what it binds behind its Sync either.
    if (answer === Answer.drop) {
      if (this.#inBatch === noBatches) this.#inBatch = new Map()
      this.#inBatch.set(key, this.#batch)
    } else {
      if (this.#unanswered === noneUnanswered) this.#unanswered = new Set()
      this.#unanswered.add(key)
    }
    const parsed = entry(Expected.parse, {
      answer,
      onAnswered: () => {
        this.#unanswered.delete(key)
        if (statements.nameOf(key) === serverName) this.#inBatch.delete(key)
      },
      onSkipped: () => {
        this.#unanswered.delete(key)
        if (statements.nameOf(key) === serverName) statements.delete(key)
        onSkipped()
      }
    })
    expectations.pushExtended(parsed)
  }

  /**
   * Tenants have each their own on a connection, and what a statement says is fixed under the settings that hold when it is
   * parsed: those of the lease's beginning, or others since, which nobody shares.
   */
  #keyOn(connection: Connection, statement: Statement): string {
    const { changes } = this.#traces
    const settings = connection.settings.key
    if (changes > 0) return `${settings}\0${statement.digest}\0${this.#lease}.${changes}`
    if (statement.keyed === null || statement.keyed.settings !== settings) {
      statement.keyed = { settings, key: `${settings}\0${statement.digest}` }
    }
    return statement.keyed.key
  }

  /**
   * Closes what is broken, and statements not used of late where the connection has all that it may have. One that the client
   * has not heard of would be prepared anew for what it binds behind its Sync, though it may have been skipped: it stays.
   */
  #makeRoom({ statements }: Connection, expectations: Expectations, out: Outgoing): void {
    for (const name of statements.broken.splice(0)) {
      this.#expectClose(expectations, () => statements.broken.push(name))
      out.add(closeStatement(name))
    }
    const surplus = statements.size - this.#limits.pool.maxPreparedStatements + 1
    if (surplus <= 0) return
    const mayGo = (key: string) => surplus > MAX_UNANSWERED || !this.#unanswered.has(key)
    for (const [key, name] of statements.takeUnused(surplus, mayGo)) {
      this.#expectClose(expectations, () => statements.add(key, name))
      out.add(closeStatement(name))
    }
  }

  #expectClose(expectations: Expectations, onSkipped: () => void): void {
    expectations.pushExtended(entry(Expected.close, { answer: Answer.drop, onSkipped }))
  }
}

const statementOf = (rest: Buffer): Statement => ({
  keyed: null,
  rest,
  digest: createHash("sha256").update(rest).digest("base64"),
  hint: hintOfBytes(rest, 0, rest.length)
})

/** Names are compared byte by byte. */
const nameOf = (message: Buffer, from: number, end: number): string => message.toString("latin1", from, end)

/** The inverse of `nameOf`, with its terminator. */
const nameBytes = (name: string): Buffer => Buffer.from(`${name}\0`, "latin1")
