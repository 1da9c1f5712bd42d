/**
 * Reads a transport in pieces of a known length, as Effects: for logins, where clarity counts and bytes are few. The relay
 * has its own way.
 *
 * Holds what has come and was not asked for yet, and stops the peer when that is over HIGH_WATER: a client that sends while
 * its password is being proved must not fill the memory. One reader at a time.
 */
import * as Effect from "effect/Effect"
import { HEADER_LENGTH, lengthAt, type Frame } from "../protocol/Frame.ts"
import type { Transport, TransportHandler } from "./Transport.ts"

const HIGH_WATER = 32 * 1024

/** The peer has gone (`reason` null: in good order), or sent what cannot be a message. */
export type ReadFailure = { readonly _tag: "PeerGone"; readonly reason: string | null } | { readonly _tag: "BadLength" }

export class ByteReader implements TransportHandler {
  readonly #transport: Transport
  #pending: Buffer = Buffer.alloc(0)
  #gone: ReadFailure | null = null
  #wake: (() => void) | null = null
  #paused = false
  #onGone: (() => void) | null = null

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
    this.#onGone?.()
  }

  /** Never succeeds; fails when the peer has gone, though nobody reads. */
  get gone(): Effect.Effect<never, ReadFailure> {
    return Effect.callback<never, ReadFailure>((resume) => {
      this.#onGone = () => resume(Effect.fail(this.#gone!))
      if (this.#gone !== null) this.#onGone()
      return Effect.sync(() => {
        this.#onGone = null
      })
    })
  }

  /** Bytes that have come and were not read. */
  get pendingLength(): number {
    return this.#pending.length
  }

  /** Hands over what is left, and the transport with it: this reader is done. */
  takeRest(): Buffer {
    const rest = this.#pending
    this.#pending = Buffer.alloc(0)
    if (this.#paused) this.#transport.resume()
    return rest
  }

  /** Exactly `length` bytes, as a copy of their own. */
  read(length: number): Effect.Effect<Buffer, ReadFailure> {
    return Effect.callback<Buffer, ReadFailure>((resume) => {
      const look = () => {
        if (this.#pending.length >= length) {
          const bytes = this.#pending.subarray(0, length)
          this.#pending = this.#pending.subarray(length)
          this.#wake = null
          resume(Effect.succeed(bytes))
        } else if (this.#gone !== null) {
          this.#wake = null
          resume(Effect.fail(this.#gone))
        } else {
          this.#wake = look
          if (this.#paused) {
            this.#paused = false
            this.#transport.resume()
          }
        }
      }
      look()
      return Effect.sync(() => {
        this.#wake = null
      })
    })
  }

  /** One frame whose length word is at most `limit`. The length is checked before anything is kept for it. */
  frame(limit: number): Effect.Effect<Frame, ReadFailure> {
    return Effect.flatMap(this.read(HEADER_LENGTH), (header) => {
      const length = lengthAt(header, 1)
      return length < 4 || length > limit
        ? Effect.fail<ReadFailure>({ _tag: "BadLength" })
        : Effect.map(this.read(length - 4), (body): Frame => ({ type: header[0]!, body }))
    })
  }

  /** One packet without a type byte, its length word included. */
  packet(limit: number): Effect.Effect<Buffer, ReadFailure> {
    return Effect.flatMap(this.read(4), (header) => {
      const length = lengthAt(header, 0)
      return length < 8 || length > limit
        ? Effect.fail<ReadFailure>({ _tag: "BadLength" })
        : Effect.map(this.read(length - 4), (rest) => Buffer.concat([header, rest]))
    })
  }
}
