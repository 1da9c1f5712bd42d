/** Memory that does not move and is never given back, for the kernel and libuv to read and write. */
import type * as Ffi from "node:ffi"

export interface NativeMemory {
  readonly buffer: Buffer
  /** The same, in words of 4 bytes. */
  readonly words: Uint32Array
  readonly address: bigint
}

const PAGE = 4096

/** They have its address for as long as the process lives. */
const kept: Array<unknown> = []

/** Zeros, from the beginning of a page on. */
export const nativeMemory = (ffi: typeof Ffi, length: number): NativeMemory => {
  const whole = new ArrayBuffer(length + PAGE)
  const start = ffi.getRawPointer(whole)
  const at = Number(-start & BigInt(PAGE - 1))
  const memory = {
    buffer: Buffer.from(whole, at, length),
    words: new Uint32Array(whole, at, length >> 2),
    address: start + BigInt(at)
  }
  kept.push(memory)
  return memory
}
