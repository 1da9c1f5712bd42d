/**
 * Frame borders: one protocol message is a type byte, a length that counts itself and the body, and the body.
 *
 * Pure functions over bytes that the caller owns; nothing here keeps, copies or decodes a body. The letters are those of
 * chapter "Message Formats": the same letter means different messages in the two directions, hence two tables.
 *
 * @see https://www.postgresql.org/docs/current/protocol-message-formats.html
 */

/** Type byte and length word. */
export const HEADER_LENGTH = 5

/** What a client sends. */
export const Frontend = {
  bind: 0x42, // B
  close: 0x43, // C
  describe: 0x44, // D
  execute: 0x45, // E
  functionCall: 0x46, // F
  flush: 0x48, // H
  parse: 0x50, // P
  query: 0x51, // Q
  sync: 0x53, // S
  terminate: 0x58, // X
  copyDone: 0x63, // c
  copyData: 0x64, // d
  copyFail: 0x66, // f
  password: 0x70 // p, also SASL
} as const

/** What a server sends. */
export const Backend = {
  parseComplete: 0x31, // 1
  bindComplete: 0x32, // 2
  closeComplete: 0x33, // 3
  notificationResponse: 0x41, // A
  commandComplete: 0x43, // C
  dataRow: 0x44, // D
  errorResponse: 0x45, // E
  copyInResponse: 0x47, // G
  copyOutResponse: 0x48, // H
  emptyQueryResponse: 0x49, // I
  backendKeyData: 0x4b, // K
  noticeResponse: 0x4e, // N
  authentication: 0x52, // R
  parameterStatus: 0x53, // S
  rowDescription: 0x54, // T
  functionCallResponse: 0x56, // V
  copyBothResponse: 0x57, // W
  readyForQuery: 0x5a, // Z
  copyDone: 0x63, // c
  copyData: 0x64, // d
  noData: 0x6e, // n
  portalSuspended: 0x73, // s
  parameterDescription: 0x74, // t
  negotiateProtocolVersion: 0x76 // v
} as const

/** Transaction status in ReadyForQuery. */
export const TransactionStatus = {
  idle: 0x49, // I
  inTransaction: 0x54, // T
  failed: 0x45 // E
} as const

/** PostgreSQL's MaxAllocSize less one: the longest Query, Parse, Bind, FunctionCall or CopyData that it takes. */
const LARGE_MESSAGE_LIMIT = 0x3fffffff - 1
/**
 * PostgreSQL takes 10 000 bytes (PQ_SMALL_MESSAGE_LIMIT) for the messages without a payload. Those that hold a
 * statement's name get 64 KiB, for the name is replaced on the way.
 */
const SMALL_MESSAGE_LIMIT = 10_000
const NAMED_MESSAGE_LIMIT = 0x10000

/**
 * The longest length word that a client's message of each type may have; 0 for what a client may not send once it is
 * logged in. One look-up refuses an illegal type and an oversized length alike.
 */
export const frontendLimits: Readonly<Uint32Array> = (() => {
  const limits = new Uint32Array(256)
  for (const type of [Frontend.query, Frontend.parse, Frontend.bind, Frontend.functionCall, Frontend.copyData]) {
    limits[type] = LARGE_MESSAGE_LIMIT
  }
  for (const type of [Frontend.flush, Frontend.sync, Frontend.terminate, Frontend.copyDone, Frontend.copyFail]) {
    limits[type] = SMALL_MESSAGE_LIMIT
  }
  for (const type of [Frontend.describe, Frontend.close, Frontend.execute]) limits[type] = NAMED_MESSAGE_LIMIT
  return limits
})()

/** The big-endian length word at `at`. Unsigned: what a peer means as -1 must not pass as small. */
export const lengthAt = (bytes: Uint8Array, at: number): number =>
  bytes[at]! * 0x1000000 + ((bytes[at + 1]! << 16) | (bytes[at + 2]! << 8) | bytes[at + 3]!)

/** Index of the first NUL at or after `from`, before `end`; -1 if there is none. */
export const indexOfNul = (bytes: Uint8Array, from: number, end: number): number => {
  // Most strings are names, and short: 10 ns each in place of the 70 that a call out of compiled code takes.
  const near = Math.min(end, from + SHORT_NAME_LENGTH)
  for (let at = from; at < near; at++) if (bytes[at] === 0) return at
  if (near >= end) return -1
  const at = bytes.indexOf(0, near)
  return at === -1 || at >= end ? -1 : at
}

const SHORT_NAME_LENGTH = 32

/** A whole frame as a decoder sees it. `body` is a view that is valid as long as the bytes that were pushed. */
export interface Frame {
  readonly type: number
  readonly body: Buffer
}

/**
 * Collects bytes into whole frames, for the conversations that Perseus itself holds (logins, tenant switches), where
 * frames are few and small. The relay does not use it. Keeps a copy of an unfinished frame, at most `limit` bytes of it.
 */
export class FrameCollector {
  #pending: Buffer | null = null
  readonly #limit: number

  constructor(limit: number) {
    this.#limit = limit
  }

  /** The beginning of a frame whose rest has not come, for another to go on with; null where there is none. */
  takePending(): Buffer | null {
    const pending = this.#pending
    this.#pending = null
    return pending
  }

  /** The frames that are whole now. Null where a length word is impossible: the stream is lost then. */
  push(chunk: Buffer): ReadonlyArray<Frame> | null {
    const bytes = this.#pending === null ? Buffer.from(chunk) : Buffer.concat([this.#pending, chunk])
    const frames: Array<Frame> = []
    let at = 0
    while (bytes.length - at >= HEADER_LENGTH) {
      const length = lengthAt(bytes, at + 1)
      if (length < 4 || length > this.#limit) return null
      const end = at + 1 + length
      if (end > bytes.length) break
      frames.push({ type: bytes[at]!, body: bytes.subarray(at + HEADER_LENGTH, end) })
      at = end
    }
    this.#pending = at === bytes.length ? null : bytes.subarray(at)
    return frames
  }
}
