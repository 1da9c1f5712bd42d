import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { parseJsonc } from "../../src/config/Jsonc.ts"

const good = (text: string) => Result.getOrThrow(parseJsonc(text))
const bad = (text: string) =>
  Result.match(parseJsonc(text), { onFailure: (why) => why, onSuccess: () => "it was read" })

describe("parseJsonc", () => {
  it.effect.prop("reads whatever JSON.stringify writes, indented or not", { value: Schema.Json }, ({ value }) =>
    Effect.sync(() => {
      assert.deepStrictEqual(good(JSON.stringify(value)), JSON.parse(JSON.stringify(value)))
      assert.deepStrictEqual(good(JSON.stringify(value, null, 2)), JSON.parse(JSON.stringify(value)))
    })
  )

  it("skips line comments, block comments and a byte order mark", () => {
    assert.deepStrictEqual(good('\uFEFF// a\r\n{ /* b\n** / */ "k" /**/ : // c\n 1 /* d */ } // e'), { k: 1 })
  })

  it("leaves comment markers inside strings alone", () => {
    assert.deepStrictEqual(good('{ "dsn": "postgres://a/*b*/c", "quote": "\\"// no" }'), {
      dsn: "postgres://a/*b*/c",
      quote: '"// no'
    })
  })

  it("takes a comma after the last element, and only one", () => {
    assert.deepStrictEqual(good('{ "a": [1, 2, /* two */], }'), { a: [1, 2] })
    assert.strictEqual(bad("[1,,]"), "line 1, column 4: expected a value")
    assert.strictEqual(bad("{,}"), "line 1, column 2: expected a key in double quotes, or '}'")
  })

  it("makes __proto__ a key like any other", () => {
    assert.deepStrictEqual(Object.keys(Object(good('{ "__proto__": { "x": 1 } }'))), ["__proto__"])
  })

  it("says where a mistake is and what was expected there", () => {
    const cases = [
      ["", "line 1, column 1: expected a value, but the file ends here"],
      ['{\n  "a": 1\n  "b": 2\n}', "line 3, column 3: expected ',' or '}'"],
      ['{\n  "a" 1 }', "line 2, column 7: expected ':' after the key"],
      ["{ a: 1 }", "line 1, column 3: expected a key in double quotes, or '}'"],
      ['{ "a": tru }', "line 1, column 8: expected a value"],
      ['{ "a": 01 }', "line 1, column 8: expected a value"],
      ["[1] 2", "line 1, column 5: nothing may follow the closing brace"],
      ['{ "a": "x\n" }', "line 1, column 8: this string is not closed on its line"],
      ['{ "a": "\\x" }', "line 1, column 8: this string has a bad escape or a control character"],
      ["{ /* ", "line 1, column 3: this comment is not closed"],
      ['{ "a": 1,\n "a": 2 }', "line 2, column 2: this key stands twice in one object"],
      ['{ "a": [1', "line 1, column 10: expected ',' or ']', but the file ends here"],
      ["[".repeat(100_000), "line 1, column 65: nested too deeply"]
    ] as const
    for (const [text, problem] of cases) assert.strictEqual(bad(text), problem)
  })

  it("never repeats the file in a mistake, wherever the file is cut or changed", () => {
    const text = '{ "AuthDBSettings": { "AuthDBDSN": "postgres://u:hunter2@h/d" }, "list": [true, -1.5e3, null] }'
    for (let i = 0; i < text.length; i++) {
      for (const broken of [text.slice(0, i), `${text.slice(0, i)}\u0001${text.slice(i)}`, text.slice(i)]) {
        assert.notInclude(bad(broken), "hunter")
      }
    }
  })
})
