/**
 * Bytes of a client that cannot be dealt with yet, in the order in which they came: a part of a message, or all that came while
 * it waited. And how many of them there may be.
 *
 * Keeps copies, and puts them together only when somebody looks: a message of 16 MB that comes in chunks of 64 kB would
 * otherwise be copied 128 times over.
 */

/** While it waits for a connection a client may always send this much more; beyond it only while there is an allowance. */
const HELD_LIMIT = 64 * 1024

/** Never written to: mostly nothing is held, or one chunk. */
const noParts: Array<Buffer> = []
const nothing = Buffer.alloc(0)

export class HeldBytes {
  readonly #allowance: HeldAllowance
  /**
   * The first of them, and those behind it. A list for the one chunk that a client has mostly sent while it waits is an object that
   * V8 comes to believe will live long, and a busy pool filled the old space with them: 14 MB a second with 512 clients.
   */
  #first: Buffer | null = null
  #more: Array<Buffer> = noParts
  #length = 0
  #needed = 0
  /** Of the allowance. */
  #claimed = 0

  constructor(allowance: HeldAllowance) {
    this.#allowance = allowance
  }

  get length(): number {
    return this.#length
  }

  /** Looking at them again is in vain before there are this many. */
  needs(length: number): void {
    this.#needed = length
  }

  get ready(): boolean {
    return this.#length > 0 && this.#length >= this.#needed
  }

  /** Whether a client that waits, whose bytes these are the last of, may be read on. */
  claim(bytes: number): boolean {
    if (this.#length <= HELD_LIMIT) return true
    if (!this.#allowance.claim(bytes, this.#claimed)) return false
    this.#claimed += bytes
    return true
  }

  /** It does not wait any more. */
  giveBackClaim(): void {
    this.#allowance.giveBack(this.#claimed)
    this.#claimed = 0
  }

  endsWith(bytes: Uint8Array): boolean {
    return this.#length >= bytes.length && this.peek().subarray(-bytes.length).equals(bytes)
  }

  /** Copies the chunk. */
  append(chunk: Uint8Array): void {
    const copy = Buffer.from(chunk)
    if (this.#first === null) this.#first = copy
    else if (this.#more === noParts) this.#more = [copy]
    else this.#more.push(copy)
    this.#length += chunk.length
  }

  /** All of it in one piece, still held. */
  peek(): Buffer {
    if (this.#first === null) return nothing
    if (this.#more !== noParts) this.#first = Buffer.concat([this.#first, ...this.#more], this.#length)
    this.#more = noParts
    return this.#first
  }

  /** The first bytes have been dealt with. */
  drop(count: number): void {
    const whole = this.peek()
    this.#length -= count
    this.#first = this.#length === 0 ? null : whole.subarray(count)
  }

  /** All of it in one piece, not held any more. */
  take(): Buffer {
    const whole = this.peek()
    this.clear()
    return whole
  }

  clear(): void {
    this.#first = null
    this.#more = noParts
    this.#length = 0
    this.#needed = 0
  }
}

/** What all waiting clients together may have sent ahead, beyond the share that each has anyway. */
const ALLOWANCE = 64 * 1024 * 1024
/** And one of them alone: the rest of a message longer than this is left in the network. */
const ALLOWANCE_PER_CLIENT = 4 * 1024 * 1024

/**
 * Lets a waiting client be read on, so that its leaving is noticed: the end of a stream comes behind all that was sent before
 * it, and a socket that is not read never hears of it. Shared by all sessions, so that ten thousand of them fill no memory.
 */
export class HeldAllowance {
  #left = ALLOWANCE

  /** What is claimed is given back. False: there is no more to have. */
  claim(bytes: number, claimed: number): boolean {
    if (claimed + bytes > ALLOWANCE_PER_CLIENT || bytes > this.#left) return false
    this.#left -= bytes
    return true
  }

  giveBack(bytes: number): void {
    this.#left += bytes
  }
}
