/**
 * A connected socket as the kernel's own calls have it, past Node's stream of it: what EpollSockets and RingSockets both are.
 *
 * Decides nothing about one, and closes its descriptor only where it is told to: that is its watcher's, or a `net.Socket`'s of
 * which the watcher knows. What the kernel does not take at once is left to the watcher, too.
 */
import type { Peer } from "./Descriptors.ts"

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
  /** The peer has ended it, which whoever reads next meets again. The kernel is left, but its descriptor is not closed. */
  onEnd(): void
  /** It has failed, by the system's code, which nobody meets again. The kernel is left, as with its end. */
  onError(code: string): void
}

/** One that is read from the moment on in which it is adopted, until it is left. Nothing is written to one whose watcher is gone. */
export interface KernelSocket {
  readonly fd: number
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
  /** The kernel is left and the descriptor closed, behind what it takes at once of what was written. */
  close(): void
}

export interface KernelSockets {
  /** Null where the kernel does not want to. */
  readonly adopt: (fd: number, watcher: Watcher) => KernelSocket | null
  /** Takes what comes to a listening socket. `fd` stays the caller's, who may close it. Null where the kernel does not want to. */
  readonly accept: (fd: number, host: Host) => Acceptor | null
}

/** Who is told of what comes. Called in the event loop; must not throw. */
export interface Host {
  /** The descriptor is yours from now on. */
  onAccepted(fd: number, peer: Peer): void
  /** There is no room for one, by the system's code: those who want to come wait, until it is told to go on. */
  onNoRoom(code: string): void
}

export interface Acceptor {
  goOn(): void
  /** What it listened with is closed. */
  stop(): void
}

/** Connections that are accepted at once, at the most. Then those that are there already have their turn. */
export const ACCEPTED_AT_ONCE = 4

export const MAX_READ_LENGTH = 256 * 1024
