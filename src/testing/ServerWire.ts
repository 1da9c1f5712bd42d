/**
 * The server's side of one connection: frames in, and output that is held back until it is to be sent.
 *
 * Waits for a slow client as a backend process does: nothing more happens on its connection until there is room. Whoever
 * waits is woken when the client goes.
 */
import * as Effect from "effect/Effect"
import { ByteReader, type ReadFailure } from "../net/ByteReader.ts"
import type { Transport } from "../net/Transport.ts"
import type { Frame } from "../protocol/Frame.ts"

const FRAME_LIMIT = 0x3fffffff
const PACKET_LIMIT = 10_000
/** PostgreSQL's PQ_SEND_BUFFER_SIZE: more than this goes out without being asked for. */
const SEND_BUFFER_LENGTH = 8192

export class ServerWire {
  readonly #transport: Transport
  readonly #reader: ByteReader
  #output: Array<Uint8Array> = []
  #outputLength = 0
  #onRoom: (() => void) | null = null

  constructor(transport: Transport) {
    this.#transport = transport
    const reader = new ByteReader(transport)
    this.#reader = reader
    transport.handler = {
      onData: (chunk) => reader.onData(chunk),
      onDrain: () => this.#onRoom?.(),
      onClose: (reason) => {
        reader.onClose(reason)
        this.#onRoom?.()
      }
    }
  }

  get frame(): Effect.Effect<Frame, ReadFailure> {
    return this.#reader.frame(FRAME_LIMIT)
  }

  /** One packet without a type: what opens a connection. */
  get packet(): Effect.Effect<Buffer, ReadFailure> {
    return this.#reader.packet(PACKET_LIMIT)
  }

  put(...messages: ReadonlyArray<Uint8Array>): void {
    for (const message of messages) {
      this.#output.push(message)
      this.#outputLength += message.length
    }
  }

  /** Sends what was put, and waits until there is room for more. */
  get flush(): Effect.Effect<void> {
    return Effect.callback<void>((resume) => {
      const bytes = this.#takeOutput()
      if (bytes.length === 0 || this.#transport.write(bytes)) return resume(Effect.void)
      this.#onRoom = () => {
        this.#onRoom = null
        resume(Effect.void)
      }
    })
  }

  /** Sends what was put if it is much. */
  get relieve(): Effect.Effect<void> {
    return this.#outputLength > SEND_BUFFER_LENGTH ? this.flush : Effect.void
  }

  /** Between requests, without waiting. */
  sendNow(message: Uint8Array): void {
    this.#transport.write(message)
  }

  /** Says what was put, and this, and closes. */
  end(...lastWords: ReadonlyArray<Uint8Array>): void {
    this.put(...lastWords)
    this.#transport.end(this.#takeOutput())
  }

  destroy(): void {
    this.#transport.destroy()
  }

  #takeOutput(): Buffer {
    const bytes = Buffer.concat(this.#output)
    this.#output = []
    this.#outputLength = 0
    return bytes
  }
}
