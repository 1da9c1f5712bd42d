/**
 * Somebody who ends a client's TLS with a certificate of its own, and speaks TLS of its own with the server that was meant: it
 * reads all, and may change what the server says. It knows of PostgreSQL no more than how TLS is asked for.
 *
 * Chunks pass as they came. What is changed is written at once by PostgreSQL and by us, so that it is a chunk of its own.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { once } from "node:events"
import * as Net from "node:net"
import * as NodeTls from "node:tls"
import type { Certificate } from "./certificates.ts"
import { int32, message, sslRequest, text, type Address } from "./rawClient.ts"

export interface ManInTheMiddle extends Address {
  /** All that was said to the server within TLS. */
  readonly heard: () => string
}

export const manInTheMiddle = (
  server: Address,
  { cert, key }: Pick<Certificate, "cert" | "key">,
  change: (fromServer: Buffer) => Buffer = (chunk) => chunk
): Effect.Effect<ManInTheMiddle, never, Scope.Scope> =>
  Effect.gen(function* () {
    const sockets = new Set<Net.Socket>()
    const heard: Array<Buffer> = []
    const keep = (socket: Net.Socket) => {
      sockets.add(socket)
      socket.on("error", () => {})
      return socket
    }
    const shakesHands = NodeTls.createServer({ cert, key }, (client) => {
      keep(client)
      const inClear = keep(Net.connect(server))
      inClear.write(sslRequest)
      inClear.once("data", () => {
        const onward = keep(NodeTls.connect({ socket: inClear, rejectUnauthorized: false }))
        client.on("data", (chunk: Buffer) => {
          heard.push(chunk)
          onward.write(chunk)
        })
        onward.on("data", (chunk: Buffer) => client.write(change(chunk)))
        client.on("close", () => onward.destroy())
        onward.on("close", () => client.end())
      })
    })
    const listener = Net.createServer((client) => {
      keep(client).once("data", () => {
        client.write("S")
        shakesHands.emit("connection", client)
      })
    })
    yield* Effect.acquireRelease(
      Effect.promise(() => once(listener.listen(0, "127.0.0.1"), "listening")),
      () =>
        Effect.sync(() => {
          listener.close()
          for (const socket of sockets) socket.destroy()
        })
    )
    const { port } = listener.address() as Net.AddressInfo
    return { host: "127.0.0.1", port, heard: () => Buffer.concat(heard).toString("latin1") }
  })

/** Strikes channel binding from what the server offers. */
export const withoutPlus = (chunk: Buffer): Buffer =>
  chunk.includes("SCRAM-SHA-256-PLUS\0") ? message("R", int32(10), text("SCRAM-SHA-256"), Buffer.of(0)) : chunk

/** Asks for the password itself in place of a proof. */
export const inClearText = (chunk: Buffer): Buffer => (chunk.includes("SCRAM-SHA-256") ? message("R", int32(3)) : chunk)
