/**
 * What goes to the server in place of a client's chunk that does not go as it came: put together piece by piece in one buffer,
 * which all sessions use in turn. A Bind of a prepared statement costs no object then (0.4 µs less than a list of its parts, put
 * together at the end).
 *
 * Looks at no byte and sends none. What `finish` answers lies where the next chunk's will, so it is lent; what is longer than the
 * shared buffer lies in one of its own for this once.
 */
import { Beginnings } from "../net/Beginnings.ts"
import { HEADER_LENGTH } from "../protocol/Frame.ts"

/** As much as a client sends in one read, and longer names. */
const SHARED_LENGTH = 128 * 1024

export class Outgoing {
  readonly #shared: Buffer = Buffer.allocUnsafeSlow(SHARED_LENGTH)
  readonly #beginnings = new Beginnings(this.#shared)
  #buffer = this.#shared
  #length = 0
  /** Of the chunk: what is before it has been dealt with. */
  #from = 0
  #added = 0
  #changed = false

  begin(): void {
    this.#buffer = this.#shared
    this.#length = this.#from = this.#added = 0
    this.#changed = false
  }

  /** False: the chunk may go as it came. */
  get changed(): boolean {
    return this.#changed
  }

  /** Bytes that stand in place of the client's. */
  get added(): number {
    return this.#added
  }

  /** Up to `at` the chunk goes as it came; in place of its next `length` bytes goes what is added from now on. */
  replace(chunk: Buffer, at: number, length: number): void {
    this.#changed = true
    this.#copy(chunk, this.#from, at)
    this.#from = at + length
  }

  add(bytes: Buffer, from = 0, to = bytes.length): void {
    this.#copy(bytes, from, to)
    this.#added += to - from
  }

  /** The beginning of a message: its type and its length word. */
  addHeader(type: number, length: number): void {
    const at = this.#reserve(HEADER_LENGTH)
    const buffer = this.#buffer
    buffer[at] = type
    buffer[at + 1] = length >>> 24
    buffer[at + 2] = length >>> 16
    buffer[at + 3] = length >>> 8
    buffer[at + 4] = length
    this.#added += HEADER_LENGTH
  }

  /** Latin-1, and a NUL. */
  addName(name: string): void {
    const { length } = name
    const at = this.#reserve(length + 1)
    this.#buffer.write(name, at, length, "latin1")
    this.#buffer[at + length] = 0
    this.#added += length + 1
  }

  /** All of it; the chunk goes up to `to`. */
  finish(chunk: Buffer, to: number): { readonly bytes: Buffer; readonly lent: boolean } {
    this.#copy(chunk, this.#from, to)
    const buffer = this.#buffer
    this.#buffer = this.#shared
    return buffer === this.#shared
      ? { bytes: this.#beginnings.of(this.#length), lent: true }
      : { bytes: buffer.subarray(0, this.#length), lent: false }
  }

  #copy(bytes: Buffer, from: number, to: number): void {
    if (from >= to) return
    const at = this.#reserve(to - from)
    bytes.copy(this.#buffer, at, from, to)
  }

  /** Where there is room for so many more bytes; the buffer may be another then. */
  #reserve(length: number): number {
    const at = this.#length
    this.#length += length
    if (this.#length > this.#buffer.length) {
      const larger = Buffer.allocUnsafeSlow(Math.max(this.#length, 2 * this.#buffer.length))
      larger.set(this.#buffer.subarray(0, at))
      this.#buffer = larger
    }
    return at
  }
}
