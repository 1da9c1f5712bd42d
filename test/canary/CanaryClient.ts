/**
 * The leanest client that can watch for another tenant's rows: it finds messages, reads every value of every row and compares
 * it with its own mark. It keeps nothing of what it read but counts and SQLSTATEs, so that hundreds of them cost little.
 *
 * It logs in with a clear-text password. Promises and callbacks, no Effect: a hundred thousand transactions go through it.
 */
import * as Net from "node:net"
import { cancelRequest, password, startup, type Address, type CancelKey } from "../support/rawClient.ts"

export interface Answer {
  readonly rows: number
  readonly sqlStates: ReadonlyArray<string>
}

export interface Watch {
  /** Own, null or empty is well. */
  readonly mark: string
  readonly onWrongMark: (found: string) => void
  /** A ReadyForQuery outside a transaction. */
  readonly onTransactionEnd: () => void
}

interface Expected {
  /** Of the messages with one of these letters the n-th is the last. */
  readonly letters: string
  rest: number
  readonly resolve: (answer: Answer) => void
  readonly reject: (error: Error) => void
}

const KEY = "K".charCodeAt(0)
const DATA_ROW = "D".charCodeAt(0)
const COPY_DATA = "d".charCodeAt(0)
const ERROR = "E".charCodeAt(0)
const READY = "Z".charCodeAt(0)
const IDLE = "I".charCodeAt(0)

export class CanaryClient {
  readonly #socket: Net.Socket
  readonly #watch: Watch
  #pending: Buffer | null = null
  #expected: Expected | null = null
  #rows = 0
  #sqlStates: Array<string> = []
  #loggedIn = false
  key: CancelKey = { processId: 0, secretKey: Buffer.alloc(4) }

  private constructor(socket: Net.Socket, watch: Watch) {
    this.#socket = socket
    this.#watch = watch
    socket.setNoDelay(true)
    socket.on("data", (chunk: Buffer) => this.#receive(chunk))
    socket.on("error", () => undefined)
    socket.on("close", () => this.#expected?.reject(new Error(`closed; errors: ${this.#sqlStates.join()}`)))
  }

  static async logIn(
    address: Address,
    parameters: Readonly<Record<string, string>>,
    secret: string,
    watch: Watch
  ): Promise<CanaryClient> {
    const client = new CanaryClient(Net.connect(address), watch)
    await client.exchange(startup(parameters), "RE")
    const greeting = await client.exchange(password(secret), "ZE")
    if (greeting.sqlStates.length > 0) throw new Error(`login refused: ${greeting.sqlStates.join()}`)
    client.#loggedIn = true
    return client
  }

  /** Writes, and tells what came up to and with the n-th message that has one of these letters. */
  exchange(bytes: Buffer, letters = "Z", count = 1): Promise<Answer> {
    return new Promise((resolve, reject) => {
      this.#rows = 0
      this.#sqlStates = []
      this.#expected = { letters, rest: count, resolve, reject }
      this.#socket.write(bytes)
    })
  }

  /** Nobody waits for the answer: its rows are looked at all the same, as far as they come. */
  send(bytes: Buffer): void {
    this.#socket.write(bytes)
  }

  vanish(): void {
    this.#expected = null
    this.#socket.resetAndDestroy()
  }

  #receive(chunk: Buffer): void {
    const bytes = this.#pending === null ? chunk : Buffer.concat([this.#pending, chunk])
    let at = 0
    while (bytes.length - at >= 5) {
      const end = at + 1 + bytes.readUInt32BE(at + 1)
      if (end > bytes.length) break
      this.#hear(bytes, at, end)
      at = end
    }
    this.#pending = at === bytes.length ? null : bytes.subarray(at)
  }

  #hear(bytes: Buffer, at: number, end: number): void {
    const type = bytes[at]!
    if (type === DATA_ROW) this.#readRow(bytes, at + 5)
    else if (type === COPY_DATA) this.#read(bytes.toString("latin1", at + 5, end - 1), true)
    else if (type === ERROR) this.#sqlStates.push(/\0C(.{5})\0/s.exec(bytes.toString("latin1", at + 5, end))?.[1] ?? "")
    else if (type === READY && bytes[at + 5] === IDLE && this.#loggedIn) this.#watch.onTransactionEnd()
    else if (type === KEY) {
      this.key = { processId: bytes.readUInt32BE(at + 5), secretKey: Buffer.from(bytes.subarray(at + 9, end)) }
    }
    this.#countDown(type)
  }

  #readRow(bytes: Buffer, from: number): void {
    let at = from + 2
    for (let rest = bytes.readInt16BE(from); rest > 0; rest--) {
      const length = bytes.readInt32BE(at)
      at += 4
      if (length > 0) this.#read(bytes.toString("latin1", at, at + length), false)
      at += Math.max(0, length)
    }
    this.#rows++
  }

  #read(value: string, isRow: boolean): void {
    if (value !== this.#watch.mark) this.#watch.onWrongMark(value)
    if (isRow) this.#rows++
  }

  #countDown(type: number): void {
    const expected = this.#expected
    if (expected === null || !expected.letters.includes(String.fromCharCode(type)) || --expected.rest > 0) return
    this.#expected = null
    expected.resolve({ rows: this.#rows, sqlStates: this.#sqlStates })
  }
}

/** A connection of its own, as drivers do it; ends when the other side has closed it. */
export const cancel = (address: Address, key: CancelKey): Promise<void> =>
  new Promise((resolve) => {
    const socket = Net.connect(address, () => socket.write(cancelRequest(key)))
    socket.on("error", () => undefined)
    socket.on("close", () => resolve())
    socket.resume()
  })
