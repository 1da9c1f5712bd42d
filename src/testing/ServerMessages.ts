/**
 * The rest of the backend's messages, which only a server sends, and the frontend's that only a server reads.
 *
 * Pure. Decoders answer null for a body that is not what it should be.
 */
import { cString, frame, int16, int32 } from "../protocol/Encoder.ts"
import { Backend, indexOfNul } from "../protocol/Frame.ts"

const TEXT_TYPE = 25

export const bindComplete: Buffer = frame(Backend.bindComplete)
export const noData: Buffer = frame(Backend.noData)
export const emptyQueryResponse: Buffer = frame(Backend.emptyQueryResponse)
export const portalSuspended: Buffer = frame(Backend.portalSuspended)
/** Text format, no columns named. */
export const copyInResponse: Buffer = frame(Backend.copyInResponse, Buffer.of(0), int16(0))

export const readyForQuery = (status: number): Buffer => frame(Backend.readyForQuery, Buffer.of(status))
export const commandComplete = (tag: string): Buffer => frame(Backend.commandComplete, cString(tag))

export const warning = (sqlState: string, message: string): Buffer =>
  frame(
    Backend.noticeResponse,
    cString("SWARNING"),
    cString("VWARNING"),
    cString(`C${sqlState}`),
    cString(`M${message}`),
    Buffer.of(0)
  )

export const notificationResponse = (processId: number, channel: string, payload: string): Buffer =>
  frame(Backend.notificationResponse, int32(processId), cString(channel), cString(payload))

export const parameterDescription = (count: number): Buffer =>
  frame(Backend.parameterDescription, int16(count), ...Array.from({ length: count }, () => int32(TEXT_TYPE)))

/** All columns are text. */
export const rowDescription = (columns: ReadonlyArray<string>): Buffer =>
  frame(
    Backend.rowDescription,
    int16(columns.length),
    ...columns.flatMap((name) => [cString(name), int32(0), int16(0), int32(TEXT_TYPE), int16(-1), int32(-1), int16(0)])
  )

export const dataRow = (values: ReadonlyArray<string | null>): Buffer =>
  frame(
    Backend.dataRow,
    int16(values.length),
    ...values.flatMap((value) => {
      if (value === null) return [int32(-1)]
      const bytes = Buffer.from(value, "utf8")
      return [int32(bytes.length), bytes]
    })
  )

// ---- from clients

/** Reads fields one after another; what does not fit makes all of it null. */
class Fields {
  readonly #body: Buffer
  #at = 0
  bad = false

  constructor(body: Buffer) {
    this.#body = body
  }

  get ended(): boolean {
    return !this.bad && this.#at === this.#body.length
  }

  byte(): number {
    return this.#take(1)?.[0] ?? 0
  }

  int16(): number {
    return this.#take(2)?.readInt16BE() ?? 0
  }

  int32(): number {
    return this.#take(4)?.readInt32BE() ?? 0
  }

  text(): string {
    const end = indexOfNul(this.#body, this.#at, this.#body.length)
    const bytes = this.#take(end === -1 ? this.#body.length + 1 : end - this.#at + 1)
    return bytes?.toString("utf8", 0, bytes.length - 1) ?? ""
  }

  /** A length word and as many bytes; null for -1. */
  value(): Buffer | null {
    const length = this.int32()
    return length < 0 ? null : this.#take(length)
  }

  list<A>(item: () => A): ReadonlyArray<A> {
    const items: Array<A> = []
    for (let left = this.int16(); left > 0 && !this.bad; left--) items.push(item())
    return items
  }

  #take(length: number): Buffer | null {
    if (this.bad || this.#at + length > this.#body.length) {
      this.bad = true
      return null
    }
    this.#at += length
    return this.#body.subarray(this.#at - length, this.#at)
  }
}

const decoder =
  <A>(read: (fields: Fields) => A) =>
  (body: Buffer): A | null => {
    const fields = new Fields(body)
    const message = read(fields)
    return fields.ended ? message : null
  }

export const decodeQuery = decoder((fields) => ({ sql: fields.text() }))

export const decodeParse = decoder((fields) => ({
  statement: fields.text(),
  sql: fields.text(),
  parameterTypes: fields.list(() => fields.int32())
}))

export const decodeBind = decoder((fields) => ({
  portal: fields.text(),
  statement: fields.text(),
  parameterFormats: fields.list(() => fields.int16()),
  parameters: fields.list(() => fields.value()?.toString("utf8") ?? null),
  resultFormats: fields.list(() => fields.int16())
}))

/** Of Describe and Close alike. */
export const decodeNamed = decoder((fields) => ({
  kind: fields.byte() === 0x53 ? ("statement" as const) : ("portal" as const),
  name: fields.text()
}))

/** `maxRows` 0: all. */
export const decodeExecute = decoder((fields) => ({ portal: fields.text(), maxRows: fields.int32() }))

export const decodeCopyFail = decoder((fields) => ({ why: fields.text() }))
