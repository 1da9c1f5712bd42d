/**
 * Reads a transport in pieces of a known length, as Effects: for logins, where clarity counts and bytes are few. The relay
 * has its own way.
 *
 * Holds what has come and was not asked for yet, and stops the peer when that is over HIGH_WATER: a client that sends while
 * its password is being proved must not fill the memory. One reader at a time.
 */
import * as Effect from "effect/Effect"
import { HEADER_LENGTH, lengthAt, type Frame } from "../protocol/Frame.ts"
import type { Handshake } from "./Tls.ts"
import type { Transport, TransportHandler } from "./Transport.ts"

const HIGH_WATER = 32 * 1024
/** What the bytes that were not read come to; null: not enough have come. */
type Look<A> = (pending: Buffer) => Effect.Effect<A, ReadFailure> | null

const foundIn = <A>(value: A | null): Effect.Effect<A> | null => (value === null ? null : Effect.succeed(value))

const badLength: Effect.Effect<never, ReadFailure> = Effect.fail({ _tag: "BadLength" })

/** One for all: an empty buffer of its own is 200 bytes, and a reader lives as long as its session. */
const nothing = Buffer.alloc(0)

/** Why there is no TLS: the handshake failed (a code or a few words), or bytes lay there that came before it in clear. */
export type SecureFailure =
  | { readonly _tag: "HandshakeFailed"; readonly reason: string }
  | { readonly _tag: "UnreadBytes" }

/** The peer has gone (`reason` null: in good order), or sent what cannot be a message. */
export type ReadFailure = { readonly _tag: "PeerGone"; readonly reason: string | null } | { readonly _tag: "BadLength" }

export class ByteReader implements TransportHandler {
  readonly #transport: Transport
  #pending: Buffer = nothing
  #gone: ReadFailure | null = null
  #wake: (() => void) | null = null
  #paused = false
  #watcher: ((failure: ReadFailure) => void) | null = null

  constructor(transport: Transport) {
    this.#transport = transport
    transport.handler = this
  }

  onData(chunk: Buffer): void {
    this.#pending = this.#pending.length === 0 ? Buffer.from(chunk) : Buffer.concat([this.#pending, chunk])
    if (this.#wake !== null) this.#wake()
    else if (this.#pending.length > HIGH_WATER && !this.#paused) {
      this.#paused = true
      this.#transport.pause()
    }
  }

  onDrain(): void {}

  onClose(reason: string | null): void {
    this.#gone = { _tag: "PeerGone", reason }
    this.#wake?.()
    this.#watcher?.(this.#gone)
  }

  /** Is told when the peer has gone, or that it has, though nobody reads; null: nobody is told. */
  watch(watcher: ((failure: ReadFailure) => void) | null): void {
    this.#watcher = watcher
    if (this.#gone !== null) watcher?.(this.#gone)
  }

  /** Bytes that have come and were not read. */
  get pendingLength(): number {
    return this.#pending.length
  }

  /** Hands over what is left, and the transport with it: this reader is done. */
  takeRest(): Buffer {
    const rest = this.#pending
    this.#pending = nothing
    if (this.#paused) this.#transport.resume()
    this.#paused = false
    return rest
  }

  /** The first byte that was not read, which it stays. */
  get firstByte(): Effect.Effect<number, ReadFailure> {
    return this.#piece((pending) => (pending.length === 0 ? null : Effect.succeed(pending[0]!)))
  }

  /**
   * Goes on under TLS, after `lastWords` in clear. What has come and was not read is the handshake's where the peer begins it
   * unasked; else it came before TLS was agreed on, and to read it later would be to take it for the peer's own word
   * (CVE-2021-3935). Looked at in the very turn in which TLS takes over. A failed handshake closes the stream, and so does an
   * interruption.
   */
  secure(
    handshake: Handshake,
    unread: "is the handshake's" | "must not be",
    lastWords?: Buffer
  ): Effect.Effect<void, SecureFailure> {
    return Effect.callback<void, SecureFailure>((resume) => {
      const received = this.takeRest()
      if (received.length > 0 && unread === "must not be") return resume(Effect.fail({ _tag: "UnreadBytes" }))
      if (lastWords !== undefined) this.#transport.write(lastWords)
      this.#transport.startTls(handshake, received, (reason) =>
        resume(reason === null ? Effect.void : Effect.fail({ _tag: "HandshakeFailed", reason }))
      )
      return Effect.sync(() => this.#transport.destroy())
    })
  }

  /** Exactly `length` bytes, as a copy of their own. */
  read(length: number): Effect.Effect<Buffer, ReadFailure> {
    return this.#piece(() => foundIn(this.#take(length)))
  }

  /** One frame whose length word is at most `limit`. The length is checked before anything is kept for it. */
  frame(limit: number): Effect.Effect<Frame, ReadFailure> {
    return this.#piece((pending) => {
      if (pending.length < HEADER_LENGTH) return null
      const length = lengthAt(pending, 1)
      if (length < 4 || length > limit) return badLength
      const bytes = this.#take(1 + length)
      return foundIn(bytes === null ? null : { type: bytes[0]!, body: bytes.subarray(HEADER_LENGTH) })
    })
  }

  /** One packet without a type byte, its length word included. */
  packet(limit: number): Effect.Effect<Buffer, ReadFailure> {
    return this.#piece((pending) => {
      if (pending.length < 4) return null
      const length = lengthAt(pending, 0)
      if (length < 8 || length > limit) return badLength
      return foundIn(this.#take(length))
    })
  }

  /** Null where there are fewer. */
  #take(length: number): Buffer | null {
    if (this.#pending.length < length) return null
    const bytes = this.#pending.subarray(0, length)
    this.#pending = this.#pending.subarray(length)
    return bytes
  }

  /** What `look` finds: at once, or when enough has come. */
  #piece<A>(look: Look<A>): Effect.Effect<A, ReadFailure> {
    return Effect.suspend(() => look(this.#pending) ?? this.#wait(look))
  }

  #wait<A>(look: Look<A>): Effect.Effect<A, ReadFailure> {
    return Effect.callback<A, ReadFailure>((resume) => {
      const wake = () => {
        const found = look(this.#pending) ?? (this.#gone === null ? null : Effect.fail(this.#gone))
        if (found !== null) {
          this.#wake = null
          return resume(found)
        }
        this.#wake = wake
        if (!this.#paused) return
        this.#paused = false
        this.#transport.resume()
      }
      wake()
      return Effect.sync(() => {
        this.#wake = null
      })
    })
  }
}
