/**
 * Sockets by io_uring: what one turn of the event loop has read and written becomes one call to the kernel.
 *
 * A socket has one read with the kernel at a time, which it completes when there is something. So one that is paused may be told of
 * what a read brought that was asked for before: it waits here until the socket goes on, and no other read is asked for. What is
 * written in a turn waits for the end of the look in which it was, or for a second write to the same socket that cannot be put
 * behind it. Outside a turn nothing waits.
 *
 * CPU of a transaction beside EpollSockets, where a system call costs 1 µs (pgbench -S; 1, 8, 64, 512 clients): simple 0.88, 0.74,
 * 0.58, 0.65; extended with 8 or more 0.68, 0.55, 0.61; prepared 0.73, 0.60, 0.54.
 */
import type * as Ffi from "node:ffi"
import { getSystemErrorName } from "node:util"
import { ACCEPT_FLAGS, descriptors } from "./Descriptors.ts"
import {
  ACCEPTED_AT_ONCE,
  type Acceptor,
  type Host,
  type KernelSocket,
  type KernelSockets,
  type Watcher
} from "./KernelSocket.ts"
import { eachTurn, type LoopTurns } from "./LoopTurns.ts"
import { ACCEPTED, LONG, LONG_LENGTH, READ, Ring, SHORT, SHORT_LENGTH } from "./Ring.ts"

/** Then Node has its turn: timers, logins, sockets under TLS. */
const LOOKS_PER_TURN = 4

const EINTR = 4
const EAGAIN = 11
const ECONNABORTED = 103
const ENOBUFS = 105

/** Until a read is given back. One that is under way in another thread of the kernel's takes some. */
const ATTEMPTS = 10_000

/** By token: the name of what is with the kernel. One's token becomes another's when nothing of its is there any more. */
class Tokens<A> {
  readonly #owners: Array<A | null> = []
  readonly #free: Array<number> = []

  of(token: number): A {
    return this.#owners[token]!
  }

  next(): number {
    return this.#free.pop() ?? this.#owners.length
  }

  give(token: number, owner: A): void {
    this.#owners[token] = owner
  }

  free(token: number): void {
    // Or a session that is over would be held until another has its token.
    this.#owners[token] = null
    this.#free.push(token)
  }
}

/** Why not, where it cannot be. */
export const open = (ffi: typeof Ffi): KernelSockets | string => {
  const sockets = new Tokens<RingSocket>()
  const listeners = new Tokens<RingListener>()
  const { close, listener: listenerOf, peerOf } = descriptors(ffi)
  /** They go on, with what has been kept for them. */
  let resumed: Array<RingSocket> = []
  /** In which what is written may wait. */
  let inTurn = false

  const opened = Ring.open(ffi, (token, sent) => sockets.of(token).unsent(sent))
  if (typeof opened === "string") return opened
  const ring: Ring = opened

  const submitUnlessInTurn = (): void => {
    if (!inTurn) ring.submit()
  }

  class RingSocket implements KernelSocket {
    readonly #token: number
    readonly fd: number
    readonly #watcher: Watcher
    /** A read is with the kernel. */
    #reading = false
    #paused = false
    #left = false
    /** Its number may be another's, which must not be closed. */
    #closed = false
    /** What was read while it was paused: a chunk, or its end, as `onRead` has it. */
    #kept: Buffer | number | null = null
    /** Of the read that is with the kernel, or about to be. */
    #readBatch = -1
    /** Its last write was not sent as a whole. */
    #short = false
    /** The last read filled its buffer. */
    #filled = false
    /** Of its last write: the batch, its place there, and its bytes. */
    #batch = -1
    #place = 0
    #offset = 0
    #length = 0

    constructor(token: number, fd: number, watcher: Watcher) {
      this.#token = token
      this.fd = fd
      this.#watcher = watcher
    }

    read(): void {
      if (this.#reading || this.#paused || this.#left || this.#kept !== null || this.#watcher.gone) return
      this.#reading = true
      this.#readBatch = ring.batch
      const { readLength } = this.#watcher
      if (this.#filled) ring.read(this.#token, this.fd, LONG, Math.min(readLength, LONG_LENGTH), true)
      else ring.read(this.#token, this.fd, SHORT, Math.min(readLength, SHORT_LENGTH), false)
    }

    /** Its read has ended. */
    onRead(result: number, buffer: number): void {
      this.#reading = false
      if (this.#left) {
        if (buffer !== -1) ring.release(buffer)
        return sockets.free(this.#token)
      }
      if (result > 0) {
        const chunk = ring.chunkOf(buffer, result)
        this.#filled = result >= SHORT_LENGTH
        if (this.#paused) this.#kept = Buffer.from(chunk)
        else this.#watcher.onRead(chunk)
        ring.release(buffer)
        return this.read()
      }
      if (buffer !== -1) ring.release(buffer)
      // All buffers are filled with what is being dealt with.
      if (result === -ENOBUFS || result === -EAGAIN || result === -EINTR) return this.read()
      if (this.#paused) this.#kept = result
      else this.#finish(result)
    }

    #finish(result: number): void {
      this.leave()
      if (result === 0) this.#watcher.onEnd()
      else this.#watcher.onError(getSystemErrorName(result))
    }

    pause(): void {
      this.#paused = true
    }

    resume(): boolean {
      if (!this.#paused) return true
      this.#paused = false
      if (this.#kept === null) this.read()
      else {
        resumed.push(this)
        ring.nudge()
      }
      submitUnlessInTurn()
      return true
    }

    goOn(): void {
      const kept = this.#kept
      if (kept === null || this.#paused || this.#left) return
      this.#kept = null
      if (typeof kept === "number") return this.#finish(kept)
      this.#watcher.onRead(kept)
      this.read()
    }

    write(bytes: Uint8Array): void {
      const { length } = bytes
      if (this.#batch === ring.batch) {
        const offset = ring.append(this.#place, this.#offset, this.#length, bytes)
        if (offset !== -1) {
          this.#offset = offset
          this.#length += length
          return
        }
        this.#short = false
        ring.submit()
        // Behind what the stream has been left with.
        if (this.#short) return this.#watcher.onUnsent(bytes)
      }
      const offset = bytes.buffer === ring.memory ? bytes.byteOffset : ring.copy(bytes)
      if (offset === -1) return this.#watcher.onUnsent(bytes)
      this.#place = ring.send(this.#token, this.fd, offset, length)
      this.#batch = ring.batch
      this.#offset = offset
      this.#length = length
      submitUnlessInTurn()
    }

    unsent(sent: number): void {
      this.#short = true
      this.#watcher.onUnsent(Buffer.from(ring.memory, this.#offset + sent, this.#length - sent))
    }

    flush(): void {
      if (this.#batch === ring.batch) ring.submit()
    }

    leave(): void {
      if (this.#left) return
      this.flush()
      // It names a descriptor that may be closed next, and another's.
      if (this.#reading && this.#readBatch === ring.batch) ring.submit()
      this.#depart()
      submitUnlessInTurn()
    }

    close(): void {
      if (this.#closed) return
      this.#closed = true
      this.flush()
      if (!this.#left) this.#depart()
      ring.close(this.fd)
      submitUnlessInTurn()
    }

    #depart(): void {
      this.#left = true
      this.#kept = null
      turns.remove()
      if (this.#reading) ring.cancelRead(this.#token)
      else sockets.free(this.#token)
    }

    giveUp(): Buffer | null {
      const kept = this.#kept
      this.leave()
      for (let attempt = 0; this.#reading; attempt++) {
        // In a turn the one that takes it back still waits.
        ring.submit()
        if (ring.nextOf(this.#token)) {
          const chunk = ring.result > 0 ? Buffer.from(ring.chunkOf(ring.buffer, ring.result)) : null
          this.onRead(ring.result, ring.buffer)
          return chunk
        }
        if (attempt === ATTEMPTS) {
          this.#watcher.onError("ECANCELED")
          break
        }
      }
      // Who reads next meets an end again.
      return typeof kept === "number" ? null : kept
    }
  }

  class RingListener implements Acceptor {
    readonly #token: number
    readonly #fd: number
    readonly #host: Host
    /** Those that are with the kernel. */
    #accepting = 0
    /** It was told that there is no room. */
    #waits = false
    #stopped = false

    constructor(token: number, fd: number, host: Host) {
      this.#token = token
      this.#fd = fd
      this.#host = host
    }

    accept(): void {
      for (; this.#accepting < ACCEPTED_AT_ONCE; this.#accepting++) {
        ring.accept(this.#token, this.#fd, ACCEPT_FLAGS)
      }
      submitUnlessInTurn()
    }

    /** A descriptor, or a negative error number. */
    hear(result: number): void {
      this.#accepting--
      if (this.#stopped) {
        if (result >= 0) close(result)
        if (this.#accepting === 0) listeners.free(this.#token)
        return
      }
      if (result < 0 && result !== -ECONNABORTED && result !== -EAGAIN && result !== -EINTR) return this.#wait(result)
      this.accept()
      if (result < 0) return
      const peer = peerOf(result)
      // It has gone again: nobody is there to be served or told.
      if (peer === null) close(result)
      else this.#host.onAccepted(result, peer)
    }

    /** Others may be with the kernel, but these wait for a connection that is yet to come. */
    #wait(error: number): void {
      if (this.#waits) return
      this.#waits = true
      this.#host.onNoRoom(getSystemErrorName(error))
    }

    goOn(): void {
      this.#waits = false
      if (!this.#stopped) this.accept()
    }

    stop(): void {
      if (this.#stopped) return
      this.#stopped = true
      turns.remove()
      ring.cancelAccepts(this.#token)
      ring.close(this.#fd)
      // Now, for the port is free then.
      ring.submit()
      if (this.#accepting === 0) listeners.free(this.#token)
    }
  }

  const goOn = (): void => {
    const list = resumed
    resumed = []
    for (const socket of list) socket.goOn()
  }

  const turn = (): void => {
    inTurn = true
    try {
      for (let look = 0; look < LOOKS_PER_TURN; look++) {
        if (ring.queued > 0 || ring.pending) ring.submit()
        let { count } = ring
        if (count === 0) return
        if (resumed.length > 0) goOn()
        for (; count > 0; count--) {
          ring.next()
          if (ring.kind === READ) sockets.of(ring.token).onRead(ring.result, ring.buffer)
          else if (ring.kind === ACCEPTED) listeners.of(ring.token).hear(ring.result)
        }
      }
    } finally {
      if (ring.queued > 0) ring.submit()
      inTurn = false
    }
  }

  const inLoop = eachTurn(ffi, ring.fd, turn)
  if (inLoop === null) return "libuv does not take an io_uring"
  const turns: LoopTurns = inLoop
  return {
    adopt: (fd, watcher) => {
      const token = sockets.next()
      const socket = new RingSocket(token, fd, watcher)
      sockets.give(token, socket)
      turns.add()
      socket.read()
      submitUnlessInTurn()
      return socket
    },
    accept: (fd, host) => {
      const own = listenerOf(fd)
      if (own === -1) return null
      const token = listeners.next()
      const listener = new RingListener(token, own, host)
      listeners.give(token, listener)
      turns.add()
      listener.accept()
      return listener
    }
  }
}
