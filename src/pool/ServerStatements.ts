/**
 * The prepared statements of one server connection: by what they say, the names that they have there, and which were not used
 * of late.
 *
 * Those go first, by second chance: to use one is to mark it, and who looks for room takes the first without a mark and takes
 * the marks off the others that it meets. In order of their last use they would have to be put anew with each use, and V8's Map
 * then makes a table each so often that holds on to the next: 5 MB a second that only a collection of all the memory is rid of.
 * Bookkeeping alone: what is sent is PreparedStatements'.
 */

interface ServerStatement {
  readonly name: string
  usedOfLate: boolean
}

export class ServerStatements {
  readonly #byKey = new Map<string, ServerStatement>()
  /** Names there whose plans a change of the schema has broken, or of which nobody knows whether they are there: to be closed. */
  readonly broken: Array<string> = []

  get size(): number {
    return this.#byKey.size
  }

  get names(): ReadonlyArray<string> {
    return Array.from(this.#byKey.values(), ({ name }) => name)
  }

  nameOf(key: string): string | undefined {
    return this.#byKey.get(key)?.name
  }

  /** As `nameOf`; it is used now. */
  use(key: string): string | undefined {
    const statement = this.#byKey.get(key)
    if (statement === undefined) return undefined
    statement.usedOfLate = true
    return statement.name
  }

  add(key: string, name: string): void {
    this.#byKey.set(key, { name, usedOfLate: false })
  }

  delete(key: string): void {
    this.#byKey.delete(key)
  }

  /** Takes out `count`, or as many as `mayGo`: those that were not used of late, and the others only when there are no more. */
  takeUnused(count: number, mayGo: (key: string) => boolean): ReadonlyArray<readonly [key: string, name: string]> {
    const taken: Array<readonly [string, string]> = []
    // What is put behind the others is met once more, without its mark.
    for (const [key, statement] of this.#byKey) {
      if (taken.length >= count) break
      if (!mayGo(key)) continue
      this.#byKey.delete(key)
      if (statement.usedOfLate) this.add(key, statement.name)
      else taken.push([key, statement.name])
    }
    return taken
  }

  /** However often they are prepared anew under their names, the plans stay broken. */
  breakAll(): void {
    this.broken.push(...this.names)
    this.clear()
  }

  /** None is there any more by its key; what is to be closed still is. */
  clear(): void {
    this.#byKey.clear()
  }
}
