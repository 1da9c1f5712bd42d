/**
 * A KMS on loopback, for the demo and the tests: it speaks the JSON 1.1 protocol that the AWS SDK speaks, so the code
 * that talks to AWS is the code that runs.
 *
 * It knows Encrypt and Decrypt with AES-256-GCM under the keys of one key file. It answers with the shapes and the
 * HTTP codes of the real service, can be told to fail, and never logs, nor quotes in an error, what it was sent. It
 * asks for an `Authorization` header but does not check the signature: whoever reaches the port may decrypt, which is
 * why it listens on loopback only. It is no key store: the key file lies there in clear, readable by its owner.
 *
 * @see https://docs.aws.amazon.com/kms/latest/APIReference/API_Decrypt.html
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { createCipheriv, createDecipheriv, randomBytes, randomUUID } from "node:crypto"
import { readFile, writeFile } from "node:fs/promises"
import * as Http from "node:http"
import type { AddressInfo } from "node:net"
import { text } from "node:stream/consumers"
import type { KmsSettings } from "../tenant/KmsDecrypt.ts"

/** Where the keys are and where to listen. */
export interface Options {
  /** JSON, key id (a UUID) to base64 of 32 bytes; made with one key, mode 0600, where it does not exist. */
  readonly keyFile: string
  /** A loopback address. */
  readonly host?: "127.0.0.1" | "::1" | undefined
  /** 0: a free one. */
  readonly port?: number | undefined
}

/**
 * How a call is made to fail: `internal` is a KMSInternalException with status 500, `throttled` a ThrottlingException
 * with status 400 as KMS sends it, `hang` no answer at all, `cut` a connection that is closed in place of an answer.
 */
export type Fault = "internal" | "throttled" | "hang" | "cut"

/** What has happened since the start. */
export interface Stats {
  /** Requests that were received whole, failed ones included. */
  readonly calls: number
  /** Requests whose client went away before the answer. */
  readonly abandoned: number
}

/** A KMS that listens until its scope closes. */
export interface LocalKms {
  /** `http://127.0.0.1:port`. */
  readonly endpoint: string
  /** The key file's first key. */
  readonly keyArn: string
  readonly keyArns: ReadonlyArray<string>
  /** All that a client needs. */
  readonly settings: KmsSettings
  readonly stats: SubscriptionRef.SubscriptionRef<Stats>
  /** The next `count` calls fail with `fault`. */
  readonly failNext: (count: number, fault: Fault) => Effect.Effect<void>
  /** Until `enable`, every call that needs this key gets a DisabledException. */
  readonly disable: (keyArn: string) => Effect.Effect<void>
  readonly enable: (keyArn: string) => Effect.Effect<void>
}

/** The key file cannot be used, or the address cannot be listened on. */
export class LocalKmsFailed extends Data.TaggedError("LocalKmsFailed")<{
  readonly detail: string
}> {
  override get message() {
    return `local KMS: ${this.detail}`
  }
}

const region = "us-east-1"
const arnPrefix = `arn:aws:kms:${region}:000000000000:key/`

/** The service's own limits, in bytes: API_Encrypt, API_Decrypt. */
const maxPlaintext = 4096
const maxCiphertext = 6144
/** Both of the above in base64, and an encryption context, fit with room to spare. */
const maxBody = 65_536

/** A blob is version, key id, nonce, tag, ciphertext. */
const version = 1
const nonceAt = 17
const tagAt = 29
const ciphertextAt = 45

interface Key {
  readonly arn: string
  readonly material: Buffer
  enabled: boolean
}

/** Reads or makes the key file, and listens until the scope closes. Fails with `LocalKmsFailed`. */
export const start = Effect.fnUntraced(function* (
  options: Options
): Effect.fn.Return<LocalKms, LocalKmsFailed, Scope.Scope> {
  const keys = yield* loadKeys(options.keyFile)
  const stats = yield* SubscriptionRef.make<Stats>({ calls: 0, abandoned: 0 })
  const faults: Array<Fault> = []

  const answer = Effect.fnUntraced(function* (request: Http.IncomingMessage) {
    const body = yield* Effect.promise(() => readBody(request))
    yield* SubscriptionRef.update(stats, (now) => ({ ...now, calls: now.calls + 1 }))
    const fault = faults.shift()
    if (fault === "hang") return yield* Effect.never
    if (fault === "cut") return null
    if (fault === "internal") return kmsError("KMSInternalException", "The request processing has failed.", 500)
    if (fault === "throttled") return kmsError("ThrottlingException", "Rate exceeded")
    return perform(keys, request.headers, body)
  })
  const run = yield* FiberSet.makeRuntime<never>()
  const address = yield* listen(options, (request, response) => {
    const abandoned = SubscriptionRef.update(stats, (now) => ({ ...now, abandoned: now.abandoned + 1 }))
    const fiber = run(
      answer(request).pipe(
        Effect.tap((it) => Effect.sync(() => (it === null ? response.destroy() : send(response, it)))),
        Effect.onInterrupt(() => abandoned)
      )
    )
    response.on("close", () => fiber.interruptUnsafe())
  })

  const keyArns = Array.from(keys.values(), (key) => key.arn)
  const keyArn = keyArns[0]
  if (keyArn === undefined) return yield* new LocalKmsFailed({ detail: `${options.keyFile} holds no key` })
  const endpoint = `http://${address.family === "IPv6" ? `[${address.address}]` : address.address}:${address.port}`
  const setEnabled = (arn: string, enabled: boolean) =>
    Effect.sync(() => {
      const key = findKey(keys, arn)
      if (key !== undefined) key.enabled = enabled
    })
  return {
    endpoint,
    keyArn,
    keyArns,
    settings: { accessKeyId: "local", secretAccessKey: Redacted.make("local"), region, endpoint, keyArn },
    stats,
    failNext: (count, fault) => Effect.sync(() => void faults.push(...Array.from({ length: count }, () => fault))),
    disable: (arn) => setEnabled(arn, false),
    enable: (arn) => setEnabled(arn, true)
  }
})

const loadKeys = (path: string): Effect.Effect<ReadonlyMap<string, Key>, LocalKmsFailed> =>
  Effect.tryPromise({
    try: async () => {
      const fresh = { [randomUUID()]: randomBytes(32).toString("base64") }
      await writeFile(path, `${JSON.stringify(fresh, null, 2)}\n`, { flag: "wx", mode: 0o600 }).catch(unlessItExists)
      const file: unknown = JSON.parse(await readFile(path, "utf8"))
      return new Map(Object.entries(file ?? {}).map(([id, material]) => [id, makeKey(id, material)]))
    },
    // What the JSON parser says would quote the file.
    catch: (cause) => new LocalKmsFailed({ detail: `${path}: ${errnoCode(cause) ?? "not a key file"}` })
  })

const makeKey = (id: string, material: unknown): Key => {
  const bytes = Buffer.from(String(material), "base64")
  if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(id) || bytes.length !== 32) throw new Error("not a key")
  return { arn: arnPrefix + id, material: bytes, enabled: true }
}

const errnoCode = (cause: unknown): string | undefined =>
  cause instanceof Error && "code" in cause ? String(cause.code) : undefined

const unlessItExists = (cause: unknown): void => {
  if (errnoCode(cause) !== "EEXIST") throw cause
}

const listen = Effect.fnUntraced(function* (options: Options, onRequest: Http.RequestListener) {
  const server = yield* Effect.acquireRelease(
    Effect.sync(() => Http.createServer(onRequest)),
    (server) =>
      Effect.callback<void>((resume) => {
        server.close(() => resume(Effect.void))
        server.closeAllConnections()
      })
  )
  return yield* Effect.callback<AddressInfo, LocalKmsFailed>((resume) => {
    server.once("error", (error) =>
      resume(Effect.fail(new LocalKmsFailed({ detail: errnoCode(error) ?? error.message })))
    )
    server.listen(options.port ?? 0, options.host ?? "127.0.0.1", () => {
      const address = server.address()
      if (address !== null && typeof address === "object") resume(Effect.succeed(address))
    })
  })
})

/** Null where it is too long to be a request for KMS. */
const readBody = async (request: Http.IncomingMessage): Promise<string | null> => {
  if (Number(request.headers["content-length"] ?? Infinity) > maxBody) return null
  return await text(request)
}

interface Answer {
  readonly status: number
  readonly body: Readonly<Record<string, string>>
}

const send = (response: Http.ServerResponse, { body, status }: Answer): void => {
  response.writeHead(status, { "Content-Type": "application/x-amz-json-1.1", "x-amzn-RequestId": randomUUID() })
  response.end(JSON.stringify(body))
}

const kmsError = (__type: string, message?: string, status = 400): Answer => ({
  status,
  body: message === undefined ? { __type } : { __type, message }
})

const perform = (keys: ReadonlyMap<string, Key>, headers: Http.IncomingHttpHeaders, body: string | null): Answer => {
  if (!headers.authorization?.startsWith("AWS4-HMAC-SHA256 ")) {
    return kmsError("MissingAuthenticationTokenException", "Missing Authentication Token")
  }
  const input = body === null ? null : parseObject(body)
  if (input === null) return kmsError("SerializationException")
  switch (headers["x-amz-target"]) {
    case "TrentService.Encrypt":
      return encrypt(keys, input)
    case "TrentService.Decrypt":
      return decrypt(keys, input)
    default:
      return kmsError("UnknownOperationException")
  }
}

type Input = Readonly<Record<string, unknown>>

const parseObject = (body: string): Input | null => {
  try {
    const value: unknown = JSON.parse(body)
    return typeof value === "object" && value !== null && !Array.isArray(value) ? { ...value } : null
  } catch {
    return null
  }
}

const encrypt = (keys: ReadonlyMap<string, Key>, input: Input): Answer => {
  const plaintext = blobOf(input, "Plaintext", maxPlaintext)
  if (!Buffer.isBuffer(plaintext)) return plaintext
  const key = usableKey(keys, input["KeyId"])
  if ("status" in key) return key

  const nonce = randomBytes(12)
  const cipher = createCipheriv("aes-256-gcm", key.material, nonce).setAAD(encryptionContext(input))
  const ciphertext = Buffer.concat([cipher.update(plaintext), cipher.final()])
  const keyId = Buffer.from(key.arn.slice(arnPrefix.length).replaceAll("-", ""), "hex")
  const blob = Buffer.concat([Buffer.of(version), keyId, nonce, cipher.getAuthTag(), ciphertext])
  return success(key, { CiphertextBlob: blob.toString("base64") })
}

const decrypt = (keys: ReadonlyMap<string, Key>, input: Input): Answer => {
  const blob = blobOf(input, "CiphertextBlob", maxCiphertext)
  if (!Buffer.isBuffer(blob)) return blob
  const wanted = input["KeyId"] === undefined ? undefined : usableKey(keys, input["KeyId"])
  if (wanted !== undefined && "status" in wanted) return wanted
  const hex = blob.toString("hex", 1, nonceAt)
  const madeWith = keys.get(hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5"))
  if (blob[0] !== version || blob.length <= ciphertextAt || madeWith === undefined) {
    return kmsError("InvalidCiphertextException")
  }
  if (wanted !== undefined && wanted !== madeWith) {
    return kmsError(
      "IncorrectKeyException",
      "The key ID in the request does not identify a CMK that can perform this operation."
    )
  }
  const key = usableKey(keys, madeWith.arn)
  if ("status" in key) return key
  try {
    const decipher = createDecipheriv("aes-256-gcm", key.material, blob.subarray(nonceAt, tagAt))
      .setAAD(encryptionContext(input))
      .setAuthTag(blob.subarray(tagAt, ciphertextAt))
    const plaintext = Buffer.concat([decipher.update(blob.subarray(ciphertextAt)), decipher.final()])
    return success(key, { Plaintext: plaintext.toString("base64") })
  } catch {
    return kmsError("InvalidCiphertextException")
  }
}

const success = (key: Key, result: Readonly<Record<string, string>>): Answer => ({
  status: 200,
  body: { ...result, KeyId: key.arn, EncryptionAlgorithm: "SYMMETRIC_DEFAULT" }
})

/** The bytes of a required member, or why they are refused. */
const blobOf = (input: Input, member: string, maxLength: number): Buffer | Answer => {
  const value = input[member]
  const at = `1 validation error detected: Value at '${member[0]?.toLowerCase()}${member.slice(1)}' failed to satisfy constraint`
  if (typeof value !== "string") return kmsError("ValidationException", `${at}: Member must not be null`)
  const bytes = Buffer.from(value, "base64")
  if (bytes.length < 1) {
    return kmsError("ValidationException", `${at}: Member must have length greater than or equal to 1`)
  }
  if (bytes.length > maxLength) {
    return kmsError("ValidationException", `${at}: Member must have length less than or equal to ${maxLength}`)
  }
  return bytes
}

/** A key by its id or its ARN. */
const findKey = (keys: ReadonlyMap<string, Key>, id: string): Key | undefined =>
  keys.get(id.startsWith(arnPrefix) ? id.slice(arnPrefix.length) : id)

const usableKey = (keys: ReadonlyMap<string, Key>, id: unknown): Key | Answer => {
  if (typeof id !== "string" || id.length < 1 || id.length > 2048) {
    return kmsError(
      "ValidationException",
      "1 validation error detected: Value at 'keyId' failed to satisfy constraint: " +
        "Member must have length between 1 and 2048"
    )
  }
  const key = findKey(keys, id)
  if (key === undefined)
    return kmsError("NotFoundException", `Key '${arnPrefix}${id.split("/").at(-1)}' does not exist`)
  if (!key.enabled) return kmsError("DisabledException", `${key.arn} is disabled.`)
  return key
}

/** The context is a map: its order must not matter. */
const encryptionContext = ({ EncryptionContext: context }: Input): Buffer =>
  Buffer.from(JSON.stringify(typeof context === "object" && context !== null ? Object.entries(context).sort() : []))
