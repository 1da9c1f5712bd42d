/**
 * What a statement needs that only a connection of one's own can give, as far as its text shows: for `Pinning: "off"`, which
 * refuses it instead of losing it at the transaction's end.
 *
 * A text that hides it (in a function, in EXECUTE, behind more than is looked at) is not recognized: what it makes is gone with
 * the transaction. Pure.
 */
import type { Hold } from "../pool/Inspection.ts"
import { bare, MAX_TEXT_LENGTH } from "./SqlText.ts"

const telltale = /listen|with\s+hold|prepare|temp|advisory_lock/i

/** Where a statement begins; what is looked for behind it ends with it, so that no stretch is looked through twice. */
const start = String.raw`(?:^|;)\s*`
const createsTemporary = String.raw`\bcreate\s+(?:or\s+replace\s+)?(?:(?:local|global)\s+)?temp(?:orary)?\s`

const needs: ReadonlyArray<readonly [Hold, RegExp]> = [
  ["LISTEN", new RegExp(String.raw`${start}listen[\s"]`, "i")],
  ["cursor WITH HOLD", new RegExp(String.raw`${start}declare\s[^;]*\swith\s+hold\b`, "i")],
  ["PREPARE", new RegExp(String.raw`${start}prepare\s+(?!transaction\b)`, "i")],
  ["temporary object", new RegExp(String.raw`(?:^|;)(?![^;]*\bon\s+commit\s+drop\b)[^;]*${createsTemporary}`, "i")],
  ["temporary object", new RegExp(String.raw`${start}create\s[^;(]*\spg_temp\.|\binto\s+temp(?:orary)?\s`, "i")],
  ["advisory lock", /\bpg_(?:try_)?advisory_lock/i]
]

/** A look costs 0.2 µs where there is nothing. */
export const needsSession = (text: string): Hold | null => {
  if (text.length > MAX_TEXT_LENGTH || !telltale.test(text)) return null
  const said = bare(text, "without literals")
  return needs.find(([, pattern]) => pattern.test(said))?.[0] ?? null
}
