import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { pbkdf2Sync } from "node:crypto"
import { ByteReader } from "../../src/net/ByteReader.ts"
import { decodeAuthentication, type AuthenticationRequest } from "../../src/protocol/Backend.ts"
import { FrameCollector } from "../../src/protocol/Frame.ts"
import { passwordMessage, saslInitialResponse, saslResponse } from "../../src/protocol/Frontend.ts"
import * as Scram from "../../src/protocol/Scram.ts"
import { promptFor } from "../../src/session/LoginPrompt.ts"
import { proveByScram } from "../../src/tenant/ScramLogin.ts"
import { RecordedTransport } from "../support/RecordedTransport.ts"

const salt = Buffer.from("0123456789abcdef")
const salted = pbkdf2Sync("pencil", salt, 4096, 32, "sha256")
const verifier = Scram.verifierFor(salted, salt, 4096)
const endPoint = Buffer.from("the hash of our certificate")

/** A client that answers each request as it likes; its answers come byte for byte. */
const clientThat = (answer: (request: AuthenticationRequest | null) => Uint8Array | null) => {
  const transport = new RecordedTransport()
  const frames = new FrameCollector(10_000)
  transport.onWrite = (bytes) => {
    for (const { body } of frames.push(bytes) ?? []) {
      const said = answer(decodeAuthentication(body))
      if (said !== null) queueMicrotask(() => transport.say(...Array.from(said, (byte) => Buffer.of(byte))))
    }
  }
  return { transport, reader: new ByteReader(transport) }
}

/** As libpq with `channel_binding=require`, over a connection on which it sees this certificate. */
const bindingTo = (hash: Buffer) => {
  const binding = { _tag: "ServerEndPoint", hash } as const
  const offered: Array<string> = []
  let signature: Buffer | null = null
  const client = clientThat((request) => {
    if (request?._tag === "Sasl") {
      offered.push(...request.mechanisms)
      return saslInitialResponse("SCRAM-SHA-256-PLUS", Scram.clientFirst("nonce", binding))
    }
    if (request?._tag !== "SaslContinue") return null
    const first = Scram.decodeServerFirst("nonce", request.data)
    assert.isNotNull(first)
    const final = Scram.clientFinal("nonce", first, salted, binding)
    signature = final.serverSignature
    return saslResponse(final.message)
  })
  return { ...client, offered, believes: (answer: string) => Scram.verifyServerFinal(signature!, answer) }
}

describe("a client that requires channel binding", () => {
  it.effect("is offered it where TLS has a certificate to bind to, and logs in", () =>
    Effect.gen(function* () {
      const { believes, offered, reader, transport } = bindingTo(endPoint)
      transport.tls = { peerVerified: false, peerCommonName: null, serverEndPoint: endPoint }
      const answer = yield* proveByScram(promptFor(reader, transport), verifier)
      assert.deepStrictEqual(offered, ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"])
      assert.isTrue(answer !== null && believes(answer))
    })
  )

  it.effect("is refused where it sees another certificate than ours", () =>
    Effect.gen(function* () {
      const { reader, transport } = bindingTo(Buffer.from("the hash of somebody else's"))
      transport.tls = { peerVerified: false, peerCommonName: null, serverEndPoint: endPoint }
      const refused = yield* Effect.flip(proveByScram(promptFor(reader, transport), verifier))
      assert.strictEqual(refused._tag, "ChannelBindingFailed")
    })
  )

  it.effect("is not offered it in clear, nor with a certificate that has no hash defined", () =>
    Effect.gen(function* () {
      for (const tls of [null, { peerVerified: false, peerCommonName: null, serverEndPoint: null }]) {
        const { offered, reader, transport } = bindingTo(endPoint)
        transport.tls = tls
        const refused = yield* Effect.flip(proveByScram(promptFor(reader, transport), verifier))
        assert.strictEqual(refused._tag, "ProtocolViolation")
        assert.deepStrictEqual(offered, ["SCRAM-SHA-256"])
      }
    })
  )
})

describe("a password in clear text", () => {
  it.effect("is read as it was sent, and prints as nothing", () =>
    Effect.gen(function* () {
      const { reader, transport } = clientThat(() => passwordMessage("pass wörd "))
      const password = yield* promptFor(reader, transport).password
      assert.strictEqual(Redacted.value(password), "pass wörd ")
      assert.notInclude(`${String(password)} ${JSON.stringify(password)}`, "wörd")
    })
  )
})
