/**
 * A group's idle connections, the longest idle first.
 *
 * An intrusive list: a connection comes here and goes with every transaction. A Set did the same until the profile showed what it
 * costs: 0.4 µs of a transaction for its tables, which it makes anew again and again, and 1 µs for the collection of garbage, for
 * each table that has had its day holds on to the next. No clock, no sockets: Connections says what is idle.
 */

/** What can be in one such list at a time. The list alone changes these. */
export interface Idler<A> {
  longerIdle: A | null
  shorterIdle: A | null
}

export class IdleList<A extends Idler<A>> {
  #longest: A | null = null
  #shortest: A | null = null

  get longest(): A | null {
    return this.#longest
  }

  /** It is in no list. */
  add(idler: A): void {
    idler.longerIdle = this.#shortest
    if (this.#shortest === null) this.#longest = idler
    else this.#shortest.shorterIdle = idler
    this.#shortest = idler
  }

  /** It is in this list. */
  remove(idler: A): void {
    const { longerIdle, shorterIdle } = idler
    if (longerIdle === null) this.#longest = shorterIdle
    else longerIdle.shorterIdle = shorterIdle
    if (shorterIdle === null) this.#shortest = longerIdle
    else shorterIdle.longerIdle = longerIdle
    idler.longerIdle = null
    idler.shorterIdle = null
  }
}
