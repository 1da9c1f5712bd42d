/**
 * What the server still owes: one entry for each message that it will answer, in the order in which they were forwarded. The
 * lease is over only when the queue is empty.
 *
 * Pure bookkeeping over letters; it sees no bytes and no sockets. The model, each line seen on a real server:
 * - Query, FunctionCall and Sync end with one ReadyForQuery. Parse, Bind, Close, Describe and Execute have each one message
 *   that completes them; after an error all of them up to the next Sync are skipped unanswered.
 * - While a COPY reads from the client (copy-in), the server swallows Sync and Flush. So the Syncs that were sent before the
 *   data vanish, and those sent after CopyDone or CopyFail count.
 * - An answer may be *dropped* (the message was ours, not the client's) or *made up* (the client's message was not forwarded).
 */
import { Backend } from "../protocol/Frame.ts"

export const Expected = {
  query: 1,
  functionCall: 2,
  sync: 3,
  parse: 4,
  bind: 5,
  close: 6,
  describe: 7,
  execute: 8,
  /** CopyDone or CopyFail: has no answer, but tells where copy-in ends. */
  copyEnd: 9,
  /** Of the server. */
  nothing: 10
} as const
export type Expected = (typeof Expected)[keyof typeof Expected]

/** What becomes of the answer. */
export const Answer = {
  /** The server's goes to the client. */
  forward: 0,
  /** The server's goes to nobody. */
  drop: 1,
  /** The server gives none; the entry's own bytes go to the client. */
  makeUp: 2
} as const
export type Answer = (typeof Answer)[keyof typeof Answer]

/** All of one shape, for they are looked at with each message. */
export interface Entry {
  readonly expected: Expected
  readonly answer: Answer
  /** What a made-up answer says; asked for when it is due, where that is not known before. */
  readonly bytes: Buffer | (() => Buffer) | null
  /** An error that answers it goes to the client in these words. */
  readonly errorInstead: Buffer | null
  /** Called when the answer has come. */
  readonly onAnswered: (() => void) | null
  /** Called where the message was skipped or refused, so that what it would have made is not believed in. */
  readonly onSkipped: (() => void) | null
  /** Its answer goes to the client, and nobody wants to know. */
  readonly isPlain: boolean
}

export const entry = (expected: Expected, more: Partial<Omit<Entry, "expected" | "isPlain">> = {}): Entry => {
  const { answer = Answer.forward, bytes = null, errorInstead = null, onAnswered = null, onSkipped = null } = more
  const isPlain = answer === Answer.forward && onAnswered === null && expected !== Expected.copyEnd
  return { expected, answer, bytes, errorInstead, onAnswered, onSkipped, isPlain }
}

/** The frequent entries, made once: pushing one allocates nothing. */
export const entries = {
  query: entry(Expected.query),
  /** Of one SET LOCAL or the like: its tag is no trace. */
  localSet: entry(Expected.query),
  functionCall: entry(Expected.functionCall),
  sync: entry(Expected.sync),
  parse: entry(Expected.parse),
  bind: entry(Expected.bind),
  close: entry(Expected.close),
  describe: entry(Expected.describe),
  execute: entry(Expected.execute),
  copyEnd: entry(Expected.copyEnd)
} as const

const isReadyMaker = (expected: Expected): boolean => expected <= Expected.sync

export class Expectations {
  /** Those between head and tail. To set an array's length is a call out of compiled code, 0.1 µs: what was taken is null. */
  readonly #queue: Array<Entry | null> = []
  #head = 0
  #tail = 0
  /** Entries that end with ReadyForQuery. */
  #readyOwed = 0
  /** Entries up to this index of the queue are answered without a Sync: a Flush is behind them. */
  #flushed = 0
  /** Extended messages were sent and no Sync behind them. */
  #batchOpen = false
  /** The server skips to the next Sync, which has not been sent. */
  #skipping = false
  #copyIn = false
  /** Between CopyInResponse and the end of that COPY, however it ends. */
  #copying = false
  /** In this COPY; where it fails, they may have been read behind it after all. */
  #syncsSwallowed = false
  /** The count may be off by one: the connection is not to be lent again. */
  inDoubt = false

  /** Nothing is owed, nothing begun. */
  get settled(): boolean {
    return this.#head === this.#tail && !this.#batchOpen && !this.#copyIn
  }

  /** The server is at work: at least one ReadyForQuery will come without anything more from the client. */
  get serverBusy(): boolean {
    return (this.#readyOwed > 0 || this.#flushed > this.#head) && !this.#copyIn
  }

  /** As `serverBusy`, but for the last message: it has not been sent to its end. */
  get serverBusyBeforeLast(): boolean {
    const isReadyOwedForLast = !this.#isEmpty() && isReadyMaker(this.#queue[this.#tail - 1]!.expected)
    const owed = isReadyOwedForLast ? this.#readyOwed - 1 : this.#readyOwed
    return (owed > 0 || this.#flushed > this.#head) && !this.#copyIn
  }

  get copyIn(): boolean {
    return this.#copyIn
  }

  clear(): void {
    this.#takeAll()
    this.#readyOwed = 0
    this.#batchOpen = false
    this.#skipping = false
    this.#copyIn = false
    this.#copying = false
    this.#syncsSwallowed = false
    this.inDoubt = false
  }

  /** Query or FunctionCall. */
  pushSimple(entry: Entry): void {
    if (this.#skipping) return
    this.#push(entry)
    this.#readyOwed++
    this.#batchOpen = false
  }

  /** A Query that is answered here, with its ReadyForQuery; `answer` is asked for it when it is due. */
  pushMadeUpQuery(answer: () => Buffer): void {
    if (this.#skipping) return
    this.#push(entry(Expected.nothing, { answer: Answer.makeUp, bytes: answer }))
    this.#batchOpen = false
  }

  /** Parse, Bind, Close, Describe, Execute. */
  pushExtended(entry: Entry): void {
    this.#batchOpen = true
    if (this.#skipping) entry.onSkipped?.()
    else this.#push(entry)
  }

  pushSync(): void {
    if (this.#copyIn) {
      this.#syncsSwallowed = true
      return
    }
    this.#push(entries.sync)
    this.#readyOwed++
    this.#batchOpen = false
    this.#skipping = false
  }

  pushFlush(): void {
    if (!this.#copyIn) this.#flushed = this.#tail
  }

  /** CopyDone or CopyFail went to the server. */
  pushCopyEnd(): void {
    if (this.#copyIn) this.#copyIn = false
    else if (!this.#isEmpty()) this.#push(entries.copyEnd)
  }

  /** The entry whose answer is due; null where the server speaks unasked. */
  get head(): Entry | null {
    return this.#isEmpty() ? null : this.#queue[this.#head]!
  }

  /** A made-up answer is due now. */
  get madeUpIsDue(): boolean {
    return !this.#isEmpty() && this.#queue[this.#head]!.answer === Answer.makeUp
  }

  /** Takes the made-up answer that is due. */
  takeMadeUp(): Buffer | null {
    const { bytes } = this.#shift()
    return typeof bytes === "function" ? bytes() : bytes
  }

  /**
   * As `onAnswer`, of what is mostly said: true where the message goes to the client and there is nothing else to do. A quarter of
   * what is spent on an answer otherwise goes into finding that out, call by call.
   */
  passes(type: number): boolean {
    if (isMomentous[type] !== 0) return false
    if (this.#isEmpty()) return true
    const entry = this.#queue[this.#head]!
    if (!entry.isPlain) return false
    if (completedBy[type] !== entry.expected) return true
    const next = this.#head + 1
    // Where nothing is left, or much lies behind, there is something to tidy up: a client can see to it that there is always more.
    if (next === this.#tail || next > KEPT_LENGTH || !this.#queue[next]!.isPlain) return false
    this.#queue[this.#head] = null
    this.#head = next
    return true
  }

  /**
   * A whole message of the server's has come, other than an error. Returns whether it goes to the client. Anything that does
   * not fit the queue leaves it as it is and goes to the client: a row, a notice, or news that may come at any time.
   */
  onAnswer(type: number): boolean {
    if (type === Backend.readyForQuery) {
      this.#onReady()
      return true
    }
    if (type === Backend.copyInResponse) {
      this.#beginCopyIn()
      return true
    }
    if (type === Backend.commandComplete) this.#copying = false
    const head = this.head
    if (head === null || completedBy[type] !== head.expected) {
      // Notifications are for the client, whatever is due; a notice about a message of ours is not.
      return head === null || head.answer !== Answer.drop || type === Backend.notificationResponse
    }
    this.#shift()
    head.onAnswered?.()
    this.#dropCopyEnds()
    return head.answer !== Answer.drop
  }

  /** An ErrorResponse has come. What follows it in its batch is skipped unanswered, up to the next Sync. */
  onError(): boolean {
    if (this.#copying && this.#syncsSwallowed) this.inDoubt = true
    this.#copying = false
    this.#copyIn = false
    const head = this.head
    if (head === null || isReadyMaker(head.expected)) return true
    // A Query behind the failed message is skipped like all else; only Sync ends it.
    const skipped: Array<Entry> = []
    while (!this.#isEmpty() && this.#queue[this.#head]!.expected !== Expected.sync) {
      skipped.push(this.#shift())
    }
    // Undone as it was done, the last first: two messages may be about one name.
    for (const entry of skipped.toReversed()) entry.onSkipped?.()
    if (!this.#isEmpty()) return true
    this.#skipping = true
    this.#batchOpen = true
    return true
  }

  #onReady(): void {
    // Copy ends that came too late for their copy stand before the entry that is answered.
    while (!this.#isEmpty()) {
      const entry = this.#shift()
      if (isReadyMaker(entry.expected)) {
        this.#copyIn = false
        this.#copying = false
        this.#dropCopyEnds()
        return
      }
    }
    // Of a Sync that was believed swallowed: whatever was open is closed by it.
    this.inDoubt = true
    this.#batchOpen = false
    this.#skipping = false
  }

  /** The Syncs before the end of the data are swallowed. Where that end was not sent yet, so are those still to come. */
  #beginCopyIn(): void {
    this.#copying = true
    this.#syncsSwallowed = false
    const flushed = this.#flushed - this.#head
    const owed = this.#takeAll()
    const end = owed.findIndex((entry) => entry.expected === Expected.copyEnd)
    // One pass: a splice for each Sync would take seconds where somebody has sent a hundred thousand.
    for (const [index, entry] of owed.entries()) {
      const beforeEnd = end === -1 || index < end
      if (index === end) continue
      if (beforeEnd && entry.expected === Expected.sync) {
        this.#readyOwed--
        this.#syncsSwallowed = true
      } else this.#push(entry)
      if (index < flushed) this.#flushed = this.#tail
    }
    this.#copyIn = end === -1
    this.#batchOpen = this.#endsInOpenBatch()
  }

  /** What was sent last belongs to a batch without its Sync. */
  #endsInOpenBatch(): boolean {
    for (let at = this.#tail - 1; at >= this.#head; at--) {
      const { expected } = this.#queue[at]!
      if (expected !== Expected.copyEnd) return !isReadyMaker(expected)
    }
    return false
  }

  #dropCopyEnds(): void {
    while (!this.#isEmpty() && this.#queue[this.#head]!.expected === Expected.copyEnd) this.#shift()
  }

  #isEmpty(): boolean {
    return this.#head === this.#tail
  }

  #push(entry: Entry): void {
    if (this.#tail === this.#queue.length) this.#queue.push(entry)
    else this.#queue[this.#tail] = entry
    this.#tail++
  }

  #shift(): Entry {
    const entry = this.#queue[this.#head]!
    this.#queue[this.#head] = null
    this.#head++
    if (isReadyMaker(entry.expected)) this.#readyOwed--
    if (this.#isEmpty()) {
      this.#head = this.#tail = this.#flushed = 0
      if (this.#queue.length > KEPT_LENGTH) this.#queue.length = 0
    } else if (this.#head > KEPT_LENGTH && this.#head * 2 > this.#tail) {
      this.#queue.splice(0, this.#head)
      this.#tail -= this.#head
      this.#flushed = Math.max(0, this.#flushed - this.#head)
      this.#head = 0
    }
    return entry
  }

  /** All that is owed; the queue is empty then. */
  #takeAll(): ReadonlyArray<Entry> {
    const owed = this.#queue.slice(this.#head, this.#tail) as Array<Entry>
    this.#queue.length = this.#head = this.#tail = this.#flushed = 0
    return owed
  }
}

/** The queue of a client that has sent more than this ahead is made short again. */
const KEPT_LENGTH = 64

/** By the server's message: which request it completes; of each extended one there is one. Chapter "Extended Query". */
const completedBy: Readonly<Uint8Array> = (() => {
  const expected = new Uint8Array(256)
  expected[Backend.parseComplete] = Expected.parse
  expected[Backend.bindComplete] = Expected.bind
  expected[Backend.closeComplete] = Expected.close
  for (const type of [Backend.rowDescription, Backend.noData]) expected[type] = Expected.describe
  for (const type of [Backend.commandComplete, Backend.emptyQueryResponse, Backend.portalSuspended]) {
    expected[type] = Expected.execute
  }
  return expected
})()

/** The server's messages that say more than that something is done. */
const isMomentous: Readonly<Uint8Array> = (() => {
  const momentous = new Uint8Array(256)
  const { readyForQuery, commandComplete, copyInResponse, errorResponse, parameterStatus } = Backend
  for (const type of [readyForQuery, commandComplete, copyInResponse, errorResponse, parameterStatus]) {
    momentous[type] = 1
  }
  return momentous
})()
