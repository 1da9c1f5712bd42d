/**
 * Reads and writes connected sockets with the kernel's own calls, through `node:ffi`, past Node's streams: what is ready is asked
 * of an epoll of ours, which hangs in Node's event loop as one descriptor, and is read and written in one turn of it.
 *
 * Gain: 9 to 15 % of the CPU of a transaction with 64 clients, 18 to 20 with 512, 2 to 5 with 8, none with 1 (pgbench -S): a turn
 * that reads many sockets enters JavaScript once; and nothing is copied on its way from one socket to the other.
 *
 * Opens, closes and owns no socket and decides nothing about one: the `net.Socket` whose descriptor it is does. An end, and what
 * the kernel does not take at once, are left to that socket, which deals with them in Node's way. Where Node has no FFI (24,
 * `--no-experimental-ffi`, no permission), not on Linux, or in a worker, there is none of this.
 */
import type * as Ffi from "node:ffi"
import { createRequire, isBuiltin } from "node:module"
import { arch, platform } from "node:os"
import { getSystemErrorName } from "node:util"
import { isMainThread } from "node:worker_threads"
import { Beginnings } from "./Beginnings.ts"

/** Who is told of what a descriptor has. Called in the event loop; must not throw. */
export interface Watcher {
  /** Bytes that one read takes at most; no more than MAX_READ_LENGTH. */
  readonly readLength: number
  /** Valid during the call. */
  onRead(chunk: Buffer): void
  /** The peer has ended it, which whoever reads next meets again. It is not watched any more. */
  onEnd(): void
  /** It has failed, by the system's code, which nobody meets again. It is not watched any more. */
  onError(code: string): void
}

export interface KernelSockets {
  /** False where the kernel does not want to. */
  readonly watch: (fd: number, watcher: Watcher) => boolean
  /** Nothing is told any more, from now on. Not watched by this one: nothing happens. */
  readonly unwatch: (fd: number, watcher: Watcher) => void
  /** How many of the bytes were taken, which stay the caller's: all, some, or none, for whatever reason. */
  readonly write: (fd: number, bytes: Uint8Array) => number
}

export const MAX_READ_LENGTH = 256 * 1024
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
/** libuv's own. */
const UV_READABLE = 1
const UV_POLL = 8

const EVENTS_PER_LOOK = 64
/** Then Node has its turn: timers, logins, sockets under TLS. */
const LOOKS_PER_TURN = 4

/** With more than three arguments Node (26.10) calls a function the slow way: 0.6 µs in place of 0.1. */
const signatures = {
  readv: { arguments: ["int32", "pointer", "int32"], return: "int32" },
  writev: { arguments: ["int32", "pointer", "int32"], return: "int32" },
  epoll_create1: { arguments: ["int32"], return: "int32" },
  epoll_ctl: { arguments: ["int32", "int32", "int32", "pointer"], return: "int32" },
  __errno_location: { arguments: [], return: "pointer" },
  epoll_wait: { arguments: ["int32", "pointer", "int32", "int32"], return: "int32" },
  uv_handle_size: { arguments: ["int32"], return: "uint64" },
  uv_poll_init: { arguments: ["pointer", "pointer", "int32"], return: "int32" },
  uv_poll_start: { arguments: ["pointer", "int32", "pointer"], return: "int32" },
  uv_ref: { arguments: ["pointer"], return: "void" },
  uv_unref: { arguments: ["pointer"], return: "void" }
} as const satisfies Ffi.FunctionDefinitions

/** Bytes that do not move, for the kernel to read and write. */
const fixed = (ffi: typeof Ffi, length: number) => {
  const buffer = Buffer.allocUnsafeSlow(length)
  const address = ffi.getRawPointer(buffer)
  return { buffer, address, words: new Uint32Array(buffer.buffer, buffer.byteOffset, length >> 2) }
}

const open = (ffi: typeof Ffi): KernelSockets | null => {
  const layout = EVENT_LAYOUT[arch()]
  if (layout === undefined) return null
  const { words, fdAt } = layout
  const { lib, functions } = ffi.dlopen(null, signatures)
  // Nothing but locals: what is constant here, the compiler calls without looking it up.
  const { readv, writev, epoll_ctl, epoll_wait } = functions

  const epoll = functions.epoll_create1(EPOLL_CLOEXEC)
  if (epoll === -1) return null
  const readBuffer = fixed(ffi, MAX_READ_LENGTH)
  const writeBuffer = fixed(ffi, MAX_COPY_LENGTH)
  const events = fixed(ffi, EVENTS_PER_LOOK * words * 4)
  const change = fixed(ffi, words * 4)
  /** One `struct iovec` each: an address and a length, of 8 bytes both. */
  const reading = fixed(ffi, 16)
  const writing = fixed(ffi, 16)
  const errorAddress = functions.__errno_location()
  const readAddress = Number(readBuffer.address)
  const writeAddress = Number(writeBuffer.address)
  const readMemory = readBuffer.buffer.buffer
  const chunks = new Beginnings(readBuffer.buffer)

  // The loop wakes when something is ready, calls what does nothing, and goes on to its immediates: to the turn.
  const handle = fixed(ffi, Number(functions.uv_handle_size(UV_POLL)))
  const nothing = lib.getSymbol("uv_version")
  if (functions.uv_poll_init(ffi.getCurrentEventLoop(), handle.address, epoll) !== 0) return null
  functions.uv_poll_start(handle.address, UV_READABLE, nothing)
  functions.uv_unref(handle.address)

  const pointTo = (vector: Uint32Array, address: number, length: number): void => {
    vector[0] = address >>> 0
    vector[1] = address / 0x100000000
    vector[2] = length
    vector[3] = 0
  }

  /** By descriptor. */
  const watchers: Array<Watcher | null> = []
  let watched = 0

  const watch = (fd: number, watcher: Watcher): boolean => {
    if (watchers[fd] === watcher) return true
    change.words.fill(0)
    change.words[0] = EPOLLIN
    change.words[fdAt] = fd
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, change.address) === -1) return false
    while (watchers.length <= fd) watchers.push(null)
    // As any socket that is read, they keep the process alive.
    if (watchers[fd] === null && ++watched === 1) functions.uv_ref(handle.address)
    watchers[fd] = watcher
    return true
  }

  // A descriptor that Node has closed may be another socket's by now, which has another watcher.
  const unwatch = (fd: number, watcher: Watcher): void => {
    if (watchers[fd] !== watcher) return
    watchers[fd] = null
    if (--watched === 0) functions.uv_unref(handle.address)
    epoll_ctl(epoll, EPOLL_CTL_DEL, fd, change.address)
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

  const write = (fd: number, bytes: Uint8Array): number => {
    const { length } = bytes
    if (bytes.buffer === readMemory) pointTo(writing.words, readAddress + bytes.byteOffset, length)
    else if (length <= MAX_COPY_LENGTH) {
      writeBuffer.buffer.set(bytes)
      pointTo(writing.words, writeAddress, length)
    } else return 0
    return Math.max(0, transfer(TRANSMIT, fd))
  }

  const read = (fd: number): void => {
    const watcher = watchers[fd]
    // It was unwatched by one that was read in the same look.
    if (watcher === null || watcher === undefined) return
    pointTo(reading.words, readAddress, watcher.readLength)
    const length = transfer(RECEIVE, fd)
    if (length > 0) return watcher.onRead(chunks.of(length))
    // Should a collection of garbage have come between and changed it: what comes next on this socket is its end.
    const error = length === 0 ? 0 : ffi.getInt32(errorAddress)
    if (error === EAGAIN || error === EINTR) return
    unwatch(fd, watcher)
    if (error === 0) watcher.onEnd()
    else watcher.onError(getSystemErrorName(-error))
  }

  const turn = (): void => {
    try {
      for (let look = 0; look < LOOKS_PER_TURN; look++) {
        const count = epoll_wait(epoll, events.address, EVENTS_PER_LOOK, 0)
        if (count <= 0) return
        for (let event = 0; event < count; event++) read(events.words[event * words + fdAt]!)
      }
    } finally {
      setImmediate(turn).unref()
    }
  }

  keep(lib, handle, events, change, reading, writing, readBuffer, writeBuffer)
  setImmediate(turn).unref()
  return { watch, unwatch, write }
}

/** The kernel and libuv have their addresses for as long as the process lives. */
const kept: Array<unknown> = []
const keep = (...memory: ReadonlyArray<unknown>): void => void kept.push(...memory)

let opened: KernelSockets | null | undefined
let missing = ""

/** Those of this process; null where they cannot be had. Opened when they are first asked for. */
export const kernelSockets = (): KernelSockets | null => {
  if (opened === undefined) opened = tryToOpen()
  return opened
}

/** Why there are none; empty where there are. */
export const whyNoKernelSockets = (): string => (kernelSockets() === null ? missing : "")

const tryToOpen = (): KernelSockets | null => {
  if (!isMainThread) missing = "this is a worker thread"
  else if (platform() !== "linux") missing = "this is not Linux"
  else if (!isBuiltin("node:ffi")) missing = "Node has no node:ffi"
  else {
    try {
      const sockets = open(createRequire(import.meta.url)("node:ffi") as typeof Ffi)
      if (sockets === null) missing = `not on ${arch()}, or without an epoll`
      return sockets
    } catch (failure) {
      // No permission, or a Node that names something otherwise.
      missing = String(failure)
    }
  }
  return null
}
