/**
 * What the commands ask of the person, or the pipe, at standard input: secrets and a yes or no.
 *
 * At a terminal a secret is typed unseen, and the question goes to standard error, so that standard output holds the
 * answer of the command and nothing else. From a pipe a secret is one line, without its line break. Nothing is echoed,
 * logged or kept.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type { PlatformError } from "effect/PlatformError"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import * as Stdio from "effect/Stdio"
import * as Stream from "effect/Stream"
import * as Terminal from "effect/Terminal"
import { isUtf8 } from "node:buffer"
import { CommandFailed, fromError } from "./CommandFailed.ts"

/** A secret to ask for. */
export interface Question {
  /** What a flag gave. Blank is refused, as an empty line is: nobody means it who writes `--password="$UNSET"`. */
  readonly given: Option.Option<Redacted.Redacted<string>>
  /** Begins the prompt and the messages: "password of the client". */
  readonly what: string
  /** A new password is typed twice: nobody sees what they type. */
  readonly isNew: boolean
}

type Answers<Questions> = { readonly [Index in keyof Questions]: Redacted.Redacted<string> }

/** A line longer than this is no password: someone has piped a file. */
const maxInput = 65_536

/** The answers in the questions' order; those without a flag are asked for, or read as one line each. */
export const secrets = Effect.fnUntraced(function* <const Questions extends ReadonlyArray<Question>>(
  questions: Questions
): Effect.fn.Return<Answers<Questions>, CommandFailed, Stdio.Stdio | Terminal.Terminal> {
  for (const { given, what } of questions) {
    if (Option.exists(given, (secret) => Redacted.value(secret) === "")) {
      return yield* new CommandFailed({ message: `${what}: the flag that gives it is empty` })
    }
  }
  const open = questions.filter(({ given }) => Option.isNone(given))
  const stdio = yield* Stdio.Stdio
  const answers = open.length > 0 && !(yield* stdio.stdinIsTerminal) ? yield* readLines(open) : yield* askUnseen(open)
  const rest = answers.values()
  return questions.map(({ given }) => Option.getOrElse(given, () => rest.next().value)) as Answers<Questions>
})

/** As `secrets`, for one. */
export const secret = (question: Question) => Effect.map(secrets([question]), ([answer]) => answer)

/** True for "y" or "yes". Fails where nobody can be asked; `otherwise` says what to do then. */
export const confirm = Effect.fnUntraced(function* (
  question: string,
  otherwise: string
): Effect.fn.Return<boolean, CommandFailed, Stdio.Stdio | Terminal.Terminal> {
  const stdio = yield* Stdio.Stdio
  if (!(yield* stdio.stdinIsTerminal)) return yield* new CommandFailed({ message: otherwise })
  yield* toStderr(`${question} [y/N] `)
  const terminal = yield* Terminal.Terminal
  const line = yield* Effect.mapError(terminal.readLine, () => cancelled)
  return /^\s*y(es)?\s*$/i.test(line)
})

const cancelled = new CommandFailed({ message: "cancelled", exitCode: 130 })

const toStderr = (text: string) =>
  Effect.flatMap(Stdio.Stdio, (stdio) => Effect.mapError(Stream.run(Stream.make(text), stdio.stderr()), fromError))

const readLines = Effect.fnUntraced(function* (questions: ReadonlyArray<Question>) {
  const stdio = yield* Stdio.Stdio
  const bytes = yield* Effect.mapError(readUntil(stdio.stdin, questions.length), fromError)
  // Not decoded with replacement characters: that would be another password than the one that was sent.
  if (!isUtf8(bytes)) return yield* new CommandFailed({ message: "standard input is not UTF-8" })
  const lines = bytes.toString("utf8").split("\n")
  if (bytes.length > maxInput && lines.length <= questions.length) {
    return yield* new CommandFailed({ message: `standard input has a line of more than ${maxInput} bytes` })
  }
  return yield* Effect.forEach(questions, ({ what }, index) => {
    const line = lines[index]?.replace(/\r$/, "") ?? ""
    return line === ""
      ? Effect.fail(new CommandFailed({ message: `${what}: line ${index + 1} of standard input is empty or missing` }))
      : Effect.succeed(Redacted.make(line))
  })
})

/** Up to `count` lines, and not to the end of the input: who feeds a pipe may keep it open. */
const readUntil = (stdin: Stream.Stream<Uint8Array, PlatformError>, count: number) =>
  Effect.suspend(() => {
    const chunks: Array<Uint8Array> = []
    let lines = 0
    let length = 0
    const isEnough = (chunk: Uint8Array) => {
      chunks.push(chunk)
      length += chunk.length
      for (const byte of chunk) if (byte === 0x0a) lines++
      return lines >= count || length > maxInput
    }
    return Effect.map(Stream.runDrain(Stream.takeUntil(stdin, isEnough)), () => Buffer.concat(chunks))
  })

/** One subscription for all questions: what is pasted or typed ahead of a prompt would be lost between two. */
const askUnseen = Effect.fnUntraced(function* (questions: ReadonlyArray<Question>) {
  if (questions.length === 0) return []
  const terminal = yield* Terminal.Terminal
  const keys = yield* terminal.readInput
  return yield* Effect.forEach(questions, ({ isNew, what }) =>
    Effect.gen(function* () {
      const first = yield* typeUnseen(keys, `${what}: `)
      if (first === "") return yield* new CommandFailed({ message: `${what}: nothing was typed` })
      if (isNew && (yield* typeUnseen(keys, `${what}, again: `)) !== first) {
        return yield* new CommandFailed({ message: `${what}: the two differ` })
      }
      return Redacted.make(first)
    })
  )
}, Effect.scoped)

type Keys = Effect.Success<Terminal.Terminal["readInput"]>

/** Characters up to Enter. Backspace takes one back, Ctrl-U all; after Ctrl-C, Ctrl-D and Escape no key comes. */
const typeUnseen = Effect.fnUntraced(function* (keys: Keys, prompt: string) {
  yield* toStderr(prompt)
  // Enter is not echoed: what comes next would go on behind the prompt, however this ends.
  yield* Effect.addFinalizer(() => Effect.ignore(toStderr("\n")))
  const typed: Array<string> = []
  while (true) {
    const { key, input } = yield* Queue.take(keys).pipe(Effect.mapError(() => cancelled))
    if (key.name === "return" || key.name === "enter") break
    if (key.name === "backspace") typed.pop()
    else if (key.ctrl && key.name === "u") typed.length = 0
    else if (!key.ctrl && !key.meta) typed.push(...Option.getOrElse(input, () => "").replaceAll(/\p{Cc}/gu, ""))
  }
  return typed.join("")
}, Effect.scoped)
