/**
 * Messages of the frontend: those that Perseus sends to servers, and the parts of a client's that it has to understand.
 *
 * Pure: data to bytes and bytes to data. Decoders take a body (no type, no length), keep nothing and never throw on what a
 * peer sent; what they cannot read is null.
 */
import { cString, frame, int16, int32, untyped } from "./Encoder.ts"
import { Frontend, indexOfNul } from "./Frame.ts"

const PROTOCOL_3_0 = 0x00030000
const CANCEL_REQUEST_CODE = 80877102
const SSL_REQUEST_CODE = 80877103

// ---- to servers

export const startupMessage = (parameters: ReadonlyArray<readonly [name: string, value: string]>): Buffer =>
  untyped(int32(PROTOCOL_3_0), ...parameters.flatMap(([name, value]) => [cString(name), cString(value)]), Buffer.of(0))

export const sslRequest: Buffer = untyped(int32(SSL_REQUEST_CODE))

export const cancelRequest = (processId: number, secretKey: Uint8Array): Buffer =>
  untyped(int32(CANCEL_REQUEST_CODE), int32(processId), secretKey)

export const terminate: Buffer = frame(Frontend.terminate)
export const sync: Buffer = frame(Frontend.sync)
export const flush: Buffer = frame(Frontend.flush)
/** A round trip that does nothing, as pgbouncer's empty `server_check_query`. */
export const emptyQuery: Buffer = frame(Frontend.query, cString(""))

export const query = (sql: string): Buffer => frame(Frontend.query, cString(sql))
export const passwordMessage = (password: string): Buffer => frame(Frontend.password, cString(password))

export const saslInitialResponse = (mechanism: string, data: string): Buffer => {
  const bytes = Buffer.from(data, "utf8")
  return frame(Frontend.password, cString(mechanism), int32(bytes.length), bytes)
}
export const saslResponse = (data: string): Buffer => frame(Frontend.password, Buffer.from(data, "utf8"))

/** Unnamed Parse, Bind and Execute of one statement without parameters; the Sync is the caller's. */
export const runUnnamed = (sql: string): Buffer =>
  Buffer.concat([
    frame(Frontend.parse, cString(""), cString(sql), int16(0)),
    frame(Frontend.bind, cString(""), cString(""), int16(0), int16(0), int16(0)),
    frame(Frontend.execute, cString(""), int32(0))
  ])

/** Parse, `rest` being the query's text and parameter types as they stood in the client's own. */
export const parse = (statement: string, rest: Uint8Array): Buffer => frame(Frontend.parse, cString(statement), rest)
export const closeStatement = (statement: string): Buffer => frame(Frontend.close, Buffer.of(0x53), cString(statement))
export const describeStatement = (statement: string): Buffer =>
  frame(Frontend.describe, Buffer.of(0x53), cString(statement))

// ---- from clients

/** A PasswordMessage's text, without the terminator; null where it is not one NUL-terminated UTF-8 string. */
export const decodePassword = (body: Buffer): string | null =>
  body.length === 0 || indexOfNul(body, 0, body.length) !== body.length - 1 ? null : decodeUtf8(body.subarray(0, -1))

/**
 * SASLInitialResponse: the mechanism, and what the client says first. Null where the inner length is not that of the rest of
 * the message (CVE-2026-6664 was a pooler that believed it), or -1: in SCRAM the client has to begin.
 */
export const decodeSaslInitialResponse = (
  body: Buffer
): { readonly mechanism: string; readonly data: string } | null => {
  const nameEnd = indexOfNul(body, 0, body.length)
  const dataAt = nameEnd + 5
  if (nameEnd < 1 || dataAt > body.length || body.readInt32BE(nameEnd + 1) !== body.length - dataAt) return null
  const [mechanism, data] = [decodeUtf8(body.subarray(0, nameEnd)), decodeSaslResponse(body.subarray(dataAt))]
  return mechanism === null || data === null ? null : { mechanism, data }
}

/** SASLResponse: all of the body. */
export const decodeSaslResponse = (body: Buffer): string | null =>
  body.length === 0 || body.includes(0) ? null : decodeUtf8(body)

const decodeUtf8 = (bytes: Uint8Array): string | null => {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    return null
  }
}
