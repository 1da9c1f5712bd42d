import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Scope from "effect/Scope"
import * as TestClock from "effect/testing/TestClock"
import * as Tracer from "effect/Tracer"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import * as Net from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { pathToFileURL } from "node:url"
import { type BuildInfo, readBuildInfo } from "../../src/BuildInfo.ts"
import { ListenFailed } from "../../src/errors.ts"
import { HttpAddress, type HttpOptions, layer, type Readiness } from "../../src/observability/Http.ts"
import type { ServiceSnapshot } from "../../src/observability/Metrics.ts"
import { PoolStatistics } from "../../src/pool/PoolStatistics.ts"

const build: BuildInfo = {
  commit_hash: "c0ffee",
  build_version: "1.2.3",
  build_date: "2026-11-23",
  node_version: "v26.10.0"
}

const snapshot: ServiceSnapshot = {
  pools: [
    {
      destHost: "db.example.com",
      destDb: "app",
      maxOpen: 10,
      open: 7,
      idle: 3,
      inUse: 4,
      closing: 0,
      pinned: 0,
      opening: 0,
      waiting: 0,
      statistics: new PoolStatistics()
    }
  ],
  clients: { login: 0, idle: 0, waiting: 0, active: 0 },
  maxClients: 0,
  logins: new Map(),
  throttledLogins: { delayed: { address: 0, tenant: 0 }, blocked: { address: 0, tenant: 0 } },
  errorsBySqlState: new Map(),
  pinnedBy: new Map(),
  transactions: 0,
  cancels: { forwarded: 0, withoutEffect: 0 },
  draining: false
}

const isReady: Effect.Effect<Readiness> = Effect.succeed({ ready: true, reasons: [] })

const options = (changes: Partial<HttpOptions> = {}): HttpOptions => ({
  address: "127.0.0.1:0",
  snapshot: () => snapshot,
  ready: isReady,
  build,
  ...changes
})

/** Runs `use` with the port on which `changes` is served. */
const served = <A>(changes: Partial<HttpOptions>, use: (port: number) => Effect.Effect<A, unknown>) =>
  HttpAddress.use(({ bound }) => use(bound?.port ?? assert.fail("not bound"))).pipe(
    Effect.provide(layer(options(changes)))
  )

const get = (port: number, path: string, method = "GET") =>
  Effect.promise(async () => {
    const response = await fetch(`http://127.0.0.1:${port}${path}`, { method })
    return { status: response.status, type: response.headers.get("content-type"), body: await response.text() }
  })

/** A raw connection that has sent `text`, and when its other side ends it. */
const connected = (port: number, text: string) =>
  Effect.callback<{ readonly socket: Net.Socket; readonly closed: Promise<void> }, Error>((resume) => {
    const socket = Net.connect(port, "127.0.0.1")
    const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()))
    socket.once("error", (error) => resume(Effect.fail(error)))
    socket.once("connect", () => socket.write(text, () => resume(Effect.succeed({ socket, closed }))))
  })

const firstBytes = (socket: Net.Socket) =>
  Effect.callback<string>((resume) => {
    socket.once("data", (bytes) => resume(Effect.succeed(bytes.toString("latin1"))))
  })

describe("what HTTP answers", () => {
  it.live("serves the metrics in the content type that Prometheus knows", () =>
    served({}, (port) =>
      Effect.gen(function* () {
        const { status, type, body } = yield* get(port, "/metrics")
        assert.strictEqual(status, 200)
        assert.strictEqual(type, "text/plain; version=0.0.4; charset=utf-8")
        assert.include(body, 'perseus_in_use_connections{dest_host="db.example.com",dest_db="app"} 4\n')
        assert.include(body, 'perseus_build_info{version="1.2.3",commit="c0ffee"} 1\n')
        assert.match(body, /^process_resident_memory_bytes \d+$/m)
      })
    )
  )

  it.live("takes a new snapshot at each scrape", () => {
    let transactions = 0
    return served({ snapshot: () => ({ ...snapshot, transactions: ++transactions }) }, (port) =>
      Effect.gen(function* () {
        assert.include((yield* get(port, "/metrics")).body, "\nperseus_transactions_total 1\n")
        assert.include((yield* get(port, "/metrics")).body, "\nperseus_transactions_total 2\n")
      })
    )
  })

  it.live("tells the build in /health", () =>
    served({ ready: Effect.succeed({ ready: false, reasons: ["draining"] }) }, (port) =>
      Effect.gen(function* () {
        const { status, type, body } = yield* get(port, "/health")
        assert.strictEqual(status, 200)
        assert.strictEqual(type, "application/json")
        assert.deepStrictEqual(JSON.parse(body), { ...build })
      })
    )
  )

  it.live("is ready with 200", () =>
    served({}, (port) =>
      Effect.gen(function* () {
        const { status, body } = yield* get(port, "/ready")
        assert.strictEqual(status, 200)
        assert.deepStrictEqual(JSON.parse(body), { ready: true, reasons: [] })
      })
    )
  )

  it.live("is not ready with 503 and the reasons", () =>
    served({ ready: Effect.succeed({ ready: false, reasons: ["draining", "auth database"] }) }, (port) =>
      Effect.gen(function* () {
        const { status, body } = yield* get(port, "/ready")
        assert.strictEqual(status, 503)
        assert.deepStrictEqual(JSON.parse(body), { ready: false, reasons: ["draining", "auth database"] })
      })
    )
  )

  it.effect("is not ready where that cannot be found out in time", () =>
    Effect.gen(function* () {
      const asked = yield* Deferred.make<void>()
      // The yield lets the timeout's sleep begin before the clock is moved.
      const ready = Effect.yieldNow.pipe(
        Effect.andThen(Deferred.succeed(asked, undefined)),
        Effect.andThen(Effect.never)
      )
      yield* served({ ready }, (port) =>
        Effect.gen(function* () {
          const response = yield* Effect.forkChild(get(port, "/ready"), { startImmediately: true })
          yield* Deferred.await(asked)
          yield* TestClock.adjust("5 seconds")
          const { status, body } = yield* Fiber.join(response)
          assert.strictEqual(status, 503)
          assert.include(body, "within 5 s")
        })
      )
    })
  )

  it.live("links all of it at /, answers HEAD, and knows nothing else", () =>
    served({}, (port) =>
      Effect.gen(function* () {
        const index = yield* get(port, "/")
        assert.strictEqual(index.status, 200)
        for (const path of ["/metrics", "/health", "/ready"]) assert.include(index.body, `href="${path}"`)
        assert.deepInclude(yield* get(port, "/health", "HEAD"), { status: 200, body: "" })
        assert.strictEqual((yield* get(port, "/debug/pprof")).status, 404)
        assert.strictEqual((yield* get(port, "/metrics", "POST")).status, 404)
      })
    )
  )

  it.live("answers a request for an upgrade as any other, and goes on with HTTP", () =>
    served({}, (port) =>
      Effect.gen(function* () {
        const { socket } = yield* connected(
          port,
          "GET /health HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        )
        assert.match(yield* firstBytes(socket), /^HTTP\/1\.1 200 OK\r\n/)
        socket.write("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n")
        assert.match(yield* firstBytes(socket), /^HTTP\/1\.1 404 Not Found\r\n/)
        socket.destroy()
      })
    )
  )

  it.live("answers 500 where the figures cannot be had, logs why, and goes on", () => {
    const logged: Array<string> = []
    const logger = Logger.make(({ message, cause }) => void logged.push(`${String(message)}: ${Cause.squash(cause)}`))
    const snapshot = () => {
      throw new RangeError("no figures")
    }
    return served({ snapshot, ready: Effect.die("no answer") }, (port) =>
      Effect.gen(function* () {
        assert.strictEqual((yield* get(port, "/metrics")).status, 500)
        assert.strictEqual((yield* get(port, "/ready")).status, 500)
        assert.strictEqual((yield* get(port, "/health")).status, 200)
        assert.deepStrictEqual(logged, [
          "an HTTP request failed: RangeError: no figures",
          "an HTTP request failed: no answer"
        ])
      })
    ).pipe(Effect.provide(Logger.layer([logger])))
  })

  it.live("neither logs nor traces requests", () => {
    const seen: Array<string> = []
    const logger = Logger.make(({ message }) => void seen.push(String(message)))
    const tracer = Tracer.make({
      span: (span) => {
        seen.push(span.name)
        return new Tracer.NativeSpan(span)
      }
    })
    return served({}, (port) =>
      Effect.gen(function* () {
        yield* get(port, "/metrics")
        yield* get(port, "/ready")
        yield* get(port, "/nothing")
        assert.deepStrictEqual(seen, [])
      })
    ).pipe(Effect.provide(Logger.layer([logger])), Effect.provideService(Tracer.Tracer, tracer))
  })
})

describe("where HTTP listens", () => {
  it.live("is nowhere where the address is blank", () =>
    Effect.gen(function* () {
      const { bound } = yield* HttpAddress
      assert.isUndefined(bound)
    }).pipe(Effect.provide(layer(options({ address: "" }))))
  )

  const failure = (address: string) => Effect.flip(Effect.scoped(Layer.build(layer(options({ address })))))

  it.live("fails with clear words where the port is in use", () =>
    served({}, (port) =>
      Effect.gen(function* () {
        const error = yield* failure(`127.0.0.1:${port}`)
        assert.instanceOf(error, ListenFailed)
        assert.strictEqual(error.message, `MetricsAddress 127.0.0.1:${port}: the port is already in use`)
        assert.strictEqual((yield* get(port, "/health")).status, 200)
      })
    )
  )

  it.live("fails with clear words where the address is not this machine's", () =>
    Effect.gen(function* () {
      // 192.0.2.0/24 is for documentation: no machine has it.
      const error = yield* failure("192.0.2.1:0")
      assert.strictEqual(error.message, "MetricsAddress 192.0.2.1:0: this machine does not have that address")
    })
  )

  it.live("fails with clear words where the address is none", () =>
    Effect.gen(function* () {
      const error = yield* failure("localhost")
      assert.strictEqual(error.key, "MetricsAddress")
      assert.include(error.message, "a port is missing")
    })
  )
})

describe("the end of HTTP", () => {
  /** Connections in states that a server which waits for its clients would wait on. */
  const clients: ReadonlyArray<readonly [string, string]> = [
    ["has sent nothing", ""],
    ["stopped in the middle of a request", "GET /metrics HTTP/1.1\r\nHost: a\r\nX: "],
    ["keeps its connection after an answer", "GET /health HTTP/1.1\r\nHost: a\r\n\r\n"],
    ["waits for an answer", "GET /ready HTTP/1.1\r\nHost: a\r\n\r\n"],
    ["owes the body it announced", "POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"]
  ]

  for (const [state, request] of clients) {
    it.live(`does not wait for a client that ${state}, and frees the port`, () =>
      Effect.gen(function* () {
        const scope = yield* Scope.make()
        const serving = layer(options({ ready: Effect.never }))
        const { bound } = yield* HttpAddress.pipe(Effect.provide(yield* Layer.buildWithScope(serving, scope)))
        const port = bound?.port ?? assert.fail("not bound")
        const { socket, closed } = yield* connected(port, request)
        // An answered request shows that the server has seen the connection before it.
        yield* get(port, "/health")
        yield* Scope.close(scope, Exit.void).pipe(Effect.timeout("2 seconds"))
        // Until now it has not read: only who reads sees the end.
        socket.resume()
        yield* Effect.promise(() => closed).pipe(Effect.timeout("2 seconds"))
        assert.isTrue(socket.destroyed)
        yield* Layer.build(layer(options({ address: `127.0.0.1:${port}` }))).pipe(Effect.scoped)
      })
    )
  }
})

describe("the build's data", () => {
  /** A package of the given files; `readBuildInfo` is told that it lies in its `dist`. */
  const packageOf = (files: Readonly<Record<string, string>>) =>
    Effect.acquireRelease(
      Effect.sync(() => {
        const root = mkdtempSync(join(tmpdir(), "perseus-build-"))
        mkdirSync(join(root, "dist"))
        for (const [name, text] of Object.entries(files)) writeFileSync(join(root, name), text)
        return root
      }),
      (root) => Effect.sync(() => rmSync(root, { recursive: true }))
    ).pipe(Effect.map((root) => pathToFileURL(`${root}/dist/`)))

  const files = {
    "package.json": '{"name":"perseus","version":"9.8.7"}',
    "dist/build.json": '{"commit_hash":"abc","build_date":"2026-11-23T00:00:00Z"}'
  }

  it.live("come from package.json and build.json", () =>
    Effect.gen(function* () {
      const info = yield* readBuildInfo({}, yield* packageOf(files))
      assert.deepInclude(info, { commit_hash: "abc", build_version: "9.8.7", build_date: "2026-11-23T00:00:00Z" })
      assert.match(info.node_version, /^v\d+\./)
    })
  )

  it.live("are what is given, where that is not blank", () =>
    Effect.gen(function* () {
      const info = yield* readBuildInfo({ commit_hash: "given", build_date: " " }, yield* packageOf(files))
      assert.deepInclude(info, { commit_hash: "given", build_date: "2026-11-23T00:00:00Z" })
    })
  )

  it.live("are unknown where files are absent or damaged", () =>
    Effect.gen(function* () {
      const unknown = { commit_hash: "unknown", build_version: "unknown", build_date: "unknown" }
      assert.deepInclude(yield* readBuildInfo({}, yield* packageOf({})), unknown)
      const damaged = yield* packageOf({ "package.json": "{", "dist/build.json": '{"commit_hash":1}' })
      assert.deepInclude(yield* readBuildInfo({}, damaged), unknown)
    })
  )

  it.live("have this package's version by default", () =>
    Effect.gen(function* () {
      assert.match((yield* readBuildInfo()).build_version, /^\d+\.\d+\.\d+/)
    })
  )
})
