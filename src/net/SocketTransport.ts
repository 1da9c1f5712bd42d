/**
 * A TCP socket as a Transport.
 *
 * Knows nothing of PostgreSQL. Both kinds of socket have Nagle's algorithm off (a relay that waits 40 ms for an ACK is none)
 * and keep-alive on (a peer whose machine has gone says nothing).
 */
import * as Effect from "effect/Effect"
import * as Net from "node:net"
import { ignoreAll, type TlsState, type Transport, type TransportHandler } from "./Transport.ts"

/** Bytes that one read from a server takes at most; all server sockets share one such buffer (DESIGN: static reads). */
const READ_BUFFER_LENGTH = 64 * 1024
const KEEP_ALIVE_DELAY_MS = 60_000

const isLoopback = (address: string): boolean =>
  address.startsWith("127.") || address === "::1" || address.startsWith("::ffff:127.")

class SocketTransport implements Transport {
  handler: TransportHandler = ignoreAll
  readonly remote: string
  readonly local: boolean
  readonly tls: TlsState | null = null
  readonly #socket: Net.Socket
  #over = false

  constructor(socket: Net.Socket) {
    this.#socket = socket
    this.remote = `${socket.remoteAddress ?? "?"}:${socket.remotePort ?? 0}`
    this.local = isLoopback(socket.remoteAddress ?? "")
    socket.setNoDelay(true)
    socket.setKeepAlive(true, KEEP_ALIVE_DELAY_MS)
    socket.on("drain", () => {
      if (!this.#over) this.handler.onDrain()
    })
    socket.on("end", () => this.#close(null))
    socket.on("error", (error: NodeJS.ErrnoException) => this.#close(error.code ?? error.message))
    socket.on("close", () => this.#close(null))
  }

  #close(reason: string | null): void {
    if (this.#over) return
    this.#over = true
    this.handler.onClose(reason)
  }

  get closed(): boolean {
    return this.#over
  }

  receive(chunk: Buffer): void {
    if (!this.#over) this.handler.onData(chunk)
  }

  write(bytes: Uint8Array): boolean {
    return this.#over || this.#socket.write(bytes)
  }

  pause(): void {
    this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }

  end(bytes?: Uint8Array): void {
    if (this.#over) return
    if (bytes === undefined) this.#socket.end()
    else this.#socket.end(bytes)
    // Whatever the peer still says is not wanted, but a socket that is not read never notices the peer's end.
    this.#socket.resume()
  }

  destroy(): void {
    this.#over = true
    this.#socket.destroy()
  }
}

/** A socket that a listener accepted. Reading begins with the first handler's turn of the event loop. */
export const accepted = (socket: Net.Socket): Transport => {
  const transport = new SocketTransport(socket)
  socket.on("data", (chunk: Buffer) => transport.receive(chunk))
  return transport
}

const sharedReadBuffer = Buffer.allocUnsafeSlow(READ_BUFFER_LENGTH)

/** Connects to a server. Fails with the system's error code; interruption closes the half-open socket. */
export const connect = (to: { readonly host: string; readonly port: number }): Effect.Effect<Transport, string> =>
  Effect.callback<Transport, string>((resume) => {
    let transport: SocketTransport | null = null
    const socket = Net.connect({
      host: to.host,
      port: to.port,
      onread: {
        buffer: sharedReadBuffer,
        callback: (length, buffer) => {
          transport?.receive((buffer as Buffer).subarray(0, length))
          return true
        }
      }
    })
    const onError = (error: NodeJS.ErrnoException) => {
      socket.destroy()
      resume(Effect.fail(error.code ?? error.message))
    }
    socket.once("error", onError)
    socket.once("connect", () => {
      socket.off("error", onError)
      transport = new SocketTransport(socket)
      resume(Effect.succeed(transport))
    })
    return Effect.sync(() => {
      socket.off("error", onError)
      socket.on("error", () => {})
      socket.destroy()
    })
  })
