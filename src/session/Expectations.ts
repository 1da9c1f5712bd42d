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

export interface Entry {
  readonly expected: Expected
  readonly answer: Answer
  /** What a made-up answer says. */
  readonly bytes: Buffer | null
  /** An error that answers it goes to the client in these words. */
  readonly errorInstead?: Buffer
  /** Called when the answer has come. */
  readonly onAnswered?: () => void
  /** Called where the message was skipped or refused, so that what it would have made is not believed in. */
  readonly onSkipped: (() => void) | null
}

const plain = (expected: Expected): Entry => ({ expected, answer: Answer.forward, bytes: null, onSkipped: null })

/** The frequent entries, made once: pushing one allocates nothing. */
export const entries = {
  query: plain(Expected.query),
  /** Of one SET LOCAL or the like: its tag is no trace. */
  localSet: plain(Expected.query),
  functionCall: plain(Expected.functionCall),
  sync: plain(Expected.sync),
  parse: plain(Expected.parse),
  bind: plain(Expected.bind),
  close: plain(Expected.close),
  describe: plain(Expected.describe),
  execute: plain(Expected.execute),
  copyEnd: plain(Expected.copyEnd)
} as const

const isReadyMaker = (expected: Expected): boolean => expected <= Expected.sync

export class Expectations {
  readonly #queue: Array<Entry> = []
  #head = 0
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
    return this.#head === this.#queue.length && !this.#batchOpen && !this.#copyIn
  }

  /** The server is at work: at least one ReadyForQuery will come without anything more from the client. */
  get serverBusy(): boolean {
    return (this.#readyOwed > 0 || this.#flushed > this.#head) && !this.#copyIn
  }

  /** As `serverBusy`, but for the last message: it has not been sent to its end. */
  get serverBusyBeforeLast(): boolean {
    const last = this.#queue.at(-1)
    const owed = last !== undefined && isReadyMaker(last.expected) ? this.#readyOwed - 1 : this.#readyOwed
    return (owed > 0 || this.#flushed > this.#head) && !this.#copyIn
  }

  get copyIn(): boolean {
    return this.#copyIn
  }

  clear(): void {
    this.#queue.length = 0
    this.#head = 0
    this.#flushed = 0
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
    this.#queue.push(entry)
    this.#readyOwed++
    this.#batchOpen = false
  }

  /** A Query that is answered here, with its ReadyForQuery; `answer` is asked for it when it is due. */
  pushMadeUpQuery(answer: () => Buffer): void {
    if (this.#skipping) return
    this.#queue.push({
      expected: Expected.nothing,
      answer: Answer.makeUp,
      get bytes() {
        return answer()
      },
      onSkipped: null
    })
    this.#batchOpen = false
  }

  /** Parse, Bind, Close, Describe, Execute. */
  pushExtended(entry: Entry): void {
    this.#batchOpen = true
    if (this.#skipping) entry.onSkipped?.()
    else this.#queue.push(entry)
  }

  pushSync(): void {
    if (this.#copyIn) {
      this.#syncsSwallowed = true
      return
    }
    this.#queue.push(entries.sync)
    this.#readyOwed++
    this.#batchOpen = false
    this.#skipping = false
  }

  pushFlush(): void {
    if (!this.#copyIn) this.#flushed = this.#queue.length
  }

  /** CopyDone or CopyFail went to the server. */
  pushCopyEnd(): void {
    if (this.#copyIn) this.#copyIn = false
    else if (this.#head < this.#queue.length) this.#queue.push(entries.copyEnd)
  }

  /** The entry whose answer is due; null where the server speaks unasked. */
  get head(): Entry | null {
    return this.#head < this.#queue.length ? this.#queue[this.#head]! : null
  }

  /** A made-up answer is due now. */
  get madeUpIsDue(): boolean {
    return this.#head < this.#queue.length && this.#queue[this.#head]!.answer === Answer.makeUp
  }

  /** Takes the entry whose made-up answer was given. */
  takeMadeUp(): Entry {
    return this.#shift()
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
    if (head === null || !completes(head.expected, type)) {
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
    while (this.#head < this.#queue.length && this.#queue[this.#head]!.expected !== Expected.sync) {
      skipped.push(this.#shift())
    }
    // Undone as it was done, the last first: two messages may be about one name.
    for (const entry of skipped.toReversed()) entry.onSkipped?.()
    if (this.#head < this.#queue.length) return true
    this.#skipping = true
    this.#batchOpen = true
    return true
  }

  #onReady(): void {
    // Copy ends that came too late for their copy stand before the entry that is answered.
    while (this.#head < this.#queue.length) {
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
    const owed = this.#queue.slice(this.#head)
    const end = owed.findIndex((entry) => entry.expected === Expected.copyEnd)
    const flushed = this.#flushed - this.#head
    this.#queue.length = this.#head = this.#flushed = 0
    // One pass: a splice for each Sync would take seconds where somebody has sent a hundred thousand.
    for (const [index, entry] of owed.entries()) {
      const beforeEnd = end === -1 || index < end
      if (index === end) continue
      if (beforeEnd && entry.expected === Expected.sync) {
        this.#readyOwed--
        this.#syncsSwallowed = true
      } else this.#queue.push(entry)
      if (index < flushed) this.#flushed = this.#queue.length
    }
    this.#copyIn = end === -1
    this.#batchOpen = this.#endsInOpenBatch()
  }

  /** What was sent last belongs to a batch without its Sync. */
  #endsInOpenBatch(): boolean {
    const last = this.#queue.findLast((entry) => entry.expected !== Expected.copyEnd)
    return last !== undefined && !isReadyMaker(last.expected)
  }

  #dropCopyEnds(): void {
    while (this.#head < this.#queue.length && this.#queue[this.#head]!.expected === Expected.copyEnd) this.#shift()
  }

  #shift(): Entry {
    const entry = this.#queue[this.#head]!
    this.#head++
    if (isReadyMaker(entry.expected)) this.#readyOwed--
    if (this.#head === this.#queue.length) {
      // To set the length is a call out of compiled code, 0.1 µs.
      while (this.#queue.length > 0) this.#queue.pop()
      this.#head = 0
      this.#flushed = 0
    } else if (this.#head > 64 && this.#head * 2 > this.#queue.length) {
      this.#queue.splice(0, this.#head)
      this.#flushed = Math.max(0, this.#flushed - this.#head)
      this.#head = 0
    }
    return entry
  }
}

/** The one message that ends each extended request; chapter "Extended Query". */
const completes = (expected: Expected, type: number): boolean => {
  switch (expected) {
    case Expected.parse:
      return type === Backend.parseComplete
    case Expected.bind:
      return type === Backend.bindComplete
    case Expected.close:
      return type === Backend.closeComplete
    case Expected.describe:
      return type === Backend.rowDescription || type === Backend.noData
    case Expected.execute:
      return type === Backend.commandComplete || type === Backend.emptyQueryResponse || type === Backend.portalSuspended
    default:
      return false
  }
}
