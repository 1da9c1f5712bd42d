import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as PlatformError from "effect/PlatformError"
import * as Redacted from "effect/Redacted"
import { type Environment, load } from "../../src/config/ConfigFile.ts"
import { settings } from "../../src/config/PerseusConfig.ts"
import { filledIn, minimal, seedSample } from "./fixtures.ts"

const path = "config/config.json"

const holding = (text: string) => FileSystem.layerNoop({ readFileString: () => Effect.succeed(text) })

const failing = (_tag: PlatformError.SystemErrorTag) =>
  FileSystem.layerNoop({
    readFileString: () =>
      Effect.fail(
        PlatformError.systemError({ _tag, module: "FileSystem", method: "readFileString", pathOrDescriptor: path })
      )
  })

const loadWith = (env: Environment, text = JSON.stringify(minimal())) =>
  load({ path, env }).pipe(Effect.provide(holding(text)))

const problemsWith = (env: Environment, text?: string) =>
  loadWith(env, text).pipe(
    Effect.flip,
    Effect.map(({ problems }) => problems)
  )

/** What is logged while `effect` runs. */
const logOf = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const lines: Array<string> = []
    const logger = Logger.make(({ logLevel, message }) => {
      lines.push(`${logLevel}: ${String(message)}`)
    })
    return effect.pipe(Effect.provide(Logger.layer([logger])), Effect.as(lines))
  })

describe("load", () => {
  it.effect("reads the sample of the first README, filled in", () =>
    Effect.gen(function* () {
      const config = yield* loadWith({}, `\uFEFF${filledIn(seedSample)}`)
      assert.strictEqual(config.PoolSettings.MaxOpen, 5)
    })
  )

  it.effect("reads the sample in config/, filled in, with every key in it", () =>
    Effect.gen(function* () {
      const sample = new URL("../../config/config.sample.json", import.meta.url).pathname
      const text = yield* FileSystem.FileSystem.use((fileSystem) => fileSystem.readFileString(sample))
      const config = yield* loadWith({}, filledIn(text))
      assert.strictEqual(config.LimitSettings.QueryTimeoutSecs, 300)
      assert.isTrue(config.LogSettings.Json)
      for (const { path } of settings) assert.include(text, `"${path.at(-1)}":`)
      const { problems } = yield* Effect.flip(load({ path: sample, env: {} }))
      assert.deepStrictEqual(
        problems.map((problem) => problem.split(":")[0]),
        ["AWSSettings.AccessKeyId", "AWSSettings.SecretAccessKey", "AWSSettings.KMSKeyARN"]
      )
    }).pipe(Effect.provide(NodeFileSystem.layer))
  )

  it.effect("says plainly why a file cannot be read", () =>
    Effect.gen(function* () {
      const why = (layer: Layer.Layer<FileSystem.FileSystem>, file = path) =>
        load({ path: file, env: {} }).pipe(
          Effect.provide(layer),
          Effect.flip,
          Effect.map(({ message }) => message)
        )
      assert.strictEqual(yield* why(failing("NotFound")), "config/config.json: the file does not exist")
      assert.strictEqual(
        yield* why(failing("PermissionDenied")),
        "config/config.json: the file may not be read: permission denied"
      )
      assert.strictEqual(yield* why(failing("Busy")), "config/config.json: the file cannot be read (Busy)")
      assert.strictEqual(yield* why(NodeFileSystem.layer, "/no/such/file"), "/no/such/file: the file does not exist")
      assert.match(yield* why(NodeFileSystem.layer, "/"), /^\/: the file cannot be read/)
    })
  )

  it.effect("says where a file is not JSON, and shows none of it", () =>
    Effect.gen(function* () {
      const text = '{\n  "AuthDBSettings": { "AuthDBDSN": "postgres://u:hunter2@h/d }\n}'
      assert.deepStrictEqual(yield* problemsWith({}, text), [
        "line 2, column 36: this string is not closed on its line"
      ])
    })
  )
})

describe("the environment", () => {
  it.effect("stands above the file, each value typed as its key", () =>
    Effect.gen(function* () {
      const config = yield* loadWith({
        PERSEUS_LISTENADDRESS: "127.0.0.1:6000",
        PERSEUS_AUTHDBSETTINGS_AUTHDBDSN: "postgres://env@host/db",
        PERSEUS_AWSSETTINGS_ACCESSKEYID: "id",
        PERSEUS_AWSSETTINGS_SECRETACCESSKEY: "0123",
        PERSEUS_POOLSETTINGS_MAXOPEN: "-1",
        PERSEUS_POOLSETTINGS_MAXIDLE: "+8",
        PERSEUS_LOGSETTINGS_LEVEL: "debug",
        PERSEUS_LOGSETTINGS_JSON: "T"
      })
      assert.strictEqual(config.ListenAddress, "127.0.0.1:6000")
      assert.strictEqual(Redacted.value(config.AuthDBSettings.AuthDBDSN), "postgres://env@host/db")
      assert.strictEqual(Redacted.value(config.AWSSettings.SecretAccessKey), "0123")
      assert.deepInclude(config.PoolSettings, { MaxOpen: -1, MaxIdle: 8 })
      assert.deepStrictEqual(config.LogSettings, { Level: "DEBUG", Json: true })
    })
  )

  it.effect("gives a key that the file lacks", () =>
    Effect.gen(function* () {
      const { ListenAddress: _, ...file } = minimal()
      const config = yield* loadWith({ PERSEUS_LISTENADDRESS: ":7000" }, JSON.stringify(file))
      assert.strictEqual(config.ListenAddress, ":7000")
    })
  )

  it.effect("takes a boolean in each spelling of Go's ParseBool and in no other", () =>
    Effect.gen(function* () {
      const json = (text: string) =>
        loadWith({ PERSEUS_LOGSETTINGS_JSON: text }).pipe(Effect.map((config) => config.LogSettings.Json))
      for (const text of ["1", "t", "T", "TRUE", "true", "True"]) assert.isTrue(yield* json(text))
      for (const text of ["0", "f", "F", "FALSE", "false", "False"]) assert.isFalse(yield* json(text))
      for (const text of ["", "yes", "on", "tRUE", " true"]) {
        assert.deepStrictEqual(yield* problemsWith({ PERSEUS_LOGSETTINGS_JSON: text }), [
          "PERSEUS_LOGSETTINGS_JSON: expected true or false, got a string"
        ])
      }
    })
  )

  it.effect("refuses what is not plainly a whole number, by the variable's name and without its value", () =>
    Effect.gen(function* () {
      for (const text of ["", "five", "0x10", "010", "1_000", "1e3", "5.0", " 5"]) {
        assert.deepStrictEqual(yield* problemsWith({ PERSEUS_POOLSETTINGS_MAXIDLE: text }), [
          "PERSEUS_POOLSETTINGS_MAXIDLE: expected an integer from 1 to 2147483647, got a string"
        ])
      }
      assert.deepStrictEqual(yield* problemsWith({ PERSEUS_POOLSETTINGS_MAXIDLE: "0" }), [
        "PERSEUS_POOLSETTINGS_MAXIDLE: expected an integer from 1 to 2147483647"
      ])
    })
  )

  it.effect("blanks a string by a variable that is set but empty, and ignores one that is not set", () =>
    Effect.gen(function* () {
      const text = JSON.stringify({ ...minimal(), MetricsAddress: ":9187" })
      assert.strictEqual((yield* loadWith({ PERSEUS_METRICSADDRESS: "" }, text)).MetricsAddress, "")
      assert.strictEqual((yield* loadWith({ PERSEUS_METRICSADDRESS: undefined }, text)).MetricsAddress, ":9187")
    })
  )

  it.effect("is reported together with the file", () =>
    Effect.gen(function* () {
      const text = JSON.stringify({ ...minimal(), LogSettings: { Json: 1 } })
      assert.sameMembers(
        [...(yield* problemsWith({ PERSEUS_LOGSETTINGS_LEVEL: "LOUD" }, text))],
        [
          "LogSettings.Json: expected true or false, got an integer",
          "PERSEUS_LOGSETTINGS_LEVEL: expected DEBUG, INFO, WARN or ERROR"
        ]
      )
    })
  )

  it.effect("is warned of a PERSEUS_ variable that sets nothing, and of no other variable", () =>
    Effect.gen(function* () {
      const env = {
        PERSEUS_POOLSETTINGS_MAXOPNE: "5",
        PERSEUS_OVERRIDESETTINGS: "{}",
        PERSEUS_LOGSETTINGS_JSON: "true",
        PERSEUSLIKE: "1",
        PATH: "/bin"
      }
      assert.deepStrictEqual(yield* logOf(loadWith(env)), [
        "Warn: PERSEUS_OVERRIDESETTINGS sets no configuration key",
        "Warn: PERSEUS_POOLSETTINGS_MAXOPNE sets no configuration key; did you mean PERSEUS_POOLSETTINGS_MAXOPEN?"
      ])
    })
  )
})
