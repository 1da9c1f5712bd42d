/**
 * A network in memory: pairs of Transports behind the Network service, for tests under TestClock and for simulations.
 *
 * It behaves as TCP does where it matters: bytes arrive in order, maybe in pieces; a slow reader stops the writer; an end is
 * answered by an end, a write to a peer that has gone by a reset. It never looks at a byte, has no timer and no randomness:
 * when each delivery happens, and in what pieces, is handed in.
 *
 * It is strict with those who keep what is not theirs: a chunk is overwritten when `onData` returns, and what was written is
 * not copied before it is delivered. So a view that outlives its call shows as 0xAA bytes at the other end.
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { Network, type ListenAddress, type Listening } from "../net/Network.ts"
import { ignoreAll, type TlsState, type Transport, type TransportHandler } from "../net/Transport.ts"

const DEFAULT_HIGH_WATER_MARK = 64 * 1024
const FIRST_FREE_PORT = 49_152
const OVERWRITTEN = 0xaa

export interface Options {
  /**
   * Runs a delivery later, never at once; each is to be run once, in any order: a direction of a connection has at most one
   * waiting, and what it delivers is decided when it runs. Default: `queueMicrotask`.
   */
  readonly schedule?: ((delivery: () => void) => void) | undefined
  /** The pieces, in order and without loss, in which a chunk arrives. Default: whole. */
  readonly split?: ((chunk: Buffer) => ReadonlyArray<Buffer>) | undefined
  /** Whether what is under way when an end is destroyed is lost. Default: it still arrives. */
  readonly losesInFlight?: (() => boolean) | undefined
  /** Undelivered bytes of one direction from which on `write` answers false. */
  readonly highWaterMark?: number | undefined
}

/** Ends that the program under test holds and that are not closed. */
export interface OpenTransports {
  /** That its listeners were given. */
  readonly accepted: number
  /** That its `connect` was answered with. */
  readonly connected: number
  /** `connect`s without an answer yet. */
  readonly connecting: number
}

type Behaviour = { readonly [Name in keyof Options]-?: NonNullable<Options[Name]> }

export interface MemoryNetwork {
  readonly network: Network["Service"]
  readonly layer: Layer.Layer<Network>
  /**
   * A client's connection to a listener: of that port, else the one that has listened for longest. The client's end; where
   * nobody listens, it is closed by "ECONNREFUSED". `from`: the address that the listener sees.
   */
  readonly dial: (port?: number, from?: string) => Transport
  /** From now on `connect` to this name reaches this server, which gets its end. Called in a delivery; must not throw. */
  readonly serve: (host: string, port: number, onConnection: (transport: Transport) => void) => void
  /** From now on `connect` to this name fails with "ECONNREFUSED", as it does to one that was never served. */
  readonly refuse: (host: string, port: number) => void
  /** From now on `connect` to this name is not answered. Those stalled stay so, whatever comes later. */
  readonly stall: (host: string, port: number) => void
  readonly openTransports: () => OpenTransports
}

/** What is under way to one end. */
type Item =
  | { readonly _tag: "Open"; readonly accept: () => void }
  | { readonly _tag: "Data"; readonly chunk: Buffer }
  | { readonly _tag: "End" }
  /** In its turn, behind what was sent before it; a reader that pauses does not notice. */
  | { readonly _tag: "Reset"; readonly reason: string }
  /** At once: what a write to a broken stream is answered with. */
  | { readonly _tag: "Broken"; readonly reason: string }

class MemoryTransport implements Transport {
  handler: TransportHandler = ignoreAll
  readonly remote: string
  readonly local = true
  readonly tls: TlsState | null = null
  readonly #options: Behaviour
  readonly #onOver: () => void
  #peer: MemoryTransport = this
  #incoming: Array<Item> = []
  #incomingBytes = 0
  #deliveryWaits = false
  #paused = false
  /** `write` answered false, and nothing was told since. */
  #wantsDrain = false
  /** An end is under way to the peer. */
  #ended = false
  #over = false

  private constructor(remote: string, options: Behaviour, onOver: () => void) {
    this.remote = remote
    this.#options = options
    this.#onOver = onOver
  }

  /** Two ends of one connection; each names the other's address. */
  static pair(
    options: Behaviour,
    [one, other]: readonly [one: End, other: End]
  ): readonly [MemoryTransport, MemoryTransport] {
    const first = new MemoryTransport(other.address, options, one.onOver)
    const second = new MemoryTransport(one.address, options, other.onOver)
    first.#peer = second
    second.#peer = first
    return [first, second]
  }

  get closed(): boolean {
    return this.#over
  }

  /** Who opened the connection is announced before what it says. */
  announce(accept: () => void): void {
    this.#queue({ _tag: "Open", accept })
  }

  /** As if the peer's machine had refused or reset the connection. */
  reset(reason: string): void {
    this.#queue({ _tag: "Reset", reason })
  }

  /** Memory needs no TLS, and its servers say so; whoever insists has failed. */
  startTls(_handshake: unknown, _received: Buffer, done: (failure: string | null) => void): void {
    this.destroy()
    done("no TLS in memory")
  }

  writeLent(bytes: Buffer): boolean {
    return this.write(Buffer.from(bytes))
  }

  write(bytes: Uint8Array): boolean {
    if (this.#over) return true
    if (this.#ended) {
      // As with Node's sockets, a write behind an end breaks the stream.
      this.#break("ERR_STREAM_WRITE_AFTER_END")
      return true
    }
    for (const piece of this.#options.split(asBuffer(bytes))) {
      if (piece.length > 0) this.#peer.#queue({ _tag: "Data", chunk: piece })
    }
    this.#wantsDrain = this.#peer.#incomingBytes > this.#options.highWaterMark
    return !this.#wantsDrain
  }

  pause(): void {
    this.#paused = !this.#over
  }

  resume(): void {
    this.#paused = false
    this.#arrangeDelivery()
  }

  end(bytes?: Uint8Array): void {
    if (bytes !== undefined) this.write(bytes)
    if (this.#over) return
    this.#sendEnd()
    this.resume()
  }

  get flushed(): boolean {
    return this.#peer.#incomingBytes === 0
  }

  destroy(): void {
    if (this.#over) return
    this.#finish()
    if (this.#ended) return
    if (this.#options.losesInFlight()) this.#peer.#forget()
    this.#peer.reset("ECONNRESET")
  }

  #sendEnd(): void {
    if (this.#ended) return
    this.#ended = true
    this.#peer.#queue({ _tag: "End" })
  }

  #queue(item: Item): void {
    if (item._tag === "Data") this.#incomingBytes += item.chunk.length
    this.#incoming.push(item)
    this.#arrangeDelivery()
  }

  #forget(): void {
    this.#incoming = this.#incoming.filter(({ _tag }) => _tag === "Open")
    this.#incomingBytes = 0
  }

  #break(reason: string): void {
    if (this.#over) return
    this.#forget()
    this.#queue({ _tag: "Broken", reason })
  }

  #arrangeDelivery(): void {
    if (this.#deliveryWaits || !this.#canDeliver()) return
    this.#deliveryWaits = true
    this.#options.schedule(() => {
      this.#deliveryWaits = false
      if (this.#canDeliver()) this.#deliver(this.#incoming.shift()!)
      this.#arrangeDelivery()
    })
  }

  #canDeliver(): boolean {
    const next = this.#incoming[0]
    return next !== undefined && (!this.#paused || next._tag === "Open" || next._tag === "Broken")
  }

  #deliver(item: Item): void {
    switch (item._tag) {
      case "Open":
        return item.accept()
      case "Data":
        this.#incomingBytes -= item.chunk.length
        if (this.#over) this.#peer.#break("ECONNRESET")
        else this.#lend(item.chunk)
        return this.#peer.#drained()
      case "End":
        // Answered by an end, behind what was still to be written: no side stays half open.
        if (!this.#over) this.#sendEnd()
        return this.#close(null)
      default:
        return this.#close(item.reason)
    }
  }

  #lend(chunk: Buffer): void {
    const lent = Buffer.from(chunk)
    this.handler.onData(lent)
    lent.fill(OVERWRITTEN)
  }

  /** Called for the writer each time its reader took something. */
  #drained(): void {
    if (this.#over || !this.#wantsDrain || this.#peer.#incomingBytes > 0) return
    this.#wantsDrain = false
    this.handler.onDrain()
  }

  #close(reason: string | null): void {
    if (this.#over) return
    this.#finish()
    this.handler.onClose(reason)
  }

  #finish(): void {
    this.#over = true
    this.#paused = false
    this.#onOver()
    // What still comes must find out that nobody is here.
    this.#arrangeDelivery()
  }
}

interface End {
  readonly address: string
  readonly onOver: () => void
}

const asBuffer = (bytes: Uint8Array): Buffer => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)

const withDefaults = (options: Options): Behaviour => ({
  schedule: options.schedule ?? queueMicrotask,
  split: options.split ?? ((chunk) => [chunk]),
  losesInFlight: options.losesInFlight ?? (() => false),
  highWaterMark: options.highWaterMark ?? DEFAULT_HIGH_WATER_MARK
})

type OnConnection = (transport: Transport) => void

export const make = (given: Options = {}): MemoryNetwork => {
  const options = withDefaults(given)
  const listeners = new Map<number, OnConnection>()
  const servers = new Map<string, OnConnection | "stalled">()
  const open = { accepted: 0, connected: 0, connecting: 0 }
  let nextPort = FIRST_FREE_PORT

  const counted = (kind: "accepted" | "connected", address: string): End => {
    open[kind]++
    return { address, onOver: () => open[kind]-- }
  }
  const uncounted = (address: string): End => ({ address, onOver: () => {} })
  const freeAddress = (host = "127.0.0.1") => `${host}:${nextPort++}`

  const dial = (port?: number, from?: string): Transport => {
    const [to, onConnection] = listenerOf(listeners, port)
    if (onConnection === undefined) {
      const [client] = MemoryTransport.pair(options, [uncounted(freeAddress(from)), uncounted(`127.0.0.1:${to}`)])
      client.reset("ECONNREFUSED")
      return client
    }
    const ends = [uncounted(freeAddress(from)), counted("accepted", `127.0.0.1:${to}`)] as const
    const [client, accepted] = MemoryTransport.pair(options, ends)
    accepted.announce(() => onConnection(accepted))
    return client
  }

  const establish = (server: string, onConnection: OnConnection): Transport => {
    const ends = [counted("connected", freeAddress()), uncounted(server)] as const
    const [connected, served] = MemoryTransport.pair(options, ends)
    served.announce(() => onConnection(served))
    return connected
  }

  const connect: Network["Service"]["connect"] = ({ host, port }) =>
    Effect.callback<Transport, string>((resume) => {
      const name = nameOf(host, port)
      let waiting = true
      open.connecting++
      const stopWaiting = () => {
        waiting = false
        open.connecting--
      }
      options.schedule(() => {
        const server = servers.get(name)
        if (!waiting || server === "stalled") return
        stopWaiting()
        resume(server === undefined ? Effect.fail("ECONNREFUSED") : Effect.succeed(establish(name, server)))
      })
      return Effect.sync(stopWaiting)
    })

  const listen = (address: ListenAddress, onConnection: OnConnection): Effect.Effect<Listening, string, Scope.Scope> =>
    Effect.acquireRelease(
      Effect.suspend(() => {
        const port = address.port === 0 ? nextPort++ : address.port
        if (listeners.has(port)) return Effect.fail("the port is already in use")
        listeners.set(port, onConnection)
        const stopAccepting = Effect.sync(() => {
          if (listeners.get(port) === onConnection) listeners.delete(port)
        })
        return Effect.succeed({ host: address.host ?? "::", port, stopAccepting })
      }),
      ({ stopAccepting }) => stopAccepting
    )

  const network = Network.of({ listen, connect })
  return {
    network,
    layer: Layer.succeed(Network, network),
    dial,
    serve: (host, port, onConnection) => void servers.set(nameOf(host, port), onConnection),
    refuse: (host, port) => void servers.delete(nameOf(host, port)),
    stall: (host, port) => void servers.set(nameOf(host, port), "stalled"),
    openTransports: () => ({ ...open })
  }
}

const nameOf = (host: string, port: number): string => `${host}:${port}`

const listenerOf = (
  listeners: ReadonlyMap<number, OnConnection>,
  port: number | undefined
): readonly [port: number, onConnection: OnConnection | undefined] => {
  if (port !== undefined) return [port, listeners.get(port)]
  for (const listener of listeners) return listener
  return [0, undefined]
}
