import { assert, describe, it } from "@effect/vitest"
import { clientSettings, differences, noSettings, quoteIdentifier, switchTo } from "../../src/pool/Reset.ts"
import { FrameCollector } from "../../src/protocol/Frame.ts"
import { seeded } from "../support/random.ts"

/** What goes to the server: the statements, and "S" for a Sync. Anything else in it fails the test. */
const statementsIn = (bytes: Buffer): ReadonlyArray<string> => {
  const frames = new FrameCollector(1 << 20).push(bytes) ?? []
  const statements: Array<string> = []
  for (let index = 0; index < frames.length; index++) {
    const { type, body } = frames[index]!
    if (type === 0x53) {
      statements.push("S")
      continue
    }
    const strings = body.toString("utf8").split("\0")
    const batch = String.fromCharCode(...frames.slice(index, index + 3).map((frame) => frame.type))
    assert.deepStrictEqual([batch, strings[0], strings.length], ["PBE", "", 5])
    statements.push(strings[1]!)
    index += 2
  }
  return statements
}

/**
 * PostgreSQL's lexer for `"…"`, `'…'` and `E'…'`: the one token that begins at `at`, and where it ends. Doubled quotes stand
 * for one; in `E'…'`, and in `'…'` where standard_conforming_strings is off, a backslash takes the next character as it is.
 */
const readQuoted = (sql: string, at: number, conforming = true): readonly [content: string, end: number] => {
  const escaped = sql.startsWith("E'", at)
  const start = escaped ? at + 1 : at
  const quote = sql[start]
  assert.isTrue(quote === '"' || quote === "'", sql)
  const backslashes = quote === "'" && (escaped || !conforming)
  let content = ""
  for (let index = start + 1; index < sql.length; index++) {
    if (backslashes && sql[index] === "\\") content += sql[++index] ?? ""
    else if (sql[index] !== quote) content += sql[index]
    else if (sql[index + 1] === quote) content += sql[index++]
    else return [content, index + 1]
  }
  return assert.fail(`no end: ${sql}`)
}

const identifiersIn = (list: string): ReadonlyArray<string> => {
  const names: Array<string> = []
  for (let at = 0; at < list.length;) {
    const [name, end] = readQuoted(list, at)
    names.push(name)
    assert.isTrue(end === list.length || list.startsWith(", ", end), list)
    at = end + 2
  }
  return names
}

/** What a SET says, which must be the same whatever standard_conforming_strings is: a client may have set it. */
const settingIn = (sql: string): readonly [name: string, value: string] => {
  assert.isTrue(sql.startsWith("SET "), sql)
  const [name, end] = readQuoted(sql, 4)
  assert.isTrue(sql.startsWith(" = ", end), sql)
  const [value, last] = readQuoted(sql, end + 3)
  assert.strictEqual(last, sql.length, "something stands behind the value")
  assert.deepStrictEqual(readQuoted(sql, end + 3, false), [value, last])
  return [name, value]
}

const hostile = [
  "tenant",
  'a"b',
  '"',
  '""',
  "it's",
  "'",
  "\\",
  "\\'",
  "a\\",
  "'; DROP SCHEMA public; --",
  '"; RESET ALL; --',
  "$user",
  "a, b",
  "public,pg_temp",
  "SELECT",
  "$$",
  "E'x'",
  " ",
  "\n\t",
  "ä\u{1F600}",
  "/* */",
  "--",
  "%s",
  ";"
]

const randomName = (random: ReturnType<typeof seeded>) =>
  Array.from({ length: 1 + random.below(8) }, () => random.pick([..."\"'\\,; aä$-\n"])).join("")

describe("quoteIdentifier", () => {
  it("is read back as the very name, whatever is in it", () => {
    for (const name of hostile) assert.deepStrictEqual(identifiersIn(quoteIdentifier(name)), [name])
  })
})

describe("clientSettings", () => {
  it("are canonical: equal ones have one key, whatever their order and the case of their names", () => {
    const one = clientSettings([
      ["TimeZone", "UTC"],
      ["client_encoding", "LATIN1"],
      ["application_name", "a"]
    ])
    const other = clientSettings([
      ["application_name", "a"],
      ["CLIENT_ENCODING", "UTF8"],
      ["timezone", "UTC"],
      ["client_encoding", "LATIN1"]
    ])
    assert.deepStrictEqual(one, other)
    assert.deepStrictEqual(
      one.list.map(([name]) => name),
      ["application_name", "timezone", "client_encoding"]
    )
    assert.strictEqual(clientSettings([]), noSettings)
  })

  it("have different keys where anything differs, even if it reads alike", () => {
    const keys = [
      clientSettings([["a", "b"]]),
      clientSettings([["a", "B"]]),
      clientSettings([["a", ""]]),
      clientSettings([['a","b', ""]]),
      clientSettings([["a", 'b"],["c","d']]),
      clientSettings([
        ["a", "b"],
        ["c", "d"]
      ]),
      noSettings
    ].map(({ key }) => key)
    assert.strictEqual(new Set(keys).size, keys.length)
  })
})

describe("switchTo", () => {
  it("forgets under a Sync of its own, then sets path and settings in one batch that DISCARD ALL begins", () => {
    const settings = clientSettings([
      ["client_encoding", "LATIN1"],
      ["application_name", "it's"]
    ])
    const { bytes, readyForQueries } = switchTo(["tenant", "extensions"], settings)
    assert.deepStrictEqual(statementsIn(bytes), [
      "RESET ALL",
      "S",
      "DISCARD ALL",
      'SET search_path = "tenant", "extensions"',
      "SET \"application_name\" = 'it''s'",
      "SET \"client_encoding\" = 'LATIN1'",
      "S"
    ])
    assert.strictEqual(readyForQueries, 2)
  })

  it("says how many ReadyForQuery end it, in every case", () => {
    const some = clientSettings([["a", "b"]])
    for (const { bytes, readyForQueries } of [
      switchTo(["a"], noSettings),
      switchTo(["a"], some),
      differences(noSettings, some),
      differences(some, noSettings)
    ]) {
      assert.strictEqual(statementsIn(bytes).filter((statement) => statement === "S").length, readyForQueries)
    }
  })

  it("is read back as the very path and the very settings, whatever is in them", () => {
    const random = seeded(1)
    const pathAndSettings = [
      ...hostile.map((text) => [[text, "b"], [[text.toLowerCase(), text]]] as const),
      ...Array.from({ length: 3000 }, () => {
        const path = Array.from({ length: 1 + random.below(3) }, () => randomName(random))
        const settings = Array.from(
          { length: random.below(3) },
          () => [randomName(random), randomName(random)] as const
        )
        return [path, settings] as const
      })
    ]
    for (const [path, given] of pathAndSettings) {
      const settings = clientSettings(given)
      const [, , , setPath, ...rest] = statementsIn(switchTo(path, settings).bytes)
      assert.isTrue(setPath?.startsWith("SET search_path = "))
      assert.deepStrictEqual(identifiersIn(setPath!.slice("SET search_path = ".length)), path)
      assert.deepStrictEqual(rest.slice(0, -1).map(settingIn), [...settings.list])
    }
  })

  it("refuses a NUL, which no statement can hold", () => {
    assert.throws(() => switchTo(["a\0b"], noSettings), RangeError)
    assert.throws(() => switchTo(["a"], clientSettings([["a", "\0"]])), RangeError)
  })
})

describe("differences", () => {
  it("sets what is new or changed, resets what is gone, and leaves what is the same", () => {
    const from = clientSettings([
      ["a", "1"],
      ["b", "2"],
      ["c", "3"]
    ])
    const to = clientSettings([
      ["b", "2"],
      ["c", "4"],
      ["d", "5"]
    ])
    assert.deepStrictEqual(statementsIn(differences(from, to).bytes), [
      'RESET "a"',
      "SET \"c\" = '4'",
      "SET \"d\" = '5'",
      "S"
    ])
    assert.deepStrictEqual(statementsIn(differences(to, to).bytes), ["S"])
  })

  it("make one client's settings from another's, whatever they are", () => {
    const random = seeded(2)
    const names = ["application_name", "client_encoding", "datestyle", "timezone"]
    const values = ["", "a", "it's"]
    const some = () =>
      clientSettings(names.filter(() => random.chance(0.5)).map((name) => [name, random.pick(values)] as const))
    for (let run = 0; run < 2000; run++) {
      const [from, to] = [some(), some()]
      const held = new Map(from.list)
      for (const statement of statementsIn(differences(from, to).bytes).slice(0, -1)) {
        if (statement.startsWith("RESET ")) held.delete(readQuoted(statement, 6)[0])
        else held.set(...settingIn(statement))
      }
      assert.deepStrictEqual(clientSettings(held), to)
    }
  })

  it("are written in UTF-8, so another client_encoding is put off before them and put on behind them", () => {
    // The server reads a statement in the client_encoding of that moment: 'ü' in UTF-8 is 'Ã¼' in LATIN1.
    const latin = (name: string, encoding = "LATIN1") =>
      clientSettings([
        ["application_name", name],
        ["client_encoding", encoding]
      ])
    for (const [from, to] of [
      [latin("a"), latin("ü")],
      [latin("a"), latin("ü", "EUC_JP")],
      [latin("a"), clientSettings([["application_name", "ü"]])],
      [noSettings, latin("ü")]
    ] as const) {
      let encoding = new Map(from.list).get("client_encoding") ?? "UTF8"
      for (const statement of statementsIn(differences(from, to).bytes).slice(0, -1)) {
        if (statement.includes("ü")) assert.strictEqual(encoding, "UTF8")
        if (statement === 'RESET "client_encoding"') encoding = "UTF8"
        else if (statement.startsWith('SET "client_encoding"')) encoding = settingIn(statement)[1]
      }
      assert.strictEqual(encoding, new Map(to.list).get("client_encoding") ?? "UTF8")
    }
  })
})
