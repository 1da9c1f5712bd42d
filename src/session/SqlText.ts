/**
 * A client's SQL, as far as it is understood here: what of it is no statement (comments, literals), and whether it is one
 * DEALLOCATE. Knows as much of PostgreSQL's lexer as that needs.
 *
 * Clients write it, and it is read on the event loop, where all others wait: each look takes time that grows as the text does,
 * whatever is in it. That is: from no two places in a text does a search run through the same stretch of it. Pure.
 */

/**
 * Longer texts are not looked at: whatever they may do is taken as done. As much as comes in one piece; one of these takes
 * milliseconds at worst.
 */
export const MAX_TEXT_LENGTH = 64 * 1024

const isBlank = (byte: number): boolean => byte <= 0x20 || byte === 0xa0

/**
 * A quick look at the bytes where they lie, up to a NUL or the end, for most texts the only one (115 ns for pgbench's SELECT; to
 * make a string of it and search that is 260): true where nothing in it can be one of the words that `hintOf` looks for, nor the text one DEALLOCATE.
 * Looks for the letters in which these differ from others: `y_` and `t_` (advisory_, set_config), `tem` (temp, pg_temp), `set` and
 * a blank, and a `d` at the beginning.
 */
export const isPlain = (bytes: Uint8Array, from: number, end: number): boolean => {
  if (end - from > MAX_TEXT_LENGTH) return false
  let at = from
  while (at < end && isBlank(bytes[at]!)) at++
  if (at === end) return true
  if ((bytes[at]! | 0x20) === 0x64) return false
  for (; at < end; at++) {
    const byte = bytes[at]!
    if (byte === 0x5f) {
      const before = bytes[at - 1]! | 0x20
      if (before === 0x79 || before === 0x74) return false
    } else if (isBlank(byte)) {
      if (endsIn(bytes, at, 0x73, 0x65, 0x74)) return false
      if (byte === 0) return true
    } else if ((byte | 0x20) === 0x6d && endsIn(bytes, at + 1, 0x74, 0x65, 0x6d)) return false
  }
  return true
}

/** The three letters before `at`, in either case. */
const endsIn = (bytes: Uint8Array, at: number, first: number, second: number, third: number): boolean =>
  (bytes[at - 1]! | 0x20) === third && (bytes[at - 2]! | 0x20) === second && (bytes[at - 3]! | 0x20) === first

/** What begins a literal, a quoted name or a comment; an `e` or a `$` that ends an identifier does not. */
const opening = /['"]|--|\/\*|e'(?<![\w$\x80-\xff]e')|\$(?<![\w$\x80-\xff]\$)(?:[a-z_\x80-\xff][\w\x80-\xff]*)?\$/gi
/** What follows, with its end if it has one. A doubled quote ends one literal and begins the next. */
const rests: Readonly<Record<string, RegExp>> = {
  "--": /[^\r\n]*/y,
  "'": /[^']*'?/y,
  "e'": /(?:[^'\\]|\\[^])*'?/y,
  '"': /[^"]*"?/y
}
const commentBorder = /\/\*|\*\//g

const deallocate = /^\s*deallocate\s+(?:prepare\s+)?(?!all\s*(?:;\s*)?$)("(?:[^"]|"")+"|[a-z_][\w$]*)\s*(?:;\s*)?$/i

/** Comments, and what stands in quotes where `literals` says so, are blanks. What has no end ends with the text. */
export const bare = (text: string, literals: "with literals" | "without literals"): string => {
  let said = ""
  let from = 0
  while (true) {
    opening.lastIndex = from
    const found = opening.exec(text)
    if (found === null) return said + text.slice(from)
    const begin = found[0]
    const end = endOf(text, begin, opening.lastIndex)
    said += text.slice(from, found.index)
    if (begin === "--" || begin === "/*") said += " "
    else said += begin === '"' || literals === "with literals" ? text.slice(found.index, end) : "''"
    from = end
  }
}

/** Where that ends which `begin` began, just before `from`. */
const endOf = (text: string, begin: string, from: number): number => {
  if (begin === "/*") return endOfComment(text, from)
  const rest = rests[begin.toLowerCase()]
  if (rest === undefined) {
    const end = text.indexOf(begin, from)
    return end === -1 ? text.length : end + begin.length
  }
  rest.lastIndex = from
  rest.test(text)
  return rest.lastIndex
}

/** PostgreSQL's comments can have comments in them. */
const endOfComment = (text: string, from: number): number => {
  commentBorder.lastIndex = from
  for (let depth = 1; depth > 0;) {
    const border = commentBorder.exec(text)
    if (border === null) return text.length
    depth += border[0] === "/*" ? 1 : -1
    from = commentBorder.lastIndex
  }
  return from
}

/** The name of the statement that the text deallocates and does nothing else; not quoted, it is folded to lower case. */
export const deallocated = (text: string): string | null => {
  if (text.length > MAX_TEXT_LENGTH) return null
  const name = deallocate.exec(text)?.[1]
  if (name === undefined) return null
  return name.startsWith('"') ? name.slice(1, -1).replaceAll('""', '"') : name.toLowerCase()
}
