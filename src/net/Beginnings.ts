/**
 * Views of the beginning of one buffer that is used again and again, each made once: most of what comes and goes is short, and of
 * a few lengths, and to make a view takes 60 to 100 ns. Who is given one has it only until the buffer is written again.
 */

/** Of shorter ones the view is kept, which takes 100 bytes. */
const KEPT_LENGTH = 1024

export class Beginnings {
  readonly #buffer: Buffer
  readonly #views: Array<Buffer | undefined> = Array.from({ length: KEPT_LENGTH })

  constructor(buffer: Buffer) {
    this.#buffer = buffer
  }

  of(length: number): Buffer {
    if (length >= KEPT_LENGTH) return this.#buffer.subarray(0, length)
    return (this.#views[length] ??= this.#buffer.subarray(0, length))
  }
}
