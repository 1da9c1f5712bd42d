/**
 * The bare relay: the least that a pooler in this language can do, as a baseline for what Perseus adds.
 *
 * Lets everybody in, knows one database and one path, lends a connection for a transaction, finds frame borders, and forwards
 * the original bytes, one write a chunk. It checks nothing, times nothing out, forgets nothing between clients, cancels nothing,
 * and a client that leaves in mid-transaction costs its connection. Never to be used for anything else.
 *
 *   node bench/relay.ts <listen port> <server port> <pool size> <role> <database>
 */
import { createServer, connect, type Socket } from "node:net"
import { argv, exit } from "node:process"

const [listenPort = 0, serverPort = 0, poolSize = 0] = argv.slice(2, 5).map(Number)
const [role = "", database = ""] = argv.slice(5)

const HEADER_LENGTH = 5
const READY_FOR_QUERY = 0x5a
const IDLE = 0x49

interface Server {
  readonly socket: Socket
  client: Client | null
  /** Bytes of a message that are still to come. */
  rest: number
  /** The beginning of a header that was cut. */
  carry: Buffer | null
}

interface Client {
  readonly socket: Socket
  server: Server | null
  held: Buffer | null
}

const idle: Array<Server> = []
const waiting: Array<Client> = []
const sharedBuffer = Buffer.allocUnsafeSlow(64 * 1024)
/** What PostgreSQL tells a client at its login, up to the first ReadyForQuery. */
let greeting: Buffer | null = null

const startup = (() => {
  const body = Buffer.from(`\0\x03\0\0user\0${role}\0database\0${database}\0search_path\0t1\0\0`, "latin1")
  const message = Buffer.alloc(4 + body.length)
  message.writeInt32BE(message.length)
  body.copy(message, 4)
  return message
})()

const openServer = (): void => {
  let server: Server | null = null
  const login: Array<Buffer> = []
  const socket = connect({
    host: "127.0.0.1",
    port: serverPort,
    onread: {
      buffer: sharedBuffer,
      callback: (length, buffer) => {
        const chunk = (buffer as Buffer).subarray(0, length)
        if (server !== null) onServer(server, chunk)
        else {
          login.push(Buffer.from(chunk))
          const said = Buffer.concat(login)
          if (said.length < 6 || said.readUInt32BE(said.length - 5) !== 5 || said.at(-6) !== READY_FOR_QUERY)
            return true
          greeting ??= said
          server = { socket, client: null, rest: 0, carry: null }
          offer(server)
        }
        return true
      }
    }
  })
  socket.setNoDelay(true)
  socket.on("connect", () => socket.write(startup))
  socket.on("drain", () => server?.client?.socket.resume())
  socket.on("error", () => exit(1))
}

const offer = (server: Server): void => {
  const next = waiting.shift()
  if (next === undefined) idle.push(server)
  else {
    attach(next, server)
    const held = next.held!
    next.held = null
    forward(next, server, held)
  }
}

const attach = (client: Client, server: Server): void => {
  client.server = server
  server.client = client
}

const forward = (client: Client, server: Server, bytes: Buffer): void => {
  if (!server.socket.write(bytes)) client.socket.pause()
}

const onServer = (server: Server, incoming: Buffer): void => {
  const chunk = server.carry === null ? incoming : Buffer.concat([server.carry, incoming])
  server.carry = null
  let at = Math.min(server.rest, chunk.length)
  server.rest -= at
  let isReady = false
  while (chunk.length - at >= HEADER_LENGTH) {
    const next = at + 1 + chunk.readUInt32BE(at + 1)
    isReady = chunk[at] === READY_FOR_QUERY && chunk[at + 5] === IDLE
    if (next > chunk.length) server.rest = next - chunk.length
    at = Math.min(next, chunk.length)
  }
  if (at < chunk.length) server.carry = Buffer.from(chunk.subarray(at))
  const client = server.client
  if (client === null) return
  if (!client.socket.write(Buffer.from(chunk.subarray(0, at)))) server.socket.pause()
  if (!isReady || server.rest > 0) return
  server.client = null
  client.server = null
  offer(server)
}

const onClient = (client: Client, chunk: Buffer): void => {
  if (client.server !== null) return forward(client, client.server, chunk)
  if (client.held !== null) {
    client.held = Buffer.concat([client.held, chunk])
    return
  }
  // Terminate.
  if (chunk[0] === 0x58) return void client.socket.end()
  const server = idle.pop()
  if (server !== undefined) {
    attach(client, server)
    return forward(client, server, chunk)
  }
  client.held = chunk
  waiting.push(client)
}

const onLeft = (client: Client): void => {
  const at = waiting.indexOf(client)
  if (at !== -1) waiting.splice(at, 1)
  if (client.server === null) return
  client.server.socket.removeAllListeners().destroy()
  client.server = null
  openServer()
}

const listener = createServer({ noDelay: true }, (socket) => {
  const client: Client = { socket, server: null, held: null }
  let isIn = false
  socket.on("data", (chunk: Buffer) => {
    if (isIn) return onClient(client, chunk)
    // SSLRequest or GSSENCRequest: no. A StartupMessage: come in.
    if (chunk.length === 8 && chunk.readUInt16BE(4) === 1234) return void socket.write("N")
    isIn = true
    socket.write(greeting!)
  })
  socket.on("drain", () => client.server?.socket.resume())
  socket.on("error", () => {})
  socket.on("close", () => onLeft(client))
})

for (let count = 0; count < poolSize; count++) openServer()
const started = setInterval(() => {
  if (idle.length < poolSize) return
  clearInterval(started)
  listener.listen({ host: "127.0.0.1", port: listenPort, backlog: 4096 })
}, 10)
