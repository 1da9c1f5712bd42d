/**
 * Inputs that depend on a seed alone, so that what fails once fails again.
 */
import { random } from "../simulation/World.ts"

export interface Chance {
  /** From 0 to below `limit`. */
  readonly below: (limit: number) => number
  readonly chance: (probability: number) => boolean
  readonly pick: <A>(of: ReadonlyArray<A>) => A
  readonly bytes: (length: number) => Buffer
  /** Cut at random places, nothing lost. */
  readonly pieces: (bytes: Buffer) => ReadonlyArray<Buffer>
}

export const seeded = (seed: number): Chance => {
  const next = random(seed)
  const below = (limit: number) => Math.floor(next() * limit)
  return {
    below,
    chance: (probability) => next() < probability,
    pick: (of) => of[below(of.length)]!,
    bytes: (length) => Buffer.from(Uint8Array.from({ length }, () => below(256))),
    pieces: (bytes) => {
      const pieces: Array<Buffer> = []
      for (let at = 0; at < bytes.length;) {
        const length = 1 + below(bytes.length - at)
        pieces.push(bytes.subarray(at, at + length))
        at += length
      }
      return pieces
    }
  }
}
