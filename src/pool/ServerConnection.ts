/**
 * One connection to PostgreSQL, logged in: what is known of its session, and who hears what it says.
 *
 * Three kinds of listener, never two at a time: the lessee while it is leased (raw chunks, for the relay), a conversation that
 * the pool holds with it (a tenant switch, a check), or nobody (idle, where only news may come). It never decides whose it is,
 * never waits and never opens or closes anything but its own transport; that is the pool's.
 */
import type { Transport, TransportHandler } from "../net/Transport.ts"
import { decodeError, decodeParameterStatus, isFatal, type ReceivedError } from "../protocol/Backend.ts"
import { Backend, FrameCollector, TransactionStatus, type Frame } from "../protocol/Frame.ts"
import type { Idler } from "./IdleList.ts"
import { noSettings, type ClientSettings, type Conversation } from "./Reset.ts"
import { ServerStatements } from "./ServerStatements.ts"

/** Who holds the connection. Called in the event loop; must not throw. */
export interface Lessee {
  /** Bytes from the server, valid only during the call. */
  onServerData(chunk: Buffer): void
  onServerDrain(): void
  /** The connection is gone, and the pool has been told. */
  onServerLost(reason: string): void
  /** Every so often during the lease, for what has gone on for too long; `now` in milliseconds of the clock. */
  onSweep(now: number): void
}

/** How a conversation ended. Only "Done" leaves the connection usable. */
export type ConversationEnd =
  | { readonly _tag: "Done" }
  /** `completed`: commands of the whole conversation that were done before. */
  | { readonly _tag: "Refused"; readonly error: ReceivedError; readonly completed: number }
  | { readonly _tag: "Lost"; readonly reason: string }
  | { readonly _tag: "TimedOut" }

/** What a login leaves behind. */
export interface LoggedIn {
  readonly transport: Transport
  readonly processId: number
  readonly secretKey: Buffer
  readonly parameters: Map<string, string>
  /** What came behind its last message, in the same breath. */
  readonly rest: Buffer
}

/** Longest answer to the pool's own questions; a notice that a tenant's trigger raises may be long. */
const CONVERSATION_FRAME_LIMIT = 1024 * 1024

interface RunningConversation {
  remaining: number
  /** Commands completed since the last ReadyForQuery. */
  completed: number
  /** And in all, before the first error. */
  completedInAll: number
  /** How many there must be before each ReadyForQuery to come. */
  readonly commands: Array<number>
  error: ReceivedError | null
  readonly onRow: ((row: Buffer) => void) | undefined
  readonly onNotification: ((body: Buffer) => void) | undefined
  readonly done: (end: ConversationEnd) => void
}

/**
 * `new`: logged in, and nobody has had it; `leased` also while its server is asked what the lease left behind; `preparing` for a
 * client that waits; `resetting` for nobody yet.
 */
export type ServerState = "new" | "idle" | "leased" | "preparing" | "resetting" | "cancelling" | "closing"

export class ServerConnection<Tenant, Group> implements TransportHandler, Idler<ServerConnection<Tenant, Group>> {
  readonly transport: Transport
  /** Those that it may serve. */
  readonly group: Group
  readonly processId: number
  readonly secretKey: Buffer
  /** As the server last reported them. */
  readonly parameters: Map<string, string>
  readonly openedAt: number
  state: ServerState = "new"
  /** Not to be lent any more: closed when it comes back. */
  retired = false
  /** Nobody wants the answer to what it runs: it is to be cancelled until it has gone. */
  stopQuery = false
  /** When it was last heard of as it became free: on the clock's milliseconds, by the sweep. */
  idleSince: number
  /** The pool's count of those that became idle, when this one last did. */
  idleTurn = 0
  /** While it is idle, until then its own tenant's alone, by `PoolContext.preciseNow`; 0: anybody's. */
  keptUntil = 0
  longerIdle: ServerConnection<Tenant, Group> | null = null
  shorterIdle: ServerConnection<Tenant, Group> | null = null
  /** Whose path it carries; null until the first switch. */
  tenant: Tenant | null = null
  /** For whom it is leased or being prepared. */
  holder: Tenant | null = null
  settings: ClientSettings = noSettings
  /** False where a client ran SET, RESET, DISCARD or the like: then all of its state is set anew before it is lent. */
  stateKnown = false
  /** It may have locks, channels or the like: they are to go when it comes back, not when it is next lent. */
  mustReset = false
  /** It stays with its client between transactions, and counts against MaxPinned. */
  pinned = false
  /** Transactions of the visit that its tenant has here. */
  turns = 0
  /** Clock's milliseconds. */
  visitBegan = 0
  readonly statements = new ServerStatements()
  cancelsInFlight = 0
  /** Told when they have ended. */
  readonly onCancelsEnded: Array<() => void> = []
  /** When what it is at must be over, on the clock's milliseconds. */
  deadline = Number.POSITIVE_INFINITY
  lessee: Lessee | null = null
  readonly #onLost: (connection: ServerConnection<Tenant, Group>) => void
  #conversation: RunningConversation | null = null
  readonly #collector = new FrameCollector(CONVERSATION_FRAME_LIMIT)
  #lastWords: ReceivedError | null = null

  constructor(
    login: LoggedIn,
    group: Group,
    now: number,
    onLost: (connection: ServerConnection<Tenant, Group>) => void
  ) {
    this.transport = login.transport
    this.group = group
    this.processId = login.processId
    this.secretKey = login.secretKey
    this.parameters = login.parameters
    this.openedAt = now
    this.idleSince = now
    this.#onLost = onLost
    this.transport.handler = this
    if (login.rest.length > 0) this.onData(login.rest)
  }

  /** Writes, and hears the answers until the last ReadyForQuery or an end of another kind. */
  converse(conversation: Conversation, deadline: number, done: (end: ConversationEnd) => void): void {
    this.deadline = deadline
    this.#conversation = {
      remaining: conversation.readyForQueries,
      completed: 0,
      completedInAll: 0,
      commands: [...conversation.commands],
      error: null,
      onRow: conversation.onRow,
      onNotification: conversation.onNotification,
      done
    }
    this.transport.write(conversation.bytes)
  }

  /** The conversation's deadline has passed. The connection is in doubt then. */
  giveUpConversation(): void {
    this.#endConversation({ _tag: "TimedOut" })
  }

  /** What a new lessee has to hear first: the server had begun to say it while nobody listened. Null: nothing. */
  takePending(): Buffer | null {
    return this.#collector.takePending()
  }

  /** Nothing of an earlier session is left: what DISCARD ALL has dropped is dropped here too. */
  forgetSession(): void {
    this.statements.clear()
    this.statements.broken.length = 0
  }

  onData(chunk: Buffer): void {
    if (this.lessee !== null) {
      this.lessee.onServerData(chunk)
      return
    }
    // What it still answers is for nobody; it is ours until it has gone, or its query could not be cancelled any more.
    if (this.state === "closing") return
    const frames = this.#collector.push(chunk)
    if (frames === null) return this.#lose("the server sent an impossible message length")
    // A conversation that begins while this chunk is heard is not answered in it.
    const conversation = this.#conversation
    for (const frame of frames) {
      if (conversation !== null && conversation === this.#conversation) this.#hear(conversation, frame)
      else if (frame.type === Backend.notificationResponse) conversation?.onNotification?.(frame.body)
      else this.#hearWhileIdle(frame)
    }
  }

  onDrain(): void {
    this.lessee?.onServerDrain()
  }

  onClose(reason: string | null): void {
    this.#lose(
      this.#lastWords === null
        ? (reason ?? "the server closed the connection")
        : `${this.#lastWords.sqlState} ${this.#lastWords.message}`
    )
  }

  #hear(conversation: RunningConversation, frame: Frame): void {
    switch (frame.type) {
      case Backend.commandComplete:
        conversation.completed++
        if (conversation.error === null) conversation.completedInAll++
        return
      case Backend.dataRow:
        conversation.onRow?.(frame.body)
        return
      case Backend.notificationResponse:
        conversation.onNotification?.(frame.body)
        return
      case Backend.readyForQuery:
        if (conversation.error === null && conversation.completed !== conversation.commands.shift()) {
          return this.#lose("the server's answers do not fit what it was asked")
        }
        conversation.completed = 0
        if (--conversation.remaining > 0) return
        if (conversation.error !== null) {
          const { error, completedInAll: completed } = conversation
          this.#endConversation({ _tag: "Refused", error, completed })
        } else if (frame.body[0] === TransactionStatus.idle) this.#endConversation({ _tag: "Done" })
        else this.#lose("the server was in a transaction when it should have been idle")
        return
      case Backend.errorResponse:
        conversation.error ??= this.#hearError(frame)
        return
      case Backend.parameterStatus:
        this.#hearParameter(frame)
    }
  }

  /** Between leases a server speaks only of its own accord. */
  #hearWhileIdle(frame: Frame): void {
    switch (frame.type) {
      case Backend.parameterStatus:
        return this.#hearParameter(frame)
      case Backend.noticeResponse:
      case Backend.notificationResponse:
        return
      case Backend.errorResponse:
        this.#hearError(frame)
        return
      default:
        // An answer that nobody waits for: whatever it belongs to, the next lessee must not read it as its own.
        this.#lose("the server answered more than it was asked")
    }
  }

  #hearParameter(frame: Frame): void {
    const parameter = decodeParameterStatus(frame.body)
    if (parameter !== null) this.parameters.set(parameter[0], parameter[1])
  }

  #hearError(frame: Frame): ReceivedError {
    const error = decodeError(frame.body)
    if (isFatal(error)) this.#lastWords = error
    return error
  }

  #endConversation(end: ConversationEnd): void {
    const conversation = this.#conversation
    if (conversation === null) return
    this.#conversation = null
    this.deadline = Number.POSITIVE_INFINITY
    conversation.done(end)
  }

  #lose(reason: string): void {
    const lessee = this.lessee
    this.lessee = null
    this.transport.destroy()
    this.#endConversation({ _tag: "Lost", reason })
    this.#onLost(this)
    lessee?.onServerLost(reason)
  }
}
