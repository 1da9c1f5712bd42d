/**
 * One io_uring: what the kernel is to do is written down in memory that it shares, and handed over with one system call for all of
 * it; so is what it has done, for none. Knows what a read, a write and their taking back look like, and nothing of sockets.
 *
 * **Who owns the bytes**: buffers to read into are the kernel's, until it says that it has filled one. That one is then ours until
 * `release` and the submission after it: whatever is to be written from there lies there until it is sent. All else that is to be
 * written is copied, and lies in a memory of its own until the next submission.
 *
 * The kernel does all of it in our thread, whenever that comes back from the kernel, be it from an interrupt: what has completed
 * becomes more at any moment, and nothing else changes while JavaScript runs.
 */
import type * as Ffi from "node:ffi"
import { endianness, release } from "node:os"
import { getSystemErrorName } from "node:util"
import { Beginnings } from "./Beginnings.ts"
import { nativeMemory, type NativeMemory } from "./NativeMemory.ts"

/** Linux's own numbers: `linux/io_uring.h`, and the same on all architectures. */
const SYS_SETUP = 425n
const SYS_ENTER = 426
const SYS_REGISTER = 427n
const SETUP_CQSIZE = 1 << 3
const SETUP_SUBMIT_ALL = 1 << 7
/** No interrupt of what we are at: it can wait for our next call. */
const SETUP_COOP_TASKRUN = 1 << 8
const SETUP_TASKRUN_FLAG = 1 << 9
/** One mapping for both queues; and no completion is lost where there are too many. */
const FEATURES = (1 << 0) | (1 << 1)
const ENTER_GETEVENTS = 1
const SQ_CQ_OVERFLOW = 1 << 1
const SQ_TASKRUN = 1 << 2
const CQE_BUFFER = 1
const REGISTER_BUFFERS = 22n
const OFF_SQES = 0x10000000n
const PROT_READ_WRITE = 3
const MAP_SHARED_POPULATE = 0x8001
const OP_NOP = 0
const OP_ACCEPT = 13
const OP_CANCEL = 14
const OP_CLOSE = 19
const OP_SEND = 26
const OP_RECV = 27
const SQE_BUFFER_SELECT = 1 << (8 + 5)
const SQE_SKIP_SUCCESS = 1 << (8 + 6)
const RECV_POLL_FIRST = 1 << 16
const CANCEL_ALL = 1
/** All of it, or word of how much; at once; and no signal. */
const MSG_WAITALL_DONTWAIT_NOSIGNAL = 0x100 | 0x40 | 0x4000
const EINTR = 4
const EAGAIN = 11
const EBUSY = 16

/** In words of 4 bytes. */
const SQE_WORDS = 16
const CQE_WORDS = 4
const BUFFER_WORDS = 4

const SUBMISSIONS = 512
const COMPLETIONS = 4096

/** Most of what is read is short. Each is read in another page of memory, and the fewer these are, the more are in the cache. */
export const SHORT_LENGTH = 16 * 1024
const SHORTS = 128
export const LONG_LENGTH = 256 * 1024
const LONGS = 8
const COPIES_AT = SHORTS * SHORT_LENGTH + LONGS * LONG_LENGTH
const COPIES_LENGTH = 1024 * 1024
const MEMORY_LENGTH = COPIES_AT + COPIES_LENGTH
const startOf = (buffer: number): number =>
  buffer < SHORTS ? buffer * SHORT_LENGTH : SHORTS * SHORT_LENGTH + (buffer - SHORTS) * LONG_LENGTH
const lengthOf = (buffer: number): number => (buffer < SHORTS ? SHORT_LENGTH : LONG_LENGTH)
/** Which kind of buffer a read takes. */
export const SHORT = 0
export const LONG = 1
export type Size = typeof SHORT | typeof LONG
/** One that is longer is none of ours to copy. */
const MAX_COPY_LENGTH = 64 * 1024
/** Two writes of one batch become one where that is cheaper than a call of its own. */
const MAX_JOINED_LENGTH = 8 * 1024

/** Of a call that the kernel has no memory for just now. */
const ATTEMPTS = 10_000

/** With more than three arguments Node (26.10) calls a function the slow way, at 0.6 µs; but a batch takes one call. */
const entering = {
  syscall: { arguments: ["int32", "int32", "int32", "int32", "int32", "int64"], return: "int32" }
} as const satisfies Ffi.FunctionDefinitions
const settingUp = {
  syscall: { arguments: ["int64", "int64", "int64", "int64", "int64"], return: "int64" },
  mmap: { arguments: ["int64", "int64", "int32", "int32", "int32", "int64"], return: "int64" },
  close: { arguments: ["int32"], return: "int32" },
  __errno_location: { arguments: [], return: "pointer" }
} as const satisfies Ffi.FunctionDefinitions

/** What a completion is of. */
export type Kind = typeof READ | typeof SENT | typeof ACCEPTED | typeof NOTHING
export const NOTHING = 0
export const READ = 1
/** Only of what was not sent as a whole. */
export const SENT = 2
/** Its result is a descriptor. */
export const ACCEPTED = 3

/** Told of a write that ended early: how much was sent. */
export type OnUnsent = (token: number, sent: number) => void

/** A ring of buffers that the kernel takes from when it has something to put there: `struct io_uring_buf_ring`. */
class Buffers {
  readonly #words: Uint32Array
  readonly #halves: Uint16Array
  readonly #mask: number
  #tail = 0
  #shown = 0

  constructor(memory: NativeMemory, count: number) {
    this.#words = memory.words
    this.#halves = new Uint16Array(memory.words.buffer, memory.words.byteOffset, count * 8)
    this.#mask = count - 1
  }

  give(buffer: number, address: number, length: number): void {
    const at = (this.#tail & this.#mask) * BUFFER_WORDS
    this.#words[at] = address >>> 0
    this.#words[at + 1] = address / 0x100000000
    this.#words[at + 2] = length
    this.#halves[at * 2 + 6] = buffer
    this.#tail = (this.#tail + 1) & 0xffff
  }

  /** The kernel may take those given. */
  show(): void {
    if (this.#shown === this.#tail) return
    this.#shown = this.#tail
    // In the first entry, where no field is.
    this.#halves[7] = this.#tail
  }
}

/** What the kernel and we share. Positions are in words of 4 bytes. */
interface Parts {
  readonly fd: number
  readonly enter: (call: number, fd: number, submit: number, wait: number, flags: number, signals: bigint) => number
  readonly readError: () => number
  readonly queues: Int32Array
  readonly submissions: { readonly tail: number; readonly flags: number }
  readonly completions: { readonly head: number; readonly tail: number; readonly entries: number }
  /** What is submitted. */
  readonly entries: Int32Array
  readonly memory: NativeMemory
  readonly short: Buffers
  readonly long: Buffers
}

/** Why not, where it cannot be. */
const setUp = (ffi: typeof Ffi): Parts | string => {
  if (endianness() !== "LE") return "big-endian"
  const [major = 0, minor = 0] = release()
    .split(".")
    .map((part) => Number.parseInt(part))
  // Before, a write that was taken in part could be told as one that was not taken: bytes were doubled.
  if (major < 6 || (major === 6 && minor < 1)) return `Linux ${major}.${minor} is older than 6.1`
  const { functions } = ffi.dlopen(null, settingUp)
  const { syscall, mmap, close } = functions
  const errorAddress = functions.__errno_location()
  const readError = (): number => ffi.getInt32(errorAddress)

  const { address: at, words } = nativeMemory(ffi, 120)
  words[1] = COMPLETIONS
  words[2] = SETUP_CQSIZE | SETUP_SUBMIT_ALL | SETUP_COOP_TASKRUN | SETUP_TASKRUN_FLAG
  // Forbidden: by a container's rules, or by kernel.io_uring_disabled.
  const fd = Number(syscall(SYS_SETUP, BigInt(SUBMISSIONS), at, 0n, 0n))
  if (fd === -1) return getSystemErrorName(-readError())
  const refuse = (why: string): string => {
    close(fd)
    return why
  }
  // struct io_uring_params: counts, features, and where in the first mapping is what.
  const submissions = { tail: words[11]! >> 2, flags: words[14]! >> 2, array: words[16]! >> 2 }
  const completions = { head: words[20]! >> 2, tail: words[21]! >> 2, entries: words[25]! >> 2 }
  if (words[0] !== SUBMISSIONS || words[1] !== COMPLETIONS) return refuse("other lengths of queues than were asked for")
  if ((words[5]! & FEATURES) !== FEATURES) return refuse("a kernel that is too old")
  const map = (length: number, offset: bigint): Int32Array | null => {
    const address = mmap(0n, BigInt(length * 4), PROT_READ_WRITE, MAP_SHARED_POPULATE, fd, offset)
    return address === -1n ? null : new Int32Array(ffi.toArrayBuffer(BigInt.asUintN(64, address), length * 4, false))
  }
  const lengths = [submissions.array + SUBMISSIONS, completions.entries + COMPLETIONS * CQE_WORDS]
  const queues = map(Math.max(...lengths), 0n)
  const entries = map(SUBMISSIONS * SQE_WORDS, OFF_SQES)
  if (queues === null || entries === null) return refuse(`no mapping: ${getSystemErrorName(-readError())}`)
  for (let entry = 0; entry < SUBMISSIONS; entry++) queues[submissions.array + entry] = entry

  const memory = nativeMemory(ffi, MEMORY_LENGTH)
  const buffersOf = (group: number, count: number): Buffers | null => {
    const ring = nativeMemory(ffi, count * BUFFER_WORDS * 4)
    // struct io_uring_buf_reg
    const registration = nativeMemory(ffi, 40)
    registration.words.set([Number(ring.address & 0xffff_ffffn), Number(ring.address >> 32n), count, group])
    const done = syscall(SYS_REGISTER, BigInt(fd), REGISTER_BUFFERS, registration.address, 1n)
    return done === -1n ? null : new Buffers(ring, count)
  }
  const short = buffersOf(SHORT, SHORTS)
  const long = buffersOf(LONG, LONGS)
  if (short === null || long === null) return refuse(`no rings of buffers: ${getSystemErrorName(-readError())}`)
  const enter = ffi.dlopen(null, entering).functions.syscall
  if (enter(SYS_ENTER, fd, 0, 0, 0, 0n) === -1) return refuse(`no entering: ${getSystemErrorName(-readError())}`)
  return { fd, enter, readError, queues, submissions, completions, entries, memory, short, long }
}

export class Ring {
  readonly fd: number
  /** What is read lies here; offsets are into it. */
  readonly memory: ArrayBufferLike
  /** What `next` has come to: what it is of, whose, bytes or a negative error number, and the buffer that was filled or -1. */
  kind: Kind = NOTHING
  token = 0
  result = 0
  buffer = -1
  /** Submissions that are written down, and the number of their batch. */
  queued = 0
  batch = 0

  readonly #parts: Parts
  readonly #queues: Int32Array
  readonly #entries: Int32Array
  readonly #bytes: Uint8Array
  /** The address of offset 0, and the offset where what is ours begins. */
  readonly #base: number
  readonly #from: number
  readonly #views: ReadonlyArray<Beginnings>
  readonly #onUnsent: OnUnsent
  #sqTail = 0
  #cqHead = 0
  /** Up to here completions were searched for what was not sent. */
  #searched = 0
  #copiesAt: number
  /** Buffers that nobody looks at any more, but from which something may have to be sent. */
  readonly #released: Array<number> = Array.from({ length: SHORTS + LONGS }, () => 0)
  #releasedCount = 0
  /** Completions that were taken out, of four words each, for others that there was no room for; and how many words are dealt with. */
  #spilled: Array<number> = []
  #spilledAt = 0

  constructor(parts: Parts, onUnsent: OnUnsent) {
    const { buffer } = parts.memory
    this.#parts = parts
    this.#queues = parts.queues
    this.#entries = parts.entries
    this.#onUnsent = onUnsent
    this.fd = parts.fd
    this.memory = buffer.buffer
    this.#from = buffer.byteOffset
    this.#base = Number(parts.memory.address) - this.#from
    this.#bytes = new Uint8Array(this.memory)
    this.#copiesAt = this.#from + COPIES_AT
    const numbers = Array.from({ length: SHORTS + LONGS }, (_, index) => index)
    this.#views = numbers.map((number) => {
      const start = startOf(number)
      return new Beginnings(buffer.subarray(start, start + lengthOf(number)))
    })
    for (const number of numbers) this.#give(number)
    this.#show()
  }

  /** Why not, where it cannot be. */
  static open(ffi: typeof Ffi, onUnsent: OnUnsent): Ring | string {
    const parts = setUp(ffi)
    return typeof parts === "string" ? parts : new Ring(parts, onUnsent)
  }

  /** The place of a new submission. It is all zeros but for what is written here, in each of them. */
  #entry(operation: number, fd: number, address: number, length: number, flags: number): number {
    if (this.queued === SUBMISSIONS) this.submit()
    const entries = this.#entries
    const at = (this.#sqTail & (SUBMISSIONS - 1)) * SQE_WORDS
    entries[at] = operation
    entries[at + 1] = fd
    entries[at + 4] = address
    entries[at + 5] = address / 0x1_0000_0000
    entries[at + 6] = length
    entries[at + 7] = flags
    entries[at + 10] = 0
    this.#sqTail = (this.#sqTail + 1) | 0
    this.queued++
    return at
  }

  #name(at: number, token: number, kind: Kind): void {
    this.#entries[at + 8] = token
    this.#entries[at + 9] = kind
  }

  /** One read, into a buffer of the kernel's choice. `now`: there is something to read already, as far as one knows. */
  read(token: number, fd: number, size: Size, length: number, now: boolean): void {
    const operation = OP_RECV | SQE_BUFFER_SELECT | (now ? 0 : RECV_POLL_FIRST)
    const at = this.#entry(operation, fd, 0, length, 0)
    this.#entries[at + 10] = size
    this.#name(at, token, READ)
  }

  /** The read of this token ends, if it has not: with ECANCELED, or with what it has read. */
  cancelRead(token: number): void {
    const at = this.#entry(OP_CANCEL, 0, token, 0, 0)
    // The address is the name of what is meant.
    this.#entries[at + 5] = READ
    this.#name(at, token, NOTHING)
  }

  /** One connection to a listening socket. */
  accept(token: number, fd: number, flags: number): void {
    this.#name(this.#entry(OP_ACCEPT, fd, 0, 0, flags), token, ACCEPTED)
  }

  /** All of this token's that have accepted nothing end with ECANCELED. */
  cancelAccepts(token: number): void {
    const at = this.#entry(OP_CANCEL, 0, token, 0, CANCEL_ALL)
    this.#entries[at + 5] = ACCEPTED
    this.#name(at, token, NOTHING)
  }

  /** Behind all that was written down before. */
  close(fd: number): void {
    this.#name(this.#entry(OP_CLOSE | SQE_SKIP_SUCCESS, fd, 0, 0, 0), 0, NOTHING)
  }

  /** Something completes, which is nothing. */
  nudge(): void {
    this.#name(this.#entry(OP_NOP, 0, 0, 0, 0), 0, NOTHING)
  }

  /** Bytes of `memory`, from an offset on. Returns the place, for `append`. */
  send(token: number, fd: number, offset: number, length: number): number {
    const operation = OP_SEND | SQE_SKIP_SUCCESS
    const at = this.#entry(operation, fd, this.#base + offset, length, MSG_WAITALL_DONTWAIT_NOSIGNAL)
    this.#name(at, token, SENT)
    return at
  }

  /** An offset where the bytes lie until the batch is submitted, which may happen before; -1: too many to copy. */
  copy(bytes: Uint8Array): number {
    const { length } = bytes
    if (length > MAX_COPY_LENGTH) return -1
    const isFull = this.#copiesAt + length > this.#from + COPIES_AT + COPIES_LENGTH
    // Nor may the `send` of it be what submits the batch: it would be the next one's, for which it does not lie there.
    if (isFull || this.queued === SUBMISSIONS) this.submit()
    const at = this.#copiesAt
    this.#bytes.set(bytes, at)
    this.#copiesAt = at + length
    return at
  }

  /** More bytes behind those of a `send` of this batch, which lie at `offset` now; -1: they cannot be put there. */
  append(place: number, offset: number, length: number, bytes: Uint8Array): number {
    const total = length + bytes.length
    if (total > MAX_JOINED_LENGTH) return -1
    const isLast = offset + length === this.#copiesAt
    const start = isLast ? offset : this.#copiesAt
    if (start + total > this.#from + COPIES_AT + COPIES_LENGTH) return -1
    if (!isLast) this.#bytes.copyWithin(start, offset, offset + length)
    this.#bytes.set(bytes, start + length)
    this.#copiesAt = start + total
    const address = this.#base + start
    this.#entries[place + 4] = address
    this.#entries[place + 5] = address / 0x1_0000_0000
    this.#entries[place + 6] = total
    return start
  }

  /** The kernel has something for us that it tells in a call alone. */
  get pending(): boolean {
    return (this.#flags & (SQ_TASKRUN | SQ_CQ_OVERFLOW)) !== 0
  }

  get #flags(): number {
    return Atomics.load(this.#queues, this.#parts.submissions.flags)
  }

  /** All that is written down is done, or begun where it is a read; what was not sent has been told. */
  submit(): void {
    const { enter, submissions } = this.#parts
    this.#queues[submissions.tail] = this.#sqTail
    let left = this.queued
    for (let attempt = 1; ; attempt++) {
      const taken = enter(SYS_ENTER, this.fd, left, 0, 0, 0n)
      if (taken > 0) left -= taken
      if (left === 0 && taken !== -1) break
      if (taken <= 0) this.#mayTryAgain(attempt)
    }
    this.queued = 0
    this.batch++
    this.#tellUnsent()
    // What found no room may be of a write, and no other write may go before that is told.
    while ((this.#flags & SQ_CQ_OVERFLOW) !== 0) {
      this.#spill()
      enter(SYS_ENTER, this.fd, 0, 0, ENTER_GETEVENTS, 0n)
      this.#tellUnsent()
    }
    this.#copiesAt = this.#from + COPIES_AT
    if (this.#releasedCount === 0) return
    for (let index = 0; index < this.#releasedCount; index++) this.#give(this.#released[index]!)
    this.#releasedCount = 0
    this.#show()
  }

  #mayTryAgain(attempt: number): void {
    const error = this.#parts.readError()
    const passes = error === EINTR || error === EAGAIN || error === EBUSY
    if (passes && attempt < ATTEMPTS) return
    throw new Error(`io_uring_enter: ${getSystemErrorName(-error)}; UV_USE_IO_URING=0 does without it`)
  }

  /** Before anything else is written behind it. */
  #tellUnsent(): void {
    const { tail, entries } = this.#parts.completions
    const end = this.#queues[tail]!
    for (; this.#searched !== end; this.#searched = (this.#searched + 1) | 0) {
      const at = entries + (this.#searched & (COMPLETIONS - 1)) * CQE_WORDS
      if (this.#queues[at + 1] === SENT) this.#onUnsent(this.#queues[at]!, Math.max(0, this.#queues[at + 2]!))
    }
  }

  /** Makes room for those that found none. */
  #spill(): void {
    const { head, entries } = this.#parts.completions
    const queues = this.#queues
    for (; this.#cqHead !== this.#searched; this.#cqHead = (this.#cqHead + 1) | 0) {
      const at = entries + (this.#cqHead & (COMPLETIONS - 1)) * CQE_WORDS
      this.#spilled.push(queues[at]!, queues[at + 1]!, queues[at + 2]!, queues[at + 3]!)
    }
    queues[head] = this.#cqHead
  }

  /** How many completions there are. */
  get count(): number {
    const inQueue = (this.#queues[this.#parts.completions.tail]! - this.#cqHead) | 0
    return inQueue + (this.#spilled.length - this.#spilledAt) / CQE_WORDS
  }

  /** Goes on to the next completion; there must be one. */
  next(): void {
    if (this.#spilledAt < this.#spilled.length) return this.#nextSpilled()
    const { head, entries } = this.#parts.completions
    const queues = this.#queues
    const at = entries + (this.#cqHead & (COMPLETIONS - 1)) * CQE_WORDS
    this.token = queues[at]!
    this.kind = queues[at + 1]! as Kind
    this.#take(queues[at + 2]!, queues[at + 3]!)
    this.#cqHead = (this.#cqHead + 1) | 0
    queues[head] = this.#cqHead
  }

  #nextSpilled(): void {
    const spilled = this.#spilled
    const at = this.#spilledAt
    this.token = spilled[at]!
    this.kind = spilled[at + 1]! as Kind
    this.#take(spilled[at + 2]!, spilled[at + 3]!)
    this.#spilledAt = at + CQE_WORDS
    if (this.#spilledAt < spilled.length) return
    this.#spilled = []
    this.#spilledAt = 0
  }

  #take(result: number, flags: number): void {
    this.result = result
    this.buffer = (flags & CQE_BUFFER) === 0 ? -1 : flags >>> 16
  }

  /** Goes on to a read's completion before its turn, after which there will be nothing. Whether there was one. */
  nextOf(token: number): boolean {
    const spilled = this.#spilled
    for (let at = this.#spilledAt; at < spilled.length; at += CQE_WORDS) {
      if (spilled[at] !== token || spilled[at + 1] !== READ) continue
      spilled[at + 1] = NOTHING
      this.#take(spilled[at + 2]!, spilled[at + 3]!)
      return true
    }
    const { entries, tail } = this.#parts.completions
    const queues = this.#queues
    const count = (queues[tail]! - this.#cqHead) | 0
    for (let index = 0; index < count; index++) {
      const at = entries + ((this.#cqHead + index) & (COMPLETIONS - 1)) * CQE_WORDS
      if (queues[at] !== token || queues[at + 1] !== READ) continue
      queues[at + 1] = NOTHING
      this.#take(queues[at + 2]!, queues[at + 3]!)
      return true
    }
    return false
  }

  /** What a buffer was filled with. */
  chunkOf(buffer: number, length: number): Buffer {
    return this.#views[buffer]!.of(length)
  }

  /** Nobody looks at it any more. What is to be sent from there is written down. */
  release(buffer: number): void {
    this.#released[this.#releasedCount++] = buffer
  }

  #give(buffer: number): void {
    const address = this.#base + this.#from + startOf(buffer)
    const { short, long } = this.#parts
    if (buffer < SHORTS) short.give(buffer, address, SHORT_LENGTH)
    else long.give(buffer, address, LONG_LENGTH)
  }

  #show(): void {
    this.#parts.short.show()
    this.#parts.long.show()
  }
}
