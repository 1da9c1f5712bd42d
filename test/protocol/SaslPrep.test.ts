import { assert, describe, it } from "@effect/vitest"
import { saslPrep } from "../../src/protocol/SaslPrep.ts"
import * as Tables from "../../src/protocol/StringprepTables.ts"

/** What becomes of each, and why; what is prohibited stays as it is. */
const prepared: ReadonlyArray<readonly [why: string, password: string, prepared: string]> = [
  ["RFC 4013: a soft hyphen is mapped to nothing", "I\u00adX", "IX"],
  ["RFC 4013: nothing changes", "user", "user"],
  ["RFC 4013: upper case is kept", "USER", "USER"],
  ["RFC 4013: ª is an a by NFKC", "\u00aa", "a"],
  ["RFC 4013: Ⅸ is IX by NFKC", "\u2168", "IX"],
  ["RFC 4013: a control character is prohibited, but PostgreSQL looks at no ASCII", "\u0007", "\u0007"],
  ["RFC 4013: a letter that runs right to left and a digit at the end", "\u0627\u0031", "\u0627\u0031"],
  ["composition", "a\u0308", "\u00e4"],
  ["full width", "\uff50\uff57", "pw"],
  ["a space that is none in ASCII", "a\u00a0b\u3000c", "a b c"],
  ["U+200B, which is a space and nothing as well: a space to PostgreSQL", "a\u200bb", "a b"],
  ["nothing is left", "\u00ad", "\u00ad"],
  ["right to left throughout, with a presentation form", "\u0627\u0031\ufe8d", "\u0627\u0031\u0627"],
  ["right to left, with a letter that runs the other way between", "\u0627a\u00aa\u0628", "\u0627a\u00aa\u0628"],
  ["right to left at the end alone", "1\u00bd\u0627", "1\u00bd\u0627"],
  ["a private character", "\u00aa\ue000", "\u00aa\ue000"],
  ["not assigned in Unicode 3.2: an emoji of 2010", "\u00aa\u{1f511}", "\u00aa\u{1f511}"],
  ["a control character beside others", "\u00aa\u0007", "\u00aa\u0007"],
  ["half of a surrogate pair", "\u00aa\ud800", "\u00aa\ud800"],
  ["a character that describes others (C.7)", "\u2ff0\u00aa", "\u2ff0\u00aa"],
  ["empty", "", ""],
  ["ASCII with blanks at both ends", " pencil ", " pencil "]
]

describe("saslPrep", () => {
  for (const [why, password, expected] of prepared) {
    it(`${why}: ${JSON.stringify(password)}`, () => assert.strictEqual(saslPrep(password), expected))
  }

  it("takes a password as long as a message may be", () => {
    assert.strictEqual(saslPrep("\u00aa".repeat(65_535)), "a".repeat(65_535))
  })
})

describe("the tables", () => {
  // Counted with Python's stringprep, which has Unicode 3.2's own data.
  const sizes: ReadonlyArray<readonly [name: string, has: Tables.CodePointSet, size: number]> = [
    ["A.1", Tables.unassigned, 879_309],
    ["B.1", Tables.mappedToNothing, 27],
    ["C.1.2", Tables.nonAsciiSpace, 17],
    ["D.1", Tables.rightToLeft, 1044],
    ["D.2", Tables.leftToRight, 229_973]
  ]
  for (const [name, has, size] of sizes) {
    it(`have ${size} code points in ${name}`, () => {
      let count = 0
      for (let codePoint = 0; codePoint <= 0x10ffff; codePoint++) if (has(codePoint)) count++
      assert.strictEqual(count, size)
    })
  }

  it("begin and end where RFC 3454 says", () => {
    for (const [table, first, last] of [
      [Tables.unassigned, 0x0221, 0x0221],
      [Tables.unassigned, 0xe0080, 0xefffd],
      [Tables.rightToLeft, 0xfe76, 0xfefc],
      [Tables.leftToRight, 0x41, 0x5a],
      [Tables.prohibited, 0xd800, 0xf8ff],
      [Tables.prohibited, 0xe0020, 0xe007f],
      [Tables.mappedToNothing, 0xfe00, 0xfe0f],
      [Tables.nonAsciiSpace, 0x2000, 0x200b]
    ] as const) {
      assert.deepStrictEqual([first - 1, first, last, last + 1].map(table), [false, true, true, false], `${first}`)
    }
  })
})
