/**
 * SASLprep (RFC 4013): what a password is before SCRAM derives a key of it, so that one that looks the same is the same.
 *
 * As PostgreSQL has it, since its servers hold the keys: a password in ASCII stays as it is, control characters too; what is
 * prohibited or unassigned is looked for before the normalization, not after it; and a password that fails is not refused
 * but taken as it stands. Pure.
 */
import { leftToRight, mappedToNothing, nonAsciiSpace, prohibited, rightToLeft, unassigned } from "./StringprepTables.ts"

/** The prepared password, or the password itself where SASLprep has none. */
export const saslPrep = (password: string): string => {
  if (isAscii(password) || !password.isWellFormed()) return password
  const mapped = Array.from(password, (character) => character.codePointAt(0)!).flatMap(map)
  return mapped.length > 0 && mapped.every(isAllowed) && isOneWay(mapped)
    ? mapped
        .map((codePoint) => String.fromCodePoint(codePoint))
        .join("")
        .normalize("NFKC")
    : password
}

const isAscii = (text: string): boolean => Buffer.byteLength(text) === text.length

const SPACE = 0x20

/** U+200B stands in both tables: PostgreSQL takes it for a space. */
const map = (codePoint: number): number | [] => {
  if (nonAsciiSpace(codePoint)) return SPACE
  return mappedToNothing(codePoint) ? [] : codePoint
}

const isAllowed = (codePoint: number): boolean => !prohibited(codePoint) && !unassigned(codePoint)

/** RFC 3454 §6: a text with characters that run right to left begins and ends with one, and has none that run the other way. */
const isOneWay = (text: ReadonlyArray<number>): boolean =>
  !text.some(rightToLeft) || (rightToLeft(text[0]!) && rightToLeft(text.at(-1)!) && !text.some(leftToRight))
