/**
 * What is done to the descriptors of sockets by calls of the C library, where Node has no way: a second one of a socket that
 * listens, and what becomes of those that it accepts.
 *
 * Reads and writes nothing. Errors are told by the callers' own means: none here is an error of the service's.
 */
import type * as Ffi from "node:ffi"
import { nativeMemory } from "./NativeMemory.ts"

/** Linux's own numbers, the same on x86-64 and arm64. */
const F_DUPFD_CLOEXEC = 1030
const SOL_SOCKET = 1
const SO_KEEPALIVE = 9
const IPPROTO_TCP = 6
const TCP_NODELAY = 1
const TCP_KEEPIDLE = 4
const TCP_KEEPINTVL = 5
const TCP_KEEPCNT = 6
const AF_INET = 2
const AF_INET6 = 10
/** Not inherited by programs that are started, and never waited for. */
export const ACCEPT_FLAGS = 0x80000 | 0x800
const ADDRESS_LENGTH = 128
const MAX_TEXT_LENGTH = 46

export const KEEP_ALIVE_DELAY_SECS = 60
/** As Node sets them: ten questions, a second apart. */
const KEEP_ALIVE_INTERVAL_SECS = 1
const KEEP_ALIVE_COUNT = 10

const signatures = {
  fcntl: { arguments: ["int32", "int32", "int32"], return: "int32" },
  setsockopt: { arguments: ["int32", "int32", "int32", "pointer", "int32"], return: "int32" },
  getpeername: { arguments: ["int32", "pointer", "pointer"], return: "int32" },
  inet_ntop: { arguments: ["int32", "pointer", "pointer", "int32"], return: "pointer" },
  accept4: { arguments: ["int32", "pointer", "pointer", "int32"], return: "int32" },
  close: { arguments: ["int32"], return: "int32" }
} as const satisfies Ffi.FunctionDefinitions

/** The other end of a connection. */
export interface Peer {
  /** An address, in digits. */
  readonly host: string
  readonly port: number
}

export interface Descriptors {
  /**
   * Another descriptor of a listening socket, to be closed by whoever asked; -1: there is none. What it accepts has Nagle's
   * algorithm off and keep-alive on, as Linux passes these options on: so they cost no connection five calls.
   */
  readonly listener: (fd: number) => number
  /** The next connection that waits there; -1: none does, or there is no room for one. */
  readonly accept: (fd: number) => number
  /** Null where it has gone already. */
  readonly peerOf: (fd: number) => Peer | null
  readonly close: (fd: number) => void
}

export const descriptors = (ffi: typeof Ffi): Descriptors => {
  const { fcntl, setsockopt, getpeername, inet_ntop, accept4, close } = ffi.dlopen(null, signatures).functions
  const value = nativeMemory(ffi, 4)
  const address = nativeMemory(ffi, ADDRESS_LENGTH)
  const length = nativeMemory(ffi, 4)
  const text = nativeMemory(ffi, MAX_TEXT_LENGTH)
  const inherited = [
    [IPPROTO_TCP, TCP_NODELAY, 1],
    [SOL_SOCKET, SO_KEEPALIVE, 1],
    [IPPROTO_TCP, TCP_KEEPIDLE, KEEP_ALIVE_DELAY_SECS],
    [IPPROTO_TCP, TCP_KEEPINTVL, KEEP_ALIVE_INTERVAL_SECS],
    [IPPROTO_TCP, TCP_KEEPCNT, KEEP_ALIVE_COUNT]
  ] as const
  const hostOf = (family: number): string => {
    const { buffer } = address
    if (family === AF_INET) return `${buffer[4]}.${buffer[5]}.${buffer[6]}.${buffer[7]}`
    inet_ntop(family, address.address + 8n, text.address, MAX_TEXT_LENGTH)
    return text.buffer.toString("latin1", 0, text.buffer.indexOf(0))
  }
  return {
    listener: (fd) => {
      const own = fcntl(fd, F_DUPFD_CLOEXEC, 0)
      if (own === -1) return -1
      for (const [level, name, is] of inherited) {
        value.words[0] = is
        if (setsockopt(own, level, name, value.address, 4) === 0) continue
        close(own)
        return -1
      }
      return own
    },
    accept: (fd) => accept4(fd, 0n, 0n, ACCEPT_FLAGS),
    peerOf: (fd) => {
      length.words[0] = ADDRESS_LENGTH
      if (getpeername(fd, address.address, length.address) !== 0) return null
      const family = address.buffer.readUInt16LE(0)
      if (family !== AF_INET && family !== AF_INET6) return null
      return { host: hostOf(family), port: address.buffer.readUInt16BE(2) }
    },
    close: (fd) => void close(fd)
  }
}
