/**
 * Lets an accepted socket read into a buffer of ours, as `net.connect` does with its documented `onread`: `net.Server` has no
 * such option, and gives each chunk 64 kB of memory that it shrinks again.
 *
 * Relies on what Node does not document: a socket's `_handle`, and `net.Socket`'s option `handle`, by which its own cluster
 * module hands sockets on. Where they are not as expected nothing has been done, and the caller reads by `data` events.
 *
 * Gain: 7 % of the CPU of a transaction with 8 clients, 4 % with 64 (pgbench -S). Writing to the handle past `net.Socket`, which is
 * undocumented too, gained nothing on Node 26.
 */
import * as Net from "node:net"

interface Handled extends Net.Socket {
  _handle: { readonly readStart: () => number } | null | undefined
}

/**
 * Another socket over the same connection, which reads into `onread.buffer`; the given one is over then. Null: it goes on as it
 * is. It must not have been read: its listener has `pauseOnConnect`.
 */
export const reopen = (socket: Net.Socket, onread: Net.OnReadOpts): Net.Socket | null => {
  const accepted = socket as Handled
  const handle = accepted._handle
  if (typeof handle?.readStart !== "function") return null
  accepted._handle = null
  // Or its listener would count it for ever.
  accepted.destroy()
  const options: object = { handle, onread }
  return new Net.Socket(options)
}
