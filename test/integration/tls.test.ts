/**
 * TLS with real clients on one side and a real PostgreSQL on the other.
 */
import { assert, describe, it, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"
import * as NodeTls from "node:tls"
import { Client, type ClientConfig } from "pg"
import { authority, pemFiles, signedBy, type Certificate } from "../support/certificates.ts"
import { installed, run } from "../support/clientProgram.ts"
import { manInTheMiddle, withoutPlus } from "../support/manInTheMiddle.ts"
import { eventually, isWhole, startPerseus, type TestPerseus } from "../support/perseus.ts"
import { ownPostgres, type Server } from "../support/postgres.ts"
import {
  cancelRequest,
  fieldsOf,
  password,
  query,
  type RawClient,
  rowsOf,
  sqlStatesOf,
  sslRequest,
  startup,
  typesOf
} from "../support/rawClient.ts"
import { writtenByPostgres } from "../support/verifiers.ts"

const ca = authority()
const stranger = authority("Another CA")
const LOOPBACK = "127.0.0.1"

/** Perseus with a certificate of its own for its clients. */
const withClients = (
  ClientMode: "allow" | "require" | "verify-full",
  certificate = signedBy(ca, "localhost", LOOPBACK),
  LimitSettings = {}
) =>
  Effect.gen(function* () {
    const write = yield* pemFiles
    const TLSSettings = {
      ClientMode,
      ClientCertFile: yield* write("server.crt", certificate.cert),
      ClientKeyFile: yield* write("server.key", certificate.key),
      ClientCAFile: yield* write("ca.crt", ca.cert)
    }
    const config = { TLSSettings, LimitSettings }
    return { write, config, perseus: yield* startPerseus({ tenants: ["red"], config }) }
  })

const clientOf = (perseus: TestPerseus, more: ClientConfig) => {
  const { user, password, options } = perseus.tenant("red")
  const { host, port, sourceDb: database } = perseus
  const client = new Client({ host, port, user, password, database, options, ...more })
  client.on("error", () => undefined)
  return client
}

const connect = (perseus: TestPerseus, more: ClientConfig) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const client = clientOf(perseus, more)
      await client.connect()
      return client
    }),
    (client) => Effect.promise(() => client.end())
  )

/** What a login that fails is told. */
const refusal = (perseus: TestPerseus, more: ClientConfig) =>
  Effect.promise(() =>
    clientOf(perseus, more)
      .connect()
      .then(
        () => "let in",
        (error: { readonly code?: string; readonly message: string }) => `${error.code} ${error.message}`
      )
  )

const rowOf = (client: Client, sql: string) =>
  Effect.promise(() =>
    client.query({ text: sql, rowMode: "array" }).then(({ rows }) => rows[0] as ReadonlyArray<unknown>)
  )

/** A TLS socket of Node's on a connection to Perseus: all it has heard once that is closed. */
const speakTls = (perseus: TestPerseus, options: NodeTls.ConnectionOptions, say: (socket: NodeTls.TLSSocket) => void) =>
  Effect.callback<string>((resume) => {
    let heard = ""
    const socket = NodeTls.connect({ host: perseus.host, port: perseus.port, rejectUnauthorized: false, ...options })
    socket.on("secureConnect", () => say(socket))
    socket.on("data", (chunk: Buffer) => {
      heard += chunk.toString("latin1")
      if (heard.includes("Z\0\0\0\x05I")) socket.end()
    })
    socket.on("error", () => {})
    socket.on("close", () => resume(Effect.succeed(heard)))
    return Effect.sync(() => socket.destroy())
  })

describe("psql", () => {
  it.live("comes in under TLS with require and verify-full, and knows a stranger by the latter", () =>
    Effect.gen(function* () {
      const psql = installed("psql")
      if (Option.isNone(psql)) return
      const { perseus, write } = yield* withClients("require")
      const root = yield* write("root.crt", ca.cert)
      const other = yield* write("other.crt", stranger.cert)
      const ask = (more: Readonly<Record<string, string>>) =>
        run(perseus, perseus.tenant("red"), psql.value, ["-XAtq", "-c", "\\conninfo", "-c", "SELECT 1"], more)
      for (const more of [{ PGSSLMODE: "require" }, { PGSSLMODE: "verify-full", PGSSLROOTCERT: root }]) {
        const ran = yield* ask(more)
        assert.strictEqual(ran.errors, "")
        assert.match(ran.output, /SSL connection \(protocol: TLSv1\.3[^]*\n1\n$/)
      }
      assert.match((yield* ask({ PGSSLMODE: "verify-full", PGSSLROOTCERT: other })).errors, /certificate verify failed/)
      const inClear = yield* ask({ PGSSLMODE: "disable" })
      assert.match(inClear.errors, /FATAL: {2}this pooler requires TLS\nHINT: {2}Connect with sslmode=require/)
    })
  )

  it.live("is let in by its certificate where that says verify-full, as the user in its CN", () =>
    Effect.gen(function* () {
      const psql = installed("psql")
      if (Option.isNone(psql)) return
      const { perseus, write } = yield* withClients("verify-full")
      const ask = (certificate: Certificate) =>
        Effect.gen(function* () {
          const sslcert = yield* write("client.crt", certificate.cert)
          const sslkey = yield* write("client.key", certificate.key)
          const more = { PGSSLMODE: "require", PGSSLCERT: sslcert, PGSSLKEY: sslkey }
          return yield* run(perseus, perseus.tenant("red"), psql.value, ["-XAtq", "-c", "SELECT 1"], more)
        })
      assert.strictEqual((yield* ask(signedBy(ca, "app"))).output, "1\n")
      for (const certificate of [signedBy(ca, "other"), signedBy(stranger, "app")]) {
        assert.match((yield* ask(certificate)).errors, /FATAL: {2}a valid client certificate for this user is required/)
      }
    })
  )
})

describe("node-postgres", () => {
  for (const sslnegotiation of ["postgres", "direct"] as const) {
    it.live(`works under TLS with sslnegotiation=${sslnegotiation}: rows larger than all buffers, and errors`, () =>
      Effect.gen(function* () {
        const { perseus } = yield* withClients("require")
        const client = yield* connect(perseus, { ssl: { ca: ca.cert }, sslnegotiation })
        const [length] = yield* rowOf(client, "SELECT repeat('x', 20000000)")
        assert.strictEqual(String(length).length, 20_000_000)
        const [back] = yield* Effect.promise(() =>
          client
            .query({ text: "SELECT $1::text", values: ["y".repeat(5_000_000)], rowMode: "array" })
            .then(({ rows }) => rows[0] as ReadonlyArray<unknown>)
        )
        assert.strictEqual(String(back).length, 5_000_000)
        yield* Effect.flip(Effect.tryPromise(() => client.query("SELECT 1/0")))
        assert.deepStrictEqual(yield* rowOf(client, "SELECT current_schema()"), ["red"])
      })
    )
  }

  it.live("is refused by verify-full without its certificate, and by require without TLS", () =>
    Effect.gen(function* () {
      const { perseus } = yield* withClients("verify-full")
      const ssl = { ca: ca.cert }
      assert.match(yield* refusal(perseus, { ssl }), /^28000 a valid client certificate/)
      assert.match(
        yield* refusal(perseus, { ssl: { ...ssl, ...pairOf(signedBy(ca, "other")) } }),
        /^28000 a valid client/
      )
      assert.match(yield* refusal(perseus, { ssl: false }), /^28000 this pooler requires TLS/)
      assert.strictEqual(yield* refusal(perseus, { ssl: { ...ssl, ...pairOf(signedBy(ca, "app")) } }), "let in")
      assert.include(perseus.log, "Warn client certificate refused: its CN is not the user")
      assert.include(perseus.log, "Warn client certificate refused: none, or not to be trusted")
    })
  )
})

const pairOf = ({ cert, key }: Certificate) => ({ cert, key })

/** A tenant whose row has a SCRAM verifier, and clients of it who come through somebody else. */
const withVerifier = Effect.gen(function* () {
  const { perseus, write } = yield* withClients("allow")
  const [verifier = ""] = yield* writtenByPostgres([perseus.tenant("red").password])
  yield* perseus.updateRow("red", "source_pass_hashed", verifier)
  return { perseus, write, other: signedBy(ca, "localhost", LOOPBACK) }
})

describe("SCRAM-SHA-256-PLUS", () => {
  it.live("lets psql in that requires it, and is not there where there is no TLS or no verifier", () =>
    Effect.gen(function* () {
      const psql = installed("psql")
      if (Option.isNone(psql)) return
      const { perseus } = yield* withVerifier
      const ask = (PGSSLMODE: string) =>
        run(perseus, perseus.tenant("red"), psql.value, ["-XAtq", "-c", "SELECT 'let in'"], {
          PGSSLMODE,
          PGCHANNELBINDING: "require"
        })
      const bound = yield* ask("require")
      assert.strictEqual(bound.output, "let in\n", bound.errors)
      assert.match((yield* ask("disable")).errors, /channel binding/)
      yield* perseus.updateRow("red", "source_pass_hashed", yield* perseus.hash(perseus.tenant("red").password))
      assert.match((yield* ask("require")).errors, /channel binding/)
    })
  )

  it.live("shows a client somebody in the middle with another certificate, whom it does not notice without", () =>
    Effect.gen(function* () {
      const psql = installed("psql")
      if (Option.isNone(psql)) return
      const { other, perseus } = yield* withVerifier
      const middle = yield* manInTheMiddle(perseus, other)
      const ask = (PGCHANNELBINDING: string) =>
        run({ ...perseus, ...middle }, perseus.tenant("red"), psql.value, ["-XAtq", "-c", "SELECT 'let in'"], {
          PGSSLMODE: "require",
          PGCHANNELBINDING
        })
      assert.strictEqual((yield* ask("disable")).output, "let in\n")
      for (const binding of ["prefer", "require"]) {
        const refused = yield* ask(binding)
        assert.strictEqual(refused.output, "")
        assert.match(refused.errors, /FATAL: {2}SCRAM channel binding failed: the client sees another certificate/)
        assert.match(refused.errors, /HINT: {2}Something between the client and Perseus may end TLS/)
      }
      assert.include(perseus.log.join("\n"), "Warn SCRAM channel binding failed: the client sees another certificate")
    })
  )

  it.live(
    "lets node-postgres in that can bind, and refuses it with 28000 where it is bound to another certificate",
    () =>
      Effect.gen(function* () {
        const { other, perseus } = yield* withVerifier
        const middle = yield* manInTheMiddle(perseus, other)
        const ssl = { ca: ca.cert }
        assert.strictEqual(yield* refusal(perseus, { ssl, enableChannelBinding: true }), "let in")
        const through = { ...middle, ssl }
        assert.strictEqual(yield* refusal(perseus, through), "let in")
        assert.strictEqual(
          yield* refusal(perseus, { ...through, enableChannelBinding: true }),
          "28000 SCRAM channel binding failed: the client sees another certificate"
        )
      })
  )

  it.live("is missed by a client that can bind, where somebody struck it from the offer", () =>
    Effect.gen(function* () {
      const { other, perseus } = yield* withVerifier
      const middle = yield* manInTheMiddle(perseus, other, withoutPlus)
      const through = { ...middle, ssl: { ca: ca.cert } }
      assert.strictEqual(yield* refusal(perseus, through), "let in", "one that cannot bind misses nothing")
      assert.strictEqual(
        yield* refusal(perseus, { ...through, enableChannelBinding: true }),
        "28000 SCRAM channel binding failed: the client was not told that it is offered"
      )
    })
  )
})

describe("direct TLS", () => {
  it.live("is for those who name PostgreSQL's protocol by ALPN; others hear nothing", () =>
    Effect.gen(function* () {
      const { perseus } = yield* withClients("allow")
      const { password: secret, startup: parameters } = perseus.tenant("red")
      const logIn = (socket: NodeTls.TLSSocket) => socket.write(Buffer.concat([startup(parameters), password(secret)]))
      assert.match(yield* speakTls(perseus, { ALPNProtocols: ["postgresql"] }, logIn), /^R/)
      assert.strictEqual(yield* speakTls(perseus, {}, logIn), "")
      assert.strictEqual(yield* speakTls(perseus, { ALPNProtocols: ["http/1.1"] }, logIn), "")
      const failed = perseus.log.filter((line) => line.startsWith("Info TLS handshake failed"))
      assert.deepStrictEqual(failed, [
        "Info TLS handshake failed: direct TLS without ALPN (postgresql)",
        "Info TLS handshake failed: ERR_SSL_NO_APPLICATION_PROTOCOL"
      ])
    })
  )
})

describe("a handshake", () => {
  it.live("that comes in the same segment as its request is never read", () =>
    Effect.gen(function* () {
      const { perseus } = yield* withClients("allow")
      for (const behind of [startup(perseus.tenant("red").startup), Buffer.of(0x16, 3, 1, 0, 1, 0)]) {
        const client = yield* perseus.raw
        client.send(sslRequest, behind)
        const answer = yield* client.closed()
        assert.deepStrictEqual(sqlStatesOf(answer), ["08P01"])
      }
    })
  )

  it.live("that is never ended is ended without a word in clear", () =>
    Effect.gen(function* () {
      const { perseus } = yield* withClients("allow")
      const direct = yield* perseus.raw
      direct.send(Buffer.of(0x16, 3, 1, 2, 0, 1))
      // When this one has its answer, that one has been heard.
      const client = yield* perseus.raw
      client.sendForByte(sslRequest)
      assert.strictEqual(typesOf(yield* client.next()), "S")
      client.send(Buffer.of(0x16, 3, 1, 2, 0, 1))
      yield* Effect.forkScoped(perseus.stop)
      assert.deepStrictEqual(yield* client.closed(), [], "nothing in clear behind the S")
      assert.deepStrictEqual(yield* direct.closed(), [])
    })
  )

  it.live("that fails or breaks off is a line in the log, and harms nobody else", () =>
    Effect.gen(function* () {
      const { perseus } = yield* withClients("allow")
      const nonsense = yield* perseus.raw
      nonsense.sendForByte(sslRequest)
      yield* nonsense.next()
      nonsense.send(query("SELECT 1"))
      assert.deepStrictEqual(sqlStatesOf(yield* nonsense.closed()), [])
      const gone = yield* perseus.raw
      gone.sendForByte(sslRequest)
      yield* gone.next()
      gone.vanish()
      yield* eventually(
        Effect.sync(() => perseus.log.filter((line) => line.startsWith("Info TLS handshake failed")).length),
        (count) => count === 2
      )
      yield* eventually(
        Effect.sync(() => perseus.service.live.count),
        (count) => count === 0
      )
      const client = yield* connect(perseus, { ssl: { ca: ca.cert } })
      assert.deepStrictEqual(yield* rowOf(client, "SELECT 1"), [1])
    })
  )
})

describe("a CancelRequest", () => {
  it.live("is taken in clear and under TLS, where logins must have it", () =>
    Effect.gen(function* () {
      const { perseus } = yield* withClients("require")
      const client = yield* connect(perseus, { ssl: { ca: ca.cert } })
      const { processID, secretKey } = client as unknown as { readonly processID: number; readonly secretKey: number }
      const key = Buffer.alloc(4)
      key.writeInt32BE(secretKey)
      const request = cancelRequest({ processId: processID, secretKey: key })
      const inClear = Effect.scoped(
        Effect.flatMap(perseus.raw, (raw) => {
          raw.send(request)
          return Effect.asVoid(raw.closed())
        })
      )
      const underTls = Effect.asVoid(
        speakTls(perseus, { ALPNProtocols: ["postgresql"] }, (socket) => socket.write(request))
      )
      for (const cancel of [inClear, underTls]) {
        const query = client.query("SELECT pg_sleep(600)").catch((error: { readonly code: string }) => error.code)
        yield* eventually(perseus.backends, (backends) =>
          backends.some(({ query, state }) => state === "active" && query.includes("pg_sleep"))
        )
        yield* cancel
        assert.strictEqual(yield* Effect.promise(() => query), "57014")
      }
    })
  )
})

describe("a new certificate", () => {
  it.live("is shown to those who come after a reload; those who are there stay", () =>
    Effect.gen(function* () {
      const first = signedBy(ca, "first", LOOPBACK)
      const second = signedBy(ca, "second", LOOPBACK)
      const { config, perseus, write } = yield* withClients("require", first)
      const shown = Effect.map(
        speakTls(perseus, { ALPNProtocols: ["postgresql"] }, (socket) => {
          certificates.push(String(socket.getPeerX509Certificate()?.subject))
          socket.end()
        }),
        () => certificates.at(-1)
      )
      const certificates: Array<string> = []
      const stays = yield* connect(perseus, { ssl: { ca: ca.cert } })
      yield* Effect.promise(() => stays.query("BEGIN; CREATE TABLE t (id int)"))
      assert.strictEqual(yield* shown, "CN=first")
      yield* write("server.key", second.key)
      yield* perseus.reload(config)
      yield* eventually(
        Effect.sync(() => perseus.log),
        (log) => log.some((line) => line.includes("TLS from clients stays as it was: ClientKeyFile"))
      )
      assert.strictEqual(yield* shown, "CN=first", "the last good pair holds")
      yield* write("server.crt", second.cert)
      yield* perseus.reload(config)
      assert.strictEqual(yield* eventually(shown, (subject) => subject === "CN=second"), "CN=second")
      yield* Effect.promise(() => stays.query("INSERT INTO t VALUES (1); COMMIT"))
      assert.deepStrictEqual(yield* rowOf(stays, "SELECT count(*)::int FROM t"), [1])
    })
  )
})

// ---- to servers

/** A PostgreSQL whose clients must come under TLS, but for its superuser. */
class TlsServer extends Context.Service<
  TlsServer,
  { readonly server: Server; readonly root: string; readonly other: string }
>()("test/TlsServer") {
  static readonly layer = (names: readonly [string, ...Array<string>], options = "") =>
    Layer.effect(
      TlsServer,
      Effect.gen(function* () {
        const certificate = signedBy(ca, ...names)
        const write = yield* pemFiles
        return {
          server: yield* ownPostgres({
            settings: { ssl: "on", ssl_ca_file: "ca.crt" },
            files: {
              "server.crt": certificate.cert,
              "server.key": certificate.key,
              "ca.crt": ca.cert,
              "pg_hba.conf": [
                `hostnossl all postgres ${LOOPBACK}/32 scram-sha-256`,
                `hostssl all all ${LOOPBACK}/32 scram-sha-256 ${options}`
              ].join("\n")
            }
          }),
          root: yield* write("root.crt", `some words\n${stranger.cert}\n${ca.cert}`),
          other: yield* write("other.crt", stranger.cert)
        }
      })
    ).pipe(Layer.orDie)
}

const usesTls = (perseus: TestPerseus) =>
  Effect.map(
    perseus.destination.query(
      "SELECT bool_and(ssl) AS ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename LIKE 'role\\_%'"
    ),
    ([row]) => row?.["ssl"]
  )

/** The log's line of the last connect that failed, without the destination's name. */
const lastFailure = ({ log }: TestPerseus) =>
  log.findLast((line) => line.startsWith("Warn cannot connect to"))?.replace(/^.*?\/test_\w+: /, "")

const servedWith = (server: Server, TLSSettings: Readonly<Record<string, unknown>>) =>
  startPerseus({ tenants: ["red"], server, config: { TLSSettings } })

/** Passes connections on to the server, and keeps what they say. */
const tap = (
  server: Server
): Effect.Effect<{ readonly port: number; readonly said: () => ReadonlyArray<Buffer> }, never, Scope.Scope> =>
  Effect.gen(function* () {
    const said: Array<Array<Buffer>> = []
    const sockets: Array<Net.Socket> = []
    const listener = Net.createServer((client) => {
      const chunks: Array<Buffer> = []
      said.push(chunks)
      const onward = Net.connect(server.port, server.host)
      sockets.push(client, onward)
      client.on("data", (chunk: Buffer) => chunks.push(chunk))
      client.pipe(onward).pipe(client)
      for (const socket of [client, onward]) socket.on("error", () => {})
    })
    const listening = yield* Deferred.make<void>()
    listener.listen(0, LOOPBACK, () => Deferred.doneUnsafe(listening, Effect.void))
    yield* Deferred.await(listening)
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        for (const socket of sockets) socket.destroy()
        listener.close()
      })
    )
    return {
      port: (listener.address() as Net.AddressInfo).port,
      said: () => said.map((chunks) => Buffer.concat(chunks))
    }
  })

layer(TlsServer.layer([LOOPBACK]), { excludeTestServices: true })("to a server with TLS", (it) => {
  for (const [ServerMode, file] of [
    ["prefer", null],
    ["require", null],
    ["verify-ca", "root"],
    ["verify-full", "root"]
  ] as const) {
    it.effect(`${ServerMode} encrypts`, () =>
      Effect.gen(function* () {
        const { server, ...files } = yield* TlsServer
        const perseus = yield* servedWith(server, {
          ServerMode,
          ...(file === null ? {} : { ServerCAFile: files[file] })
        })
        const client = yield* perseus.login("red")
        assert.deepStrictEqual(typesOf(yield* client.query("SELECT repeat('x', 3000000)")), "TDCZ")
        assert.isTrue(yield* usesTls(perseus))
      })
    )
  }

  it.effect(
    "verify-ca and verify-full refuse one that another authority vouches for, of which the client hears no word",
    () =>
      Effect.gen(function* () {
        const { other, server } = yield* TlsServer
        for (const ServerMode of ["verify-ca", "verify-full"]) {
          const perseus = yield* servedWith(server, { ServerMode, ServerCAFile: other })
          const answer = yield* perseus.refusal(perseus.tenant("red").startup)
          assert.deepStrictEqual(sqlStatesOf(answer), ["08001"])
          assert.strictEqual(
            lastFailure(perseus),
            "the TLS handshake with the server failed: SELF_SIGNED_CERT_IN_CHAIN"
          )
          assert.notInclude(fieldsOf(answer.at(-1)!)["M"] ?? "", "TLS")
        }
      })
  )

  it.effect("a login and a cancel request say nothing in clear but that they want TLS", () =>
    Effect.gen(function* () {
      const { root, server } = yield* TlsServer
      const perseus = yield* servedWith(server, { ServerMode: "verify-full", ServerCAFile: root })
      const { port, said } = yield* tap(server)
      yield* perseus.updateRow("red", "dest_host", `${LOOPBACK}:${port}`)
      const client = yield* eventually(perseus.login("red"), () => said().length > 0)
      client.send(query("SELECT pg_sleep(600)"))
      yield* eventually(perseus.backends, (backends) => backends.some(({ query }) => query.includes("pg_sleep")))
      const before = said().length
      const raw = yield* perseus.raw
      raw.send(cancelRequest(client.key))
      assert.deepStrictEqual(sqlStatesOf(yield* client.ready()), ["57014"])
      // Whether the login was served under the old address first, and the pool of that is still there, does not matter.
      yield* eventually(Effect.sync(said), (connections) => connections.length === before + 1)
      // The server has closed in good order, so the connection that was cancelled goes on.
      yield* eventually(Effect.sync(perseus.service.pools), (pools) => pools.every(isWhole))
      assert.strictEqual(typesOf(yield* client.query("SELECT 1")), "TDCZ")
      assert.lengthOf(said(), before + 1)
      for (const bytes of said()) {
        assert.deepStrictEqual(bytes.subarray(0, 9), Buffer.concat([sslRequest, Buffer.of(0x16)]))
        assert.strictEqual(bytes.indexOf("user\0"), -1)
        assert.strictEqual(bytes.indexOf(Buffer.of(0x04, 0xd2, 0x16, 0x2e)), -1)
      }
    })
  )

  it.effect("a reload of what is trusted lets transactions finish on connections of before, and nothing else", () =>
    Effect.gen(function* () {
      const { other, root, server } = yield* TlsServer
      const perseus = yield* servedWith(server, { ServerMode: "verify-full", ServerCAFile: root })
      const [first, second] = [yield* perseus.login("red"), yield* perseus.login("red")]
      const pid = (client: RawClient) =>
        Effect.map(client.query("SELECT pg_backend_pid()"), (answers) => rowsOf(answers)[0])
      for (const client of [first, second]) yield* client.query("BEGIN")
      const before = yield* pid(first)
      yield* second.query("COMMIT")
      yield* perseus.reload({ TLSSettings: { ServerMode: "verify-full", ServerCAFile: other } })
      yield* eventually(Effect.sync(perseus.pool), ({ open, inUse }) => open === 1 && inUse === 1)
      assert.strictEqual(yield* pid(first), before)
      assert.strictEqual(typesOf(yield* first.query("COMMIT")), "CZ")
      yield* eventually(Effect.sync(perseus.pool), ({ open }) => open === 0)
      assert.deepStrictEqual(sqlStatesOf(yield* second.query("SELECT 1")), ["08001"])
      assert.match(lastFailure(perseus) ?? "", /handshake/)
      yield* perseus.reload({ TLSSettings: { ServerMode: "require" } })
      yield* eventually(second.query("SELECT 1"), (answers) => rowsOf(answers)[0] === "1")
      assert.notStrictEqual(yield* pid(first), before)
    })
  )
})

layer(TlsServer.layer(["db.internal"], "clientcert=verify-ca"), { excludeTestServices: true })(
  "to a server of another name that asks for certificates",
  (it) => {
    it.effect("verify-ca goes, verify-full does not", () =>
      Effect.gen(function* () {
        const { root, server } = yield* TlsServer
        const write = yield* pemFiles
        const mine = signedBy(ca, "perseus")
        const files = {
          ServerCAFile: root,
          ServerCertFile: yield* write("mine.crt", mine.cert),
          ServerKeyFile: yield* write("mine.key", mine.key)
        }
        const verifyCa = yield* servedWith(server, { ServerMode: "verify-ca", ...files })
        yield* verifyCa.login("red")
        assert.isTrue(yield* usesTls(verifyCa))
        const verifyFull = yield* servedWith(server, { ServerMode: "verify-full", ...files })
        yield* verifyFull.refusal(verifyFull.tenant("red").startup)
        assert.strictEqual(
          lastFailure(verifyFull),
          "the TLS handshake with the server failed: ERR_TLS_CERT_ALTNAME_INVALID"
        )
      })
    )

    it.effect("a login without one fails in the server's own words", () =>
      Effect.gen(function* () {
        const { root, server } = yield* TlsServer
        const perseus = yield* servedWith(server, { ServerMode: "verify-ca", ServerCAFile: root })
        assert.deepStrictEqual(sqlStatesOf(yield* perseus.refusal(perseus.tenant("red").startup)), ["08001"])
        assert.match(lastFailure(perseus) ?? "", /^28000 connection requires a valid client certificate/)
      })
    )
  }
)

describe("to a server without TLS", () => {
  it.live("prefer goes on in clear, require does not go on", () =>
    Effect.gen(function* () {
      const preferring = yield* startPerseus({ tenants: ["red"] })
      yield* preferring.login("red")
      assert.isFalse(yield* usesTls(preferring))
      const requiring = yield* startPerseus({ tenants: ["red"], config: { TLSSettings: { ServerMode: "require" } } })
      assert.deepStrictEqual(sqlStatesOf(yield* requiring.refusal(requiring.tenant("red").startup)), ["08001"])
      assert.strictEqual(lastFailure(requiring), "the server offers no TLS (TLSSettings.ServerMode is require)")
    })
  )
})
