import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { join } from "node:path"
import * as LocalKms from "../../../src/cli/LocalKms.ts"
import { KmsDecrypt, type KmsSettings } from "../../../src/tenant/KmsDecrypt.ts"
import { configFile, run, temporaryDirectory } from "../commandLine.ts"

const startKms = Effect.flatMap(temporaryDirectory, (directory) =>
  LocalKms.start({ keyFile: join(directory, "keys.json") })
)

const decrypt = (settings: KmsSettings, ciphertext: string) =>
  KmsDecrypt.use((kms) => kms.decrypt(ciphertext)).pipe(
    Effect.map(Redacted.value),
    Effect.provide(KmsDecrypt.layer(settings))
  )

describe("encpass", () => {
  it.live("encrypts as the Go tool's command line asks, without a configuration file", () =>
    Effect.gen(function* () {
      const { endpoint, keyArn, settings } = yield* startKms
      const { exitCode, stdout } = yield* run([
        "encpass",
        "-access_key_id=local",
        `-endpoint=${endpoint}`,
        `-key_arn=${keyArn}`,
        "-passwd=p@ss w#rd%",
        "-region=us-east-1",
        "-secret_access_key=local"
      ])
      assert.strictEqual(exitCode, 0)
      assert.match(stdout, /^[A-Za-z0-9+/]+={0,2}\n$/)
      assert.strictEqual(yield* decrypt(settings, stdout.trimEnd()), "p@ss w#rd%")
    })
  )

  it.live("takes the password from a pipe, and everything else from the configuration", () =>
    Effect.gen(function* () {
      const { settings } = yield* startKms
      const config = yield* configFile({ kms: settings })
      const { stderr, stdout } = yield* run(["-config", config, "encpass"], { stdin: "-pass word \n" })
      assert.strictEqual(stderr, "")
      assert.strictEqual(yield* decrypt(settings, stdout.trimEnd()), "-pass word ")
    })
  )

  it.live("asks once at a terminal", () =>
    Effect.gen(function* () {
      const { settings } = yield* startKms
      const config = yield* configFile({ kms: settings })
      const { stderr, stdout } = yield* run(["encpass", "--config", config], { typed: "secret<return>" })
      assert.strictEqual(stderr, "password: \n")
      assert.strictEqual(yield* decrypt(settings, stdout.trimEnd()), "secret")
    })
  )

  it.live("prefers a flag to the environment, and the environment to the file", () =>
    Effect.gen(function* () {
      const { keyArn, settings } = yield* startKms
      const config = yield* configFile({ kms: { ...settings, endpoint: "http://127.0.0.1:1", keyArn: "file" } })
      const env = { PERSEUS_AWSSETTINGS_ENDPOINT: settings.endpoint, PERSEUS_AWSSETTINGS_KMSKEYARN: "environment" }
      const argv = ["encpass", "--config", config, "--key-arn", keyArn]
      const { stdout } = yield* run(argv, { env, stdin: "secret\n" })
      assert.strictEqual(yield* decrypt(settings, stdout.trimEnd()), "secret")
    })
  )

  it.live("keeps a warning about the environment out of standard output", () =>
    Effect.gen(function* () {
      const { settings } = yield* startKms
      const config = yield* configFile({ kms: settings })
      const env = { PERSEUS_AWSSETINGS_REGION: "x" }
      const { stderr, stdout } = yield* run(["encpass", "--config", config], { env, stdin: "secret\n" })
      assert.match(stderr, /^warn: PERSEUS_AWSSETINGS_REGION sets no configuration key/)
      assert.strictEqual(yield* decrypt(settings, stdout.trimEnd()), "secret")
    })
  )

  it.live("says in one line what KMS refused, and not the password", () =>
    Effect.gen(function* () {
      const kms = yield* startKms
      const config = yield* configFile({ kms: kms.settings })
      yield* kms.disable(kms.keyArn)
      const outcome = yield* run(["encpass", "--config", config], { stdin: "secret\n" })
      assert.deepStrictEqual(outcome, {
        stdout: "",
        stderr: "perseus: KMS: Encrypt: DisabledException\n",
        exitCode: 1
      })
    })
  )

  it.live("refuses a flag that gives no password, without asking KMS", () =>
    Effect.gen(function* () {
      const { settings } = yield* startKms
      const config = yield* configFile({ kms: { ...settings, endpoint: "http://127.0.0.1:1" } })
      const outcome = yield* run(["encpass", "--config", config, "-passwd="])
      assert.deepStrictEqual(outcome, {
        stdout: "",
        stderr: "perseus: password: the flag that gives it is empty\n",
        exitCode: 1
      })
    })
  )

  it.live("refuses half of a pair of credentials", () =>
    Effect.gen(function* () {
      const { exitCode, stderr } = yield* run(["encpass", "-access_key_id=AK", "-key_arn=a", "-region=b"])
      assert.strictEqual(exitCode, 1)
      assert.strictEqual(stderr, "perseus: --access-key-id and --secret-access-key go together\n")
    })
  )
})
