/**
 * A TCP socket as a Transport, in clear or, from some moment on, under TLS.
 *
 * Knows nothing of PostgreSQL. Both kinds of socket have Nagle's algorithm off (a relay that waits 40 ms for an ACK is none)
 * and keep-alive on (a peer whose machine has gone says nothing).
 */
import * as Effect from "effect/Effect"
import * as Net from "node:net"
import { MAX_READ_LENGTH, type KernelSocket, type Watcher } from "./KernelSocket.ts"
import { kernelSockets } from "./KernelSockets.ts"
import { reopen } from "./StaticReads.ts"
import type { Handshake } from "./Tls.ts"
import { ignoreAll, type TlsState, type Transport, type TransportHandler } from "./Transport.ts"

/**
 * Bytes that one read takes at most. All sockets of a kind share such buffers; not so under TLS, where Node gives each chunk
 * memory of its own. Of a client no more than this is ever taken unasked. A server's long rows cost a quarter less in larger pieces
 * (rows of 1 MB: 0.56 of what a client has directly become 0.77), and there are never more than MaxOpen of them.
 */
const CLIENT_READ_LENGTH = 64 * 1024
const SERVER_READ_LENGTH = MAX_READ_LENGTH
const KEEP_ALIVE_DELAY_MS = 60_000

/**
 * Buffers that are used again, for copies of large chunks: V8 lets 64 MB of new ones lie before it collects them, which a result
 * of a gigabyte reaches in a tenth of a second. At most 4 MB of each length are kept.
 */
class Spares {
  readonly #length: number
  readonly #spares: Array<Buffer> = []

  constructor(length: number) {
    this.#length = length
  }

  take(): Buffer {
    return this.#spares.pop() ?? Buffer.allocUnsafeSlow(this.#length)
  }

  giveBack(spare: Buffer): void {
    if (this.#spares.length * this.#length < 4 * 1024 * 1024) this.#spares.push(spare)
  }
}

/** A client that stalls keeps what it was sent: no more than twice as much where it is long. */
const spares = new Spares(CLIENT_READ_LENGTH)
const longSpares = new Spares(SERVER_READ_LENGTH / 2)
const longestSpares = new Spares(SERVER_READ_LENGTH)
const sparesFor = (length: number): Spares =>
  length <= CLIENT_READ_LENGTH ? spares : length <= SERVER_READ_LENGTH / 2 ? longSpares : longestSpares
const SPARE_MIN_LENGTH = 8 * 1024

const isLoopback = (address: string): boolean =>
  address.startsWith("127.") || address === "::1" || address.startsWith("::ffff:127.")

interface Handled extends Net.Socket {
  readonly _handle?: { readonly fd?: number } | null
}

class SocketTransport implements Transport, Watcher {
  handler: TransportHandler = ignoreAll
  readonly remote: string
  readonly local: boolean
  tls: TlsState | null = null
  readLength = 0
  #socket: Net.Socket
  /** Where it is read and written past the socket's stream; else null. */
  #kernel: KernelSocket | null = null
  #over = false
  readonly #onData = (chunk: Buffer) => this.onRead(chunk)
  readonly #onDrain = () => {
    if (!this.#over) this.handler.onDrain()
  }
  readonly #onEnd = () => this.#close(null)
  readonly #onError = (error: NodeJS.ErrnoException) => this.#close(error.code ?? error.message)

  constructor(socket: Net.Socket) {
    this.#socket = socket
    this.remote = `${socket.remoteAddress ?? "?"}:${socket.remotePort ?? 0}`
    this.local = isLoopback(socket.remoteAddress ?? "")
    socket.setNoDelay(true)
    socket.setKeepAlive(true, KEEP_ALIVE_DELAY_MS)
    this.#listen()
  }

  #listen(): void {
    this.#socket.on("drain", this.#onDrain).on("end", this.#onEnd).on("error", this.#onError).on("close", this.#onEnd)
  }

  #close(reason: string | null): void {
    this.#leaveToStream()
    if (this.#over) return
    this.#over = true
    this.handler.onClose(reason)
  }

  get closed(): boolean {
    return this.#over
  }

  get gone(): boolean {
    return this.#socket.destroyed
  }

  /**
   * From now on it is read past the stream, which must not have been read. False where that cannot be. What does not succeed at
   * once is left to the stream.
   */
  readDirectly(readLength: number): boolean {
    // The one thing here that Node does not document.
    const { fd = -1 } = (this.#socket as Handled)._handle ?? {}
    this.readLength = readLength
    this.#kernel = fd < 0 ? null : (kernelSockets()?.adopt(fd, this) ?? null)
    return this.#kernel !== null
  }

  onUnsent(bytes: Uint8Array): void {
    this.#writeCopy(bytes)
  }

  /** The stream meets it again, and tells of it. */
  onEnd(): void {
    this.readByStream()
  }

  onError(code: string): void {
    this.#socket.destroy()
    this.#close(code)
  }

  /** Nothing is read or written past the stream any more, and what was read and not told is not wanted. */
  readByStream(): void {
    this.#leaveToStream()
    this.readEvents()
    this.#socket.resume()
  }

  #leaveToStream(): void {
    const kernel = this.#kernel
    this.#kernel = null
    kernel?.leave()
  }

  /** The socket gives out its chunks as events: one that we accepted, or any under TLS. */
  readEvents(): void {
    this.#socket.on("data", this.#onData)
  }

  onRead(chunk: Buffer): void {
    // Node may have destroyed it, of which its owner hears later.
    if (!this.#over && !this.#socket.destroyed) this.handler.onData(chunk)
  }

  startTls(handshake: Handshake, received: Buffer, done: (failure: string | null) => void): void {
    const socket = this.#socket
    const early = this.#kernel?.giveUp() ?? null
    this.#kernel = null
    // A socket that breaks is destroyed before anybody is told.
    if (this.#over || socket.destroyed) {
      this.destroy()
      return done("ECONNRESET")
    }
    socket
      .off("data", this.#onData)
      .off("drain", this.#onDrain)
      .off("end", this.#onEnd)
      .off("error", this.#onError)
      .off("close", this.#onEnd)
      // What TLS makes of it is heard from TLS.
      .on("error", () => {})
      .pause()
    if (early !== null) socket.unshift(early)
    if (received.length > 0) socket.unshift(received)
    handshake(socket, (end) => {
      if (end._tag === "Secured" && !this.#over) {
        this.#socket = end.socket
        this.tls = end.state
        this.#listen()
        this.readEvents()
        return done(null)
      }
      this.destroy()
      done(end._tag === "Failed" ? end.reason : "ECONNRESET")
    })
  }

  write(bytes: Uint8Array): boolean {
    if (this.#over) return true
    return this.#writeDirectly(bytes) ?? this.#socket.write(bytes)
  }

  writeLent(bytes: Buffer): boolean {
    if (this.#over) return true
    return this.#writeDirectly(bytes) ?? this.#writeCopy(bytes)
  }

  #writeCopy(bytes: Uint8Array): boolean {
    if (bytes.length < SPARE_MIN_LENGTH || bytes.length > SERVER_READ_LENGTH) {
      const copy = Buffer.allocUnsafe(bytes.length)
      copy.set(bytes)
      return this.#socket.write(copy)
    }
    const kind = sparesFor(bytes.length)
    const spare = kind.take()
    spare.set(bytes)
    return this.#socket.write(spare.subarray(0, bytes.length), () => kind.giveBack(spare))
  }

  /**
   * Null: that is up to the stream, which has something to write already, or whose socket is destroyed: its descriptor may be
   * another client's. Where the kernel takes writes later, a peer is known to be slow with the next one.
   */
  #writeDirectly(bytes: Uint8Array): boolean | null {
    const socket = this.#socket
    if (this.#kernel === null || socket.destroyed || socket.writableLength > 0) return null
    this.#kernel.write(bytes)
    return socket.writableLength === 0 || !socket.writableNeedDrain
  }

  pause(): void {
    if (this.#kernel === null) this.#socket.pause()
    else this.#kernel.pause()
  }

  resume(): void {
    if (this.#kernel === null) this.#socket.resume()
    else if (!this.#socket.destroyed && !this.#kernel.resume()) this.readByStream()
  }

  end(bytes?: Uint8Array): void {
    if (this.#over) return
    // Whatever the peer still says is not wanted, but a socket that is not read never notices the peer's end.
    if (this.#kernel === null) this.#socket.resume()
    else this.readByStream()
    if (bytes === undefined) this.#socket.end()
    else this.#socket.end(bytes)
  }

  get flushed(): boolean {
    this.#kernel?.flush()
    // TLS has an end of its own.
    return this.tls === null && this.#socket.writableLength === 0
  }

  destroy(): void {
    this.#leaveToStream()
    this.#over = true
    this.#socket.destroy()
  }
}

const clientReadBuffer = Buffer.allocUnsafeSlow(CLIENT_READ_LENGTH)
const serverReadBuffer = Buffer.allocUnsafeSlow(SERVER_READ_LENGTH)

/** Hears what one socket reads into the buffer that it shares. */
class SharedReads implements Net.OnReadOpts {
  readonly buffer: Buffer
  transport: SocketTransport | null = null
  readonly callback = (length: number) => {
    this.transport?.onRead(this.buffer.subarray(0, length))
    return true
  }

  constructor(buffer: Buffer) {
    this.buffer = buffer
  }
}

/** A socket that a listener accepted, which was not read yet. Reading begins with the first handler's turn of the event loop. */
export const accepted = (socket: Net.Socket): Transport => {
  if (kernelSockets() !== null) return readDirectly(socket, CLIENT_READ_LENGTH)
  const reads = new SharedReads(clientReadBuffer)
  const reopened = reopen(socket, reads)
  const transport = new SocketTransport(reopened ?? socket)
  if (reopened === null) {
    transport.readEvents()
    socket.resume()
  } else reads.transport = transport
  return transport
}

const readDirectly = (socket: Net.Socket, readLength: number): SocketTransport => {
  const transport = new SocketTransport(socket)
  if (!transport.readDirectly(readLength)) transport.readByStream()
  return transport
}

/** Connects to a server. Fails with the system's error code; interruption closes the half-open socket. */
export const connect = (to: { readonly host: string; readonly port: number }): Effect.Effect<Transport, string> =>
  Effect.callback<Transport, string>((resume) => {
    const reads = new SharedReads(serverReadBuffer)
    const socket = Net.connect({ host: to.host, port: to.port, onread: reads })
    const direct = kernelSockets() !== null
    if (direct) socket.pause()
    const onError = (error: NodeJS.ErrnoException) => {
      socket.destroy()
      resume(Effect.fail(error.code ?? error.message))
    }
    socket.once("error", onError)
    socket.once("connect", () => {
      socket.off("error", onError)
      reads.transport = direct ? readDirectly(socket, SERVER_READ_LENGTH) : new SocketTransport(socket)
      resume(Effect.succeed(reads.transport))
    })
    return Effect.sync(() => {
      socket.off("error", onError)
      socket.on("error", () => {})
      socket.destroy()
    })
  })
