/**
 * What a CommandComplete tells of the session's state. A tag that is not known to leave the state as it was is a trace: the
 * server is asked what has changed.
 *
 * Reads the first bytes of the tag where they lie; pure.
 */
const harmlessTags = [
  "SELECT",
  "INSERT",
  "UPDATE",
  "DELETE",
  "MERGE",
  "BEGIN",
  "START TRANSACTION",
  "COMMIT",
  "ROLLBACK",
  "SAVEPOINT",
  "RELEASE",
  "COPY",
  "FETCH",
  "MOVE",
  "EXPLAIN",
  "SHOW",
  "VACUUM",
  "ANALYZE",
  "NOTIFY",
  "LOCK TABLE",
  "TRUNCATE TABLE"
]

export type CommandTag = 0 | 1 | 2 | 3 | 4

/** The first three letters tell all of them from RESET, PREPARE, LISTEN, DECLARE, CREATE … */
const threeLetters = (bytes: Uint8Array, at: number): number =>
  (bytes[at]! << 16) | (bytes[at + 1]! << 8) | bytes[at + 2]!

const kinds = new Map<number, CommandTag>([
  ...harmlessTags.map((tag): [number, CommandTag] => [threeLetters(Buffer.from(tag), 0), 0]),
  [threeLetters(Buffer.from("SET"), 0), 1],
  [threeLetters(Buffer.from("RESET"), 0), 2],
  [threeLetters(Buffer.from("DISCARD"), 0), 3],
  [threeLetters(Buffer.from("DO\0"), 0), 3],
  [threeLetters(Buffer.from("CALL"), 0), 3]
])

const dropsStatements = ["DISCARD ALL\0", "DEALLOCATE ALL\0"].map((tag) => Buffer.from(tag))

export const CommandTags = {
  harmless: 0,
  /** SET in all its forms. */
  set: 1,
  reset: 2,
  /** DISCARD, or code of the client's ran, which may have done anything. */
  anything: 3,
  /** It may have left something other than a setting: LISTEN, DECLARE, CREATE … */
  other: 4,
  /** What the tag at `from` (its NUL before `end`) says. */
  read: (bytes: Uint8Array, from: number, end: number): CommandTag =>
    end - from < 3 ? 3 : (kinds.get(threeLetters(bytes, from)) ?? 4),
  /** All prepared statements are gone. */
  dropsStatements: (bytes: Buffer, from: number, end: number): boolean => {
    const tag = bytes.subarray(from, end)
    return dropsStatements.some((known) => known.equals(tag))
  }
} as const
