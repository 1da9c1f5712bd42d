/**
 * Tells a client's messages that name a prepared statement from those that do not, which pass untouched, with as few of their
 * bytes as will do: a Bind of 100 MB is known by its first two strings.
 *
 * Pure; looks at bytes where they lie and keeps none.
 */
import { Frontend, HEADER_LENGTH, indexOfNul, lengthAt } from "../protocol/Frame.ts"

/** A Bind whose names do not end so far in is the server's to refuse: kept until they do, it would fill the memory. */
const MAX_NAMES_LENGTH = 0x10000

/** The types whose messages can name a statement. */
export const mayBeNamed = (type: number): boolean =>
  type === Frontend.parse || type === Frontend.bind || type === Frontend.describe || type === Frontend.close

/** Instead of an index: the message is of no statement, or so malformed that it is the server's to refuse. */
export const OF_NONE = -1
/** Instead of an index: too little of the message has come to tell. */
export const INCOMPLETE = -2

/** Where the name of the statement begins that the message is of; a NUL there: the unnamed one. `end`: of it, or of the chunk. */
export const statementNameAt = (type: number, chunk: Buffer, at: number, end: number): number => {
  const body = at + HEADER_LENGTH
  if (type === Frontend.parse) return body < end ? body : unfinished(chunk, at, end)
  if (type === Frontend.bind) {
    const portalEnd = indexOfNul(chunk, body, end)
    if (portalEnd !== -1 && portalEnd + 1 < end) return portalEnd + 1
    return end - body > MAX_NAMES_LENGTH ? OF_NONE : unfinished(chunk, at, end)
  }
  if (body + 1 >= end) return unfinished(chunk, at, end)
  return chunk[body] === 0x53 ? body + 1 : OF_NONE
}

const unfinished = (chunk: Buffer, at: number, end: number): number =>
  end === at + 1 + lengthAt(chunk, at + 1) ? OF_NONE : INCOMPLETE

/** The part of a named message that has to be whole: all of it, of a Bind both names. Null where it is not there yet. */
export const namedPart = (type: number, chunk: Buffer, at: number, next: number): Buffer | null => {
  if (type !== Frontend.bind) return next <= chunk.length ? chunk.subarray(at, next) : null
  const end = Math.min(next, chunk.length)
  const portalEnd = indexOfNul(chunk, at + HEADER_LENGTH, end)
  const nameEnd = indexOfNul(chunk, portalEnd + 1, end)
  if (nameEnd !== -1) return chunk.subarray(at, nameEnd + 1)
  return end === next || end - at > MAX_NAMES_LENGTH ? chunk.subarray(at, end) : null
}
