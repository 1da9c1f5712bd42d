/**
 * What a statement needs that only a connection of one's own can give, as far as its text shows: for `Pinning: "off"`, which
 * refuses it instead of losing it at the transaction's end.
 *
 * A text that hides it (in a function, in EXECUTE) is not recognized: what it makes is gone with the transaction. Pure.
 */
import type { Hold } from "../pool/Inspection.ts"
import { bare } from "./Traces.ts"

const start = String.raw`(?:^|;)\s*`

const needs: ReadonlyArray<readonly [Hold, RegExp]> = [
  ["LISTEN", new RegExp(`${start}listen[\\s"]`, "i")],
  ["cursor WITH HOLD", /\bdeclare\s[^;]*\swith\s+hold\b/i],
  ["PREPARE", new RegExp(`${start}prepare\\s+(?!transaction\\b)`, "i")],
  [
    "temporary object",
    /\bcreate\s+(?:or\s+replace\s+)?(?:(?:local|global)\s+)?temp(?:orary)?\s(?![^;]*\bon\s+commit\s+drop\b)|\bcreate\s[^;(]*\spg_temp\.|\binto\s+temp(?:orary)?\s/i
  ],
  ["advisory lock", /\bpg_(?:try_)?advisory_lock/i]
]

/** A look at all of these costs 0.3 µs. */
export const needsSession = (text: string): Hold | null => {
  const said = bare(text, "without literals")
  return needs.find(([, pattern]) => pattern.test(said))?.[0] ?? null
}
