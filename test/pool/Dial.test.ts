import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type { TlsToServers } from "../../src/config/LiveTls.ts"
import { Network } from "../../src/net/Network.ts"
import { dial } from "../../src/pool/Dial.ts"
import { cString, frame } from "../../src/protocol/Encoder.ts"
import { Backend } from "../../src/protocol/Frame.ts"
import { sslRequest } from "../../src/protocol/Frontend.ts"
import { RecordedTransport } from "../support/RecordedTransport.ts"

const target = { host: "db", port: 5432 }
const modes = ["prefer", "require", "verify-ca", "verify-full"] as const
const verified = { peerVerified: true, peerCommonName: "db", serverEndPoint: null }

/** A server that answers an SSLRequest with these chunks; no chunk: it hangs up. */
const dialled = (
  mode: TlsToServers["mode"],
  answer: ReadonlyArray<Uint8Array>,
  transport = new RecordedTransport()
) => {
  const network = Network.of({ connect: () => Effect.succeed(transport), listen: () => Effect.fail("not here") })
  // The handshake is the transport's, and this one knows how it ends.
  const tls: TlsToServers = mode === "disable" ? { mode } : { mode, connect: () => () => {} }
  return Effect.gen(function* () {
    const dialling = yield* Effect.forkChild(dial(network, target, tls), { startImmediately: true })
    if (answer.length === 0) transport.leave()
    else transport.say(...answer)
    return { transport, outcome: Fiber.join(dialling) }
  })
}

const failure = (...args: Parameters<typeof dialled>) =>
  Effect.gen(function* () {
    const { outcome, transport } = yield* dialled(...args)
    const failed = yield* Effect.flip(outcome)
    assert.isTrue(transport.destroyed)
    return failed
  })

const yes = Buffer.from("S")
const no = Buffer.from("N")

describe("dialling a server", () => {
  it.effect("without TLS asks for none", () =>
    Effect.gen(function* () {
      const network = new RecordedTransport()
      const { outcome, transport } = yield* dialled("disable", [no], network)
      yield* outcome
      assert.deepStrictEqual([transport.written.length, transport.tls], [0, null])
    })
  )

  it.effect("asks for TLS, and goes on behind the handshake where the server agrees", () =>
    Effect.gen(function* () {
      for (const mode of modes) {
        const transport = new RecordedTransport()
        transport.handshake = verified
        yield* (yield* dialled(mode, [yes], transport)).outcome
        assert.deepStrictEqual([transport.written, transport.received], [sslRequest, Buffer.alloc(0)])
        assert.strictEqual(transport.tls, verified)
        assert.isFalse(transport.closed)
      }
    })
  )

  it.effect("goes on in clear where the server has no TLS and that was only preferred", () =>
    Effect.gen(function* () {
      for (const mode of modes) {
        if (mode === "prefer") {
          const { outcome, transport } = yield* dialled(mode, [no])
          yield* outcome
          assert.deepStrictEqual([transport.tls, transport.closed], [null, false])
        } else {
          const { kind, detail } = yield* failure(mode, [no])
          assert.strictEqual(kind, "refused")
          assert.include(detail, `offers no TLS (TLSSettings.ServerMode is ${mode})`)
        }
      }
    })
  )

  it.effect("drops a server that says anything behind its answer: it was said in clear", () =>
    Effect.gen(function* () {
      const planted = frame(Backend.errorResponse, cString("SFATAL"), cString("Mplanted"), Buffer.of(0))
      for (const answer of [yes, no]) {
        const failed = yield* failure("prefer", [Buffer.concat([answer, planted])])
        assert.strictEqual(failed.kind, "refused")
        assert.notInclude(failed.detail, "planted")
      }
    })
  )

  it.effect("shows nobody the words with which a server answers a request for TLS", () =>
    Effect.gen(function* () {
      const error = frame(Backend.errorResponse, cString("SFATAL"), cString("Mlog in at evil.example"), Buffer.of(0))
      for (const mode of modes) {
        const failed = yield* failure(mode, [error])
        assert.deepStrictEqual(
          [failed.kind, failed.detail],
          ["refused", "the server did not understand the request for TLS"]
        )
      }
    })
  )

  it.effect("fails with the reason where the handshake does: for good where it is the certificate", () =>
    Effect.gen(function* () {
      for (const [reason, kind] of [
        ["SELF_SIGNED_CERT_IN_CHAIN", "refused"],
        ["ERR_TLS_CERT_ALTNAME_INVALID", "refused"],
        ["ERR_SSL_UNSUPPORTED_PROTOCOL", "refused"],
        ["ECONNRESET", "unreachable"]
      ] as const) {
        const transport = new RecordedTransport()
        transport.handshake = reason
        const failed = yield* failure("verify-full", [yes], transport)
        assert.strictEqual(failed.kind, kind)
        assert.include(failed.detail, reason)
      }
    })
  )

  it.effect("fails for the moment where the server hangs up", () =>
    Effect.gen(function* () {
      assert.strictEqual((yield* failure("prefer", [])).kind, "unreachable")
    })
  )

  it.effect("closes what it opened when it is interrupted", () =>
    Effect.gen(function* () {
      const transport = new RecordedTransport()
      const network = Network.of({ connect: () => Effect.succeed(transport), listen: () => Effect.fail("not here") })
      const dialling = yield* Effect.forkChild(dial(network, target, { mode: "prefer", connect: () => () => {} }), {
        startImmediately: true
      })
      assert.deepStrictEqual(transport.written, sslRequest)
      yield* Fiber.interrupt(dialling)
      assert.isTrue(transport.destroyed)
    })
  )
})
