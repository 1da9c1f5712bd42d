/**
 * The command line as units and scripts of the Go Perseus have it, in this one's spelling: `-config FILE` and
 * `-access_key_id=X` become `--config=FILE` and `--access-key-id=X`.
 *
 * Pure: it knows spellings, not which flags exist; what it does not recognise, it leaves for the parser to refuse.
 * Values are never changed. Single letters (`-h`), negative numbers and everything after `--` stay as they are.
 */

/**
 * The Go tools' flags. Go takes the argument after such a flag for its value whatever it looks like, so that
 * `-password -x` is the password `-x`; our parser would see a flag there, unless both stand in one argument.
 */
const valueFlags: ReadonlySet<string> = new Set([
  "config",
  "password",
  "access-key-id",
  "endpoint",
  "key-arn",
  "passwd",
  "region",
  "secret-access-key"
])

/** One dash or two, a name of two letters or more, and possibly `=value`, which may span lines. */
const flag = /^--?([A-Za-z][\w-]+)(=.*)?$/s

/** `argv` without the program's name, in and out. */
export const normalise = (argv: ReadonlyArray<string>): ReadonlyArray<string> => {
  const out: Array<string> = []
  const rest = argv.values()
  for (const argument of rest) {
    if (argument === "--") return [...out, argument, ...rest]
    const [, name, assignment] = flag.exec(argument) ?? []
    if (name === undefined) {
      out.push(argument)
      continue
    }
    const spelled = name.replaceAll("_", "-")
    const separate = assignment === undefined && valueFlags.has(spelled) ? rest.next().value : undefined
    out.push(`--${spelled}${separate === undefined ? (assignment ?? "") : `=${separate}`}`)
  }
  return out
}
