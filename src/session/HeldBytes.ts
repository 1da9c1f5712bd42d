/**
 * Bytes that cannot be dealt with yet, in the order in which they came.
 *
 * Keeps copies, and puts them together only when somebody looks: a message of 16 MB that comes in chunks of 64 kB would
 * otherwise be copied 128 times over.
 */
export class HeldBytes {
  #parts: Array<Buffer> = []
  #length = 0

  get length(): number {
    return this.#length
  }

  /** Copies the chunk. */
  append(chunk: Uint8Array): void {
    this.#parts.push(Buffer.from(chunk))
    this.#length += chunk.length
  }

  /** All of it in one piece, still held. */
  peek(): Buffer {
    if (this.#parts.length !== 1) this.#parts = [Buffer.concat(this.#parts, this.#length)]
    return this.#parts[0]!
  }

  /** The first bytes have been dealt with. */
  drop(count: number): void {
    const whole = this.peek()
    this.#length -= count
    this.#parts = this.#length === 0 ? [] : [whole.subarray(count)]
  }

  clear(): void {
    this.#parts = []
    this.#length = 0
  }
}
