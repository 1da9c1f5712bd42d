import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { TestClock } from "effect/testing"
import { mkdtemp, rename, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import * as path from "node:path"
import { LiveConfig } from "../../src/config/LiveConfig.ts"
import { check, LiveTls } from "../../src/config/LiveTls.ts"
import type { PerseusConfig, TLSSettings } from "../../src/config/PerseusConfig.ts"
import { authority, signedBy } from "../support/certificates.ts"
import { configOf, minimal } from "./fixtures.ts"

const ca = authority()
const first = signedBy(ca, "first")
const second = signedBy(ca, "second")

/** A directory of the test's own, and the paths of its files, which may exist or not. */
const directory = Effect.gen(function* () {
  const root = yield* Effect.acquireRelease(
    Effect.promise(() => mkdtemp(path.join(tmpdir(), "perseus-tls-"))),
    (root) => Effect.promise(() => rm(root, { recursive: true }))
  )
  const at = (name: string) => path.join(root, name)
  /** Never seen half written. */
  const write = (name: string, text: string) =>
    Effect.promise(async () => {
      await writeFile(at("new"), text)
      await rename(at("new"), at(name))
    })
  return { at, write }
})

/** Files are read in the system's time and not in TestClock's: looks each turn of the event loop whether it is so. */
const eventually = (holds: () => boolean, meanwhile: Effect.Effect<void> = Effect.void): Effect.Effect<void> =>
  Effect.gen(function* () {
    while (!holds()) {
      yield* meanwhile
      yield* Effect.callback<void>((resume) => void setImmediate(() => resume(Effect.void)))
    }
  })

/** The service on its files, with a pair in `server.crt` and `server.key`. */
const started = Effect.gen(function* () {
  const { at, write } = yield* directory
  yield* write("server.crt", first.cert)
  yield* write("server.key", first.key)
  const files = { ClientMode: "require", ClientCertFile: at("server.crt"), ClientKeyFile: at("server.key") }
  let settings: object = files
  const log: Array<string> = []
  const recorder = Logger.make(({ logLevel, message }) => {
    log.push(`${logLevel} ${String(message)}`)
  })
  const load = Effect.sync((): PerseusConfig => configOf({ ...minimal(), TLSSettings: settings }))
  const services = yield* Layer.build(
    LiveTls.layer.pipe(Layer.provideMerge(LiveConfig.layer(load)), Layer.provideMerge(Logger.layer([recorder])))
  )
  const tls = Context.get(services, LiveTls)
  const { reload } = Context.get(services, LiveConfig)
  return {
    at,
    write,
    log,
    tls,
    files,
    /** As SIGHUP does, with other settings or with the same. */
    reload: (next: object = settings) =>
      Effect.suspend(() => {
        settings = next
        return Effect.provide(reload, services)
      }),
    logged: (line: string) => eventually(() => log.includes(line)),
    /** However many checks of the files that takes. */
    loggedInTime: (line: string) => eventually(() => log.includes(line), TestClock.adjust("10 seconds"))
  }
})

const newFromClients = "Info TLS from clients: new settings or certificates hold from now on"
const newToServers = "Info TLS to servers: new settings or certificates hold from now on"

describe("certificates", () => {
  it.effect("are taken up within 10 seconds of their change, and by a reload at once", () =>
    Effect.gen(function* () {
      const { log, logged, reload, tls, write } = yield* started
      const before = tls.toClients()
      assert.strictEqual(before.mode, "require")
      yield* write("server.crt", second.cert)
      yield* write("server.key", second.key)
      yield* TestClock.adjust("10 seconds")
      yield* logged(newFromClients)
      const after = tls.toClients()
      assert.notStrictEqual(after, before)
      log.length = 0

      yield* write("server.crt", second.cert + ca.cert)
      yield* reload()
      yield* logged(newFromClients)
      assert.notStrictEqual(tls.toClients(), after)
      assert.deepStrictEqual(log, [
        "Info configuration reloaded: nothing changed that applies without a restart",
        newFromClients
      ])
    })
  )

  it.effect("stay as they are while the new ones cannot be used, which is complained of once", () =>
    Effect.gen(function* () {
      const { log, loggedInTime, tls, write } = yield* started
      const before = tls.toClients()
      yield* write("server.crt", second.cert)
      const mismatch = "Warn TLS from clients stays as it was: ClientKeyFile: the key is not that of the certificate"
      yield* loggedInTime(mismatch)
      yield* write("server.key", "half a k")
      const noKey =
        "Warn TLS from clients stays as it was: ClientKeyFile: there is no private key in PEM format, without a passphrase"
      yield* loggedInTime(noKey)
      assert.strictEqual(tls.toClients(), before)
      yield* write("server.key", second.key)
      yield* loggedInTime(newFromClients)
      assert.notStrictEqual(tls.toClients(), before)
      assert.deepStrictEqual(log, [mismatch, noKey, newFromClients])
    })
  )

})

describe("a reload", () => {
  it.effect("puts new modes in force, on each side by itself", () =>
    Effect.gen(function* () {
      const { at, files, logged, reload, tls, write } = yield* started
      assert.deepStrictEqual([tls.toClients().mode, tls.toServers().mode], ["require", "prefer"])
      yield* write("ca.crt", ca.cert)
      yield* reload({ ...files, ServerMode: "verify-full", ServerCAFile: at("ca.crt") })
      yield* logged(newToServers)
      assert.deepStrictEqual([tls.toClients().mode, tls.toServers().mode], ["require", "verify-full"])
      yield* reload({ ServerMode: "disable" })
      yield* eventually(() => tls.toClients().mode === "disable" && tls.toServers().mode === "disable")
    })
  )

  it.effect("leaves a side as it was, mode and all, where its files cannot be used, until they can", () =>
    Effect.gen(function* () {
      const { at, files, logged, loggedInTime, reload, tls, write } = yield* started
      yield* reload({ ...files, ClientMode: "verify-full", ClientCAFile: at("ca.crt"), ServerMode: "require" })
      yield* logged("Warn TLS from clients stays as it was: ClientCAFile: the file does not exist")
      yield* logged(newToServers)
      assert.deepStrictEqual([tls.toClients().mode, tls.toServers().mode], ["require", "require"])
      yield* write("ca.crt", ca.cert)
      yield* loggedInTime(newFromClients)
      assert.strictEqual(tls.toClients().mode, "verify-full")
    })
  )
})

describe("at start", () => {
  const problems = (settings: Partial<TLSSettings>) =>
    check({ ...configOf(minimal()).TLSSettings, ...settings }).pipe(
      Effect.as("usable"),
      Effect.catch(({ message }) => Effect.succeed(message))
    )

  it.effect("everything must be usable, and all that is not is said at once", () =>
    Effect.gen(function* () {
      const { at, write } = yield* directory
      yield* write("a.crt", first.cert)
      yield* write("a.key", first.key)
      yield* write("b.key", second.key)
      const clients = { ClientMode: "allow", ClientCertFile: at("a.crt"), ClientKeyFile: at("a.key") } as const
      assert.strictEqual(yield* problems({}), "usable")
      assert.strictEqual(yield* problems(clients), "usable")
      assert.strictEqual(
        yield* problems({ ...clients, ClientCertFile: at("none") }),
        "TLSSettings: ClientCertFile: the file does not exist"
      )
      assert.strictEqual(
        yield* problems({ ...clients, ClientCertFile: at("none"), ClientKeyFile: at("none") }),
        "TLSSettings: 2 problems\n  ClientCertFile: the file does not exist\n  ClientKeyFile: the file does not exist"
      )
      assert.strictEqual(
        yield* problems({ ...clients, ClientKeyFile: at("b.key") }),
        "TLSSettings: ClientKeyFile: the key is not that of the certificate"
      )
      assert.strictEqual(
        yield* problems({ ...clients, ClientKeyFile: at(".") }),
        "TLSSettings: ClientKeyFile: the file cannot be read (EISDIR)"
      )
      assert.strictEqual(
        yield* problems({ ...clients, ClientKeyFile: at("b.key"), ServerMode: "verify-ca", ServerCAFile: at("a.key") }),
        "TLSSettings: 2 problems\n" +
          "  ClientKeyFile: the key is not that of the certificate\n" +
          "  ServerCAFile: there is no certificate in PEM format"
      )
      assert.strictEqual(yield* problems({ ...clients, ClientMode: "disable", ClientCertFile: at("none") }), "usable")
    })
  )
})
