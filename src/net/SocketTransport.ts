/**
 * A TCP socket as a Transport, in clear or, from some moment on, under TLS.
 *
 * Knows nothing of PostgreSQL. Both kinds of socket have Nagle's algorithm off (a relay that waits 40 ms for an ACK is none)
 * and keep-alive on (a peer whose machine has gone says nothing).
 */
import * as Effect from "effect/Effect"
import * as Net from "node:net"
import { KEEP_ALIVE_DELAY_SECS, type Peer } from "./Descriptors.ts"
import { MAX_READ_LENGTH, type KernelSocket, type KernelSockets, type Watcher } from "./KernelSocket.ts"
import { kernelSockets } from "./KernelSockets.ts"
import { descriptorOf, reopen, socketOver } from "./NodeHandles.ts"
import type { Handshake } from "./Tls.ts"
import { ignoreAll, type TlsState, type Transport, type TransportHandler } from "./Transport.ts"

/**
 * Bytes that one read takes at most. All sockets of a kind share such buffers; not so under TLS, where Node gives each chunk
 * memory of its own. Of a client no more than this is ever taken unasked. A server's long rows cost a quarter less in larger pieces
 * (rows of 1 MB: 0.56 of what a client has directly become 0.77), and there are never more than MaxOpen of them.
 */
const CLIENT_READ_LENGTH = 64 * 1024
const SERVER_READ_LENGTH = MAX_READ_LENGTH

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

/** A socket's listeners, to be taken off again. */
interface Listeners {
  readonly data: (chunk: Buffer) => void
  readonly drain: () => void
  readonly end: () => void
  readonly error: (error: NodeJS.ErrnoException) => void
}

class SocketTransport implements Transport, Watcher {
  handler: TransportHandler = ignoreAll
  readonly remote: string
  readonly local: boolean
  tls: TlsState | null = null
  readonly readLength: number
  /**
   * Whose the descriptor is: Node's, or, where this is null, ours. It becomes Node's when there is something to do that only its
   * streams do: to write to a peer that does not take it, to shake hands, to wait for a peer's end. Most clients never need one,
   * which is 2 kB of memory, and a tenth of the CPU of a login.
   */
  #socket: Net.Socket | null = null
  /** Where it is read and written past a stream; else null. */
  #kernel: KernelSocket | null = null
  #listeners: Listeners | null = null
  #over = false

  private constructor({ host, port }: Peer, readLength: number) {
    this.remote = `${host}:${port}`
    this.local = isLoopback(host)
    this.readLength = readLength
  }

  /** Over a connected descriptor, which is ours from now on. */
  static over(kernel: KernelSockets, fd: number, peer: Peer): SocketTransport {
    const transport = new SocketTransport(peer, CLIENT_READ_LENGTH)
    transport.#kernel = kernel.adopt(fd, transport)
    if (transport.#kernel === null) {
      transport.#use(socketOver(fd))
      transport.readByStream()
    }
    return transport
  }

  /** Over a socket of Node's, which nobody has read yet. */
  static of(socket: Net.Socket, readLength: number): SocketTransport {
    const peer = { host: socket.remoteAddress ?? "?", port: socket.remotePort ?? 0 }
    const transport = new SocketTransport(peer, readLength)
    socket.setNoDelay(true)
    socket.setKeepAlive(true, KEEP_ALIVE_DELAY_SECS * 1000)
    transport.#use(socket)
    return transport
  }

  #use(socket: Net.Socket): void {
    this.#socket = socket
    const { drain, end, error } = (this.#listeners ??= {
      data: (chunk) => this.onRead(chunk),
      drain: () => {
        if (!this.#over) this.handler.onDrain()
      },
      end: () => this.#close(null),
      error: (error) => this.#close(error.code ?? error.message)
    })
    socket.on("drain", drain).on("end", end).on("error", error).on("close", end)
  }

  /** One of Node's own from now on. There is one, or the kernel has a descriptor that can become one. */
  #asSocket(): Net.Socket {
    if (this.#socket === null) this.#use(socketOver(this.#kernel!.fd))
    return this.#socket!
  }

  #close(reason: string | null): void {
    const wasOver = this.#over
    this.#letGo()
    if (!wasOver) this.handler.onClose(reason)
  }

  /** It is over. What is Node's is Node's to close. */
  #letGo(): void {
    this.#over = true
    if (this.#socket === null) this.#kernel?.close()
    else this.#kernel?.leave()
    this.#kernel = null
  }

  get closed(): boolean {
    return this.#over
  }

  get gone(): boolean {
    return this.#socket === null ? this.#over : this.#socket.destroyed
  }

  /** From now on it is read past the stream, which must not have been read. What does not succeed at once is left to the stream. */
  readDirectly(): void {
    const fd = descriptorOf(this.#socket!)
    this.#kernel = fd < 0 ? null : (kernelSockets()?.adopt(fd, this) ?? null)
    if (this.#kernel === null) this.readByStream()
  }

  onUnsent(bytes: Uint8Array): void {
    if (!this.#over) this.#writeCopy(bytes)
  }

  onEnd(): void {
    // A stream meets it again, and tells of it.
    if (this.#socket === null) this.#close(null)
    else this.readByStream()
  }

  onError(code: string): void {
    this.#socket?.destroy()
    this.#close(code)
  }

  /** Nothing is read or written past the stream any more, and what was read and not told is not wanted. */
  readByStream(): void {
    const socket = this.#asSocket()
    this.#kernel?.leave()
    this.#kernel = null
    this.readEvents()
    socket.resume()
  }

  /** The socket gives out its chunks as events: one that we accepted, or any under TLS. */
  readEvents(): void {
    this.#socket!.on("data", this.#listeners!.data)
  }

  onRead(chunk: Buffer): void {
    // Node may have destroyed it, of which its owner hears later.
    if (!this.#over && !this.gone) this.handler.onData(chunk)
  }

  startTls(handshake: Handshake, received: Buffer, done: (failure: string | null) => void): void {
    const early = this.#kernel?.giveUp() ?? null
    // A socket that breaks is destroyed before anybody is told.
    if (this.#over || this.gone) {
      this.destroy()
      return done("ECONNRESET")
    }
    const socket = this.#asSocket()
    this.#kernel = null
    const { data, drain, end, error } = this.#listeners!
    socket
      .off("data", data)
      .off("drain", drain)
      .off("end", end)
      .off("error", error)
      .off("close", end)
      // What TLS makes of it is heard from TLS.
      .on("error", () => {})
      .pause()
    if (early !== null) socket.unshift(early)
    if (received.length > 0) socket.unshift(received)
    handshake(socket, (end) => {
      if (end._tag === "Secured" && !this.#over) {
        this.#use(end.socket)
        this.tls = end.state
        this.readEvents()
        return done(null)
      }
      this.destroy()
      done(end._tag === "Failed" ? end.reason : "ECONNRESET")
    })
  }

  write(bytes: Uint8Array): boolean {
    if (this.#over) return true
    return this.#writeDirectly(bytes) ?? this.#asSocket().write(bytes)
  }

  writeLent(bytes: Buffer): boolean {
    if (this.#over) return true
    return this.#writeDirectly(bytes) ?? this.#writeCopy(bytes)
  }

  #writeCopy(bytes: Uint8Array): boolean {
    const socket = this.#asSocket()
    if (bytes.length < SPARE_MIN_LENGTH || bytes.length > SERVER_READ_LENGTH) {
      const copy = Buffer.allocUnsafe(bytes.length)
      copy.set(bytes)
      return socket.write(copy)
    }
    const kind = sparesFor(bytes.length)
    const spare = kind.take()
    spare.set(bytes)
    return socket.write(spare.subarray(0, bytes.length), () => kind.giveBack(spare))
  }

  /**
   * Null: that is up to the stream, which has something to write already, or whose socket is destroyed: its descriptor may be
   * another client's. Where the kernel takes writes later, a peer is known to be slow with the next one.
   */
  #writeDirectly(bytes: Uint8Array): boolean | null {
    if (this.#kernel === null || this.gone || (this.#socket?.writableLength ?? 0) > 0) return null
    this.#kernel.write(bytes)
    // There may be one by now.
    const socket = this.#socket
    return socket === null || socket.writableLength === 0 || !socket.writableNeedDrain
  }

  pause(): void {
    if (this.#kernel === null) this.#socket?.pause()
    else this.#kernel.pause()
  }

  resume(): void {
    if (this.#kernel === null) this.#socket?.resume()
    else if (!this.gone && !this.#kernel.resume()) this.readByStream()
  }

  end(bytes?: Uint8Array): void {
    if (this.#over) return
    const socket = this.#asSocket()
    // Whatever the peer still says is not wanted, but a socket that is not read never notices the peer's end.
    if (this.#kernel === null) socket.resume()
    else this.readByStream()
    if (bytes === undefined) socket.end()
    else socket.end(bytes)
  }

  get flushed(): boolean {
    this.#kernel?.flush()
    // TLS has an end of its own.
    return this.tls === null && (this.#socket === null || this.#socket.writableLength === 0)
  }

  destroy(): void {
    this.#letGo()
    this.#socket?.destroy()
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

/**
 * A connection that was accepted, and not read yet: a descriptor, which is ours from now on. Reading begins with the first handler's
 * turn of the event loop.
 */
export const acceptedBy = (kernel: KernelSockets, fd: number, peer: Peer): Transport =>
  SocketTransport.over(kernel, fd, peer)

/** The same, of a socket of Node's that nobody has read yet. */
export const accepted = (socket: Net.Socket): Transport => {
  if (kernelSockets() !== null) return readDirectly(socket, CLIENT_READ_LENGTH)
  const reads = new SharedReads(clientReadBuffer)
  const reopened = reopen(socket, reads)
  const transport = SocketTransport.of(reopened ?? socket, CLIENT_READ_LENGTH)
  if (reopened === null) transport.readByStream()
  else reads.transport = transport
  return transport
}

const readDirectly = (socket: Net.Socket, readLength: number): SocketTransport => {
  const transport = SocketTransport.of(socket, readLength)
  transport.readDirectly()
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
      reads.transport = direct
        ? readDirectly(socket, SERVER_READ_LENGTH)
        : SocketTransport.of(socket, SERVER_READ_LENGTH)
      resume(Effect.succeed(reads.transport))
    })
    return Effect.sync(() => {
      socket.off("error", onError)
      socket.on("error", () => {})
      socket.destroy()
    })
  })
