/**
 * The passwords of destinations, out of KMS: `dest_pass_enc` in, plaintext out as a `Redacted`.
 *
 * It asks KMS once for what many logins want at the same time, remembers what it got for ten minutes, tries again
 * what may be tried again, and gives up in bounded time. It never puts a ciphertext, a plaintext or the text of an
 * AWS error into a failure: `detail` has the operation and the exception's name, which is what an operator needs.
 *
 * The SDK is loaded on the first call: it costs 80 ms and 21 MB, which `genhash` or `--help` need not pay. Its own
 * retries are off (`maxAttempts: 1`), because they would sleep outside Effect's Clock and ignore our deadline.
 */
import type { KMSClient } from "@aws-sdk/client-kms"
import { isUtf8 } from "node:buffer"
import { createHash } from "node:crypto"
import * as Cache from "effect/Cache"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type { AWSSettings } from "../config/PerseusConfig.ts"
import { KmsUnavailable } from "../errors.ts"

/** How to reach KMS; `AWSSettings` of the configuration. */
export interface KmsSettings {
  /** Blank: the SDK's default credential chain (environment, shared files, container, instance). */
  readonly accessKeyId: string
  readonly secretAccessKey: Redacted.Redacted<string>
  /** Blank: the SDK's default (`AWS_REGION`, shared files). */
  readonly region: string
  /** Blank: AWS's own. Without a scheme it is `https`, as with the Go SDK. */
  readonly endpoint: string
  /** The key's ARN, sent with every call: a ciphertext of another key is refused. */
  readonly keyArn: string
  /** Seconds for one HTTP call. */
  readonly callTimeoutSecs?: number | undefined
  /** Seconds for all tries together, and the waits between them. */
  readonly timeoutSecs?: number | undefined
}

/** The `AWSSettings` of config.json. */
export const settingsFrom = (aws: AWSSettings): KmsSettings => ({
  accessKeyId: aws.AccessKeyId,
  secretAccessKey: aws.SecretAccessKey,
  region: aws.Region,
  endpoint: aws.Endpoint,
  keyArn: aws.KMSKeyARN
})

type Operation = "Decrypt" | "Encrypt"
type Sdk = typeof import("@aws-sdk/client-kms")

const defaultCallTimeoutSecs = 2
const defaultTimeoutSecs = 5

/** Below the SDK's 50 sockets: at 50 it queues requests inside, where no deadline of ours sees them wait. */
const maxCallsInFlight = 32

/** 10,000 tenants' passwords are a few MB. */
const cachedPasswords = 10_000
const cachedFor = Duration.minutes(10)

/** Three tries in all, after about 50 and 100 ms. */
const backoff = Schedule.exponential("50 millis").pipe(Schedule.jittered, Schedule.upTo({ times: 2 }))

/** What a lookup decrypts. It travels beside the cache's key, so that the cache holds digests and no ciphertext. */
class CiphertextBlob extends Context.Service<CiphertextBlob, Uint8Array>()(
  "perseus/tenant/KmsDecrypt/CiphertextBlob"
) {}

/** Decrypts `dest_pass_enc`. */
export class KmsDecrypt extends Context.Service<
  KmsDecrypt,
  {
    /**
     * The plaintext of `ciphertext`, the base64 of a KMS `CiphertextBlob`.
     *
     * Fails with `KmsUnavailable` when the base64 is malformed (without asking KMS), when KMS refuses the blob, or
     * when it did not answer in time.
     */
    readonly decrypt: (ciphertext: string) => Effect.Effect<Redacted.Redacted<string>, KmsUnavailable>
    /** Forgets every plaintext, so that each is asked for again. */
    readonly invalidate: Effect.Effect<void>
  }
>()("perseus/tenant/KmsDecrypt") {
  /** Nothing is asked of KMS, and no credential is looked for, before the first `decrypt`. */
  static readonly layer = (settings: KmsSettings): Layer.Layer<KmsDecrypt> =>
    Layer.effect(
      KmsDecrypt,
      Effect.gen(function* () {
        const kms = yield* connect(settings)
        const lookup = (_digest: string) => Effect.flatMap(CiphertextBlob, (blob) => decryptBlob(kms, settings, blob))
        const cache = yield* Cache.makeWith(lookup, {
          capacity: cachedPasswords,
          timeToLive: (exit) => (Exit.isSuccess(exit) ? cachedFor : Duration.zero),
          requireServicesAt: "lookup"
        })
        return KmsDecrypt.of({
          decrypt: Effect.fn("KmsDecrypt.decrypt")(function* (ciphertext) {
            const blob = yield* decodeBase64(ciphertext)
            const digest = createHash("sha256").update(blob).digest("base64")
            return yield* Effect.provideService(Cache.get(cache, digest), CiphertextBlob, blob)
          }),
          invalidate: Cache.invalidateAll(cache)
        })
      })
    )
}

/** `plaintext` encrypted with the key of `settings`: base64 of the `CiphertextBlob`, as `dest_pass_enc` takes it. */
export const encrypt = (
  settings: KmsSettings,
  plaintext: Redacted.Redacted<string>
): Effect.Effect<string, KmsUnavailable> =>
  Effect.scoped(
    Effect.gen(function* () {
      const kms = yield* connect(settings)
      const answer = yield* kms.call("Encrypt", (sdk, client, abortSignal) =>
        client.send(
          new sdk.EncryptCommand({ KeyId: settings.keyArn, Plaintext: Buffer.from(Redacted.value(plaintext)) }),
          { abortSignal }
        )
      )
      if (answer.CiphertextBlob === undefined) return yield* unusableAnswer("Encrypt", "no CiphertextBlob")
      return Buffer.from(answer.CiphertextBlob).toString("base64")
    })
  )

interface Kms {
  /** One operation with its tries, its deadlines and its share of the sockets. */
  readonly call: <A>(
    operation: Operation,
    send: (sdk: Sdk, client: KMSClient, abortSignal: AbortSignal) => Promise<A>
  ) => Effect.Effect<A, KmsUnavailable>
}

const connect = Effect.fnUntraced(function* (settings: KmsSettings): Effect.fn.Return<Kms, never, Scope.Scope> {
  let opened: Promise<{ readonly sdk: Sdk; readonly client: KMSClient }> | undefined
  const open = () =>
    (opened ??= import("@aws-sdk/client-kms").then((sdk) => ({ sdk, client: makeClient(sdk, settings) })))
  yield* Effect.addFinalizer(() => Effect.promise(async () => (await opened)?.client.destroy()))

  const inFlight = yield* Semaphore.make(maxCallsInFlight)
  const callTimeout = settings.callTimeoutSecs ?? defaultCallTimeoutSecs
  const timeout = settings.timeoutSecs ?? defaultTimeoutSecs
  return {
    call: (operation, send) =>
      Effect.tryPromise({
        try: async (abortSignal) => {
          const { sdk, client } = await open()
          return await send(sdk, client, abortSignal)
        },
        catch: (cause) => failure(operation, cause)
      }).pipe(
        failAfter(operation, callTimeout),
        inFlight.withPermits(1),
        Effect.retry({ schedule: backoff, while: (error) => error.retryable }),
        failAfter(operation, timeout)
      )
  }
})

const makeClient = (sdk: Sdk, settings: KmsSettings): KMSClient =>
  new sdk.KMSClient({
    maxAttempts: 1,
    ...(settings.region !== "" && { region: settings.region }),
    ...(settings.endpoint !== "" && { endpoint: withScheme(settings.endpoint) }),
    ...(settings.accessKeyId !== "" && {
      credentials: {
        accessKeyId: settings.accessKeyId,
        secretAccessKey: Redacted.value(settings.secretAccessKey)
      }
    })
  })

const withScheme = (endpoint: string): string => (endpoint.includes("://") ? endpoint : `https://${endpoint}`)

const decryptBlob = Effect.fnUntraced(function* (
  kms: Kms,
  settings: KmsSettings,
  blob: Uint8Array
): Effect.fn.Return<Redacted.Redacted<string>, KmsUnavailable> {
  const answer = yield* kms.call("Decrypt", (sdk, client, abortSignal) =>
    client.send(new sdk.DecryptCommand({ KeyId: settings.keyArn, CiphertextBlob: blob }), { abortSignal })
  )
  if (answer.Plaintext === undefined) return yield* unusableAnswer("Decrypt", "no Plaintext")
  if (!isUtf8(answer.Plaintext)) return yield* unusableAnswer("Decrypt", "Plaintext is not UTF-8")
  return Redacted.make(Buffer.from(answer.Plaintext).toString("utf8"), { label: "destination password" })
})

/** `Buffer.from` skips what is not base64; Go's decoder, which the rows were made for, skips line breaks only. */
const decodeBase64 = (text: string): Effect.Effect<Uint8Array, KmsUnavailable> => {
  const compact = text.replaceAll(/[\r\n]/g, "")
  return compact.length > 0 && compact.length % 4 === 0 && /^[A-Za-z0-9+/]+={0,2}$/.test(compact)
    ? Effect.succeed(Buffer.from(compact, "base64"))
    : Effect.fail(new KmsUnavailable({ detail: "Decrypt: dest_pass_enc is not base64", retryable: false }))
}

const failAfter = (operation: Operation, seconds: number) =>
  Effect.timeoutOrElse({
    duration: Duration.seconds(seconds),
    orElse: () =>
      Effect.fail(new KmsUnavailable({ detail: `${operation}: no answer within ${seconds} s`, retryable: true }))
  })

const unusableAnswer = (operation: Operation, what: string) =>
  new KmsUnavailable({ detail: `${operation}: unusable answer: ${what}`, retryable: false })

/** The parts of what the SDK throws that are looked at. All of it may come from the network: nothing is trusted. */
interface Thrown {
  readonly name?: unknown
  readonly code?: unknown
  readonly $fault?: unknown
  readonly $metadata?: { readonly httpStatusCode?: unknown } | undefined
}

const failure = (operation: Operation, cause: unknown): KmsUnavailable => {
  const thrown: Thrown = typeof cause === "object" && cause !== null ? cause : {}
  const name = [thrown.code, thrown.name].find(isIdentifier) ?? "unknown error"
  return new KmsUnavailable({ detail: `${operation}: ${name}`, retryable: isRetryable(thrown) })
}

/** An exception's name comes from the answer's body: only what looks like a name may reach the log. */
const isIdentifier = (name: unknown): name is string => typeof name === "string" && /^[A-Za-z_]\w{0,79}$/.test(name)

/** Throttling has status 400 in KMS's protocol, and the SDK leaves `$retryable` undefined on a plain 500. */
const isRetryable = ({ $fault, $metadata, code, name }: Thrown): boolean => {
  const status = $metadata?.httpStatusCode
  return (
    $fault === "server" ||
    (typeof status === "number" && (status >= 500 || status === 429)) ||
    (typeof name === "string" && /^(Throttl|TimeoutError$|TooManyRequests|RequestTimeout)/.test(name)) ||
    (typeof code === "string" && /^E[A-Z_]+$/.test(code) && !code.startsWith("ERR_"))
  )
}
