/**
 * The simulation's time and chance: one seeded source of randomness decides what happens next among all that could (a fiber
 * runs, a chunk arrives, a client acts), and time passes only when the world says so.
 *
 * Nothing here waits for anything real, so a run is a few milliseconds, and the same seed is the same run.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as References from "effect/References"
import * as Scheduler from "effect/Scheduler"

/** Numbers from 0 to 1 that depend on the seed alone (mulberry32). */
export const random = (seed: number): (() => number) => {
  let state = seed >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000
  }
}

interface Sleeper {
  readonly at: number
  readonly order: number
  readonly wake: () => void
}

export class World {
  readonly random: () => number
  now = 1_700_000_000_000
  readonly #ready: Array<() => void> = []
  #sleepers: Array<Sleeper> = []
  #order = 0

  constructor(seed: number) {
    this.random = random(seed)
  }

  below(limit: number): number {
    return Math.floor(this.random() * limit)
  }

  chance(probability: number): boolean {
    return this.random() < probability
  }

  pick<A>(choices: ReadonlyArray<A>): A {
    return choices[this.below(choices.length)]!
  }

  /** Something that may happen from now on, in any order with all else that may. */
  readonly schedule = (task: () => void): void => {
    this.#ready.push(task)
  }

  /** Something that happens when this much time has passed. */
  later(millis: number, task: () => void): void {
    this.#sleepers.push({ at: this.now + millis, order: this.#order++, wake: task })
  }

  readonly scheduler: Scheduler.Scheduler = new Scheduler.MixedScheduler("async", (task) => {
    let cancelled = false
    this.#ready.push(() => {
      if (!cancelled) task()
    })
    return () => {
      cancelled = true
    }
  })

  readonly clock: Clock.Clock = {
    currentTimeMillisUnsafe: () => this.now,
    currentTimeMillis: Effect.sync(() => this.now),
    currentTimeNanosUnsafe: () => BigInt(this.now) * 1_000_000n,
    currentTimeNanos: Effect.sync(() => BigInt(this.now) * 1_000_000n),
    monotonicTimeNanosUnsafe: () => BigInt(this.now) * 1_000_000n,
    monotonicTimeNanos: Effect.sync(() => BigInt(this.now) * 1_000_000n),
    sleep: (duration) =>
      Effect.callback<void>((resume) => {
        const sleeper: Sleeper = {
          at: this.now + Duration.toMillis(duration),
          order: this.#order++,
          wake: () => resume(Effect.void)
        }
        this.#sleepers.push(sleeper)
        return Effect.sync(() => {
          this.#sleepers = this.#sleepers.filter((other) => other !== sleeper)
        })
      })
  }

  /** Makes one thing happen that may; false where nothing may but time may pass. */
  step(): boolean {
    if (this.#ready.length === 0) return false
    const index = this.below(this.#ready.length)
    const task = this.#ready[index]!
    this.#ready[index] = this.#ready[this.#ready.length - 1]!
    this.#ready.pop()
    task()
    return true
  }

  /** All that may happen without time passing. */
  settle(limit = 100_000): void {
    for (let steps = 0; this.step(); steps++) {
      if (steps > limit) throw new Error("the world does not come to rest: something reschedules itself for ever")
    }
  }

  /** Time passes; whoever slept until then wakes in order. */
  pass(millis: number): void {
    const until = this.now + millis
    while (true) {
      let next: Sleeper | null = null
      for (const sleeper of this.#sleepers) {
        if (
          sleeper.at <= until &&
          (next === null || sleeper.at < next.at || (sleeper.at === next.at && sleeper.order < next.order))
        ) {
          next = sleeper
        }
      }
      if (next === null) break
      const due = next
      this.#sleepers = this.#sleepers.filter((other) => other !== due)
      this.now = Math.max(this.now, due.at)
      due.wake()
      this.settle()
    }
    this.now = until
  }

  /** As long as the simulation runs, every effect lives in this world. */
  provide<A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> {
    return effect.pipe(
      Effect.provideService(Clock.Clock, this.clock),
      Effect.provideService(Scheduler.Scheduler, this.scheduler),
      Effect.provideService(References.MinimumLogLevel, "None")
    )
  }
}
