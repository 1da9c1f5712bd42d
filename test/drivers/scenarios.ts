/**
 * What every driver is asked to do, and the one answer that is right: the same for all drivers, directly and pooled.
 *
 * A driver's program does its scenarios and says, in JSON, what came of each. Values stand there as PostgreSQL writes them
 * where JSON has no such type, errors as their SQLSTATE. A driver need not know every scenario; which ones it does stands in its
 * test, so that none is dropped unseen.
 */
import { createHash } from "node:crypto"

/** `statements`: of so many clients at once, each so many transactions, with three statements of its own by turns. */
export const CLIENTS = 4
export const ROUNDS = 30

/** 5 MB, which drivers, PostgreSQL and the pooler all take in many pieces. */
export const largeText = "0123456789".repeat(524_288)

const sumOf = (client: number): number => {
  let sum = 0
  for (let round = 0; round < ROUNDS; round++) sum += round * 10 ** (round % 3) + client
  return sum
}

const sums = Array.from({ length: CLIENTS }, (_, client) => sumOf(client))
export const digestOf = (value: string): string => createHash("md5").update(value).digest("hex")

const largeDigest = digestOf(largeText)

const copiedOut = ["1\tr1", "2\tr2", "3\tr3"]

export const expected = {
  /** The schema that a fresh connection is in, and whether it finds a table that is in that schema alone. */
  connect: { schema: "red", home: "the red house" },
  /** Other ways to name the schema that the driver has: the schema that each led to. */
  "connect otherwise": "red",
  reconnect: ["red", "red", "red", "red", "red"],
  /** Startup parameters, in three transactions. */
  settings: Array.from({ length: 3 }, () => ({
    application_name: "drivers",
    TimeZone: "Asia/Tokyo",
    DateStyle: "ISO, DMY",
    text: "2026-02-03 13:05:06+09"
  })),
  /** Set for the session by the driver's own method: of two transactions. */
  isolation: ["serializable", "serializable"],
  /** Parameters that come back as results. */
  types: {
    int8: "9223372036854775807",
    numeric: "12345678901234567890.0123456789",
    timestamptz: "2026-02-03T04:05:06.789Z",
    bytea: "00ff5c27",
    ints: [1, null, 3],
    texts: ['a"b', "c,d", "", null],
    json: { a: [1, { b: null }] },
    nothing: null,
    text: "Grüße, 𝄞 und 日本"
  },
  /** An enumeration of the tenant's own, which some drivers look up in the catalog. */
  "own types": ["happy", ["sad", "happy"]],
  errors: { syntax: "42601", division: "22012", table: "42P01", unique: "23505", constraint: "errors_pkey" },
  /** The rows that are there after a commit, after a rollback, and after a rollback to a savepoint. */
  transactions: { committed: [1], rolledBack: [1], savepoint: [1, 3, 5] },
  "failed transaction": { error: "23505", within: "25P02", after: [7] },
  /** A failed transaction that goes on, from a savepoint that the driver set unasked. */
  "errors forgiven": { error: "23505", after: [1, 2] },
  introspection: { columns: ["id int4", "name text"], keys: ["id"], valid: true },
  statements: sums,
  /** A query builder's own statement, used again and again. */
  "prepared by name": [1, 2, 3, 1, 2, 3].map((id) => ({ note: { id } })),
  /** As `statements`, by clients that keep two statements prepared and close the one used longest ago. */
  "few statements kept": sums,
  /** As `statements`, by a pool of the driver's own. */
  pool: sums,
  /** 1000 rows in portions within a transaction, with another statement between two portions. */
  cursor: { rows: 1000, sum: 500_500, between: 10 },
  /** As `cursor`, with nothing between: for drivers whose connection does nothing else meanwhile. */
  "streamed rows": { rows: 1000, sum: 500_500 },
  /** Many rows at once; then again with one that is refused, which takes the others with it. */
  batch: { rows: 500, sum: 125_250, error: "23505", left: 500 },
  "copy in and out": { rows: 1000, out: copiedOut },
  /** Besides, copies that the server refuses in the middle, that the client gives up, and that break off on their way out. */
  copy: {
    rows: 1000,
    out: copiedOut,
    refused: "22P02",
    abandoned: "57014",
    brokenOff: "22012",
    left: 1000
  },
  /** Statements in one go, up to one Sync; then some with one in the middle that fails, which takes all behind it along. */
  pipeline: { results: [1, 2, 3], failing: [1, "22012", "skipped"], after: 5 },
  /** As `statements`, all sent before an answer is read. */
  "pipelines of several clients": sums,
  /** Statements that are sent without waiting, each with a Sync of its own: one that fails takes no other along. */
  "without waiting": [1, "22012", 3, 4],
  cancel: { error: "57014", after: 1 },
  /** A statement that the driver lets go, and has cancelled: it does not run on. */
  "given up": { gaveUp: true, after: 1, running: 0 },
  /** A limit that PostgreSQL keeps, since the client said so at startup. */
  statement_timeout: { error: "57014", after: 1 },
  /** A limit that the driver itself keeps, with a cancel request. */
  "query timeout": { error: "57014", after: 1 },
  large: { sent: largeDigest, received: largeDigest },
  /** Its size, and ten bytes of it. */
  "large object": { size: 10_000, read: "0123456789" },
  "many rows": { rows: 100_000, sum: 5_000_050_000 },
  /** Several statements in one Query; then some of which one fails, which undoes the others. */
  "several statements": { rows: 2, error: "22012", left: 2 },
  "empty query": 1,
  notices: ["first", "second"]
} as const

/** The parameters of `types`, as far as JavaScript has them. */
export const parameters = {
  ...expected.types,
  timestamptz: new Date(expected.types.timestamptz),
  bytea: Buffer.from(expected.types.bytea, "hex")
} as const

/** What `settings` asks. */
export const settings = `SELECT current_setting('application_name') AS application_name,
  current_setting('TimeZone') AS "TimeZone", current_setting('DateStyle') AS "DateStyle",
  '2026-02-03 04:05:06Z'::timestamptz::text AS text`

/** What `statements` sends: a client's own, of which there are three. */
export const statement = (client: number, round: number): string =>
  `SELECT $1::int * ${10 ** (round % 3)} + ${client} AS n`

/** All clients at once, each doing its rounds one after the other. */
export const sumsOf = (roundOf: (client: number) => Promise<(round: number) => Promise<number>>) =>
  Promise.all(
    sums.map(async (_, client) => {
      const play = await roundOf(client)
      let sum = 0
      for (let round = 0; round < ROUNDS; round++) sum += await play(round)
      return sum
    })
  )

export type Scenario = keyof typeof expected

/** What came of each scenario, by its name. */
export type Transcript = Readonly<Record<string, unknown>>
