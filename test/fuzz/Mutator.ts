/**
 * Makes inputs that nobody would send out of inputs that somebody did: bits flipped, numbers at the edge of what they may be,
 * messages cut, doubled, left out, exchanged, with another's type or a length that is a lie.
 *
 * The seed alone decides. Never changes what it was given.
 */
import { lengthAt } from "../../src/protocol/Frame.ts"

/** Where lengths and counts go wrong: around zero, and where a sign or a limit lies. */
const numbers = [
  0, 1, 2, 3, 4, 5, 7, 8, 9, 0x7f, 0x80, 0xff, 0x100, 10_000, 10_001, 0x7fff, 0x8000, 0xffff, 0x10000, 0x10001,
  0x3ffffffe, 0x3fffffff, 0x7fffffff, 0x80000000, 0xfffffffb, 0xfffffffc, 0xfffffffe, 0xffffffff
]

const words = [
  "-1",
  "0",
  "4294967296",
  "99999999999999999999",
  "1e309",
  "%",
  "\\",
  '"',
  "'",
  ",",
  "=",
  "\0",
  "é",
  "\ud800"
]

/** Beyond this an input grows no more. */
const MAX_LENGTH = 64 * 1024

export class Mutator {
  #state: number

  constructor(seed: number) {
    this.#state = seed >>> 0
  }

  /** From 0 to below 1 (mulberry32). */
  next(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000
  }

  /** From 0 to below `limit`. */
  below(limit: number): number {
    return Math.floor(this.next() * limit)
  }

  chance(probability: number): boolean {
    return this.next() < probability
  }

  pick<A>(of: ReadonlyArray<A>): A {
    return of[this.below(of.length)]!
  }

  /** One of the corpus, changed; once in a while as it is, or all noise. */
  input(corpus: ReadonlyArray<Buffer>): Buffer {
    if (this.chance(0.01)) return this.noise(this.below(64))
    return this.mutate(Buffer.from(this.pick(corpus)), corpus)
  }

  noise(length: number): Buffer {
    const bytes = Buffer.alloc(length)
    for (let at = 0; at < length; at++) bytes[at] = this.below(256)
    return bytes
  }

  /** Some changes more or less; `donors` lend what is spliced in. The bytes are changed where they lie. */
  mutate(bytes: Buffer, donors: ReadonlyArray<Buffer>): Buffer {
    let changed = bytes
    do changed = this.#change(changed, donors).subarray(0, MAX_LENGTH)
    while (this.chance(0.6))
    return changed
  }

  /** Cut at random places, nothing lost. */
  pieces(bytes: Buffer): ReadonlyArray<Buffer> {
    const pieces: Array<Buffer> = []
    for (let at = 0; at < bytes.length;) {
      const length = this.chance(0.3) ? 1 : 1 + this.below(bytes.length - at)
      pieces.push(bytes.subarray(at, at + length))
      at += length
    }
    return pieces
  }

  #change(bytes: Buffer, donors: ReadonlyArray<Buffer>): Buffer {
    const at = this.below(bytes.length + 1)
    const to = Math.min(bytes.length, at + 1 + this.below(16))
    switch (this.below(15)) {
      case 0:
      case 1:
        if (at < bytes.length) bytes[at] = bytes[at]! ^ (1 << this.below(8))
        return bytes
      case 2:
        if (at < bytes.length) bytes[at] = this.below(256)
        return bytes
      case 3:
        return bytes.subarray(0, at)
      case 4:
        return bytes.subarray(at)
      case 5:
        return Buffer.concat([bytes.subarray(0, at), bytes.subarray(to)])
      case 6:
        return Buffer.concat([bytes.subarray(0, to), bytes.subarray(at)])
      case 7: {
        const donor = this.pick(donors)
        return Buffer.concat([bytes.subarray(0, at), donor.subarray(this.below(donor.length + 1))])
      }
      case 8:
        return Buffer.concat([bytes.subarray(0, at), Buffer.from(this.pick(words)), bytes.subarray(at)])
      case 9: {
        const number = this.pick(numbers)
        if (at + 4 <= bytes.length) bytes.writeUInt32BE(number, at)
        else if (at + 2 <= bytes.length) bytes.writeUInt16BE(number & 0xffff, at)
        return bytes
      }
      case 10: {
        const word = Buffer.alloc(4)
        word.writeUInt32BE(this.pick(numbers))
        return Buffer.concat([bytes.subarray(0, at), word.subarray(this.pick([0, 2])), bytes.subarray(at)])
      }
      default:
        return this.#changeFrames(bytes)
    }
  }

  #changeFrames(bytes: Buffer): Buffer {
    const frames = framesOf(bytes)
    const at = this.below(frames.length)
    const frame = frames[at]!
    switch (this.below(6)) {
      case 0:
        if (frame.length > 0) frame[0] = this.chance(0.8) ? this.pick(types) : this.below(256)
        break
      case 1: {
        const claimed = this.chance(0.5) ? this.pick(numbers) : frame.length + this.below(9) - 5
        if (frame.length >= 5) frame.writeUInt32BE(claimed >>> 0, 1)
        break
      }
      case 2:
        frames.splice(at, 1)
        break
      case 3:
        for (let copies = this.chance(0.1) && frame.length < 256 ? 200 : 1; copies > 0; copies--)
          frames.splice(at, 0, frame)
        break
      case 4:
        frames.splice(this.below(frames.length), 0, ...frames.splice(at, 1))
        break
      default:
        // The body grows or shrinks, and the length is true.
        if (frame.length >= 5) {
          const kept = frame.subarray(0, 5 + this.below(frame.length - 4))
          const grown = Buffer.concat([kept, this.noise(this.below(8))])
          grown.writeUInt32BE(grown.length - 1, 1)
          frames[at] = grown
        }
    }
    return Buffer.concat(frames)
  }
}

const types = Array.from(Buffer.from("QPBDECSHFXdcfpRSKZTIN123ntsAGVWv"))

/** As far as lengths are true; the rest is one more. Never none. */
const framesOf = (bytes: Buffer): Array<Buffer> => {
  const frames: Array<Buffer> = []
  let at = 0
  while (bytes.length - at >= 5) {
    const next = at + 1 + lengthAt(bytes, at + 1)
    if (next < at + 5 || next > bytes.length) break
    frames.push(bytes.subarray(at, next))
    at = next
  }
  if (at < bytes.length || frames.length === 0) frames.push(bytes.subarray(at))
  return frames
}
