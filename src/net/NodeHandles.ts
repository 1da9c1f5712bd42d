/**
 * What Node does not document and we rely on: a socket's and a server's `_handle`, and the options `handle` and `pauseOnCreate` of
 * `net.Socket`, by which its own servers and its cluster module make sockets. Where they are not as expected nothing has been done,
 * and the caller does without.
 *
 * Gain: sockets past Node's streams, which nothing else makes possible (KernelSockets has its figures); and without these 7 % of the
 * CPU of a transaction with 8 clients, 4 % with 64 (pgbench -S). Writing to the handle past `net.Socket` gained nothing on Node 26.
 */
import * as Net from "node:net"

interface Handle {
  readonly fd?: number
  readonly readStart?: () => number
}

interface Handled {
  _handle?: Handle | null | undefined
}

/** That of a connected socket, or of a server that listens; -1 where there is none. */
export const descriptorOf = (of: Net.Socket | Net.Server): number => (of as Handled)._handle?.fd ?? -1

/** One of Node's own over a connected descriptor, which is its to close from now on. It is not read before it is told to. */
export const socketOver = (fd: number): Net.Socket => {
  const options: Net.SocketConstructorOpts & { readonly pauseOnCreate: true } = { fd, pauseOnCreate: true }
  return new Net.Socket(options)
}

/**
 * Another socket over the same connection, which reads into `onread.buffer` as `net.connect` does with its documented option:
 * `net.Server` has no such option, and gives each chunk 64 kB of memory that it shrinks again. The given one is over then. Null: it
 * goes on as it is. It must not have been read: its listener has `pauseOnConnect`.
 */
export const reopen = (socket: Net.Socket, onread: Net.OnReadOpts): Net.Socket | null => {
  const accepted = socket as Handled
  const handle = accepted._handle
  if (typeof handle?.readStart !== "function") return null
  accepted._handle = null
  // Or its listener would count it for ever.
  socket.destroy()
  const options: object = { handle, onread }
  return new Net.Socket(options)
}
