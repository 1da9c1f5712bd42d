import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { pbkdf2Sync } from "node:crypto"
import { ChannelBindingFailed, ProtocolViolation } from "../../src/errors.ts"
import * as Scram from "../../src/protocol/Scram.ts"
import { mockVerifier, proveByScram, type SaslPrompt } from "../../src/tenant/ScramLogin.ts"

const salt = Buffer.from("0123456789abcdef")
const saltedOf = (password: string) => pbkdf2Sync(password, salt, 4096, 32, "sha256")
const verifier = Scram.verifierFor(saltedOf("pencil"), salt, 4096)
const endPoint = Buffer.from("the hash of our certificate")
const plus = "SCRAM-SHA-256-PLUS"
const plain = "SCRAM-SHA-256"

interface Client {
  /** What this client believes of the channel. */
  readonly binding: Scram.ChannelBinding
  readonly mechanism: string
  readonly password?: string
  /** What it says in place of its first or last message. */
  readonly first?: (message: string) => string
  readonly last?: (message: string) => string
}

/** A client that answers as libpq would, and what it was offered and challenged with. */
const clientOf = (client: Client, serverEndPoint: Buffer | null) => {
  const offered: Array<string> = []
  const challenges: Array<string> = []
  const same = (message: string) => message
  const prompt: SaslPrompt<never> = {
    serverEndPoint,
    start: (mechanisms) =>
      Effect.sync(() => {
        offered.push(...mechanisms)
        return { mechanism: client.mechanism, data: (client.first ?? same)(Scram.clientFirst("nonce", client.binding)) }
      }),
    challenge: (data) =>
      Effect.sync(() => {
        challenges.push(data)
        const first = Scram.decodeServerFirst("nonce", data)
        assert.isNotNull(first)
        const salted = pbkdf2Sync(client.password ?? "pencil", first.salt, first.iterations, 32, "sha256")
        return (client.last ?? same)(Scram.clientFinal("nonce", first, salted, client.binding).message)
      }),
    finish: () => Effect.die("is the Authenticator's to say")
  }
  return { prompt, offered, challenges }
}

type Outcome = "right" | "wrong" | "channel binding failed" | "protocol violation"

const outcome = (client: Client, serverEndPoint: Buffer | null): Effect.Effect<Outcome> =>
  Effect.map(Effect.result(proveByScram(clientOf(client, serverEndPoint).prompt, verifier)), (result) => {
    if (Result.isSuccess(result)) return result.success === null ? "wrong" : "right"
    if (result.failure instanceof ChannelBindingFailed) return "channel binding failed"
    assert.instanceOf(result.failure, ProtocolViolation)
    return "protocol violation"
  })

const unsupported = { _tag: "Unsupported" } as const
const notOffered = { _tag: "NotOffered" } as const
const bound = { _tag: "ServerEndPoint", hash: endPoint } as const

describe("channel binding", () => {
  const cases: ReadonlyArray<readonly [says: string, client: Client, offered: Outcome, notOffered: Outcome]> = [
    ["n: it cannot", { binding: unsupported, mechanism: plain }, "right", "right"],
    ["y: it could", { binding: notOffered, mechanism: plain }, "channel binding failed", "right"],
    ["p: it does", { binding: bound, mechanism: plus }, "right", "protocol violation"],
    [
      "n under the mechanism that binds",
      { binding: unsupported, mechanism: plus },
      "protocol violation",
      "protocol violation"
    ],
    [
      "y under the mechanism that binds",
      { binding: notOffered, mechanism: plus },
      "protocol violation",
      "protocol violation"
    ],
    [
      "p under the mechanism that does not bind",
      { binding: bound, mechanism: plain },
      "protocol violation",
      "protocol violation"
    ]
  ]
  for (const [says, client, ifOffered, ifNotOffered] of cases) {
    it.effect(`for a client that says ${says}: ${ifOffered} where it is offered`, () =>
      Effect.gen(function* () {
        assert.strictEqual(yield* outcome(client, endPoint), ifOffered)
      })
    )
    it.effect(`for a client that says ${says}: ${ifNotOffered} where it is not offered`, () =>
      Effect.gen(function* () {
        assert.strictEqual(yield* outcome(client, null), ifNotOffered)
      })
    )
  }

  it.effect("is offered before the mechanism without it, where there is a certificate to bind to", () =>
    Effect.gen(function* () {
      for (const [serverEndPoint, mechanisms] of [
        [endPoint, [plus, plain]],
        [null, [plain]]
      ] as const) {
        const { offered, prompt } = clientOf({ binding: unsupported, mechanism: plain }, serverEndPoint)
        yield* proveByScram(prompt, verifier)
        assert.deepStrictEqual(offered, [...mechanisms])
      }
    })
  )

  it.effect("fails for a client that sees another certificate, whatever it proves", () =>
    Effect.gen(function* () {
      const hash = Buffer.from("the hash of another certificate")
      for (const password of ["pencil", "wrong"]) {
        const client = { binding: { _tag: "ServerEndPoint", hash } as const, mechanism: plus, password }
        assert.strictEqual(yield* outcome(client, endPoint), "channel binding failed")
      }
    })
  )

  it.effect("fails where the last message repeats another header than the first had", () =>
    Effect.gen(function* () {
      const c = (header: string) => (message: string) =>
        message.replace(/^c=[^,]+/, `c=${Buffer.from(header).toString("base64")}`)
      for (const [client, header] of [
        [{ binding: unsupported, mechanism: plain }, "y,,"],
        [{ binding: unsupported, mechanism: plain }, "p=tls-server-end-point,,"],
        [{ binding: bound, mechanism: plus }, "n,,"],
        [{ binding: bound, mechanism: plus }, "p=tls-server-end-point,,"]
      ] as const) {
        assert.strictEqual(yield* outcome({ ...client, last: c(header) }, endPoint), "channel binding failed", header)
      }
    })
  )
})

describe("a proof", () => {
  it.effect("is wrong for another password, and for none", () =>
    Effect.gen(function* () {
      for (const password of ["pencil ", "Pencil", ""]) {
        assert.strictEqual(yield* outcome({ binding: unsupported, mechanism: plain, password }, null), "wrong")
      }
    })
  )

  it.effect("is answered with a signature that the client believes", () =>
    Effect.gen(function* () {
      const { challenges, prompt } = clientOf({ binding: unsupported, mechanism: plain }, null)
      const answer = yield* proveByScram(prompt, verifier)
      const first = Scram.decodeServerFirst("nonce", challenges[0]!)!
      const { serverSignature } = Scram.clientFinal("nonce", first, saltedOf("pencil"))
      assert.isTrue(Scram.verifyServerFinal(serverSignature, answer!))
    })
  )

  it.effect("cannot be used twice: each challenge has a nonce of its own", () =>
    Effect.gen(function* () {
      let sent = ""
      const first = { binding: unsupported, mechanism: plain, last: (message: string) => (sent = message) }
      assert.strictEqual(yield* outcome(first, null), "right")
      const again = { binding: unsupported, mechanism: plain, last: () => sent }
      assert.strictEqual(yield* outcome(again, null), "protocol violation")
    })
  )

  it.effect("is none where a message is malformed", () =>
    Effect.gen(function* () {
      const client = { binding: unsupported, mechanism: plain }
      for (const change of [() => "", (message: string) => `${message}\0`, (message: string) => `m=x,${message}`]) {
        assert.strictEqual(yield* outcome({ ...client, first: change }, null), "protocol violation")
        assert.strictEqual(yield* outcome({ ...client, last: change }, null), "protocol violation")
      }
      for (const mechanism of ["", "SCRAM-SHA-1", "scram-sha-256", "PLAIN"]) {
        assert.strictEqual(yield* outcome({ ...client, mechanism }, null), "protocol violation")
      }
    })
  )
})

describe("mockVerifier", () => {
  const key = { sourceDb: "shop", sourceSchema: "red" }

  it("is the same for the same database, schema and user, and another for any other", () => {
    const texts = [
      mockVerifier(key, "mm"),
      mockVerifier({ ...key, sourceDb: "sho" }, "mm"),
      mockVerifier({ ...key, sourceSchema: "pred" }, "mm"),
      mockVerifier(key, "m")
    ].map(Scram.encodeVerifier)
    assert.strictEqual(new Set(texts).size, 4)
    assert.strictEqual(Scram.encodeVerifier(mockVerifier(key, "mm")), texts[0])
  })

  it("looks like PostgreSQL's own, or like the verifier that it stands for", () => {
    const plainMock = mockVerifier(key, "mm")
    assert.deepStrictEqual([plainMock.iterations, plainMock.salt.length], [4096, 16])
    const like = mockVerifier(key, "mm", { ...verifier, iterations: 10_000, salt: Buffer.alloc(20) })
    assert.deepStrictEqual([like.iterations, like.salt.length], [10_000, 20])
    assert.isNotNull(Scram.decodeVerifier(Scram.encodeVerifier(like)))
  })
})
