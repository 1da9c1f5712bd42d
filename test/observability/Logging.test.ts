import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as LogLevel from "effect/LogLevel"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { TestClock } from "effect/testing"
import { decode } from "../../src/config/Decode.ts"
import { LiveConfig } from "../../src/config/LiveConfig.ts"
import type { LogSettings } from "../../src/config/PerseusConfig.ts"
import { DestinationUnreachable, LoginRefused } from "../../src/errors.ts"
import { formatLine, layer, layerWith, type LogEntry } from "../../src/observability/Logging.ts"

const entry = (given: Partial<LogEntry>): LogEntry => ({
  date: new Date(0),
  level: "Info",
  message: ["hello"],
  annotations: {},
  cause: Cause.empty,
  ...given
})

const text = (given: Partial<LogEntry>) => formatLine(entry(given), false)
const json = (given: Partial<LogEntry>): Readonly<Record<string, unknown>> => JSON.parse(formatLine(entry(given), true))

/** A sink that a test can read. */
const recorded = () => {
  const lines: Array<string> = []
  return { lines, sink: { write: (line: string) => lines.push(line) } }
}

const unreachable = new DestinationUnreachable({ destination: "db-1/app", detail: "connection refused" })

describe("a line for people", () => {
  it("has the time, the level, the message and the annotations", () => {
    assert.strictEqual(
      text({ level: "Warn", annotations: { session: 7, tenant: "app/acme", remote: "[::1]:4711" } }),
      "1970-01-01T00:00:00.000Z WARN  hello session=7 tenant=app/acme remote=[::1]:4711"
    )
  })

  it("quotes a value that would not read as one word", () => {
    assert.strictEqual(
      text({ annotations: { a: "two words", b: "", c: 'say "x"', d: "k=v", e: [1, "x y"], f: { g: null } } }),
      '1970-01-01T00:00:00.000Z INFO  hello a="two words" b="" c="say \\"x\\"" d="k=v" e=[1,"x y"] f={"g":null}'
    )
  })

  it("joins the parts of a message, and leaves an absent annotation out", () => {
    assert.strictEqual(
      text({ message: ["listening on", 5433, { tls: true }, unreachable], annotations: { tenant: undefined } }),
      '1970-01-01T00:00:00.000Z INFO  listening on 5433 {"tls":true} DestinationUnreachable: destination db-1/app: connection refused'
    )
  })

  it("is one line, and sends no escape sequence, whatever a client called its schema", () => {
    const hostile = "a\r\n2026 INFO forged \u001b[2J \u009b \u2028 \u202e end"
    const line = text({ message: [hostile], annotations: { tenant: hostile } })
    assert.notMatch(line, /[\p{Cc}\p{Zl}\p{Zp}\p{Bidi_Control}]/u)
    assert.include(line, "a\\r\\n2026 INFO forged \\u001b[2J \\u009b \\u2028 \\u202e end tenant=")
  })
})

describe("a line of JSON", () => {
  it("has the annotations beside time, level and message", () => {
    assert.deepStrictEqual(json({ annotations: { session: 7, tenant: "app/acme", tags: ["a", 1n] } }), {
      time: "1970-01-01T00:00:00.000Z",
      level: "INFO",
      message: "hello",
      session: 7,
      tenant: "app/acme",
      tags: ["a", "1"]
    })
  })

  it("does not let an annotation take the place of its own fields", () => {
    assert.deepInclude(json({ annotations: { level: "x", message: "y", error: "z" } }), {
      level: "INFO",
      message: "hello",
      level_: "x",
      message_: "y",
      error_: "z"
    })
  })

  it.effect.prop(
    "is one line that reads back, whatever is in it",
    { value: Schema.Json, name: Schema.String },
    ({ name, value }) =>
      Effect.sync(() => {
        const line = formatLine(entry({ message: [name], annotations: { value } }), true)
        assert.notMatch(line, /[\p{Cc}\p{Zl}\p{Zp}]/u)
        const parsed = JSON.parse(line)
        assert.strictEqual(parsed.message, name)
        assert.deepStrictEqual(parsed.value, JSON.parse(JSON.stringify(value)))
      })
  )
})

describe("an error", () => {
  it("shows its tag and message, and neither its other fields nor its stack", () => {
    const cause = Cause.fail(unreachable)
    assert.strictEqual(json({ cause })["error"], "DestinationUnreachable: destination db-1/app: connection refused")
    assert.notInclude(text({ cause }), "Logging.test.ts")
    assert.notInclude(text({ cause, annotations: { cause, unreachable } }), unreachable.clientMessage)
  })

  it("shows every failure of a cause", () => {
    const both = Cause.combine(Cause.fail(new LoginRefused({ why: "wrong password" })), Cause.fail("too late"))
    assert.strictEqual(json({ cause: both })["error"], "LoginRefused: login refused: wrong password; too late")
  })

  it("shows the stack of a defect, on the same line", () => {
    const line = json({ cause: Cause.die(new TypeError("a bug")) })
    assert.strictEqual(line["error"], "TypeError: a bug")
    assert.include(String(line["stack"]), "Logging.test.ts")
    assert.notInclude(text({ cause: Cause.die(new TypeError("a bug")) }), "\n")
  })

  it("shows that there was only an interruption", () => {
    assert.strictEqual(json({ cause: Cause.interrupt(1) })["error"], "interrupted")
  })

  it("shows no more than its kind when it is no error at all", () => {
    assert.strictEqual(json({ cause: Cause.fail({ password: "hunter2" }) })["error"], "object")
    assert.strictEqual(json({ cause: Cause.fail(null) })["error"], "object")
  })
})

describe("a value", () => {
  it("that is redacted stays redacted, at whatever depth", () => {
    const secret = Redacted.make("hunter2")
    const labelled = Redacted.make("hunter2", { label: "kms" })
    const given = {
      message: ["login", secret, { secret }],
      annotations: { secret, deep: [{ labelled }], error: Object.assign(new Error("x"), { secret: "hunter2" }) },
      cause: Cause.fail({ _tag: "Oops", message: "no", secret })
    }
    for (const line of [text(given), formatLine(entry(given), true)]) {
      assert.notInclude(line, "hunter2")
      assert.include(line, "<redacted>")
      assert.include(line, "<redacted:kms>")
    }
  })

  it("that cannot be printed costs itself alone", () => {
    const circle: Record<string, unknown> = {}
    circle["self"] = circle
    const thrower = {
      get message(): string {
        throw new Error("no")
      },
      toJSON() {
        throw new Error("no")
      }
    }
    const line = json({ annotations: { circle, thrower, call: () => 1, sym: Symbol("s") }, cause: Cause.fail(thrower) })
    assert.deepInclude(line, { message: "hello", circle: "<unprintable>", thrower: "<unprintable>" })
    assert.deepInclude(line, { call: "function", sym: "symbol", error: "object" })
  })
})

describe("the logger", () => {
  const settings = (Level: LogSettings["Level"]): LogSettings => ({ Level, Json: true })
  const levels: ReadonlyArray<LogLevel.Severity> = ["Fatal", "Error", "Warn", "Info", "Debug", "Trace"]
  const logAll = Effect.forEach(levels, (level) => Effect.logWithLevel(level)(level))
  const messages = (lines: ReadonlyArray<string>) => lines.map((line) => JSON.parse(line).message)

  it.effect("lets through what the level asks for, Debug too", () =>
    Effect.gen(function* () {
      for (const [level, count] of [
        ["DEBUG", 5],
        ["INFO", 4],
        ["WARN", 3],
        ["ERROR", 2]
      ] as const) {
        const { lines, sink } = recorded()
        yield* logAll.pipe(Effect.provide(layerWith(sink, () => settings(level))))
        assert.deepStrictEqual(messages(lines), levels.slice(0, count))
      }
    })
  )

  it.effect("takes a new level from the configuration at once", () =>
    Effect.gen(function* () {
      const config = Result.getOrThrow(
        decode({
          ListenAddress: ":0",
          AuthDBSettings: { AuthDBDSN: "postgres://h/d", AuthQueryTimeoutSecs: 1 },
          AWSSettings: { Region: "r", KMSKeyARN: "k" },
          PoolSettings: { MaxIdle: 1, ConnCreateTimeoutSecs: 1, ConnCloseTimeoutSecs: 1, SchemaExecTimeoutSecs: 1 },
          LogSettings: { Json: true }
        })
      )
      const { lines, sink } = recorded()
      yield* LiveConfig.use(({ ref }) =>
        Effect.gen(function* () {
          yield* Effect.logDebug("unheard")
          yield* SubscriptionRef.update(ref, (config) => ({ ...config, LogSettings: settings("DEBUG") }))
          yield* Effect.logDebug("heard")
          yield* SubscriptionRef.update(ref, (config) => ({ ...config, LogSettings: settings("ERROR") }))
          yield* Effect.logInfo("unheard")
        })
      ).pipe(Effect.provide(layer(sink)), Effect.provide(LiveConfig.layerOf(config)))
      assert.deepStrictEqual(messages(lines), ["heard"])
    })
  )

  it.effect("writes each event as one line with a newline, with its annotations and the clock's time", () =>
    Effect.gen(function* () {
      const { lines, sink } = recorded()
      yield* TestClock.setTime(1_000)
      yield* Effect.logInfo("ready", Cause.fail(unreachable)).pipe(
        Effect.annotateLogs({ session: 7 }),
        Effect.provide(layerWith(sink, () => ({ Level: "INFO", Json: false })))
      )
      assert.deepStrictEqual(lines, [
        '1970-01-01T00:00:01.000Z INFO  ready session=7 error="DestinationUnreachable: destination db-1/app: connection refused"\n'
      ])
    })
  )
})
