/**
 * A connected socket as the kernel's own calls have it, past Node's stream of it: what EpollSockets and RingSockets both are.
 *
 * Opens, closes and owns no socket and decides nothing about one: the `net.Socket` whose descriptor it is does. An end, and what
 * the kernel does not take at once, are left to that socket, which deals with them in Node's way.
 */

/** Who is told of what a socket has. Called in the event loop; must not throw. */
export interface Watcher {
  /** Bytes that one read takes at most; no more than MAX_READ_LENGTH. */
  readonly readLength: number
  /** Its descriptor is closed, and may be another's. */
  readonly gone: boolean
  /** Valid during the call. */
  onRead(chunk: Buffer): void
  /** The end of what was written, which the kernel does not take now. Told before anything else. Valid during the call. */
  onUnsent(bytes: Uint8Array): void
  /** The peer has ended it, which whoever reads next meets again. The kernel is left. */
  onEnd(): void
  /** It has failed, by the system's code, which nobody meets again. The kernel is left. */
  onError(code: string): void
}

/** One that is read from the moment on in which it is adopted, until it is left. Nothing is written to one whose watcher is gone. */
export interface KernelSocket {
  /** Nothing is read, until it is resumed. */
  pause(): void
  /** False where the kernel does not want to. */
  resume(): boolean
  /** They stay the caller's. What the kernel does not take at once goes to `onUnsent`, now or with the next flush. */
  write(bytes: Uint8Array): void
  /** All that was written is the kernel's now, or was told to be unsent. */
  flush(): void
  /** Flushes, and nothing is told any more; whoever else reads the descriptor meets what comes from some moment on. */
  leave(): void
  /** As `leave`, for who wants all that comes: what was read and not told. Null: nothing. */
  giveUp(): Buffer | null
}

export interface KernelSockets {
  /** Null where the kernel does not want to. */
  readonly adopt: (fd: number, watcher: Watcher) => KernelSocket | null
}

export const MAX_READ_LENGTH = 256 * 1024
