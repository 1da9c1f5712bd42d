/**
 * A network between the bench and PostgreSQL: forwards every byte, those to the server later by some milliseconds. The way back
 * is not delayed, so a round trip takes as much longer as the way there.
 *
 *   node bench/delay.ts <listen port> <server port> <milliseconds>
 */
import { connect, createServer, type Socket } from "node:net"
import { argv } from "node:process"

const [listenPort = 0, serverPort = 0, delay = 0] = argv.slice(2, 5).map(Number)

/** Timers of one length fire in the order in which they were set, so nothing overtakes. */
const forwardLate = (from: Socket, to: Socket): void => {
  from.on("data", (chunk: Buffer) => setTimeout(() => to.write(chunk), delay))
  from.on("end", () => setTimeout(() => to.end(), delay))
}

const endTogether = (one: Socket, other: Socket): void => {
  one.on("error", () => {})
  one.on("close", () => other.destroySoon())
}

createServer({ noDelay: true, allowHalfOpen: true }, (client) => {
  const server = connect({ host: "127.0.0.1", port: serverPort, noDelay: true, allowHalfOpen: true })
  forwardLate(client, server)
  server.pipe(client)
  endTogether(client, server)
  endTogether(server, client)
}).listen(listenPort, "127.0.0.1")
