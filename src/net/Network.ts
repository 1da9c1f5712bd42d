/**
 * Where client connections come from and server connections go to. The one service behind which all sockets lie: a test
 * or an embedding program puts its own in place and the rest runs in memory.
 *
 * Accepts and dials, no more: no limits, no protocol, no retries.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"
import type { Acceptor } from "./KernelSocket.ts"
import { accountOfSockets, kernelSockets } from "./KernelSockets.ts"
import { descriptorOf } from "./NodeHandles.ts"
import { accepted, acceptedBy, connect } from "./SocketTransport.ts"
import type { Transport } from "./Transport.ts"

export interface ListenAddress {
  /** Undefined: every interface. */
  readonly host: string | undefined
  /** 0: a free one. */
  readonly port: number
}

export interface Listening {
  readonly host: string
  readonly port: number
  /** No new connections from now on; those that exist are left alone. */
  readonly stopAccepting: Effect.Effect<void>
}

export class Network extends Context.Service<
  Network,
  {
    /** Fails with the system's words. `onConnection` is called in the event loop; it must not throw. */
    readonly listen: (
      address: ListenAddress,
      onConnection: (transport: Transport) => void
    ) => Effect.Effect<Listening, string, Scope.Scope>
    /** Fails with the system's error code. Interruption closes what was half open. */
    readonly connect: (to: { readonly host: string; readonly port: number }) => Effect.Effect<Transport, string>
  }
>()("perseus/net/Network") {
  static readonly layer: Layer.Layer<Network> = Layer.succeed(Network, {
    listen: (...args) => listen(...args),
    connect
  })
}

/** PostgreSQL's own default for connections that the kernel holds until they are accepted is small; a restart brings thousands. */
const BACKLOG = 4096

/** For as long nothing is accepted where there is no room for one: no descriptor, no memory. */
const NO_ROOM_PAUSE = "100 millis"
/** That there is none is said no more often than this. */
const NO_ROOM_WARNING_MS = 60_000

const listen = (
  address: ListenAddress,
  onConnection: (transport: Transport) => void
): Effect.Effect<Listening, string, Scope.Scope> =>
  Effect.gen(function* () {
    yield* Effect.logDebug(`sockets are read through ${accountOfSockets()}`)
    const fork = yield* FiberSet.makeRuntime<never, void, never>()
    const server = Net.createServer({ pauseOnConnect: true }, (socket) => onConnection(accepted(socket)))
    let stopAccepting: () => void = () => server.close()
    yield* Effect.acquireRelease(open(server, address), () => Effect.sync(() => stopAccepting()))
    // An accept that fails (EMFILE) must not end the service; Node goes on accepting by itself.
    server.on("error", () => {})
    const bound = server.address() as Net.AddressInfo
    const acceptor = acceptDirectly(server, onConnection, (effect) => void fork(effect))
    if (acceptor !== null) {
      stopAccepting = () => acceptor.stop()
      server.close()
    }
    return { host: bound.address, port: bound.port, stopAccepting: Effect.sync(() => stopAccepting()) }
  })

/** Past Node, which has bound it and not accepted anything yet; null where that cannot be. */
const acceptDirectly = (
  server: Net.Server,
  onConnection: (transport: Transport) => void,
  fork: (effect: Effect.Effect<void>) => void
): Acceptor | null => {
  const kernel = kernelSockets()
  const fd = descriptorOf(server)
  if (kernel === null || fd < 0) return null
  let warnedAt = Number.NEGATIVE_INFINITY
  const warn = (code: string) =>
    Effect.flatMap(Clock.currentTimeMillis, (now) => {
      if (now - warnedAt < NO_ROOM_WARNING_MS) return Effect.void
      warnedAt = now
      return Effect.logWarning(
        `new clients wait: the system has no room for a connection (${code}); EMFILE: raise the limit of open files`
      )
    })
  const acceptor = kernel.accept(fd, {
    onAccepted: (accepted, peer) => onConnection(acceptedBy(kernel, accepted, peer)),
    onNoRoom: (code) =>
      fork(
        warn(code).pipe(
          Effect.andThen(Effect.sleep(NO_ROOM_PAUSE)),
          Effect.andThen(Effect.sync(() => acceptor?.goOn()))
        )
      )
  })
  return acceptor
}

const open = (server: Net.Server, address: ListenAddress): Effect.Effect<void, string> =>
  Effect.callback<void, string>((resume) => {
    const onError = (error: NodeJS.ErrnoException) =>
      resume(Effect.fail(error.code === "EADDRINUSE" ? "the port is already in use" : (error.code ?? error.message)))
    server.once("error", onError)
    server.listen({ host: address.host, port: address.port, backlog: BACKLOG }, () => {
      server.off("error", onError)
      resume(Effect.void)
    })
  })
