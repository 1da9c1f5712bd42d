/**
 * One end of a connection in memory whose other end is the test itself: it says what has come, and reads what was written.
 *
 * Delivers at once and never by itself. Strict as a socket with a shared read buffer: what it delivers is overwritten when
 * `onData` returns, and it delivers nothing while it is paused.
 */
import { ignoreAll, type TlsState, type Transport, type TransportHandler } from "../../src/net/Transport.ts"

const OVERWRITTEN = 0xaa

export class RecordedTransport implements Transport {
  readonly remote = "test:1"
  readonly local: boolean
  /** As the test says that TLS is. */
  tls: TlsState | null = null
  handler: TransportHandler = ignoreAll
  closed = false
  readonly flushed = true
  destroyed = false
  paused = false
  /** How often it was paused. */
  pauses = 0
  readonly #written: Array<Buffer> = []
  readonly #undelivered: Array<Buffer> = []
  /** Called for each write, after it was recorded. */
  onWrite: (bytes: Buffer) => void = () => {}

  constructor(local = true) {
    this.local = local
  }

  get written(): Buffer {
    return Buffer.concat(this.#written)
  }

  /** As if the peer had sent these bytes, in this many calls. */
  say(...chunks: ReadonlyArray<Uint8Array>): void {
    this.#undelivered.push(...chunks.map((chunk) => Buffer.from(chunk)))
    this.#deliver()
  }

  /** As if the peer had gone. */
  leave(reason: string | null = null): void {
    this.closed = true
    this.handler.onClose(reason)
  }

  /** How the next handshake ends: with what it tells, or with why it failed. */
  handshake: TlsState | string = "no handshake was expected"
  /** What was handed to it as having come already; null: there was none. */
  received: Buffer | null = null

  startTls(_: unknown, received: Buffer, done: (failure: string | null) => void): void {
    this.received = received
    if (typeof this.handshake === "string") {
      this.destroy()
      return done(this.handshake)
    }
    this.tls = this.handshake
    done(null)
  }

  writeLent(bytes: Buffer): boolean {
    return this.write(Buffer.from(bytes))
  }

  write(bytes: Uint8Array): boolean {
    const copy = Buffer.from(bytes)
    this.#written.push(copy)
    this.onWrite(copy)
    return true
  }

  pause(): void {
    this.paused = true
    this.pauses++
  }

  resume(): void {
    this.paused = false
    this.#deliver()
  }

  end(bytes?: Uint8Array): void {
    if (bytes !== undefined) this.write(bytes)
    this.closed = true
  }

  destroy(): void {
    this.closed = true
    this.destroyed = true
  }

  #deliver(): void {
    while (!this.paused && !this.closed && this.#undelivered.length > 0) {
      const chunk = this.#undelivered.shift()!
      this.handler.onData(chunk)
      chunk.fill(OVERWRITTEN)
    }
  }
}
