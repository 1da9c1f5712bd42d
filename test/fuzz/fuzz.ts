/**
 * Runs a decoder on inputs that nobody has thought of. What must hold for each: it returns, soon, and has asked for no more
 * memory than the input's length justifies.
 *
 * An input depends on its seed alone. A seed that fails is printed and replays alone: `PERSEUS_SEED=123 npx vitest run
 * test/fuzz`. `PERSEUS_FUZZ=20` runs twenty times as many.
 */
import { afterAll, beforeAll } from "vitest"
import { Worker } from "node:worker_threads"
import { Mutator } from "./Mutator.ts"

const alone = process.env["PERSEUS_SEED"]
const factor = Number(process.env["PERSEUS_FUZZ"] ?? 1)

export const TIMEOUT = { timeout: 240_000 * factor }

/** An input that takes longer is a hang. */
const HANG_MS = 20_000
/** What an input of no length at all may make a decoder allocate in one piece. */
const FREE_ALLOCATION = 16 * 1024
/** Copies of an input, and texts that grow when they are decoded. */
const ALLOCATION_PER_BYTE = 8

/** Who sends what is decoded. */
export type Side = "clients" | "servers" | "operators"

export interface Target {
  readonly from: Side
  readonly corpus: ReadonlyArray<Buffer>
  readonly count: number
  /** Bytes in one piece beside those that the input's own length justifies. */
  readonly mayAllocate?: number
  /** Throws where something does not hold. */
  readonly check: (input: Buffer, random: Mutator) => void
}

let longestAllocation = 0

/** Notes the longest buffer that is asked for. */
const watchAllocations = (): (() => void) => {
  const { alloc, allocUnsafe, allocUnsafeSlow, concat } = Buffer
  const note = (length: number) => {
    if (length > longestAllocation) longestAllocation = length
  }
  Buffer.alloc = ((length: number, ...rest: []) => (note(length), alloc(length, ...rest))) as typeof alloc
  Buffer.allocUnsafe = (length) => (note(length), allocUnsafe(length))
  Buffer.allocUnsafeSlow = (length) => (note(length), allocUnsafeSlow(length))
  Buffer.concat = (...parts) => {
    const whole = concat(...parts)
    note(whole.length)
    return whole
  }
  return () => Object.assign(Buffer, { alloc, allocUnsafe, allocUnsafeSlow, concat })
}

/** Seconds pass only for this thread where the fuzzed one hangs: it says which seed and ends the process. */
const watchdog = `
  const { workerData: { beat, seed, limit } } = require("node:worker_threads")
  let last = -1
  setInterval(() => {
    const now = Atomics.load(beat, 0)
    if (now === last && now % 2 === 1) {
      require("node:fs").writeSync(2, "\\nfuzz: the input of seed " + Atomics.load(seed, 0) + " hangs\\n")
      process.kill(process.pid, "SIGKILL")
    }
    last = now
  }, limit)`

const beat = new Int32Array(new SharedArrayBuffer(4))
const seedNow = new Int32Array(new SharedArrayBuffer(4))

/** Odd while an input is run. */
const step = (seed: number): void => {
  Atomics.store(seedNow, 0, seed)
  Atomics.add(beat, 0, 1)
}

const stray: Array<unknown> = []
const onStray = (error: unknown): void => void stray.push(error)

/** To be called once by each file of fuzz tests: a hang, an unhandled rejection or exception of any input fails it. */
export const watch = (): void => {
  let worker: Worker | null = null
  let unwatchAllocations = () => {}
  beforeAll(() => {
    worker = new Worker(watchdog, { eval: true, workerData: { beat, seed: seedNow, limit: HANG_MS } })
    worker.unref()
    unwatchAllocations = watchAllocations()
    process.on("unhandledRejection", onStray)
    process.on("uncaughtException", onStray)
  })
  afterAll(async () => {
    // Rejections are told when the microtasks have run.
    await new Promise((resolve) => setImmediate(resolve))
    process.off("unhandledRejection", onStray)
    process.off("uncaughtException", onStray)
    unwatchAllocations()
    await worker?.terminate()
    if (stray.length > 0) throw new Error("unhandled", { cause: stray[0] })
  })
}

/** The seeds of a target: one where it is to be replayed. */
export const seedsOf = (count: number): Iterable<number> =>
  alone === undefined ? Array.from({ length: Math.ceil(count * factor) }, (_, index) => index + 1) : [Number(alone)]

/** Runs one seed's work, whose failure names the seed. */
export const underSeed = <A>(seed: number, work: () => A): A => {
  step(seed)
  try {
    return work()
  } catch (error) {
    throw new Error(`seed ${seed} (PERSEUS_SEED=${seed} replays it): ${String(error)}`, { cause: error })
  } finally {
    step(seed)
  }
}

const given: Record<Side, number> = { clients: 0, servers: 0, operators: 0 }

/** How many inputs the decoders of this file have been given that this side sends. */
export const inputsFrom = (side: Side): number => given[side]

/** One seed is replayed: what holds of many need not hold. */
export const isReplay = alone !== undefined

export const fuzz = ({ from, corpus, count, mayAllocate = FREE_ALLOCATION, check }: Target): void => {
  for (const seed of seedsOf(count)) {
    given[from]++
    underSeed(seed, () => {
      const random = new Mutator(seed)
      const input = random.input(corpus)
      longestAllocation = 0
      check(input, random)
      if (longestAllocation > mayAllocate + ALLOCATION_PER_BYTE * input.length) {
        throw new Error(`${longestAllocation} bytes were allocated for an input of ${input.length}`)
      }
    })
  }
}
