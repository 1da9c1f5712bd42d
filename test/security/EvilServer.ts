/**
 * A server that speaks PostgreSQL's protocol as far as its script wants: on a real socket, so that it can be named in a
 * tenant's row. It shares no code with the service.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { once } from "node:events"
import * as Net from "node:net"
import { int32, message, text } from "../support/rawClient.ts"

/** What is said to each thing heard: null for nothing at all, "end" for a hang-up. The first heard is the startup packet. */
export type Script = (heard: Buffer, turn: number, socket: Net.Socket) => Buffer | "end" | null

export interface EvilServer {
  readonly port: number
  /** Connections that were made to it. */
  readonly connections: () => number
  /** All that it was told, connection after connection. */
  readonly heard: () => string
}

export const evilServer = (script: Script): Effect.Effect<EvilServer, never, Scope.Scope> =>
  Effect.gen(function* () {
    const sockets = new Set<Net.Socket>()
    const heard: Array<Buffer> = []
    let connections = 0
    const server = Net.createServer((socket) => {
      connections++
      sockets.add(socket)
      let turn = 0
      socket.on("error", () => {})
      socket.on("close", () => sockets.delete(socket))
      socket.on("data", (bytes: Buffer) => {
        heard.push(bytes)
        const answer = script(bytes, turn++, socket)
        if (answer === "end") socket.end()
        else if (answer !== null) socket.write(answer)
      })
    })
    yield* Effect.acquireRelease(
      Effect.promise(() => once(server.listen(0, "127.0.0.1"), "listening")),
      () =>
        Effect.sync(() => {
          server.close()
          for (const socket of sockets) socket.destroy()
        })
    )
    const { port } = server.address() as Net.AddressInfo
    return { port, connections: () => connections, heard: () => Buffer.concat(heard).toString("latin1") }
  })

// ---- what a backend says

export const authentication = (code: number, rest: Buffer = Buffer.alloc(0)): Buffer => message("R", int32(code), rest)
export const askPassword = authentication(3)
export const ready = message("Z", Buffer.from("I"))
export const parameter = (name: string, value: string): Buffer => message("S", text(name), text(value))
export const complete = (tag: string): Buffer => message("C", text(tag))

export const welcome = Buffer.concat([
  authentication(0),
  parameter("server_version", "18.4"),
  parameter("client_encoding", "UTF8"),
  message("K", int32(4711), Buffer.from([1, 2, 3, 4])),
  ready
])

const ran = (tag: string): Buffer => Buffer.concat([message("1"), message("2"), complete(tag)])

/** The answer to a tenant switch for a client without settings of its own. */
export const switched = Buffer.concat([ran("RESET"), ready, ran("DISCARD ALL"), ran("SET"), ready])

/** One row of one column. */
export const row = (value: string): Buffer =>
  Buffer.concat([message("D", Buffer.from([0, 1]), int32(Buffer.byteLength(value)), Buffer.from(value))])

/** Lets the pooler in and serves it, and answers each thing that its clients ask with `answer`. */
export const answering =
  (answer: (turn: number, socket: Net.Socket) => Buffer | "end" | null): Script =>
  (heard, turn, socket) => {
    if (turn === 0) return askPassword
    if (turn === 1) return welcome
    if (heard.includes("RESET ALL")) return switched
    return heard[0] === 0x58 ? "end" : answer(turn, socket)
  }
