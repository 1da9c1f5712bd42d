/**
 * What all parts of one pool share: where it leads, the settings in force, the clock, the counts, and the way to run an Effect
 * in the pool's scope. Decides nothing. The Pool alone changes it; the others read, and count what they do.
 */
import type * as Clock from "effect/Clock"
import type * as Effect from "effect/Effect"
import type { TlsToServers } from "../config/LiveTls.ts"
import type { LimitSettings, PoolSettings, ServerSettings } from "../config/PerseusConfig.ts"
import type { Network } from "../net/Network.ts"
import { PoolStatistics } from "./PoolStatistics.ts"
import type { Target } from "./ServerLogin.ts"

export interface Destination extends Target {
  /** As the row spells it: the metrics' `dest_host`. */
  readonly label: string
}

export interface PoolLimits {
  readonly pool: PoolSettings
  readonly limits: LimitSettings
  readonly server: ServerSettings
}

/** How late a timeout may be; one that counts from when a connection became idle, twice as much. */
export const SWEEP_PERIOD_MS = 100

export class PoolContext {
  readonly destination: Destination
  readonly statistics = new PoolStatistics()
  readonly network: Network["Service"]
  readonly tls: () => TlsToServers
  /** Runs it until the pool's end, which interrupts it. */
  readonly fork: (effect: Effect.Effect<void>) => void
  readonly #clock: Clock.Clock
  settings: PoolSettings
  limits: LimitSettings
  server: ServerSettings
  /** The pool is at its end: nobody is lent anything, nothing is opened. */
  closing = false
  /**
   * When the last sweep was, or the end of a rest, on the clock's milliseconds. Where a sweep's period more does not matter this is what time it is: to
   * look at the clock is a call out of compiled code, 0.2 µs of a transaction.
   */
  sweptAt: number

  constructor(
    destination: Destination,
    limits: PoolLimits,
    network: Network["Service"],
    tls: () => TlsToServers,
    clock: Clock.Clock,
    fork: (effect: Effect.Effect<void>) => void
  ) {
    this.destination = destination
    this.network = network
    this.tls = tls
    this.fork = fork
    this.#clock = clock
    this.settings = limits.pool
    this.limits = limits.limits
    this.server = limits.server
    this.sweptAt = this.now()
  }

  get name(): string {
    return `${this.destination.label}/${this.destination.database}`
  }

  now(): number {
    return this.#clock.currentTimeMillisUnsafe()
  }

  /** For spans of time: milliseconds with their fractions, of a clock that nobody sets. Dearer than `now`. */
  preciseNow(): number {
    return Number(this.#clock.monotonicTimeNanosUnsafe()) / 1e6
  }
}
