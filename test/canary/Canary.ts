/**
 * Many clients of many tenants on few connections, each of which says the same words as all others and looks whether the rows
 * that it gets are its own tenant's. What each does next is by chance, from a seed; how they meet is up to the machine.
 *
 * It judges nothing: it counts, and writes down what should not have been.
 */
import { seeded, type Chance } from "../support/random.ts"
import {
  bind,
  closeStatement,
  copyData,
  copyDone,
  execute,
  flush,
  parse,
  query,
  sync,
  type Address,
  type CancelKey
} from "../support/rawClient.ts"
import { cancel, CanaryClient, type Answer } from "./CanaryClient.ts"

export interface CanaryTenant {
  /** Also its schema's name. */
  readonly mark: string
  readonly startup: Readonly<Record<string, string>>
  readonly password: string
}

export interface Options {
  readonly address: Address
  readonly tenants: ReadonlyArray<CanaryTenant>
  readonly clients: number
  /** Ends when there have been as many, or at the first wrong mark. Also when too much else goes wrong. */
  readonly transactions: number
  readonly seed: number
}

export interface Tally {
  transactions: number
  rows: number
  logins: number
  /** In the midst of its life, most often of an answer or a transaction. */
  disconnects: number
  cancels: number
  /** Queries that a cancel of their own client ended. */
  cancelled: number
  readonly wrongMarks: Array<string>
  /** Errors, rows too many or too few, ends of connections: whatever nobody had asked for. */
  readonly unexpected: Array<string>
  /** By what they do, for those that have not come to an end. */
  readonly busy: Map<number, string>
}

export const newTally = (): Tally => ({
  transactions: 0,
  rows: 0,
  logins: 0,
  disconnects: 0,
  cancels: 0,
  cancelled: 0,
  wrongMarks: [],
  unexpected: [],
  busy: new Map()
})

/** In every tenant's schema; `canary` has as many rows with its mark. */
const ROWS = 3
export const tablesOf = ({ mark }: CanaryTenant): string => `
  CREATE TABLE "${mark}".canary AS SELECT '${mark}' AS mark FROM generate_series(1, ${ROWS});
  CREATE TABLE "${mark}".visit (mark text);`

// ---- what all of them say, letter by letter the same

const READ = "SELECT mark, current_setting('canary.mark', true) FROM canary"
const WRITE = "INSERT INTO visit VALUES ($1) RETURNING mark"
const read = query(READ)
const run = Buffer.concat([bind("", ""), execute()])
const readUnnamed = Buffer.concat([parse("", READ), run])
const readNamed = Buffer.concat([bind("", "read"), execute()])
const parseNamed = parse("read", READ)
/** Its rows in two goes. */
const readInPortions = Buffer.concat([bind("rows", "read"), execute("rows", 1), execute("rows")])

// ---- one of them

type Deed = (canary: Canary) => Promise<void>

class Canary {
  readonly chance: Chance
  readonly tenant: CanaryTenant
  readonly #address: Address
  readonly #tally: Tally
  readonly #finished: Array<CancelKey>
  #client: CanaryClient | null = null
  /** Whether this client's statement "read" is prepared; in doubt when a cancel may have come before the Parse. */
  #named: "absent" | "there" | "in doubt" = "absent"

  constructor(
    { address, seed }: Options,
    index: number,
    tenant: CanaryTenant,
    tally: Tally,
    finished: Array<CancelKey>
  ) {
    this.chance = seeded(seed * 1_000_003 + index)
    this.tenant = tenant
    this.#address = address
    this.#tally = tally
    this.#finished = finished
  }

  async client(): Promise<CanaryClient> {
    if (this.#client !== null) return this.#client
    const { mark, startup, password } = this.tenant
    this.#client = await CanaryClient.logIn(this.#address, startup, password, {
      mark,
      onWrongMark: (found) => this.#tally.wrongMarks.push(`${mark} was shown ${JSON.stringify(found)}`),
      onTransactionEnd: () => this.#tally.transactions++
    })
    this.#tally.logins++
    return this.#client
  }

  /** What should come back: as many rows, and these errors. */
  async say(bytes: Buffer, rows: number, readyForQueries = 1, sqlState?: string): Promise<void> {
    this.check(await (await this.client()).exchange(bytes, "Z", readyForQueries), rows, sqlState)
  }

  check(answer: Answer, rows: number, sqlState?: string): void {
    this.#tally.rows += answer.rows
    const expected = sqlState ?? ""
    if (answer.rows !== rows || answer.sqlStates.join() !== expected) {
      throw new Error(`${answer.rows} rows for ${rows}, error ${answer.sqlStates.join()} for ${expected}`)
    }
  }

  /** The statement "read", prepared where this client has not done so. */
  named(): Buffer {
    const before = this.#named
    this.#named = "there"
    if (before === "there") return Buffer.alloc(0)
    return before === "absent" ? parseNamed : Buffer.concat([closeStatement("read"), parseNamed])
  }

  namedAgain(): Buffer {
    this.#named = "in doubt"
    return this.named()
  }

  /** Some turns of the event loop: from before anything was written to after it was answered. */
  async turns(): Promise<void> {
    for (let turns = this.chance.below(40); turns > 0; turns--) await new Promise(setImmediate)
  }

  /** Its own query, at some moment between before it began and after its end. */
  async sayAndCancel(bytes: Buffer, rows: number): Promise<void> {
    const client = await this.client()
    const answering = client.exchange(bytes)
    await this.turns()
    const [answer] = await Promise.all([answering, cancel(this.#address, client.key)])
    this.#tally.cancels++
    if (answer.sqlStates.join() !== "57014") return this.check(answer, rows)
    this.#tally.cancelled++
    this.#named = "in doubt"
    this.#tally.rows += answer.rows
  }

  /** With the key of a session that is over. It hits nobody: who did not ask for it would be surprised by a 57014. */
  async cancelInVain(): Promise<void> {
    if (this.#finished.length === 0) return
    this.#tally.cancels++
    await cancel(this.#address, this.chance.pick(this.#finished))
  }

  vanish(): void {
    if (this.#client === null) return
    this.#finished.push(this.#client.key)
    this.leave()
    this.#tally.disconnects++
  }

  leave(): void {
    this.#client?.vanish()
    this.#client = null
    this.#named = "absent"
  }
}

// ---- what they do

const insert = (mark: string): Buffer => Buffer.concat([parse("", WRITE), bind("", "", mark), execute()])
const begin = query("BEGIN")
const commit = query("COMMIT")
const rollback = query("ROLLBACK")

const deeds: ReadonlyArray<readonly [weight: number, name: string, deed: Deed]> = [
  [80, "a simple query", (canary) => canary.say(read, ROWS)],
  [24, "two statements in one simple query", (canary) => canary.say(query(`${READ}; ${READ}`), 2 * ROWS)],
  [60, "unnamed statement", (canary) => canary.say(Buffer.concat([readUnnamed, sync]), ROWS)],
  [80, "named statement", (canary) => canary.say(Buffer.concat([canary.named(), readNamed, sync]), ROWS)],
  [
    8,
    "named statement, prepared again",
    (canary) => canary.say(Buffer.concat([canary.namedAgain(), readNamed, sync]), ROWS)
  ],
  [14, "a portal in two goes", (canary) => canary.say(Buffer.concat([canary.named(), readInPortions, sync]), ROWS)],
  [
    30,
    "a pipeline",
    (canary) => {
      const batches = 2 + canary.chance.below(5)
      const each = Array.from({ length: batches }, () =>
        canary.chance.chance(0.5) ? readUnnamed : Buffer.concat([canary.named(), readNamed])
      )
      return canary.say(Buffer.concat(each.flatMap((batch) => [batch, sync])), batches * ROWS, batches)
    }
  ],
  [
    16,
    "one batch of several statements",
    (canary) =>
      canary.say(
        Buffer.concat([readUnnamed, insert(canary.tenant.mark), canary.named(), readNamed, sync]),
        2 * ROWS + 1
      )
  ],
  [
    20,
    "Parse, and Bind in a later batch",
    async (canary) => {
      await canary.say(Buffer.concat([parse("", READ), sync]), 0)
      await canary.say(Buffer.concat([run, sync]), ROWS)
    }
  ],
  [
    16,
    "Flush",
    async (canary) => {
      const client = await canary.client()
      canary.check(await client.exchange(Buffer.concat([readUnnamed, flush]), "CE"), ROWS)
      await canary.say(sync, 0)
    }
  ],
  [
    24,
    "a transaction",
    async (canary) => {
      await canary.say(begin, 0)
      await canary.say(read, ROWS)
      await canary.say(Buffer.concat([insert(canary.tenant.mark), sync]), 1)
      if (canary.chance.chance(0.3)) await canary.say(Buffer.concat([canary.named(), readNamed, sync]), ROWS)
      await canary.say(canary.chance.chance(0.5) ? commit : rollback, 0)
    }
  ],
  [
    8,
    "a transaction that fails",
    async (canary) => {
      await canary.say(query("BEGIN; SELECT mark::int FROM canary"), 0, 1, "22P02")
      await canary.say(read, 0, 1, "25P02")
      await canary.say(rollback, 0)
    }
  ],
  [4, "an error", (canary) => canary.say(Buffer.concat([parse("", "SELECT 1/0"), run, sync]), 0, 1, "22012")],
  [6, "COPY TO", (canary) => canary.say(query("COPY canary TO STDOUT"), ROWS)],
  [
    6,
    "COPY FROM",
    async (canary) => {
      const client = await canary.client()
      canary.check(await client.exchange(query("COPY visit FROM STDIN"), "GE"), 0)
      await canary.say(Buffer.concat([copyData(`${canary.tenant.mark}\n`), copyDone]), 0)
    }
  ],
  [6, "a setting", (canary) => canary.say(query(`SET canary.mark = '${canary.tenant.mark}'`), 0)],
  [
    4,
    "a setting from inside a function",
    (canary) => canary.say(query(`SELECT set_config('canary.mark', mark, false) FROM canary`), ROWS)
  ],
  [
    2,
    "a temporary table that hides the tenant's own, and leaving it behind",
    async (canary) => {
      await canary.say(query("CREATE TEMP TABLE IF NOT EXISTS canary AS SELECT mark FROM canary"), 0)
      await canary.say(query("SELECT mark FROM canary"), ROWS)
      canary.vanish()
    }
  ],
  [6, "a cancelled query", (canary) => canary.sayAndCancel(query("SELECT mark, pg_sleep(0.002) FROM canary"), ROWS)],
  [
    3,
    "a cancelled batch",
    (canary) => canary.sayAndCancel(Buffer.concat([canary.named(), readNamed, readUnnamed, sync]), 2 * ROWS)
  ],
  [2, "a cancel with a dead key", (canary) => canary.cancelInVain()],
  [2, "leaving", async (canary) => canary.vanish()],
  [
    2,
    "leaving in the middle of an answer",
    async (canary) => {
      const client = await canary.client()
      client.send(
        canary.chance.pick([read, query(`${READ}; SELECT pg_sleep(0.002)`), Buffer.concat([readUnnamed, sync])])
      )
      await canary.turns()
      canary.vanish()
    }
  ],
  [
    1,
    "leaving in a transaction",
    async (canary) => {
      await canary.say(query(`BEGIN; ${READ}`), ROWS)
      canary.vanish()
    }
  ]
]

/** Each deed as often as its weight says. */
const lots = deeds.flatMap((deed) => Array.from({ length: deed[0] }, () => deed))

/** More only repeat what the first of them say. */
const MAX_UNEXPECTED = 100

export const release = async (options: Options, tally: Tally, signal: AbortSignal): Promise<void> => {
  const finished: Array<CancelKey> = []
  const goesOn = () =>
    tally.transactions < options.transactions &&
    tally.wrongMarks.length === 0 &&
    tally.unexpected.length < MAX_UNEXPECTED &&
    !signal.aborted
  const live = async (index: number): Promise<void> => {
    const tenant = options.tenants[index % options.tenants.length]!
    const canary = new Canary(options, index, tenant, tally, finished)
    while (goesOn()) {
      const [, name, deed] = canary.chance.pick(lots)
      tally.busy.set(index, name)
      try {
        await deed(canary)
      } catch (error) {
        tally.unexpected.push(`${tenant.mark}, ${name}: ${String(error)}`)
        canary.vanish()
      }
    }
    tally.busy.delete(index)
    canary.leave()
  }
  await Promise.all(Array.from({ length: options.clients }, (_, index) => live(index)))
}
