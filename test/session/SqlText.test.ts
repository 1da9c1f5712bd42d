import { assert, describe, it } from "@effect/vitest"
import { needsSession } from "../../src/session/NeedsSession.ts"
import { bare, deallocated, isPlain, MAX_TEXT_LENGTH } from "../../src/session/SqlText.ts"
import { anyHint, hintOf, hintOfBytes, noHint } from "../../src/session/Traces.ts"
import { seeded } from "../support/random.ts"

const timed = (work: () => unknown): number => {
  const from = performance.now()
  work()
  return performance.now() - from
}

/** A slow machine is slow at this too. */
const onePass = (text: string): number => timed(() => text.replaceAll(/[^]/g, " "))

/** Of three, for the machine may do something else in one of them. */
const passes = (text: string, look: (text: string) => unknown): number =>
  Math.min(...[0, 0, 0].map(() => timed(() => look(text)) / onePass(text)))

const filled = (before: string, piece: string, behind: string) => (length: number) =>
  (before + piece.repeat(length / piece.length)).slice(0, length - behind.length) + behind

/** Each token that is looked for, again and again, and what would have to come behind it not there. */
const hostile: Readonly<Record<string, (length: number) => string>> = {
  "line ends": filled("SELECT 1", "\n", ""),
  blanks: filled("set local ", " ", ";x"),
  "blanks behind a semicolon": filled("x;", " ", "y"),
  semicolons: filled("set local x", "; ", "x"),
  "comments that do not end": filled("SELECT 1 temp ", "/*", ""),
  "ends of comments": filled("/*", "*/ /*", ""),
  "comments in comments": filled("temp /*", "/*/", ""),
  "dashes that begin a comment": filled("temp ", "--\n", ""),
  "literals that do not end": filled("temp ", "'a", ""),
  "quotes in a literal": filled("temp '", "''", ""),
  "backslashes in a literal": filled("temp e'", "\\'", ""),
  "quoted names that do not end": filled("temp ", '"a', ""),
  "one dollar tag": filled("SELECT 1 temp ", "$a$b", ""),
  "a long dollar tag": (length) => `temp $${"a".repeat(length / 2)}$${"a$".repeat(length / 4)}`,
  "other dollar tags each time": (length) =>
    `temp ${Array.from({ length: length / 9 }, (_, index) => `$a${index}$`).join(" ")}`.slice(0, length),
  sets: filled("", "set\n", ""),
  "names that are set": filled("", ";set a", ""),
  "a long name that is set": filled("set session ", "a", " "),
  "dots in a name that is set": filled("set a", ' . "a"', "'"),
  set_config: filled("", "set_config", ""),
  "set_config of literals": filled("", "set_config('a','", ""),
  "set_config of parameters": filled("set_config('a',$", "1", ""),
  "set_config of a custom name": filled("set_config('a", ".a", ""),
  temp: filled("", "temp ", ""),
  advisory_: filled("", "advisory_", ""),
  listen: filled("", ";listen", ""),
  declare: filled("", "declare ", ""),
  "declare with": filled("declare ", " with", ""),
  "with and blanks": filled("declare x with", " ", "x"),
  prepare: filled("", ";prepare transaction", ""),
  create: filled("", "create ", ""),
  "create and blanks": filled("create ", " ", "x"),
  "create or replace": filled("", "create or replace ", ""),
  "create temp": filled("", "create temp x on ", ""),
  "on commit": filled("create temp x ", "on commit ", ""),
  pg_temp: filled("create ", " pg_temp", ""),
  "into temp": filled("", "into temp", ""),
  "deallocate and blanks": filled("deallocate x", " ", "y"),
  "deallocate all and blanks": filled("deallocate all", " ", "y"),
  "deallocate prepare": filled("deallocate prepare", " ", ";x"),
  "deallocate of quotes": filled('deallocate "', '""', "x")
}

const looks: Readonly<Record<string, (text: string) => unknown>> = {
  hintOf,
  needsSession,
  deallocated,
  bare: (text) => bare(text, "without literals"),
  isPlain: (text) => isPlain(Buffer.from(text, "latin1"), 0, text.length)
}

describe("a client's text is looked through in time that grows as its length does", () => {
  for (const [name, text] of Object.entries(hostile)) {
    it(`whatever is repeated in it: ${name}`, () => {
      // Five in truth; thousands where the time grows as the square.
      for (const [look, run] of Object.entries(looks)) {
        assert.isBelow(passes(text(MAX_TEXT_LENGTH), run), 50, look)
      }
    })
  }

  it("and one that is too long is not looked at: it may have left anything", () => {
    const long = "SELECT 1".padEnd(MAX_TEXT_LENGTH + 1)
    assert.strictEqual(hintOf(long), anyHint)
    assert.strictEqual(hintOf(long.slice(1)), noHint)
    assert.isNull(needsSession("LISTEN a".padEnd(MAX_TEXT_LENGTH + 1)))
    assert.isNull(deallocated("DEALLOCATE a".padEnd(MAX_TEXT_LENGTH + 1)))
  })
})

describe("what is no statement in a text", () => {
  const cases: ReadonlyArray<readonly [text: string, bare: string]> = [
    ["SELECT 1", "SELECT 1"],
    ["a /* b */ c -- d\ne", "a   c  \ne"],
    ["a -- b\rc", "a  \rc"],
    ["a /* b /* c */ d */ e", "a   e"],
    ["a /* b", "a  "],
    ["a -- b", "a  "],
    ["SELECT 'it''s', 2", "SELECT '''', 2"],
    [String.raw`SELECT E'it\'s', 2`, "SELECT '', 2"],
    [String.raw`SELECT name'\', 2`, "SELECT name'', 2"],
    ["SELECT 'a", "SELECT ''"],
    ["SELECT $$a$$, $b$ $$ ; $b$, $1", "SELECT '', '', $1"],
    ["SELECT $1$a$2$", "SELECT $1$a$2$"],
    ["SELECT a$b$c, a$b$d", "SELECT a$b$c, a$b$d"],
    [`SELECT "it's -- /* a" -- b`, `SELECT "it's -- /* a"  `],
    ["'--' || $a$/*$a$ || 1", "'' || '' || 1"]
  ]
  for (const [text, expected] of cases) {
    it(`is blank or empty: ${JSON.stringify(text)}`, () => {
      assert.strictEqual(bare(text, "without literals"), expected)
    })
  }

  it("can be kept where it is a literal", () => {
    const text = String.raw`SELECT 'it''s', E'\'', $a$ -- $a$, "--"`
    assert.strictEqual(bare(`${text} -- b`, "with literals"), `${text}  `)
  })
})

describe("a SET LOCAL alone leaves nothing", () => {
  for (const text of [
    "SET LOCAL a.b = 1",
    " set transaction read only ; ",
    "/* app */ SET LOCAL work_mem = '4MB'",
    "-- app\nSET CONSTRAINTS ALL DEFERRED"
  ]) {
    it(text, () => assert.isTrue(hintOf(text).setsLocally))
  }
  for (const text of [
    "SET LOCAL a.b = 1; SET a.b = 2",
    "/* /* */ SET LOCAL a.b = 1 */ SET a.b = 2",
    String.raw`SET LOCAL a.b = E'\' -- ' ; SET a.b = 2`,
    String.raw`SET LOCAL a.b = '\' -- ' ; SET a.b = 2`,
    "SET LOCAL\u00a0.b = 1"
  ]) {
    it(`unless it may be something else: ${text}`, () => assert.isFalse(hintOf(text).setsLocally))
  }
})

describe("what an identifier or a literal seems to begin hides nothing", () => {
  for (const text of [
    `SELECT 1 AS "--", set_config('a.b', '1', false)`,
    "SELECT E'\\' -- ', set_config('a.b', '1', false)"
  ]) {
    it(text, () => assert.isTrue(hintOf(text).settings))
  }
})

describe("DEALLOCATE", () => {
  const cases: ReadonlyArray<readonly [text: string, name: string | null]> = [
    ["DEALLOCATE Mine", "mine"],
    [' deallocate PREPARE "My ""own""" ; ', 'My "own"'],
    ["DEALLOCATE ALL", null],
    ["DEALLOCATE ALL ;", null],
    ['DEALLOCATE "all"', "all"],
    ["DEALLOCATE PREPARE ALL", null],
    ["DEALLOCATE all_of_them", "all_of_them"],
    ["DEALLOCATE a; SELECT 1", null],
    ["SELECT 1", null]
  ]
  for (const [text, name] of cases) {
    it(`${text} names ${name ?? "none that is followed"}`, () => assert.strictEqual(deallocated(text), name))
  }
})

describe("a quick look at a text's bytes", () => {
  const words =
    "advisory_lock set_config temp temporary pg_temp.x set SET\tx reset item team y_ t_ x_ deallocate DEALLOCATE d ' $1 -- /* a.b ("
  const pieces = words.split(" ").concat(" ", "\n", ";", "\u00a0", "SELECT abalance FROM t WHERE aid = 1")
  const { pick, below, chance } = seeded(1)
  const text = () => {
    const said = Array.from({ length: 1 + below(6) }, () => pick(pieces)).join(chance(0.5) ? " " : "")
    return chance(0.3) ? said.toUpperCase() : said
  }

  it("finds plain only what has neither a telltale word nor a DEALLOCATE, wherever it lies", () => {
    let plain = 0
    for (let round = 0; round < 50_000; round++) {
      const said = text()
      const bytes = Buffer.from(`Q\0\0\0\0${said}\0`, "latin1")
      assert.deepStrictEqual(
        hintOfBytes(bytes, 5, bytes.length - 1),
        hintOf(bytes.toString("latin1", 5, bytes.length - 1))
      )
      if (!isPlain(bytes, 5, bytes.length - 1)) continue
      plain++
      assert.isNull(deallocated(said), said)
    }
    assert.isAbove(plain, 5_000)
  })

  for (const said of ["", "SELECT 1", "UPDATE t SETS", "INSERT INTO team VALUES (1)", "BEGIN", "COMMIT;"]) {
    it(`finds plain: ${said}`, () => assert.isTrue(isPlain(Buffer.from(said), 0, said.length)))
  }

  it("finds no text plain that is too long to be looked at", () => {
    const long = Buffer.alloc(MAX_TEXT_LENGTH + 1, " ")
    assert.isFalse(isPlain(long, 0, long.length))
    assert.isTrue(isPlain(long, 1, long.length))
  })
})
