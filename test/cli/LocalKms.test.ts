import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { readFile, stat, writeFile } from "node:fs/promises"
import { join } from "node:path"
import * as LocalKms from "../../src/cli/LocalKms.ts"
import { temporaryDirectory } from "./commandLine.ts"

const keyFileIn = Effect.map(temporaryDirectory, (directory) => join(directory, "keys.json"))

type Answer = Readonly<Record<string, string>>

/** The protocol without the SDK. */
const post = (kms: LocalKms.LocalKms, target: string, body: string, headers: Readonly<Record<string, string>> = {}) =>
  Effect.promise(async () => {
    const response = await fetch(kms.endpoint, {
      method: "POST",
      body,
      headers: {
        "content-type": "application/x-amz-json-1.1",
        "x-amz-target": target,
        authorization: "AWS4-HMAC-SHA256 Credential=x",
        ...headers
      }
    })
    return {
      status: response.status,
      type: response.headers.get("content-type"),
      body: (await response.json()) as Answer
    }
  })

const encryptBody = (keyId: unknown, plaintext: string, extra: object = {}) =>
  JSON.stringify({ KeyId: keyId, Plaintext: Buffer.from(plaintext).toString("base64"), ...extra })

describe("LocalKms", () => {
  it.live("makes a key file that only its owner can read, and uses it again", () =>
    Effect.gen(function* () {
      const keyFile = yield* keyFileIn
      const first = yield* Effect.scoped(LocalKms.start({ keyFile }))
      assert.strictEqual((yield* Effect.promise(() => stat(keyFile))).mode & 0o777, 0o600)
      const kept = yield* Effect.promise(() => readFile(keyFile, "utf8"))
      const second = yield* LocalKms.start({ keyFile })
      assert.strictEqual(second.keyArn, first.keyArn)
      assert.strictEqual(yield* Effect.promise(() => readFile(keyFile, "utf8")), kept)
      assert.match(second.keyArn, /^arn:aws:kms:us-east-1:\d{12}:key\/[0-9a-f-]{36}$/)
      assert.match(second.endpoint, /^http:\/\/127\.0\.0\.1:\d+$/)
    })
  )

  it.live("refuses a key file that it cannot use, and quotes nothing of it", () =>
    Effect.gen(function* () {
      const keyFile = yield* keyFileIn
      for (const content of ["", "s3cret", "[]", "{}", '{"x":"s3cret"}', "null"]) {
        yield* Effect.promise(() => writeFile(keyFile, content))
        const error = yield* Effect.flip(Effect.scoped(LocalKms.start({ keyFile })))
        assert.include(error.message, keyFile)
        assert.notInclude(error.message, "s3cret")
      }
    })
  )

  it.live("says so when its port is taken", () =>
    Effect.gen(function* () {
      const keyFile = yield* keyFileIn
      const kms = yield* LocalKms.start({ keyFile })
      const error = yield* Effect.flip(LocalKms.start({ keyFile, port: Number(new URL(kms.endpoint).port) }))
      assert.strictEqual(error.message, "local KMS: EADDRINUSE")
    })
  )

  it.live("answers as KMS does: what decrypts, with the key's ARN and the algorithm", () =>
    Effect.gen(function* () {
      const kms = yield* LocalKms.start({ keyFile: yield* keyFileIn })
      const context = { EncryptionContext: { a: "1", b: "2" } }
      const encrypted = yield* post(kms, "TrentService.Encrypt", encryptBody(kms.keyArn, "hello", context))
      assert.strictEqual(encrypted.status, 200)
      assert.strictEqual(encrypted.type, "application/x-amz-json-1.1")
      assert.deepInclude(encrypted.body, { KeyId: kms.keyArn, EncryptionAlgorithm: "SYMMETRIC_DEFAULT" })
      const { CiphertextBlob } = encrypted.body
      const sameContext = JSON.stringify({ CiphertextBlob, EncryptionContext: { b: "2", a: "1" } })
      assert.deepStrictEqual(yield* post(kms, "TrentService.Decrypt", sameContext), {
        status: 200,
        type: "application/x-amz-json-1.1",
        body: {
          KeyId: kms.keyArn,
          Plaintext: Buffer.from("hello").toString("base64"),
          EncryptionAlgorithm: "SYMMETRIC_DEFAULT"
        }
      })
      const withoutContext = yield* post(kms, "TrentService.Decrypt", JSON.stringify({ CiphertextBlob }))
      assert.deepStrictEqual(withoutContext.body, { __type: "InvalidCiphertextException" })
      const byKeyId = encryptBody(kms.keyArn.split("/")[1], "hello")
      assert.strictEqual((yield* post(kms, "TrentService.Encrypt", byKeyId)).status, 200)
    })
  )

  it.live("refuses with KMS's exceptions and codes", () =>
    Effect.gen(function* () {
      const kms = yield* LocalKms.start({ keyFile: yield* keyFileIn })
      const good = encryptBody(kms.keyArn, "x")
      const refusals: ReadonlyArray<readonly [string, string, string, Record<string, string>?]> = [
        ["TrentService.Encrypt", good, "MissingAuthenticationTokenException", { authorization: "Basic x" }],
        ["TrentService.GenerateDataKey", good, "UnknownOperationException"],
        ["TrentService.Encrypt", "{", "SerializationException"],
        ["TrentService.Encrypt", "[]", "SerializationException"],
        ["TrentService.Encrypt", JSON.stringify({ Plaintext: "x".repeat(70_000) }), "SerializationException"],
        ["TrentService.Encrypt", encryptBody(kms.keyArn, ""), "ValidationException"],
        ["TrentService.Encrypt", encryptBody(kms.keyArn, "x".repeat(4097)), "ValidationException"],
        ["TrentService.Encrypt", encryptBody(undefined, "x"), "ValidationException"],
        ["TrentService.Encrypt", encryptBody("no-such-key", "x"), "NotFoundException"],
        ["TrentService.Decrypt", "{}", "ValidationException"],
        ["TrentService.Decrypt", JSON.stringify({ CiphertextBlob: "AQID" }), "InvalidCiphertextException"]
      ]
      for (const [target, body, exception, headers] of refusals) {
        const answer = yield* post(kms, target, body, headers)
        assert.strictEqual(answer.status, 400, exception)
        assert.strictEqual(answer.body.__type, exception)
      }
      yield* kms.disable(kms.keyArn)
      const disabled = yield* post(kms, "TrentService.Encrypt", good)
      assert.deepStrictEqual(disabled.body, { __type: "DisabledException", message: `${kms.keyArn} is disabled.` })
      yield* kms.failNext(1, "internal")
      assert.strictEqual((yield* post(kms, "TrentService.Encrypt", good)).status, 500)
    })
  )
})
