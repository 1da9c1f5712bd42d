/**
 * A client for what pgbench cannot do: thousands of connections in one process, and gigabytes through one of them.
 *
 * Speaks as much of the protocol as that takes: start-up, a password in clear text, frames that somebody else made, and the way
 * to the ReadyForQuery behind them. What is asked is asked one at a time. Rows are skipped, never decoded and never copied: all
 * connections of the process read through one buffer. No TLS.
 */
import { once } from "node:events"
import { connect, type Socket } from "node:net"
import { decodeAuthentication, decodeError } from "../../src/protocol/Backend.ts"
import { frame } from "../../src/protocol/Encoder.ts"
import { Backend, Frontend, FrameCollector, HEADER_LENGTH, lengthAt, type Frame } from "../../src/protocol/Frame.ts"
import { passwordMessage, query, startupMessage, terminate } from "../../src/protocol/Frontend.ts"
import type { Login } from "../stage/Target.ts"

export interface Address {
  readonly host: string
  readonly port: number
}

/** Told once: at ReadyForQuery, or when the connection fails. */
type Done = (failure: Error | null) => void

const LOGIN_FRAME_LIMIT = 64 * 1024
const readBuffer = Buffer.allocUnsafeSlow(256 * 1024)

export class Wire {
  readonly #socket: Socket
  readonly #login: Login
  #loggingIn: FrameCollector | null = new FrameCollector(LOGIN_FRAME_LIMIT)
  #done: Done | null
  /** What the server said against the last thing asked. */
  #error: Error | null = null
  /** Told when the server takes rows. */
  #onCopyIn: (() => void) | null = null
  /** Of the frame that is being skipped: its type, and the bytes that are still to come. */
  #type = 0
  #rest = 0
  readonly #header = Buffer.alloc(HEADER_LENGTH)
  #headerLength = 0
  received = 0

  /** Logged in when `done` is told so. */
  constructor({ host, port }: Address, login: Login, done: Done) {
    this.#login = login
    this.#done = done
    this.#socket = connect({
      host,
      port,
      noDelay: true,
      onread: {
        buffer: readBuffer,
        callback: (length, buffer) => {
          this.received += length
          const chunk = (buffer as Buffer).subarray(0, length)
          if (this.#loggingIn === null) this.#skip(chunk)
          else this.#logIn(this.#loggingIn, chunk)
          return true
        }
      }
    })
    const { user, database, options } = login
    const parameters = { user, database, ...(options !== undefined && { options }) }
    this.#socket.on("connect", () => this.#socket.write(startupMessage(Object.entries(parameters))))
    this.#socket.on("error", (error) => this.#fail(error))
    this.#socket.on("close", () => this.#fail(new Error("the connection was closed")))
  }

  static open(address: Address, login: Login): Promise<Wire> {
    return new Promise((resolve, reject) => {
      const wire = new Wire(address, login, (failure) => (failure === null ? resolve(wire) : reject(failure)))
    })
  }

  /** Frames that end in one ReadyForQuery. */
  send(frames: Buffer, done: Done): void {
    this.#done = done
    this.#socket.write(frames)
  }

  run(frames: Buffer): Promise<void> {
    return new Promise((resolve, reject) =>
      this.send(frames, (failure) => (failure === null ? resolve() : reject(failure)))
    )
  }

  /** COPY … FROM STDIN, with the same frames again and again. */
  async copyIn(sql: string, frames: Buffer, times: number): Promise<void> {
    const ready = this.run(query(sql))
    await Promise.race([ready, new Promise<void>((resolve) => (this.#onCopyIn = resolve))])
    for (let count = 0; count < times && this.#done !== null; count++) {
      if (!this.#socket.write(frames)) await Promise.race([ready, once(this.#socket, "drain")])
    }
    this.#socket.write(frame(Frontend.copyDone))
    await ready
  }

  close(): void {
    this.#done = null
    this.#socket.end(terminate)
  }

  #logIn(collector: FrameCollector, chunk: Buffer): void {
    const frames = collector.push(chunk)
    if (frames === null) return this.#fail(new Error("the server speaks another protocol"))
    for (const received of frames) this.#onLoginFrame(received)
  }

  #onLoginFrame({ type, body }: Frame): void {
    if (type === Backend.errorResponse) return this.#fail(new Error(decodeError(body).message))
    if (type === Backend.authentication) {
      const asked = decodeAuthentication(body)?._tag
      if (asked === "CleartextPassword") this.#socket.write(passwordMessage(this.#login.password))
      else if (asked !== "Ok") this.#fail(new Error(`the server asks for ${asked}, which this client does not know`))
    }
    if (type !== Backend.readyForQuery) return
    this.#loggingIn = null
    this.#finish(null)
  }

  #skip(chunk: Buffer): void {
    let at = 0
    while (at < chunk.length) {
      if (this.#rest === 0) {
        if (this.#headerLength === 0 && chunk.length - at >= HEADER_LENGTH) {
          this.#begin(chunk, at)
          at += HEADER_LENGTH
        } else {
          this.#header[this.#headerLength++] = chunk[at++]!
          if (this.#headerLength < HEADER_LENGTH) continue
          this.#headerLength = 0
          this.#begin(this.#header, 0)
        }
        if (this.#type === Backend.errorResponse) this.#error = new Error(decodeError(chunk.subarray(at)).message)
      }
      const here = Math.min(this.#rest, chunk.length - at)
      this.#rest -= here
      at += here
      if (this.#rest === 0) this.#end()
    }
  }

  #begin(bytes: Buffer, at: number): void {
    this.#type = bytes[at]!
    this.#rest = lengthAt(bytes, at + 1) - 4
  }

  #end(): void {
    if (this.#type === Backend.copyInResponse) this.#onCopyIn?.()
    if (this.#type === Backend.readyForQuery) this.#finish(this.#error)
  }

  #fail(failure: Error): void {
    this.#socket.destroy()
    this.#finish(this.#error ?? failure)
  }

  #finish(failure: Error | null): void {
    const done = this.#done
    this.#done = null
    this.#error = null
    done?.(failure)
  }
}
