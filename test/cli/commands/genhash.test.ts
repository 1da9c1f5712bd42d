import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { pbkdf2Sync } from "node:crypto"
import { decodeVerifier, verifierFor } from "../../../src/protocol/Scram.ts"
import { PasswordHash } from "../../../src/tenant/PasswordHash.ts"
import { type Outcome, run } from "../commandLine.ts"

/** Whether the command printed the hash of `password`, and nothing else. */
const isHashOf = ({ exitCode, stdout }: Outcome, password: string) =>
  exitCode === 0 && /^[A-Za-z0-9+/]+={0,2}\n$/.test(stdout)
    ? PasswordHash.use((passwords) =>
        passwords.verify({ tenant: "t", stored: stdout.trimEnd(), password: Redacted.make(password) })
      ).pipe(Effect.provide(PasswordHash.layer()))
    : Effect.succeed(false)

describe("genhash", () => {
  const flags: ReadonlyArray<readonly [ReadonlyArray<string>, string]> = [
    [["-password", "p w"], "p w"],
    [["--password=päss=1"], "päss=1"],
    [["-password", "-x"], "-x"]
  ]
  for (const [argv, password] of flags) {
    it.live(`hashes the password of ${argv.join(" ")}`, () =>
      Effect.gen(function* () {
        assert.isTrue(yield* isHashOf(yield* run(["genhash", ...argv]), password))
      })
    )
  }

  const pipes: ReadonlyArray<readonly [string, string]> = [
    ["secret\n", "secret"],
    ["secret", "secret"],
    ["secret\r\n", "secret"],
    ["  a secret \tline \nand another\n", "  a secret \tline "]
  ]
  for (const [stdin, password] of pipes) {
    it.live(`hashes the first line of the pipe ${JSON.stringify(stdin)}`, () =>
      Effect.gen(function* () {
        assert.isTrue(yield* isHashOf(yield* run(["genhash"], { stdin }), password))
      })
    )
  }

  it.live("puts together what arrives in pieces, even within a character", () =>
    Effect.gen(function* () {
      const stdin = Array.from(Buffer.from("s\u{1f511}ü\n"), (byte) => Uint8Array.of(byte))
      assert.isTrue(yield* isHashOf(yield* run(["genhash"], { stdin }), "s\u{1f511}ü"))
    })
  )

  it.live("asks twice at a terminal, unseen and on standard error", () =>
    Effect.gen(function* () {
      const outcome = yield* run(["genhash"], { typed: "se<left>crex<backspace>t<return>secret<return>" })
      assert.strictEqual(outcome.stderr, "password: \npassword, again: \n")
      assert.isTrue(yield* isHashOf(outcome, "secret"))
    })
  )

  it.live("starts the line afresh at Ctrl-U", () =>
    Effect.gen(function* () {
      const outcome = yield* run(["genhash"], { typed: "wrong<ctrl-u>right<return>right<return>" })
      assert.isTrue(yield* isHashOf(outcome, "right"))
    })
  )

  it.live("writes a SCRAM verifier of the prepared password with --scram, with a salt of its own each time", () =>
    Effect.gen(function* () {
      const outcomes = yield* Effect.forEach([1, 2], () => run(["genhash", "--scram"], { stdin: "p\u00ad\u00aa\n" }))
      const verifiers = outcomes.map(({ stdout }) => decodeVerifier(stdout.trimEnd()))
      for (const verifier of verifiers) {
        assert.isNotNull(verifier)
        assert.deepStrictEqual([verifier.iterations, verifier.salt.length], [4096, 16])
        const salted = pbkdf2Sync("pa", verifier.salt, 4096, 32, "sha256")
        assert.deepStrictEqual(verifier, verifierFor(salted, verifier.salt, 4096))
      }
      assert.notDeepEqual(verifiers[0]?.salt, verifiers[1]?.salt)
    })
  )

  it.live("refuses a flag that gives no password, as it refuses an empty line", () =>
    Effect.gen(function* () {
      for (const argv of [["-password="], ["-password", ""], ["--password=", "--scram"]]) {
        const outcome = yield* run(["genhash", ...argv], { stdin: "secret\n" })
        assert.deepStrictEqual(outcome, {
          stdout: "",
          stderr: "perseus: password: the flag that gives it is empty\n",
          exitCode: 1
        })
      }
    })
  )

  const refusals: ReadonlyArray<readonly [string, Parameters<typeof run>[1], number, RegExp]> = [
    ["two passwords that differ", { typed: "one<return>two<return>" }, 1, /^perseus: password: the two differ$/m],
    ["an empty line at the terminal", { typed: "<return>" }, 1, /^perseus: password: nothing was typed$/m],
    ["Ctrl-C", { typed: "sec<ctrl-c>" }, 130, /^perseus: cancelled$/m],
    ["a pipe without a line", { stdin: "" }, 1, /line 1 of standard input is empty or missing/],
    ["an empty line in the pipe", { stdin: "\nsecret\n" }, 1, /line 1 of standard input is empty or missing/],
    ["a line too long to be a password", { stdin: "x".repeat(70_000) }, 1, /a line of more than 65536 bytes/],
    ["bytes that are not UTF-8", { stdin: [Uint8Array.of(0x73, 0xff, 0x0a)] }, 1, /standard input is not UTF-8/]
  ]
  for (const [what, surroundings, exitCode, message] of refusals) {
    it.live(`refuses ${what}`, () =>
      Effect.gen(function* () {
        const outcome = yield* run(["genhash"], surroundings)
        assert.strictEqual(outcome.exitCode, exitCode)
        assert.strictEqual(outcome.stdout, "")
        assert.match(outcome.stderr, message)
        assert.notMatch(outcome.stderr, /sec|one|two\n|at .*:\d+/)
      })
    )
  }
})
