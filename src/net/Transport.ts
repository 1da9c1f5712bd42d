/**
 * One byte stream in both directions, as the sessions and the pool see it: a socket in production, memory in tests.
 *
 * Callbacks, not Effect: this is where bytes move (an Effect stream costs 5 to 8 µs more per round trip). Whoever owns a
 * transport sets `handler`; the owner changes with the phase of the connection (login, relay), never two at a time.
 *
 * **Who owns the bytes**: a chunk handed to `onData` is valid only during the call (sockets read into shared
 * buffers): copy what you keep. Bytes handed to `write` belong to the transport from then on, those handed to `writeLent` do not.
 */
import type { Handshake } from "./Tls.ts"

export interface TransportHandler {
  onData(chunk: Buffer): void
  /** After `write` answered false: room again. */
  onDrain(): void
  /** The peer has gone or the stream broke; called once, and nothing after it. Null: an orderly end. */
  onClose(reason: string | null): void
}

/** What TLS tells each end of the other. */
export interface TlsState {
  /** An authority of ours vouches for the peer's certificate, and for its name where a name was asked for. */
  readonly peerVerified: boolean
  /** The common name in the peer's verified certificate; null where it showed none. */
  readonly peerCommonName: string | null
  /** `tls-server-end-point` (RFC 5929 §4) of the server end's certificate; null where its signature has no hash defined. */
  readonly serverEndPoint: Buffer | null
}

export interface Transport {
  /** "host:port" of the peer, for logs. */
  readonly remote: string
  /** Nobody else on the network can read along: loopback or memory. Secrets in clear text are for these alone. */
  readonly local: boolean
  /** Null: in clear. */
  readonly tls: TlsState | null
  /**
   * Shakes hands on this stream, once at most: `tls` is set then, and all that is written and heard goes through it. From the
   * call on nothing is heard in clear; `received` is what was heard before and belongs to the handshake. Until `done` is called
   * nothing may be written, and `onClose` is not: a stream that closes meanwhile has failed, and one that has failed is closed.
   */
  startTls(handshake: Handshake, received: Buffer, done: (failure: string | null) => void): void
  handler: TransportHandler
  /** False: the peer is slow, stop until `onDrain`. Nothing is refused or lost either way. */
  write(bytes: Uint8Array): boolean
  /** As `write`, of bytes that stay another's: they are copied, and need be valid only during the call. */
  writeLent(bytes: Buffer): boolean
  /** Stops reading, so that the peer's own back-pressure sets in. */
  pause(): void
  resume(): void
  /** Writes what is left, then closes. */
  end(bytes?: Uint8Array): void
  /** Closes at once, dropping what is not written yet. `onClose` is not called for it. */
  destroy(): void
  /** Nothing that was written waits in this process. To destroy it loses nothing of that, unless the peer still sends. */
  readonly flushed: boolean
  /** True once the stream is over, whoever ended it. */
  readonly closed: boolean
}

/** For a moment without an owner: what comes then is dropped. */
export const ignoreAll: TransportHandler = {
  onData: () => {},
  onDrain: () => {},
  onClose: () => {}
}
