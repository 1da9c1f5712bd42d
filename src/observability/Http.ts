/**
 * HTTP on `MetricsAddress`, for monitoring: `/metrics`, `/health` (the process lives), `/ready` (send clients here), and
 * `/` that links them.
 *
 * It reads and never changes anything; there is no authentication, so nothing here may be secret. Requests are neither
 * logged nor traced: a probe each second would drown what matters. A client of this port can hold little: connections are
 * limited in number and time, are never upgraded, and closing the scope destroys them all, so that one that is slow or
 * half open does not hold the shutdown.
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import { constTrue } from "effect/Function"
import * as HttpMiddleware from "effect/http/HttpMiddleware"
import * as HttpRouter from "effect/http/HttpRouter"
import type { ServeError } from "effect/http/HttpServerError"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as Layer from "effect/Layer"
import { createServer, type Server } from "node:http"
import type { AddressInfo } from "node:net"
import type { BuildInfo } from "../BuildInfo.ts"
import { ListenFailed } from "../errors.ts"
import { type ListenAddress, parseListenAddress } from "../net/Address.ts"
import { CONTENT_TYPE, format, processSnapshots, type ServiceSnapshot } from "./Metrics.ts"

/** Where HTTP is served; port 0 of the configuration has become the port that the system chose. */
export class HttpAddress extends Context.Service<
  HttpAddress,
  {
    /** Undefined: `MetricsAddress` is blank. */
    readonly bound: ListenAddress | undefined
  }
>()("perseus/observability/HttpAddress") {}

/** Whether new clients should be sent here, and if not why: for people, without secrets. */
export interface Readiness {
  readonly ready: boolean
  readonly reasons: ReadonlyArray<string>
}

export interface HttpOptions {
  /** The configuration's `MetricsAddress`; blank: no HTTP. */
  readonly address: string
  /** Called at each scrape. */
  readonly snapshot: () => ServiceSnapshot
  /** Run at each request of `/ready`, for `READY_TIMEOUT_SECONDS` at most. */
  readonly ready: Effect.Effect<Readiness>
  readonly build: BuildInfo
}

/** Probes give up after 1 to 10 s; one answered "not ready" tells more than one that got nothing. */
const READY_TIMEOUT_SECONDS = 5

/** Each holds a file descriptor, and clients need those. A few monitors and people at a time is all there is. */
const MAX_CONNECTIONS = 100

/** For a whole request to arrive. Node's own 300 s would let 100 slow connections shut monitoring out for minutes. */
const REQUEST_TIMEOUT_MS = 10_000

/** Without a byte in either direction, such as a client that does not read its answer. */
const SOCKET_TIMEOUT_MS = 30_000

// ---------------------------------------------------------------------------------------------------------------------
// Routes
// ---------------------------------------------------------------------------------------------------------------------

const INDEX = `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Perseus</title>
<h1>Perseus</h1>
<ul>
<li><a href="/metrics">/metrics</a>: counters and gauges for Prometheus
<li><a href="/health">/health</a>: the process is alive, and which build it is
<li><a href="/ready">/ready</a>: 200 where clients can be served, else 503 and why not
</ul>
</html>
`

const tooLate: Readiness = {
  ready: false,
  reasons: [`readiness could not be established within ${READY_TIMEOUT_SECONDS} s`]
}

const readyResponse = (ready: HttpOptions["ready"]) =>
  ready.pipe(
    Effect.timeoutOrElse({ duration: `${READY_TIMEOUT_SECONDS} seconds`, orElse: () => Effect.succeed(tooLate) }),
    Effect.map((readiness) => HttpServerResponse.jsonUnsafe(readiness, { status: readiness.ready ? 200 : 503 }))
  )

/** A defect is answered with 500, which tells the log's reader nothing. */
const logDefects = Effect.tapDefect((defect) => Effect.logError("an HTTP request failed", Cause.die(defect)))

const routes = ({ snapshot, ready, build }: HttpOptions) =>
  HttpRouter.use((router) =>
    Effect.gen(function* () {
      const processSnapshot = yield* processSnapshots
      const metrics = Effect.sync(() =>
        HttpServerResponse.text(format(snapshot(), processSnapshot(), build), { contentType: CONTENT_TYPE })
      )
      yield* router.add("GET", "/", HttpServerResponse.html(INDEX))
      yield* router.add("GET", "/health", HttpServerResponse.jsonUnsafe(build))
      yield* router.add("GET", "/ready", logDefects(readyResponse(ready)))
      yield* router.add("GET", "/metrics", logDefects(metrics))
    })
  )

// ---------------------------------------------------------------------------------------------------------------------
// The server
// ---------------------------------------------------------------------------------------------------------------------

const makeServer = (): Server => {
  const server = createServer({
    headersTimeout: REQUEST_TIMEOUT_MS,
    requestTimeout: REQUEST_TIMEOUT_MS,
    connectionsCheckingInterval: 1000,
    // Upgraded sockets leave the server's timeouts.
    shouldUpgradeCallback: () => false
  })
  server.maxConnections = MAX_CONNECTIONS
  server.setTimeout(SOCKET_TIMEOUT_MS)
  // An accept that fails (EMFILE) must not end the process; Node goes on accepting by itself.
  server.on("error", () => {})
  return server
}

/** Ends every connection in whatever state; `Server.close` alone waits for those that are amid a request. */
const destroyConnections = (server: Server): Effect.Effect<void> =>
  Effect.callback((resume) => {
    server.close(() => resume(Effect.void))
    server.closeAllConnections()
  })

const WORDS: Readonly<Record<string, string>> = {
  EADDRINUSE: "the port is already in use",
  EACCES: "not permitted to listen on this port",
  EADDRNOTAVAIL: "this machine does not have that address",
  ENOTFOUND: "the host name cannot be resolved"
}

const whyNot = ({ cause }: ServeError): string => {
  if (!(cause instanceof Error)) return String(cause)
  const code = "code" in cause ? String(cause.code) : ""
  return WORDS[code] ?? cause.message
}

const serving = (options: HttpOptions): Layer.Layer<HttpAddress, ListenFailed> => {
  const failed = (detail: string) => new ListenFailed({ key: "MetricsAddress", address: options.address, detail })
  return Layer.unwrap(
    Effect.gen(function* () {
      const address = yield* Effect.mapError(Effect.fromResult(parseListenAddress(options.address)), failed)
      const server = makeServer()
      const bound = Effect.gen(function* () {
        yield* Effect.addFinalizer(() => destroyConnections(server))
        const { address: host, port } = server.address() as AddressInfo
        return HttpAddress.of({ bound: { host, port } })
      })
      // What is built last closes first: the connections, before Effect's server waits for their end.
      return Layer.effect(HttpAddress, bound).pipe(
        Layer.provide(HttpRouter.serve(routes(options), { disableLogger: true, disableListenLog: true })),
        Layer.provide(NodeHttpServer.layerServer(() => server, address)),
        Layer.provide(Layer.succeed(HttpMiddleware.TracerDisabledWhen, constTrue)),
        Layer.catchTag("ServeError", (error) => Layer.effect(HttpAddress, failed(whyNot(error))))
      )
    })
  )
}

/** Serves until the scope closes. Fails with `ListenFailed` where the address cannot be used. */
export const layer = (options: HttpOptions): Layer.Layer<HttpAddress, ListenFailed> =>
  options.address.trim() === "" ? Layer.succeed(HttpAddress, { bound: undefined }) : serving(options)
