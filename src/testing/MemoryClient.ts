/**
 * A scripted PostgreSQL client over a Transport, for tests: sends what it is told, right or wrong, and keeps whatever comes.
 *
 * It waits for messages and never for time, and it never judges an answer: an ErrorResponse is a message like any other. One
 * waiter at a time. The messages that its effects answer with are taken in order, each once; `messages` has them all.
 */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import { pbkdf2Sync } from "node:crypto"
import type { Transport } from "../net/Transport.ts"
import {
  decodeAuthentication,
  decodeBackendKeyData,
  decodeError,
  decodeParameterStatus,
  type ReceivedError
} from "../protocol/Backend.ts"
import { Backend, FrameCollector } from "../protocol/Frame.ts"
import {
  passwordMessage,
  query,
  saslInitialResponse,
  saslResponse,
  startupMessage,
  terminate
} from "../protocol/Frontend.ts"
import * as Scram from "../protocol/Scram.ts"

const FRAME_LIMIT = 0x3fffffff
const DEFAULT_NONCE = "MemoryClient"

export interface Message {
  /** The type's letter: "Z" for ReadyForQuery. */
  readonly type: string
  readonly body: Buffer
}

/** The connection ended while something was waited for. `received`: what had come meanwhile, an ErrorResponse perhaps. */
export class ConnectionEnded extends Data.TaggedError("ConnectionEnded")<{
  /** Null: in good order. */
  readonly reason: string | null
  readonly received: ReadonlyArray<Message>
}> {
  override get message() {
    const error = errorIn(this.received)
    const words = error === null ? "" : ` after ${error.sqlState} ${error.message}`
    return `the connection ended (${this.reason ?? "in good order"})${words}`
  }
}

export interface Login {
  readonly user: string
  readonly database: string
  readonly password: string
  /** Further startup parameters: `schema_search_path` and the like. */
  readonly parameters?: Readonly<Record<string, string>> | undefined
  /** For SCRAM; default: a constant, so that a test's bytes are the same each time. */
  readonly nonce?: string | undefined
}

export class MemoryClient {
  readonly transport: Transport
  /** All that has come, in order. */
  readonly messages: Array<Message> = []
  /** What the server reports of its settings, as last heard. */
  readonly parameters = new Map<string, string>()
  /** What a CancelRequest for this session has to name. */
  backendKey: { readonly processId: number; readonly secretKey: Buffer } | null = null
  readonly #collector = new FrameCollector(FRAME_LIMIT)
  /** How many of `messages` were given to a waiter. */
  #taken = 0
  #ended: { readonly reason: string | null } | null = null
  /** Looks whether what is waited for has come. */
  #look: (() => void) | null = null
  /** The answer to a negotiation is one byte, and no frame. */
  #onByte: ((byte: number) => void) | null = null

  private constructor(transport: Transport) {
    this.transport = transport
    transport.handler = {
      onData: (chunk) => this.#hear(chunk),
      onDrain: () => {},
      onClose: (reason) => this.#end(reason)
    }
  }

  /** Takes over a transport on which nothing has been said. */
  static connect(transport: Transport): MemoryClient {
    return new MemoryClient(transport)
  }

  get ended(): boolean {
    return this.#ended !== null
  }

  /** Bytes as they are: whole messages, parts of them, or nonsense. */
  send(...bytes: ReadonlyArray<Uint8Array>): void {
    this.transport.write(Buffer.concat(bytes))
  }

  /** Sends an SSLRequest or GSSENCRequest, and answers with the letter that comes for it. */
  negotiate(request: Uint8Array): Effect.Effect<string, ConnectionEnded> {
    return Effect.suspend(() => {
      let answer: string | null = null
      this.#onByte = (byte) => {
        answer = String.fromCharCode(byte)
      }
      this.send(request)
      return this.#wait(() => answer)
    })
  }

  /** Logs in by whatever the server asks for, until ReadyForQuery: all messages on the way. */
  startup(login: Login): Effect.Effect<ReadonlyArray<Message>, ConnectionEnded> {
    return Effect.suspend(() => {
      const { user, database, parameters = {} } = login
      this.send(startupMessage([["user", user], ["database", database], ...Object.entries(parameters)]))
      const before = this.#taken
      return Effect.map(this.#authenticate(login), () => this.messages.slice(before, this.#taken))
    })
  }

  /** One simple Query: all messages up to and with its ReadyForQuery. */
  query(sql: string): Effect.Effect<ReadonlyArray<Message>, ConnectionEnded> {
    return Effect.suspend(() => {
      this.send(query(sql))
      return this.untilReady
    })
  }

  /** The messages not taken yet, up to and with the next ReadyForQuery. */
  get untilReady(): Effect.Effect<ReadonlyArray<Message>, ConnectionEnded> {
    return this.until(({ type }) => type === "Z")
  }

  /** The messages not taken yet, up to and with the first that fits. */
  until(fits: (message: Message) => boolean): Effect.Effect<ReadonlyArray<Message>, ConnectionEnded> {
    return Effect.suspend(() => {
      let looked = this.#taken
      return this.#wait(() => {
        while (looked < this.messages.length) {
          if (fits(this.messages[looked++]!)) return this.#take(looked)
        }
        return null
      })
    })
  }

  /** Whatever comes until the connection ends, and how it ended. Those messages count as taken. */
  get untilEnded(): Effect.Effect<ConnectionEnded> {
    return Effect.flip(this.#wait<never>(() => null))
  }

  /** Says goodbye and closes, as drivers do. */
  disconnect(): void {
    // A copy: the transport owns what it is given.
    this.transport.end(Buffer.from(terminate))
  }

  /** Is gone without a word: a killed process. */
  vanish(): void {
    if (this.#ended !== null) return
    this.transport.destroy()
    this.#end("vanished")
  }

  #take(until: number): ReadonlyArray<Message> {
    const taken = this.messages.slice(this.#taken, until)
    this.#taken = until
    return taken
  }

  /** Until `look` has something, or nothing more can come. */
  #wait<A>(look: () => A | null): Effect.Effect<A, ConnectionEnded> {
    return Effect.callback<A, ConnectionEnded>((resume) => {
      const stop = () => {
        this.#look = null
      }
      this.#look = () => {
        const found = look()
        if (found === null && this.#ended === null) return
        stop()
        if (found !== null) resume(Effect.succeed(found))
        else resume(Effect.fail(this.#connectionEnded()))
      }
      this.#look()
      return Effect.sync(stop)
    })
  }

  #connectionEnded(): ConnectionEnded {
    return new ConnectionEnded({ reason: this.#ended?.reason ?? null, received: this.#take(this.messages.length) })
  }

  #end(reason: string | null): void {
    this.#ended = { reason }
    this.#look?.()
  }

  #hear(chunk: Buffer): void {
    const onByte = this.#onByte
    this.#onByte = null
    onByte?.(chunk[0]!)
    const frames = this.#collector.push(onByte === null ? chunk : chunk.subarray(1))
    if (frames === null) {
      this.transport.destroy()
      return this.#end("a message with an impossible length")
    }
    for (const { type, body } of frames) {
      this.#learn(type, body)
      this.messages.push({ type: String.fromCharCode(type), body })
    }
    this.#look?.()
  }

  #learn(type: number, body: Buffer): void {
    if (type === Backend.backendKeyData) this.backendKey = decodeBackendKeyData(body)
    if (type !== Backend.parameterStatus) return
    const parameter = decodeParameterStatus(body)
    if (parameter !== null) this.parameters.set(...parameter)
  }

  readonly #authenticate = Effect.fnUntraced(function* (this: MemoryClient, login: Login) {
    const nonce = login.nonce ?? DEFAULT_NONCE
    let serverSignature: Buffer | null = null
    while (true) {
      const received = yield* this.until(({ type }) => type === "R")
      const request = decodeAuthentication(received.at(-1)!.body)
      switch (request?._tag) {
        case "Ok":
          return yield* this.untilReady
        case "CleartextPassword":
          this.send(passwordMessage(login.password))
          break
        case "Sasl":
          this.send(saslInitialResponse("SCRAM-SHA-256", Scram.clientFirst(nonce)))
          break
        case "SaslContinue": {
          const proof = proofFor(nonce, login.password, request.data)
          serverSignature = proof.serverSignature
          this.send(saslResponse(proof.message))
          break
        }
        case "SaslFinal":
          if (serverSignature === null || !Scram.verifyServerFinal(serverSignature, request.data)) {
            return yield* Effect.die(new Error("the server's SCRAM signature is wrong"))
          }
          break
        default:
          return yield* Effect.die(new Error("a kind of authentication that MemoryClient does not know"))
      }
    }
  })
}

const proofFor = (nonce: string, password: string, serverFirst: string): Scram.ClientFinal => {
  const first = Scram.decodeServerFirst(nonce, serverFirst)
  if (first === null) throw new Error("the server's SCRAM challenge is malformed")
  const salted = pbkdf2Sync(password.normalize("NFKC"), first.salt, first.iterations, 32, "sha256")
  return Scram.clientFinal(nonce, first, salted)
}

// ---- reading what came

/** The letters of a transcript: "TDCZ". */
export const letters = (messages: ReadonlyArray<Message>): string => messages.map(({ type }) => type).join("")

/** The first ErrorResponse. */
export const errorIn = (messages: ReadonlyArray<Message>): ReceivedError | null => {
  const error = messages.find(({ type }) => type === "E")
  return error === undefined ? null : decodeError(error.body)
}

/** All rows' values as text. */
export const rowsIn = (messages: ReadonlyArray<Message>): ReadonlyArray<ReadonlyArray<string | null>> =>
  messages.filter(({ type }) => type === "D").map(({ body }) => decodeRow(body))

/** The CommandComplete messages' tags. */
export const tagsIn = (messages: ReadonlyArray<Message>): ReadonlyArray<string> =>
  messages.filter(({ type }) => type === "C").map(({ body }) => body.toString("utf8", 0, body.length - 1))

/** The transaction status of the last ReadyForQuery: I, T or E. */
export const statusIn = (messages: ReadonlyArray<Message>): string | null => {
  const ready = messages.findLast(({ type }) => type === "Z")
  return ready === undefined ? null : ready.body.toString("latin1")
}

const decodeRow = (body: Buffer): ReadonlyArray<string | null> => {
  let at = 2
  return Array.from({ length: body.readInt16BE(0) }, () => {
    const length = body.readInt32BE(at)
    const from = at + 4
    at = from + Math.max(length, 0)
    return length < 0 ? null : body.toString("utf8", from, at)
  })
}
