/**
 * A PostgreSQL with one thing wrong: real sockets to a real server, and a test that decides for each message what becomes of
 * it on its way. Everything that the test does not touch passes byte for byte, in its order.
 *
 * It follows the protocol only as far as messages have borders: a packet without a letter opens a connection, all else has
 * one. TLS would hide them, so it is not for connections that ask for it. Ends with the scope, its connections with it.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as Net from "node:net"
import { message, text, type Address, type Message } from "./rawClient.ts"

/**
 * What becomes of one message: it passes; other bytes go in its place (none: it is lost); it waits, and all behind it in its
 * direction with it; or the connection is cut before it, without a word to either side.
 */
export type Fate =
  | { readonly _tag: "Pass" }
  | { readonly _tag: "Change"; readonly bytes: Buffer }
  | { readonly _tag: "Delay"; readonly until: Promise<void> }
  | { readonly _tag: "Cut" }

export const pass: Fate = { _tag: "Pass" }
export const change = (...bytes: ReadonlyArray<Buffer>): Fate => ({ _tag: "Change", bytes: Buffer.concat(bytes) })
export const delay = (until: Promise<void>): Fate => ({ _tag: "Delay", until })
export const cut: Fate = { _tag: "Cut" }

export interface Fault {
  /** `connection` counts from 0, in the order in which they came. The opening packet has the type "". */
  readonly fromFrontend?: ((message: Message, connection: number) => Fate) | undefined
  readonly fromBackend?: ((message: Message, connection: number) => Fate) | undefined
}

export const noFault: Fault = {}

export interface FaultyServer extends Address {
  /** Holds from the next message on, for the connections that there are as well. */
  readonly inject: (fault: Fault) => Effect.Effect<void>
  /** Cuts every connection that there is. */
  readonly cutAll: Effect.Effect<void>
}

/** Any message as it went over the wire. */
export const bytesOf = ({ type, body }: Message): Buffer => message(type, body)

/** The SQL of a Parse or a Query; null for any other message. */
export const sqlOf = ({ type, body }: Message): string | null => {
  if (type === "Q") return body.toString("utf8", 0, body.length - 1)
  if (type !== "P") return null
  const start = body.indexOf(0) + 1
  return body.toString("utf8", start, body.indexOf(0, start))
}

/** The same Parse or Query with other SQL. */
export const withSql = (original: Message, sql: string): Buffer => {
  if (original.type === "Q") return message("Q", text(sql))
  const start = original.body.indexOf(0) + 1
  const end = original.body.indexOf(0, start) + 1
  return message("P", original.body.subarray(0, start), text(sql), original.body.subarray(end))
}

/** One direction of one connection. */
class Direction {
  #pending: Buffer = Buffer.alloc(0)
  /** How many bytes stand before the length word: none in the opening packet. */
  #letter: 0 | 1
  #waiting = false
  #ended = false
  readonly #to: Net.Socket
  readonly #fateOf: (message: Message) => Fate
  readonly #cut: () => void

  constructor(to: Net.Socket, letter: 0 | 1, fateOf: (message: Message) => Fate, onCut: () => void) {
    this.#to = to
    this.#letter = letter
    this.#fateOf = fateOf
    this.#cut = onCut
  }

  carry(from: Net.Socket): void {
    from.on("data", (chunk: Buffer) => {
      this.#pending = this.#pending.length === 0 ? chunk : Buffer.concat([this.#pending, chunk])
      this.#advance()
    })
    from.on("end", () => {
      this.#ended = true
      this.#advance()
    })
  }

  /** Messages that meet the same fate leave in one write, as they came. */
  #advance(): void {
    if (this.#waiting) return
    const out: Array<Buffer> = []
    let at = 0
    while (this.#pending.length - at >= this.#letter + 4) {
      const end = at + this.#letter + this.#pending.readUInt32BE(at + this.#letter)
      if (end > this.#pending.length) break
      const type = this.#pending.toString("latin1", at, at + this.#letter)
      const fate = this.#fateOf({ type, body: this.#pending.subarray(at + this.#letter + 4, end) })
      if (fate._tag === "Cut") return this.#cut()
      if (fate._tag === "Delay") {
        this.#wait(fate.until, end - at)
        break
      }
      out.push(fate._tag === "Change" ? fate.bytes : this.#pending.subarray(at, end))
      this.#letter = 1
      at = end
    }
    this.#pending = this.#pending.subarray(at)
    if (out.length > 0) this.#to.write(Buffer.concat(out))
    if (this.#ended && !this.#waiting) this.#to.end(this.#pending)
  }

  /** The first message passes when the wait is over; those behind it are asked for anew. */
  #wait(until: Promise<void>, length: number): void {
    this.#waiting = true
    void until.then(() => {
      this.#waiting = false
      this.#to.write(this.#pending.subarray(0, length))
      this.#pending = this.#pending.subarray(length)
      this.#letter = 1
      this.#advance()
    })
  }
}

export const faultyServer = (target: Address): Effect.Effect<FaultyServer, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<FaultyServer & { readonly close: Effect.Effect<void> }>((resume) => {
      let fault = noFault
      let count = 0
      const open = new Set<() => void>()
      const listener = Net.createServer({ allowHalfOpen: true }, (frontend) => {
        const connection = count++
        const backend = Net.connect({ ...target, allowHalfOpen: true })
        const ends = [frontend, backend]
        const cutThis = () => {
          open.delete(cutThis)
          for (const end of ends) end.resetAndDestroy()
        }
        open.add(cutThis)
        for (const end of ends) {
          end.setNoDelay(true)
          end.on("error", cutThis)
        }
        backend.on("close", () => open.delete(cutThis))
        const fromFrontend = (sent: Message) => fault.fromFrontend?.(sent, connection) ?? pass
        const fromBackend = (sent: Message) => fault.fromBackend?.(sent, connection) ?? pass
        new Direction(backend, 0, fromFrontend, cutThis).carry(frontend)
        new Direction(frontend, 1, fromBackend, cutThis).carry(backend)
      })
      const cutAll = Effect.sync(() => {
        for (const cutOne of Array.from(open)) cutOne()
      })
      listener.listen({ host: "127.0.0.1", port: 0 }, () => {
        resume(
          Effect.succeed({
            host: "127.0.0.1",
            port: (listener.address() as Net.AddressInfo).port,
            inject: (next) => Effect.sync(() => void (fault = next)),
            cutAll,
            close: Effect.andThen(
              cutAll,
              Effect.callback<void>((done) => void listener.close(() => done(Effect.void)))
            )
          })
        )
      })
    }),
    ({ close }) => close
  )
