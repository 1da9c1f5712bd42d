/**
 * JSON as people write it by hand: with line and block comments, and with a comma after the last element.
 *
 * Everything else is RFC 8259. `JSON.parse` behind a comment stripper would do for good files; its messages quote the
 * text around a mistake, which in a config file may be a password, and one of its kinds has no position. A failure here
 * is `line L, column C: reason`, and the reason never repeats the file. A key that stands twice in one object is an
 * error: the last one would win unseen.
 */
import * as Result from "effect/Result"

/** What stands between two tokens: white space and closed comments. */
const BETWEEN = /(?:[ \t\r\n]|\/\/[^\n]*|\/\*[^]*?\*\/)*/y
const STRING = /"(?:[^"\\\n]|\\[^\n])*"/y
const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.])/y
const WORD = /(?:true|false|null)(?!\w)/y

/** Far deeper than any config, far shallower than the stack. */
const MAX_DEPTH = 64

class Mistake extends Error {
  readonly at: number
  constructor(at: number, reason: string) {
    super(reason)
    this.at = at
  }
}

class Reader {
  readonly text: string
  at = 0
  depth = 0

  constructor(text: string) {
    this.text = text
  }

  document(): unknown {
    const value = this.value()
    this.skip()
    if (this.at < this.text.length) this.refuse("nothing may follow the closing brace")
    return value
  }

  value(): unknown {
    this.skip()
    switch (this.text[this.at]) {
      case "{":
        return this.nested(() => this.object())
      case "[":
        return this.nested(() => this.array())
      case '"':
        return this.string()
      default: {
        const literal = this.match(NUMBER) ?? this.match(WORD)
        return literal === undefined ? this.refuse("expected a value") : JSON.parse(literal)
      }
    }
  }

  nested<A>(read: () => A): A {
    if (++this.depth > MAX_DEPTH) this.refuse("nested too deeply")
    this.at++
    const value = read()
    this.depth--
    return value
  }

  object(): unknown {
    const entries = new Map<string, unknown>()
    while (!this.closes("}")) {
      if (this.text[this.at] !== '"') this.refuse("expected a key in double quotes, or '}'")
      const start = this.at
      const key = this.string()
      if (entries.has(key)) throw new Mistake(start, "this key stands twice in one object")
      this.skip()
      if (this.text[this.at] !== ":") this.refuse("expected ':' after the key")
      this.at++
      entries.set(key, this.value())
      this.comma("}")
    }
    return Object.fromEntries(entries)
  }

  array(): unknown {
    const items: Array<unknown> = []
    while (!this.closes("]")) {
      items.push(this.value())
      this.comma("]")
    }
    return items
  }

  string(): string {
    const start = this.at
    const literal = this.match(STRING) ?? this.refuse("this string is not closed on its line")
    try {
      return String(JSON.parse(literal))
    } catch {
      throw new Mistake(start, "this string has a bad escape or a control character")
    }
  }

  closes(bracket: "}" | "]"): boolean {
    this.skip()
    if (this.text[this.at] !== bracket) return false
    this.at++
    return true
  }

  comma(bracket: "}" | "]"): void {
    this.skip()
    if (this.text[this.at] === ",") this.at++
    else if (this.text[this.at] !== bracket) this.refuse(`expected ',' or '${bracket}'`)
  }

  skip(): void {
    this.match(BETWEEN)
    if (this.text.startsWith("/*", this.at)) this.refuse("this comment is not closed")
  }

  match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.at
    const found = pattern.exec(this.text)?.[0]
    if (found !== undefined) this.at += found.length
    return found
  }

  refuse(reason: string): never {
    throw new Mistake(this.at, this.at < this.text.length ? reason : `${reason}, but the file ends here`)
  }
}

const place = (text: string, at: number): string => {
  const before = text.slice(0, at).split("\n")
  return `line ${before.length}, column ${(before.at(-1) ?? "").length + 1}`
}

/** Reads one JSON value with comments and trailing commas; a leading byte order mark is skipped. */
export const parseJsonc = (source: string): Result.Result<unknown, string> => {
  const text = source.replace(/^\uFEFF/, "")
  try {
    return Result.succeed(new Reader(text).document())
  } catch (mistake) {
    if (!(mistake instanceof Mistake)) throw mistake
    return Result.fail(`${place(text, mistake.at)}: ${mistake.message}`)
  }
}
