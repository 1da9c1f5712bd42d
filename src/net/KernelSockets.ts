/**
 * How this process accepts, reads and writes connections past Node's sockets: through io_uring where the kernel lets a program
 * have it, else through an epoll. Both need `node:ffi`. Where Node has no FFI (24, `--no-experimental-ffi`, no permission), not on
 * Linux, or in a worker, there is neither.
 */
import type * as Ffi from "node:ffi"
import { createRequire, isBuiltin } from "node:module"
import { platform } from "node:os"
import { isMainThread } from "node:worker_threads"
import * as EpollSockets from "./EpollSockets.ts"
import type { KernelSockets } from "./KernelSocket.ts"
import * as RingSockets from "./RingSockets.ts"

interface Opened {
  readonly sockets: KernelSockets | null
  /** What there is, and why nothing better. */
  readonly account: string
}

let opened: Opened | undefined
let withoutRing = ""

/** Before the first socket: why this process is not to have an io_uring. */
export const forbidRing = (why: string): void => void (withoutRing = why)

/** Those of this process; null where they cannot be had. Opened when they are first asked for. */
export const kernelSockets = (): KernelSockets | null => (opened ??= open()).sockets

/** How sockets are read, for a log. */
export const accountOfSockets = (): string => (opened ??= open()).account

const open = (): Opened => {
  const streams = (why: string): Opened => ({ sockets: null, account: `Node's streams (${why})` })
  if (!isMainThread) return streams("this is a worker thread")
  if (platform() !== "linux") return streams("this is not Linux")
  if (!isBuiltin("node:ffi")) return streams("Node has no node:ffi")
  try {
    const ffi = createRequire(import.meta.url)("node:ffi") as typeof Ffi
    const ring = withoutRing === "" ? RingSockets.open(ffi) : withoutRing
    if (typeof ring !== "string") return { sockets: ring, account: "io_uring" }
    const epoll = EpollSockets.open(ffi)
    if (typeof epoll !== "string") return { sockets: epoll, account: `epoll (no io_uring: ${ring})` }
    return streams(epoll)
  } catch (failure) {
    // No permission, or a Node that names something otherwise.
    return streams(String(failure))
  }
}
