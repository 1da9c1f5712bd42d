/**
 * Messages of the backend: those that Perseus sends to its clients, and the few of a server's that it has to understand.
 *
 * Pure: data to bytes and bytes to data. Decoders take a body (no type, no length), keep nothing and never throw on what a
 * peer sent; what they cannot read is null.
 */
import { cString, frame, int32 } from "./Encoder.ts"
import { Backend, indexOfNul, TransactionStatus } from "./Frame.ts"

// ---- to clients

export const authenticationOk: Buffer = frame(Backend.authentication, int32(0))
export const authenticationCleartextPassword: Buffer = frame(Backend.authentication, int32(3))
/** AuthenticationSASL, with the mechanisms in the order in which they are preferred. */
export const authenticationSasl = (...mechanisms: ReadonlyArray<string>): Buffer =>
  frame(Backend.authentication, int32(10), ...mechanisms.map((name) => cString(name)), Buffer.of(0))
export const authenticationSaslContinue = (data: string): Buffer =>
  frame(Backend.authentication, int32(11), Buffer.from(data, "utf8"))
export const authenticationSaslFinal = (data: string): Buffer =>
  frame(Backend.authentication, int32(12), Buffer.from(data, "utf8"))
export const parseComplete: Buffer = frame(Backend.parseComplete)
export const closeComplete: Buffer = frame(Backend.closeComplete)
/** `status`: one of TransactionStatus. */
export const readyForQuery = (status: number): Buffer => frame(Backend.readyForQuery, Buffer.of(status))
export const readyForQueryIdle: Buffer = readyForQuery(TransactionStatus.idle)
export const commandComplete = (tag: string): Buffer => frame(Backend.commandComplete, cString(tag))

export const parameterStatus = (name: string, value: string): Buffer =>
  frame(Backend.parameterStatus, cString(name), cString(value))

/** `secretKey`: 4 bytes in protocol 3.0, up to 256 in 3.2. */
export const backendKeyData = (processId: number, secretKey: Uint8Array): Buffer =>
  frame(Backend.backendKeyData, int32(processId), secretKey)

/** Newest version that we speak, and the protocol options that we do not know. */
export const negotiateProtocolVersion = (version: number, unknownOptions: ReadonlyArray<string>): Buffer =>
  frame(
    Backend.negotiateProtocolVersion,
    int32(version),
    int32(unknownOptions.length),
    ...unknownOptions.map((option) => cString(option))
  )

/** The fields that Perseus sets; chapter "Error and Notice Message Fields". */
interface Fields<Severity> {
  readonly severity: Severity
  readonly sqlState: string
  readonly message: string
  readonly hint?: string | null | undefined
}

export type ErrorFields = Fields<"FATAL" | "ERROR">

export const errorResponse = (fields: ErrorFields): Buffer => message(Backend.errorResponse, fields)

export const noticeResponse = (fields: Fields<"NOTICE" | "WARNING">): Buffer => message(Backend.noticeResponse, fields)

const message = (type: number, fields: Fields<string>): Buffer => {
  const parts = [
    cString(`S${fields.severity}`),
    cString(`V${fields.severity}`),
    cString(`C${fields.sqlState}`),
    cString(`M${fields.message}`)
  ]
  if (fields.hint !== undefined && fields.hint !== null) parts.push(cString(`H${fields.hint}`))
  parts.push(Buffer.of(0))
  return frame(type, ...parts)
}

// ---- from servers

/** What an ErrorResponse or NoticeResponse says. Any field may be missing: CVE-2026-6666 was a pooler that trusted one. */
export interface ReceivedError {
  readonly severity: string
  readonly sqlState: string
  readonly message: string
}

export const decodeError = (body: Buffer): ReceivedError => {
  let localized = ""
  let severity = ""
  let sqlState = "XX000"
  let message = ""
  let at = 0
  while (at < body.length && body[at] !== 0) {
    const end = indexOfNul(body, at + 1, body.length)
    const text = body.toString("utf8", at + 1, end === -1 ? body.length : end)
    switch (body[at]) {
      case 0x53: // S, translated on some servers
        localized = text
        break
      case 0x56: // V
        severity = text
        break
      case 0x43: // C
        sqlState = text
        break
      case 0x4d: // M
        message = text
        break
    }
    if (end === -1) break
    at = end + 1
  }
  return { severity: severity === "" ? localized : severity, sqlState, message }
}

/** True where the server is about to close the connection. */
export const isFatal = (error: ReceivedError): boolean => error.severity === "FATAL" || error.severity === "PANIC"

export const decodeParameterStatus = (body: Buffer): readonly [name: string, value: string] | null => {
  const nameEnd = indexOfNul(body, 0, body.length)
  if (nameEnd < 1) return null
  const valueEnd = indexOfNul(body, nameEnd + 1, body.length)
  if (valueEnd === -1) return null
  return [body.toString("utf8", 0, nameEnd), body.toString("utf8", nameEnd + 1, valueEnd)]
}

/** A row's columns in text format; null where its lengths do not fit. */
export const decodeDataRow = (body: Buffer): ReadonlyArray<string | null> | null => {
  if (body.length < 2) return null
  const count = body.readUInt16BE(0)
  const columns: Array<string | null> = []
  let at = 2
  for (let index = 0; index < count; index++) {
    if (at + 4 > body.length) return null
    const length = body.readInt32BE(at)
    at += 4
    if (length === -1) columns.push(null)
    else if (length < 0 || at + length > body.length) return null
    else {
      columns.push(body.toString("utf8", at, at + length))
      at += length
    }
  }
  return at === body.length ? columns : null
}

export const decodeBackendKeyData = (body: Buffer): { readonly processId: number; readonly secretKey: Buffer } | null =>
  body.length < 8 || body.length > 260
    ? null
    : { processId: body.readInt32BE(0), secretKey: Buffer.from(body.subarray(4)) }

export type AuthenticationRequest =
  | { readonly _tag: "Ok" }
  | { readonly _tag: "CleartextPassword" }
  | { readonly _tag: "Md5Password"; readonly salt: Buffer }
  | { readonly _tag: "Sasl"; readonly mechanisms: ReadonlyArray<string> }
  | { readonly _tag: "SaslContinue"; readonly data: string }
  | { readonly _tag: "SaslFinal"; readonly data: string }
  | { readonly _tag: "Unsupported"; readonly code: number }

export const decodeAuthentication = (body: Buffer): AuthenticationRequest | null => {
  if (body.length < 4) return null
  const code = body.readUInt32BE(0)
  switch (code) {
    case 0:
      return { _tag: "Ok" }
    case 3:
      return { _tag: "CleartextPassword" }
    case 5:
      return body.length === 8 ? { _tag: "Md5Password", salt: Buffer.from(body.subarray(4)) } : null
    case 10:
      return {
        _tag: "Sasl",
        mechanisms: body
          .toString("utf8", 4)
          .split("\0")
          .filter((name) => name !== "")
      }
    case 11:
      return { _tag: "SaslContinue", data: body.toString("utf8", 4) }
    case 12:
      return { _tag: "SaslFinal", data: body.toString("utf8", 4) }
    default:
      return { _tag: "Unsupported", code }
  }
}
