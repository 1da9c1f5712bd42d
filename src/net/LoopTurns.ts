/**
 * A descriptor of ours in Node's event loop, by libuv's own functions: the loop wakes when there is something to read, and each of
 * its turns calls who looks after it.
 */
import type * as Ffi from "node:ffi"
import { nativeMemory } from "./NativeMemory.ts"

/** libuv's own numbers. */
const UV_READABLE = 1
const UV_POLL = 8

const signatures = {
  uv_handle_size: { arguments: ["int32"], return: "uint64" },
  uv_poll_init: { arguments: ["pointer", "pointer", "int32"], return: "int32" },
  uv_poll_start: { arguments: ["pointer", "int32", "pointer"], return: "int32" },
  uv_ref: { arguments: ["pointer"], return: "void" },
  uv_unref: { arguments: ["pointer"], return: "void" }
} as const satisfies Ffi.FunctionDefinitions

export interface LoopTurns {
  /** As any socket that is read, they keep the process alive: one more, or one fewer. It does not live on for the descriptor alone. */
  readonly add: () => void
  readonly remove: () => void
}

/** `turn` must not throw. Null where libuv does not take the descriptor. */
export const eachTurn = (ffi: typeof Ffi, fd: number, turn: () => void): LoopTurns | null => {
  const { lib, functions } = ffi.dlopen(null, signatures)
  const handle = nativeMemory(ffi, Number(functions.uv_handle_size(UV_POLL))).address
  if (functions.uv_poll_init(ffi.getCurrentEventLoop(), handle, fd) !== 0) return null
  // The loop wakes when something is ready, calls what does nothing, and goes on to its immediates: to the turn.
  functions.uv_poll_start(handle, UV_READABLE, lib.getSymbol("uv_version"))
  functions.uv_unref(handle)
  let count = 0
  const next = (): void => {
    setImmediate(next).unref()
    turn()
  }
  setImmediate(next).unref()
  return {
    add: () => {
      if (++count === 1) functions.uv_ref(handle)
    },
    remove: () => {
      if (--count === 0) functions.uv_unref(handle)
    }
  }
}
