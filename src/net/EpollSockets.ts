/**
 * Sockets by `readv` and `writev`: what is ready is asked of an epoll of ours, which hangs in Node's event loop as one descriptor,
 * and is read and written in one turn of it.
 *
 * Gain: 9 to 15 % of the CPU of a transaction with 64 clients, 18 to 20 with 512, 2 to 5 with 8, none with 1 (pgbench -S): a turn
 * that reads many sockets enters JavaScript once; and nothing is copied on its way from one socket to the other.
 */
import type * as Ffi from "node:ffi"
import { arch } from "node:os"
import { getSystemErrorName } from "node:util"
import { Beginnings } from "./Beginnings.ts"
import { descriptors } from "./Descriptors.ts"
import {
  ACCEPTED_AT_ONCE,
  MAX_READ_LENGTH,
  type Acceptor,
  type Host,
  type KernelSocket,
  type KernelSockets,
  type Watcher
} from "./KernelSocket.ts"
import { eachTurn, type LoopTurns } from "./LoopTurns.ts"
import { nativeMemory } from "./NativeMemory.ts"

/** What was not read into our buffer is copied to another before it is written. */
const MAX_COPY_LENGTH = 64 * 1024

/** Linux's own numbers. */
const EPOLL_CLOEXEC = 0x80000
const EPOLLIN = 1
const EPOLL_CTL_ADD = 1
const EPOLL_CTL_DEL = 2
/** `struct epoll_event` is packed on x86-64 and nowhere else; both are little-endian. In words of 4 bytes. */
const EVENT_LAYOUT: Readonly<Record<string, { readonly words: number; readonly fdAt: number }>> = {
  x64: { words: 3, fdAt: 1 },
  arm64: { words: 4, fdAt: 2 }
}
const EINTR = 4
const EAGAIN = 11
const ECONNABORTED = 103

const EVENTS_PER_LOOK = 64
/** Then Node has its turn: timers, logins, sockets under TLS. */
const LOOKS_PER_TURN = 4

/** With more than three arguments Node (26.10) calls a function the slow way: 0.6 µs in place of 0.1. */
const signatures = {
  readv: { arguments: ["int32", "pointer", "int32"], return: "int32" },
  writev: { arguments: ["int32", "pointer", "int32"], return: "int32" },
  epoll_create1: { arguments: ["int32"], return: "int32" },
  epoll_ctl: { arguments: ["int32", "int32", "int32", "pointer"], return: "int32" },
  epoll_wait: { arguments: ["int32", "pointer", "int32", "int32"], return: "int32" },
  __errno_location: { arguments: [], return: "pointer" }
} as const satisfies Ffi.FunctionDefinitions

/** Why not, where it cannot be. */
export const open = (ffi: typeof Ffi): KernelSockets | string => {
  const layout = EVENT_LAYOUT[arch()]
  if (layout === undefined) return `not on ${arch()}`
  const { words, fdAt } = layout
  // Nothing but locals: what is constant here, the compiler calls without looking it up.
  const { functions } = ffi.dlopen(null, signatures)
  const { readv, writev, epoll_ctl, epoll_wait } = functions

  const epoll = functions.epoll_create1(EPOLL_CLOEXEC)
  if (epoll === -1) return "no epoll"
  const readBuffer = nativeMemory(ffi, MAX_READ_LENGTH)
  const writeBuffer = nativeMemory(ffi, MAX_COPY_LENGTH)
  const events = nativeMemory(ffi, EVENTS_PER_LOOK * words * 4)
  const change = nativeMemory(ffi, words * 4)
  /** One `struct iovec` each: an address and a length, of 8 bytes both. */
  const reading = nativeMemory(ffi, 16)
  const writing = nativeMemory(ffi, 16)
  const errorAddress = functions.__errno_location()
  const { accept, close, listener: listenerOf, peerOf } = descriptors(ffi)
  const readAddress = Number(readBuffer.address)
  const writeAddress = Number(writeBuffer.address)
  const readMemory = readBuffer.buffer.buffer
  const readFrom = readBuffer.buffer.byteOffset
  const chunks = new Beginnings(readBuffer.buffer)

  const pointTo = (vector: Uint32Array, address: number, length: number): void => {
    vector[0] = address >>> 0
    vector[1] = address / 0x100000000
    vector[2] = length
    vector[3] = 0
  }

  const { address: readingAddress } = reading
  const { address: writingAddress } = writing
  const receive = (fd: number): number => readv(fd, readingAddress, 1)
  const transmit = (fd: number): number => writev(fd, writingAddress, 1)
  const transfers = [receive, transmit] as const
  const RECEIVE = 0
  const TRANSMIT = 1
  /**
   * The one place that calls both, so that V8 compiles neither into its callers. Node's way to the kernel is fast only where its
   * own wrapper is compiled into what calls it, and within something larger V8 may find no room for it: of 4 processes that
   * served prepared statements 3 went the slow way, at 1 µs a call.
   */
  const transfer = (which: typeof RECEIVE | typeof TRANSMIT, fd: number): number => transfers[which](fd)

  /** By descriptor; null where it is not read. */
  const watched: Array<EpollSocket | EpollListener | null> = []

  const watch = (fd: number, by: EpollSocket | EpollListener): boolean => {
    if (watched[fd] === by) return true
    change.words.fill(0)
    change.words[0] = EPOLLIN
    change.words[fdAt] = fd
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, change.address) === -1) return false
    while (watched.length <= fd) watched.push(null)
    // One whose descriptor Node has closed, and who has not heard of it yet, is not watched any more.
    if (watched[fd] === null) turns.add()
    watched[fd] = by
    return true
  }

  const unwatch = (fd: number, by: EpollSocket | EpollListener): void => {
    // A descriptor that Node has closed may be another socket's by now.
    if (watched[fd] !== by) return
    watched[fd] = null
    turns.remove()
    epoll_ctl(epoll, EPOLL_CTL_DEL, fd, change.address)
  }

  class EpollSocket implements KernelSocket {
    readonly fd: number
    readonly #watcher: Watcher
    /** Its number may be another's, which must not be closed. */
    #closed = false

    constructor(fd: number, watcher: Watcher) {
      this.fd = fd
      this.#watcher = watcher
    }

    resume(): boolean {
      return watch(this.fd, this)
    }

    pause(): void {
      unwatch(this.fd, this)
    }

    close(): void {
      this.pause()
      if (this.#closed) return
      this.#closed = true
      close(this.fd)
    }

    leave(): void {
      this.pause()
    }

    giveUp(): null {
      this.pause()
      return null
    }

    flush(): void {}

    write(bytes: Uint8Array): void {
      const { length } = bytes
      if (bytes.buffer === readMemory) pointTo(writing.words, readAddress - readFrom + bytes.byteOffset, length)
      else if (length <= MAX_COPY_LENGTH) {
        writeBuffer.buffer.set(bytes)
        pointTo(writing.words, writeAddress, length)
      } else return this.#watcher.onUnsent(bytes)
      const written = transfer(TRANSMIT, this.fd)
      if (written !== length) this.#watcher.onUnsent(written > 0 ? bytes.subarray(written) : bytes)
    }

    read(): void {
      const watcher = this.#watcher
      pointTo(reading.words, readAddress, watcher.readLength)
      const length = transfer(RECEIVE, this.fd)
      if (length > 0) return watcher.onRead(chunks.of(length))
      // A collection of garbage that comes between changes it only where a call of its own fails.
      const error = length === 0 ? 0 : ffi.getInt32(errorAddress)
      if (error === EAGAIN || error === EINTR) return
      this.pause()
      if (error === 0) watcher.onEnd()
      else watcher.onError(getSystemErrorName(-error))
    }
  }

  class EpollListener implements Acceptor {
    readonly #fd: number
    readonly #host: Host
    #stopped = false

    constructor(fd: number, host: Host) {
      this.#fd = fd
      this.#host = host
    }

    /** Whether the kernel wants to. */
    accept(): boolean {
      return watch(this.#fd, this)
    }

    read(): void {
      for (let count = 0; count < ACCEPTED_AT_ONCE && watched[this.#fd] === this; count++) {
        const fd = accept(this.#fd)
        if (fd === -1) return this.#waitUnless(ffi.getInt32(errorAddress))
        const peer = peerOf(fd)
        // It has gone again: nobody is there to be served or told.
        if (peer === null) close(fd)
        else this.#host.onAccepted(fd, peer)
      }
    }

    #waitUnless(error: number): void {
      if (error === EAGAIN || error === EINTR || error === ECONNABORTED) return
      unwatch(this.#fd, this)
      this.#host.onNoRoom(getSystemErrorName(-error))
    }

    goOn(): void {
      if (!this.#stopped && !this.accept()) this.#host.onNoRoom(getSystemErrorName(-ffi.getInt32(errorAddress)))
    }

    stop(): void {
      if (this.#stopped) return
      this.#stopped = true
      unwatch(this.#fd, this)
      close(this.#fd)
    }
  }

  const turn = (): void => {
    for (let look = 0; look < LOOKS_PER_TURN; look++) {
      const count = epoll_wait(epoll, events.address, EVENTS_PER_LOOK, 0)
      if (count <= 0) return
      // One may have been paused by another that was read in the same look.
      for (let event = 0; event < count; event++) watched[events.words[event * words + fdAt]!]?.read()
    }
  }

  const inLoop = eachTurn(ffi, epoll, turn)
  if (inLoop === null) return "libuv does not take an epoll"
  const turns: LoopTurns = inLoop
  return {
    adopt: (fd, watcher) => {
      const socket = new EpollSocket(fd, watcher)
      return socket.resume() ? socket : null
    },
    accept: (fd, host) => {
      const own = listenerOf(fd)
      if (own === -1) return null
      const listener = new EpollListener(own, host)
      if (listener.accept()) return listener
      close(own)
      return null
    }
  }
}
