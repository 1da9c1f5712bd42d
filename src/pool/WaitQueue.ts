/**
 * Whose turn it is: deficit round robin over tenants, first come first served within one.
 *
 * A tenant's visit is transactions run back to back on one connection, which saves tenant switches; then the next tenant has its
 * visit, however many clients the first one still has waiting. How long it lasts is said by `Visits`; here is known whether a
 * tenant waits that has had none for a round, for which it is cut short. So a quiet tenant waits for at most QUANTUM transactions
 * of each other tenant, never for a noisy one's whole queue.
 *
 * Intrusive lists: entering, leaving and the next turn cost the same with ten waiters and ten thousand, and a waiter that
 * has left is gone at once (a prototype that counted the dead refused idle connections and opened new ones for nobody).
 * No clock, no sockets, no Effect.
 */

/** Four switches of 40 µs against four transactions of 100 µs at the least: a switch costs under a tenth of its visit. */
export const QUANTUM = 4

/**
 * 250 clients of 50 tenants in bursts of 20 transactions over 20 connections: 0.24 switches a transaction with visits of 4, 0.06
 * with visits of 20 (and 0.05 with 40), and PostgreSQL's CPU and ours together 0.8 to 0.9 of what they were.
 */
export const LONG_QUANTUM = 20

/** Who has not waited for so long is away, however little was granted meanwhile. */
const AWAY_MS = 1000

/** One client that waits. Reused by its owner; in at most one queue at a time. */
export class Waiter<Owner, Client> {
  readonly client: Client
  lane: Lane<Owner, Client> | null = null
  /** Milliseconds of the clock when it began to wait. Kept when it goes back to the front. */
  since = 0
  next: Waiter<Owner, Client> | null = null
  previous: Waiter<Owner, Client> | null = null

  constructor(client: Client) {
    this.client = client
  }
}

/** One tenant's waiters, and its place among the tenants. */
export class Lane<Owner, Client> {
  readonly owner: Owner
  first: Waiter<Owner, Client> | null = null
  last: Waiter<Owner, Client> | null = null
  queue: WaitQueue<Owner, Client> | null = null
  /** What its queue had granted when it last had a visit. */
  visitedAt = 0
  /** When one of its clients last began to wait, milliseconds of the clock. */
  enteredAt = Number.NEGATIVE_INFINITY
  /** It waits, and has had no visit for a round. */
  fresh = false
  next: Lane<Owner, Client> | null = null
  previous: Lane<Owner, Client> | null = null

  constructor(owner: Owner) {
    this.owner = owner
  }
}

export class WaitQueue<Owner, Client> {
  #first: Lane<Owner, Client> | null = null
  #last: Lane<Owner, Client> | null = null
  #length = 0
  #lanes = 0
  #freshLanes = 0
  /** Transactions that it was whose turn. */
  #granted = 0

  /** Clients that wait now; those that left do not count. */
  get length(): number {
    return this.#length
  }

  enter(lane: Lane<Owner, Client>, waiter: Waiter<Owner, Client>, now: number): void {
    waiter.since = now
    waiter.lane = lane
    waiter.previous = lane.last
    if (lane.last === null) lane.first = waiter
    else lane.last.next = waiter
    lane.last = waiter
    this.#length++
    const away = now - lane.enteredAt
    lane.enteredAt = now
    if (lane.queue !== null) return
    // As long as a visit of each who waits, and of one more: a client that comes back at once has not been away.
    if (this.#granted - lane.visitedAt >= QUANTUM * (this.#lanes + 1) || away >= AWAY_MS) {
      lane.fresh = true
      this.#freshLanes++
    }
    this.#append(lane)
  }

  /** Back to where it was: first of its tenant, its tenant first of all, its waiting time kept. */
  enterFirst(lane: Lane<Owner, Client>, waiter: Waiter<Owner, Client>): void {
    waiter.lane = lane
    waiter.next = lane.first
    if (lane.first === null) lane.last = waiter
    else lane.first.previous = waiter
    lane.first = waiter
    this.#length++
    if (lane.queue !== null) this.#remove(lane)
    this.#prepend(lane)
  }

  leave(waiter: Waiter<Owner, Client>): void {
    const lane = waiter.lane
    if (lane === null) return
    if (waiter.previous === null) lane.first = waiter.next
    else waiter.previous.next = waiter.next
    if (waiter.next === null) lane.last = waiter.previous
    else waiter.next.previous = waiter.previous
    waiter.lane = null
    waiter.next = null
    waiter.previous = null
    this.#length--
    if (lane.first === null) this.#remove(lane)
  }

  /**
   * The first tenant in turn that `may` be served now; null if there is none. A tenant that may not (it has all the
   * connections that it is allowed) keeps its place.
   */
  peek(may: (lane: Lane<Owner, Client>) => boolean): Lane<Owner, Client> | null {
    for (let lane = this.#first; lane !== null; lane = lane.next) if (may(lane)) return lane
    return null
  }

  /** Takes the first waiter of `lane`. The lane's place is not changed: see `endTurn`. */
  take(lane: Lane<Owner, Client>): Waiter<Owner, Client> | null {
    const waiter = lane.first
    if (waiter === null) return null
    this.#granted++
    this.visited(lane)
    this.leave(waiter)
    return waiter
  }

  /** The lane has had its visit begun: it goes behind all others. */
  endTurn(lane: Lane<Owner, Client>): void {
    this.visited(lane)
    if (lane.queue === null || this.#last === lane) return
    this.#remove(lane)
    this.#append(lane)
  }

  /** It has been the lane's turn until now. */
  visited(lane: Lane<Owner, Client>): void {
    lane.visitedAt = this.#granted
    if (!lane.fresh) return
    lane.fresh = false
    this.#freshLanes--
  }

  /** One waits who has had no visit for a round. */
  get somebodyIsFresh(): boolean {
    return this.#freshLanes > 0
  }

  /** When the one who waits longest began to wait; null if nobody waits. Tenants are few, so they are looked through. */
  oldest(): number | null {
    let oldest: number | null = null
    for (let lane = this.#first; lane !== null; lane = lane.next) {
      if (oldest === null || lane.first!.since < oldest) oldest = lane.first!.since
    }
    return oldest
  }

  /** Takes all that wait since `limit` or longer. */
  takeOlderThan(limit: number): ReadonlyArray<Waiter<Owner, Client>> {
    const taken: Array<Waiter<Owner, Client>> = []
    let lane = this.#first
    while (lane !== null) {
      const next = lane.next
      while (lane.first !== null && lane.first.since <= limit) {
        taken.push(lane.first)
        this.leave(lane.first)
      }
      lane = next
    }
    return taken
  }

  #append(lane: Lane<Owner, Client>): void {
    this.#lanes++
    lane.queue = this
    lane.previous = this.#last
    lane.next = null
    if (this.#last === null) this.#first = lane
    else this.#last.next = lane
    this.#last = lane
  }

  #prepend(lane: Lane<Owner, Client>): void {
    this.#lanes++
    lane.queue = this
    lane.next = this.#first
    lane.previous = null
    if (this.#first === null) this.#last = lane
    else this.#first.previous = lane
    this.#first = lane
  }

  #remove(lane: Lane<Owner, Client>): void {
    if (lane.previous === null) this.#first = lane.next
    else lane.previous.next = lane.next
    if (lane.next === null) this.#last = lane.previous
    else lane.next.previous = lane.previous
    this.#lanes--
    if (lane.fresh) {
      lane.fresh = false
      this.#freshLanes--
    }
    lane.queue = null
    lane.next = null
    lane.previous = null
  }
}
