import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { TestClock } from "effect/testing"
import { randomBytes, randomUUID } from "node:crypto"
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as LocalKms from "../../src/cli/LocalKms.ts"
import { encrypt, KmsDecrypt, type KmsSettings } from "../../src/tenant/KmsDecrypt.ts"

const plaintext = "p@ss/w#rd% ünïcode \u{1f511}"
const secret = Redacted.make(plaintext)

/** A KMS with two keys. */
const startKms = Effect.gen(function* () {
  const directory = yield* Effect.acquireRelease(
    Effect.promise(() => mkdtemp(join(tmpdir(), "perseus-kms-"))),
    (path) => Effect.promise(() => rm(path, { recursive: true }))
  )
  const keyFile = join(directory, "keys.json")
  const key = () => [randomUUID(), randomBytes(32).toString("base64")] as const
  yield* Effect.promise(() => writeFile(keyFile, JSON.stringify(Object.fromEntries([key(), key()]))))
  return yield* LocalKms.start({ keyFile })
})

const until = (kms: LocalKms.LocalKms, what: (stats: LocalKms.Stats) => boolean) =>
  SubscriptionRef.changes(kms.stats).pipe(Stream.filter(what), Stream.runHead)

const calls = (kms: LocalKms.LocalKms) => Effect.map(SubscriptionRef.get(kms.stats), (stats) => stats.calls)

/** Runs `use` with a client of `settings`, and a fresh cache. */
const withClient =
  (settings: KmsSettings) =>
  <A, E>(use: (kms: KmsDecrypt["Service"]) => Effect.Effect<A, E>) =>
    Effect.provide(KmsDecrypt.use(use), KmsDecrypt.layer(settings))

const failureOf = (settings: KmsSettings, ciphertext: string) =>
  withClient(settings)((client) => Effect.flip(client.decrypt(ciphertext)))

describe("KmsDecrypt", () => {
  it.live("gives back what was encrypted, and prints it nowhere", () =>
    Effect.gen(function* () {
      const kms = yield* startKms
      const ciphertext = yield* encrypt(kms.settings, secret)
      const decrypted = yield* withClient(kms.settings)((client) => client.decrypt(ciphertext))
      assert.strictEqual(Redacted.value(decrypted), plaintext)
      assert.strictEqual(String(decrypted), "<redacted:destination password>")
      assert.notInclude(Buffer.from(ciphertext, "base64").toString("latin1"), "p@ss")
    })
  )

  it.live("takes base64 with line breaks, as Go's decoder does", () =>
    Effect.gen(function* () {
      const kms = yield* startKms
      const ciphertext = (yield* encrypt(kms.settings, secret)).replaceAll(/.{64}/g, "$&\r\n")
      const decrypted = yield* withClient(kms.settings)((client) => client.decrypt(ciphertext))
      assert.strictEqual(Redacted.value(decrypted), plaintext)
    })
  )

  it.live("asks once for what many want at the same time, and not again for ten minutes", () =>
    Effect.gen(function* () {
      const kms = yield* startKms
      const ciphertext = yield* encrypt(kms.settings, secret)
      const before = yield* calls(kms)
      yield* withClient(kms.settings)((client) =>
        Effect.gen(function* () {
          yield* Effect.all(
            Array.from({ length: 20 }, () => client.decrypt(ciphertext)),
            { concurrency: "unbounded" }
          )
          yield* client.decrypt(ciphertext)
          assert.strictEqual((yield* calls(kms)) - before, 1)
          yield* client.invalidate
          yield* client.decrypt(ciphertext)
          assert.strictEqual((yield* calls(kms)) - before, 2)
        })
      )
    })
  )

  it.effect("asks again when ten minutes have passed", () =>
    Effect.gen(function* () {
      const kms = yield* startKms
      const ciphertext = yield* encrypt(kms.settings, secret)
      yield* withClient(kms.settings)((client) =>
        Effect.gen(function* () {
          yield* client.decrypt(ciphertext)
          yield* TestClock.adjust("599 seconds")
          yield* client.decrypt(ciphertext)
          assert.strictEqual(yield* calls(kms), 2)
          yield* TestClock.adjust("1 second")
          yield* client.decrypt(ciphertext)
          assert.strictEqual(yield* calls(kms), 3)
        })
      )
    })
  )

  it.live("does not remember a failure", () =>
    Effect.gen(function* () {
      const kms = yield* startKms
      const ciphertext = yield* encrypt(kms.settings, secret)
      yield* withClient(kms.settings)((client) =>
        Effect.gen(function* () {
          yield* kms.disable(kms.keyArn)
          const error = yield* Effect.flip(client.decrypt(ciphertext))
          assert.deepInclude(error, { detail: "Decrypt: DisabledException", retryable: false })
          yield* kms.enable(kms.keyArn)
          assert.strictEqual(Redacted.value(yield* client.decrypt(ciphertext)), plaintext)
        })
      )
    })
  )

  for (const fault of ["internal", "throttled", "cut"] as const) {
    it.live(`tries again after a call that was ${fault}`, () =>
      Effect.gen(function* () {
        const kms = yield* startKms
        const ciphertext = yield* encrypt(kms.settings, secret)
        yield* kms.failNext(2, fault)
        const decrypted = yield* withClient(kms.settings)((client) => client.decrypt(ciphertext))
        assert.strictEqual(Redacted.value(decrypted), plaintext)
        assert.strictEqual(yield* calls(kms), 4)
      })
    )
  }

  it.live("gives up after the third try, with the exception's name", () =>
    Effect.gen(function* () {
      const kms = yield* startKms
      const ciphertext = yield* encrypt(kms.settings, secret)
      yield* kms.failNext(3, "throttled")
      const error = yield* failureOf(kms.settings, ciphertext)
      assert.deepInclude(error, { detail: "Decrypt: ThrottlingException", retryable: true })
      assert.strictEqual(yield* calls(kms), 4)
    })
  )

  it.effect("stops waiting for a call that is not answered, lets go of its connection, and tries again", () =>
    Effect.gen(function* () {
      const kms = yield* startKms
      const ciphertext = yield* encrypt(kms.settings, secret)
      yield* kms.failNext(1, "hang")
      const asking = yield* Effect.forkChild(
        withClient({ ...kms.settings, callTimeoutSecs: 2 })((client) => client.decrypt(ciphertext))
      )
      yield* until(kms, ({ calls }) => calls === 2)
      yield* TestClock.adjust("2 seconds")
      yield* until(kms, ({ abandoned }) => abandoned === 1)
      yield* TestClock.adjust("1 second")
      assert.strictEqual(Redacted.value(yield* Fiber.join(asking)), plaintext)
    })
  )

  it.effect("fails when the whole took too long", () =>
    Effect.gen(function* () {
      const kms = yield* startKms
      const ciphertext = yield* encrypt(kms.settings, secret)
      yield* kms.failNext(1, "hang")
      const asking = yield* Effect.forkChild(
        failureOf({ ...kms.settings, callTimeoutSecs: 9, timeoutSecs: 5 }, ciphertext)
      )
      yield* until(kms, ({ calls }) => calls === 2)
      yield* TestClock.adjust("5 seconds")
      assert.deepInclude(yield* Fiber.join(asking), { detail: "Decrypt: no answer within 5 s", retryable: true })
      yield* until(kms, ({ abandoned }) => abandoned === 1)
    })
  )

  it.live("aborts the call only when the last of those who want it has gone", () =>
    Effect.gen(function* () {
      const kms = yield* startKms
      const ciphertext = yield* encrypt(kms.settings, secret)
      yield* kms.failNext(1, "hang")
      yield* withClient(kms.settings)((client) =>
        Effect.gen(function* () {
          const first = yield* Effect.forkChild(client.decrypt(ciphertext), { startImmediately: true })
          const second = yield* Effect.forkChild(client.decrypt(ciphertext), { startImmediately: true })
          yield* until(kms, ({ calls }) => calls === 2)
          yield* Fiber.interrupt(first)
          assert.isUndefined(second.pollUnsafe())
          assert.strictEqual((yield* SubscriptionRef.get(kms.stats)).abandoned, 0)
          yield* Fiber.interrupt(second)
          yield* until(kms, ({ abandoned }) => abandoned === 1)
          assert.strictEqual(Redacted.value(yield* client.decrypt(ciphertext)), plaintext)
        })
      )
    })
  )

  it.live("asks KMS nothing about what is not base64", () =>
    Effect.gen(function* () {
      const kms = yield* startKms
      for (const broken of ["", "=", "abc", "not base64!", "YWJj====", "YW=j"]) {
        const error = yield* failureOf(kms.settings, broken)
        assert.deepInclude(error, { detail: "Decrypt: dest_pass_enc is not base64", retryable: false }, broken)
      }
      assert.strictEqual(yield* calls(kms), 0)
    })
  )

  it.live("tries only once what will be refused again, and quotes nothing of the answer", () =>
    Effect.gen(function* () {
      const kms = yield* startKms
      const ciphertext = yield* encrypt(kms.settings, secret)
      const otherKey = { ...kms.settings, keyArn: kms.keyArns[1] ?? "" }
      const unknownKey = { ...kms.settings, keyArn: kms.keyArn.replace(/.{4}$/, "0000") }
      const tampered = Buffer.from(ciphertext, "base64")
      tampered.writeUInt8(tampered.readUInt8(50) ^ 1, 50)
      const refusals: ReadonlyArray<readonly [KmsSettings, string, string]> = [
        [kms.settings, tampered.toString("base64"), "Decrypt: InvalidCiphertextException"],
        [kms.settings, "AAAA", "Decrypt: InvalidCiphertextException"],
        [otherKey, ciphertext, "Decrypt: IncorrectKeyException"],
        [unknownKey, ciphertext, "Decrypt: NotFoundException"],
        [{ ...kms.settings, keyArn: "" }, ciphertext, "Decrypt: ValidationException"]
      ]
      const before = yield* calls(kms)
      for (const [settings, blob, detail] of refusals) {
        const error = yield* failureOf(settings, blob)
        assert.deepInclude(error, { detail, retryable: false })
        assert.notInclude(JSON.stringify(error), "arn:")
      }
      assert.strictEqual((yield* calls(kms)) - before, refusals.length)
    })
  )

  it.live("says so when nothing listens at the endpoint", () =>
    Effect.gen(function* () {
      const settings = yield* Effect.scoped(Effect.map(startKms, (kms) => kms.settings))
      const error = yield* failureOf(settings, "AAAA")
      assert.deepInclude(error, { detail: "Decrypt: ECONNREFUSED", retryable: true })
    })
  )

  it.live("does not encrypt an empty password, which KMS refuses", () =>
    Effect.gen(function* () {
      const kms = yield* startKms
      const error = yield* Effect.flip(encrypt(kms.settings, Redacted.make("")))
      assert.deepInclude(error, { detail: "Encrypt: ValidationException", retryable: false })
    })
  )
})
