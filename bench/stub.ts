/**
 * A PostgreSQL in appearance, where there have to be more connections or statements than a real one can hold: lets everybody in,
 * and answers every query and every statement that has a name with one row, and the others, which are those of poolers' switches,
 * as a SET. It keeps nothing and knows no SQL; what it costs is not looked at.
 *
 *   node bench/stub.ts <listen port>
 */
import { createServer } from "node:net"
import { argv } from "node:process"
import {
  authenticationOk,
  backendKeyData,
  closeComplete,
  commandComplete,
  parameterStatus,
  parseComplete,
  readyForQueryIdle
} from "../src/protocol/Backend.ts"
import { cString, frame, int16, int32 } from "../src/protocol/Encoder.ts"
import { Backend, FrameCollector, Frontend } from "../src/protocol/Frame.ts"

const FRAME_LIMIT = 64 * 1024
const SSL_REQUEST_LENGTH = 8

const greeting = Buffer.concat([
  authenticationOk,
  ...Object.entries({
    server_version: "18.0",
    server_encoding: "UTF8",
    client_encoding: "UTF8",
    standard_conforming_strings: "on",
    integer_datetimes: "on",
    DateStyle: "ISO, MDY",
    TimeZone: "UTC"
  }).map(([name, value]) => parameterStatus(name, value)),
  backendKeyData(1, Buffer.alloc(4)),
  readyForQueryIdle
])

const row = Buffer.concat([frame(Backend.dataRow, int16(1), int32(1), Buffer.from("1")), commandComplete("SELECT 1")])

const described = frame(
  Backend.rowDescription,
  int16(1),
  cString("?column?"),
  int32(0),
  int16(0),
  int32(23),
  int16(4),
  int32(-1),
  int16(0)
)

const answers: Readonly<Record<number, Buffer>> = {
  [Frontend.query]: Buffer.concat([described, row, readyForQueryIdle]),
  [Frontend.parse]: parseComplete,
  [Frontend.close]: closeComplete,
  [Frontend.describe]: frame(Backend.noData),
  [Frontend.sync]: readyForQueryIdle
}

const bound = frame(Backend.bindComplete)
const done = commandComplete("SET")

createServer({ noDelay: true }, (socket) => {
  let collector: FrameCollector | null = null
  let isNamed = false
  socket.on("data", (chunk: Buffer) => {
    if (collector === null) {
      // An SSLRequest: no. A StartupMessage: come in. Each comes alone.
      if (chunk.length === SSL_REQUEST_LENGTH) return void socket.write("N")
      collector = new FrameCollector(FRAME_LIMIT)
      return void socket.write(greeting)
    }
    const replies = (collector.push(chunk) ?? []).flatMap(({ type, body }) => {
      if (type === Frontend.execute) return isNamed ? row : done
      if (type !== Frontend.bind) return answers[type] ?? []
      // The portal has no name; the statement's follows.
      isNamed = body[1] !== 0
      return bound
    })
    if (replies.length > 0) socket.write(Buffer.concat(replies))
  })
  socket.on("end", () => socket.end())
  socket.on("error", () => {})
}).listen({ host: "127.0.0.1", port: Number(argv[2]), backlog: 4096 })
