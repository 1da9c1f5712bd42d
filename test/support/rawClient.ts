/**
 * A PostgreSQL client of bytes: writes what it is given, collects whole messages and waits for one among them.
 *
 * It does nothing by itself and knows no state of the protocol, so that a test can send what no driver would. It shares no
 * code with the service. Every wait ends after ten seconds at most, with what had come until then in the failure's words.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { createHash, createHmac, pbkdf2Sync, randomBytes } from "node:crypto"
import * as Net from "node:net"

export interface Address {
  readonly host: string
  readonly port: number
}

/** A message of the backend: its letter, and what follows the length word. */
export interface Message {
  readonly type: string
  readonly body: Buffer
}

export interface CancelKey {
  readonly processId: number
  readonly secretKey: Buffer
}

const WAIT_LIMIT = "10 seconds"

// ---- what a frontend sends

const int16 = (value: number): Buffer => {
  const bytes = Buffer.alloc(2)
  bytes.writeInt16BE(value)
  return bytes
}

export const int32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value >>> 0)
  return bytes
}

export const text = (value: string): Buffer => Buffer.from(`${value}\0`)

/** Any message, legal or not. */
export const message = (type: string, ...parts: ReadonlyArray<Buffer>): Buffer => {
  const body = Buffer.concat(parts)
  return Buffer.concat([Buffer.from(type), int32(body.length + 4), body])
}

/** A packet without a letter: how a connection begins. */
const packet = (...parts: ReadonlyArray<Buffer>): Buffer => {
  const body = Buffer.concat(parts)
  return Buffer.concat([int32(body.length + 4), body])
}

export const sslRequest: Buffer = packet(int32(80877103))
export const gssEncRequest: Buffer = packet(int32(80877104))

export const startup = (parameters: Readonly<Record<string, string>>, version = 0x00030000): Buffer =>
  packet(int32(version), ...Object.entries(parameters).flat().map(text), Buffer.of(0))

export const cancelRequest = ({ processId, secretKey }: CancelKey): Buffer =>
  packet(int32(80877102), int32(processId), secretKey)

export const password = (value: string): Buffer => message("p", text(value))
export const query = (sql: string): Buffer => message("Q", text(sql))
export const parse = (name: string, sql: string): Buffer => message("P", text(name), text(sql), int16(0))

/** Text parameters, text results. */
export const bind = (portal: string, statement: string, ...values: ReadonlyArray<string>): Buffer =>
  message(
    "B",
    text(portal),
    text(statement),
    int16(0),
    int16(values.length),
    ...values.flatMap((value) => [int32(Buffer.byteLength(value)), Buffer.from(value)]),
    int16(0)
  )

export const describeStatement = (name: string): Buffer => message("D", Buffer.from("S"), text(name))
export const describePortal = (name: string): Buffer => message("D", Buffer.from("P"), text(name))
export const execute = (portal = "", rows = 0): Buffer => message("E", text(portal), int32(rows))
export const closeStatement = (name: string): Buffer => message("C", Buffer.from("S"), text(name))
export const closePortal = (name: string): Buffer => message("C", Buffer.from("P"), text(name))
export const sync: Buffer = message("S")
export const flush: Buffer = message("H")
export const terminate: Buffer = message("X")
export const copyData = (data: string): Buffer => message("d", Buffer.from(data))
export const copyDone: Buffer = message("c")
export const copyFail = (why: string): Buffer => message("f", text(why))

/** `pg_catalog.int4pl` and the like, by the function's oid, with text arguments. */
export const functionCall = (oid: number, ...values: ReadonlyArray<string>): Buffer =>
  message(
    "F",
    int32(oid),
    int16(0),
    int16(values.length),
    ...values.flatMap((value) => [int32(Buffer.byteLength(value)), Buffer.from(value)]),
    int16(0)
  )

// ---- what a backend answered

/** An ErrorResponse's or NoticeResponse's fields, by their letters. */
export const fieldsOf = ({ body }: Message): Readonly<Record<string, string>> =>
  Object.fromEntries(
    body
      .toString()
      .split("\0")
      .filter((field) => field !== "")
      .map((field) => [field.slice(0, 1), field.slice(1)])
  )

/** A DataRow's columns as text; NULL is null. */
export const columnsOf = ({ body }: Message): ReadonlyArray<string | null> => {
  const columns: Array<string | null> = []
  let at = 2
  for (let rest = body.readInt16BE(0); rest > 0; rest--) {
    const length = body.readInt32BE(at)
    at += 4
    columns.push(length === -1 ? null : body.toString("utf8", at, at + length))
    at += Math.max(0, length)
  }
  return columns
}

export const typesOf = (messages: ReadonlyArray<Message>): string => messages.map(({ type }) => type).join("")

/** All rows among the messages, their columns joined by `|`. */
export const rowsOf = (messages: ReadonlyArray<Message>): ReadonlyArray<string> =>
  messages.filter(({ type }) => type === "D").map((row) => columnsOf(row).join("|"))

/** The SQLSTATE of every ErrorResponse among the messages. */
export const sqlStatesOf = (messages: ReadonlyArray<Message>): ReadonlyArray<string> =>
  messages.filter(({ type }) => type === "E").map((error) => fieldsOf(error)["C"] ?? "")

/** One line a message, for failures. */
const say = (messages: ReadonlyArray<Message>): string =>
  messages
    .map((message) => (message.type === "E" ? `E(${Object.values(fieldsOf(message)).join(" ")})` : message.type))
    .join(" ")

// ---- the client

export class RawClient {
  readonly #socket: Net.Socket
  /** Put together when the message that they begin may be whole: of 20 MB it is one of many hundred. */
  #pending: Array<Buffer> = []
  #pendingLength = 0
  #due = 1
  /** Bytes without a letter that are due (the answer to an SSLRequest). */
  #bareDue = 0
  #messages: Array<Message> = []
  #closed = false
  readonly #waiting = new Set<() => void>()
  /** Of the login; zeros before. */
  key: CancelKey = { processId: 0, secretKey: Buffer.alloc(4) }

  private constructor(socket: Net.Socket) {
    this.#socket = socket
    socket.setNoDelay(true)
    socket.on("data", (chunk: Buffer) => this.#receive(chunk))
    socket.on("error", () => this.#close())
    socket.on("close", () => this.#close())
  }

  /** Destroyed at the scope's end. */
  static connect(address: Address): Effect.Effect<RawClient, never, Scope.Scope> {
    return Effect.acquireRelease(
      Effect.callback<RawClient>((resume) => {
        const socket = Net.connect(address)
        socket.once("error", (error) => resume(Effect.die(error)))
        socket.once("connect", () => resume(Effect.succeed(new RawClient(socket))))
      }),
      (client) => Effect.sync(() => client.vanish())
    )
  }

  #receive(chunk: Buffer): void {
    this.#pending.push(chunk)
    this.#pendingLength += chunk.length
    if (this.#pendingLength < this.#due) return
    const pending = Buffer.concat(this.#pending)
    let at = 0
    for (; this.#bareDue > 0 && at < pending.length; at++, this.#bareDue--) {
      this.#messages.push({ type: pending.toString("latin1", at, at + 1), body: Buffer.alloc(0) })
    }
    this.#due = 1
    while (pending.length - at >= 5) {
      const end = at + 1 + pending.readUInt32BE(at + 1)
      if (end > pending.length) {
        this.#due = end - at
        break
      }
      this.#messages.push({
        type: pending.toString("latin1", at, at + 1),
        body: Buffer.from(pending.subarray(at + 5, end))
      })
      at = end
    }
    this.#pending = [pending.subarray(at)]
    this.#pendingLength = pending.length - at
    this.#wake()
  }

  #close(): void {
    this.#closed = true
    this.#wake()
  }

  #wake(): void {
    for (const look of Array.from(this.#waiting)) look()
  }

  /** Bytes, in one write. */
  send(...bytes: ReadonlyArray<Uint8Array>): void {
    this.#socket.write(Buffer.concat(bytes))
  }

  /** A request that is answered with one byte without a length. */
  sendForByte(bytes: Uint8Array): void {
    this.#bareDue++
    this.#socket.write(bytes)
  }

  /** Writes, and ends this half of the stream behind it. */
  sendAndEnd(...bytes: ReadonlyArray<Uint8Array>): void {
    this.#socket.end(Buffer.concat(bytes))
  }

  /** Gone without a word, as by a pulled plug. */
  vanish(): void {
    this.#socket.resetAndDestroy()
  }

  /** Takes nothing from the network any more, until `resume`. */
  pause(): void {
    this.#socket.pause()
  }

  resume(): void {
    this.#socket.resume()
  }

  /** What has come and was not taken. */
  get received(): ReadonlyArray<Message> {
    return this.#messages
  }

  get isClosed(): boolean {
    return this.#closed
  }

  /** The messages up to and with the first for which `last` holds. Fails where the connection closes before it. */
  take(last: (message: Message) => boolean): Effect.Effect<ReadonlyArray<Message>> {
    return this.#until("a message", () => {
      const at = this.#messages.findIndex(last)
      if (at !== -1) return this.#messages.splice(0, at + 1)
      return this.#closed ? new Error(`closed after: ${say(this.#messages)}`) : null
    })
  }

  /** The messages up to and with the n-th ReadyForQuery. */
  ready(count = 1): Effect.Effect<ReadonlyArray<Message>> {
    return Effect.suspend(() => {
      let rest = count
      const seen = new Set<Message>()
      return this.take((message) => {
        if (message.type !== "Z" || seen.has(message)) return false
        seen.add(message)
        return --rest === 0
      })
    })
  }

  /** The next `count` messages. */
  next(count = 1): Effect.Effect<ReadonlyArray<Message>> {
    return this.#until(`${count} messages`, () => {
      if (this.#messages.length >= count) return this.#messages.splice(0, count)
      return this.#closed ? new Error(`closed after: ${say(this.#messages)}`) : null
    })
  }

  /** All that came until the other side closed. */
  closed(): Effect.Effect<ReadonlyArray<Message>> {
    return this.#until("the end", () => (this.#closed ? this.#messages.splice(0) : null))
  }

  #until(what: string, look: () => ReadonlyArray<Message> | Error | null): Effect.Effect<ReadonlyArray<Message>> {
    return Effect.callback<ReadonlyArray<Message>>((resume) => {
      const attempt = () => {
        const found = look()
        if (found === null) return
        this.#waiting.delete(attempt)
        resume(found instanceof Error ? Effect.die(found) : Effect.succeed(found))
      }
      this.#waiting.add(attempt)
      attempt()
      return Effect.sync(() => this.#waiting.delete(attempt))
    }).pipe(
      Effect.timeoutOrElse({
        duration: WAIT_LIMIT,
        orElse: () => Effect.die(new Error(`waited ${WAIT_LIMIT} for ${what}; received: ${say(this.#messages)}`))
      })
    )
  }

  /** Sends, and gives all up to and with the n-th ReadyForQuery. */
  exchange(bytes: Uint8Array, readyForQueries = 1): Effect.Effect<ReadonlyArray<Message>> {
    return Effect.suspend(() => {
      this.send(bytes)
      return this.ready(readyForQueries)
    })
  }

  /** A simple Query. */
  query(sql: string): Effect.Effect<ReadonlyArray<Message>> {
    return this.exchange(query(sql))
  }

  /**
   * Logs in, by clear text or SCRAM-SHA-256 as it is asked to; gives all that came. Ends with ReadyForQuery, or with the end
   * of the connection where the login is refused.
   */
  logIn(parameters: Readonly<Record<string, string>>, secret: string): Effect.Effect<ReadonlyArray<Message>> {
    return this.logInWith(startup(parameters), secret)
  }

  logInWith(firstPacket: Uint8Array, secret: string): Effect.Effect<ReadonlyArray<Message>> {
    return Effect.suspend(() => {
      this.send(firstPacket)
      return this.#answerLogin([], new Scram(secret), secret)
    })
  }

  #answerLogin(soFar: ReadonlyArray<Message>, scram: Scram, secret: string): Effect.Effect<ReadonlyArray<Message>> {
    return Effect.flatMap(this.#nextOrEnd(), ([answer]) => {
      if (answer === undefined) return Effect.succeed(soFar)
      const all = [...soFar, answer]
      if (answer.type === "Z") return Effect.succeed(all)
      if (answer.type === "K") {
        this.key = { processId: answer.body.readUInt32BE(0), secretKey: answer.body.subarray(4) }
      }
      const asked = answer.type === "R" ? answer.body.readInt32BE(0) : 0
      if (asked === 3) this.send(password(secret))
      if (asked === 10) this.send(scram.first)
      if (asked === 11) this.send(scram.final(answer.body.toString("utf8", 4)))
      return this.#answerLogin(all, scram, secret)
    })
  }

  #nextOrEnd(): Effect.Effect<ReadonlyArray<Message>> {
    return this.#until("an answer to the login", () => {
      if (this.#messages.length > 0) return this.#messages.splice(0, 1)
      return this.#closed ? [] : null
    })
  }
}

/** RFC 5802, the client's half; the server's signature is not checked. */
class Scram {
  readonly #password: string
  readonly #bare = `n=,r=${randomBytes(18).toString("base64")}`

  constructor(password: string) {
    this.#password = password
  }

  get first(): Buffer {
    const data = Buffer.from(`n,,${this.#bare}`)
    return message("p", text("SCRAM-SHA-256"), int32(data.length), data)
  }

  final(challenge: string): Buffer {
    const [nonce = "", salt = "", iterations = ""] = challenge.split(",").map((field) => field.slice(2))
    const hmac = (key: Buffer, data: string) => createHmac("sha256", key).update(data).digest()
    const salted = pbkdf2Sync(this.#password, Buffer.from(salt, "base64"), Number(iterations), 32, "sha256")
    const clientKey = hmac(salted, "Client Key")
    const storedKey = createHash("sha256").update(clientKey).digest()
    const withoutProof = `c=biws,r=${nonce}`
    const signature = hmac(storedKey, `${this.#bare},${challenge},${withoutProof}`)
    const proof = Buffer.from(clientKey.map((byte, index) => byte ^ signature[index]!))
    return message("p", Buffer.from(`${withoutProof},p=${proof.toString("base64")}`))
  }
}
