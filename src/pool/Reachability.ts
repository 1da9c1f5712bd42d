/**
 * Whether a destination can be dialled now, and whether waiting for it makes sense: what failed connects have taught.
 *
 * Two kinds of failure, kept apart. One that only an operator can mend (wrong password, no such database) concerns one
 * credential, and its waiters are told at once. One that may pass (down, starting, full) concerns the destination: clients wait
 * through it for as long as a connect may take, so that a restart fails only the transactions in flight; after that they are
 * told at once. Pauses between attempts grow, and during an outage there is one attempt at a time. Pure bookkeeping.
 */
import type { DestinationUnreachable } from "../errors.ts"

const BACKOFF_FIRST_MS = 100
const BACKOFF_LONGEST_MS = 5_000

const backoff = (failures: number): number => Math.min(BACKOFF_FIRST_MS * 2 ** (failures - 1), BACKOFF_LONGEST_MS)

/** A credential that was refused: until when it is not tried again, and what is said meanwhile. */
export interface Refusal {
  readonly fault: DestinationUnreachable
  readonly failures: number
  readonly until: number
}

export const refusedAgain = (before: Refusal | null, fault: DestinationUnreachable, now: number): Refusal => {
  const failures = (before?.failures ?? 0) + 1
  return { fault, failures, until: now + backoff(failures) }
}

interface Outage {
  readonly since: number
  readonly failures: number
  readonly retryAt: number
  readonly fault: DestinationUnreachable
}

export class Reachability {
  #outage: Outage | null = null
  #everReached = false

  /** Whether the destination has just come back. */
  reached(): boolean {
    const back = this.#outage !== null
    this.#outage = null
    this.#everReached = true
    return back
  }

  /** The attempt that began at `startedAt` has failed. The last one within `patience` is at its very end. */
  failed(fault: DestinationUnreachable, startedAt: number, now: number, patience: number): void {
    const before = this.#outage
    const failures = (before?.failures ?? 0) + 1
    // A destination that never answered is a wrong name, not one that restarts: nobody waits for it.
    const since = before?.since ?? (this.#everReached ? startedAt : Number.NEGATIVE_INFINITY)
    const next = now + backoff(failures)
    const lastChance = since + patience
    this.#outage = { since, failures, retryAt: now < lastChance ? Math.min(next, lastChance) : next, fault }
  }

  /** `dialling`: attempts under way. */
  mayDial(now: number, dialling: number): boolean {
    return this.#outage === null || (now >= this.#outage.retryAt && dialling === 0)
  }

  /** What to answer those who would wait, where no attempt is due and the outage has lasted for `patience` ms. */
  inVain(now: number, dialling: number, patience: number): DestinationUnreachable | null {
    const outage = this.#outage
    return outage === null || this.mayDial(now, dialling) || now - outage.since < patience ? null : outage.fault
  }

  /** Why those who have waited too long had to. */
  get fault(): DestinationUnreachable | null {
    return this.#outage?.fault ?? null
  }
}
