/**
 * The packets that open a connection: StartupMessage, SSLRequest, GSSENCRequest, CancelRequest.
 *
 * Pure: bytes in, data out. Values are decoded as strict UTF-8; what is not UTF-8 is refused, never repaired, since two
 * different byte strings must not become one tenant.
 *
 * @see https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-START-UP
 */

/** PostgreSQL's MAX_STARTUP_PACKET_LENGTH. */
export const MAX_STARTUP_PACKET_LENGTH = 10_000

const SSL_REQUEST_CODE = 80877103
const GSSENC_REQUEST_CODE = 80877104
const CANCEL_REQUEST_CODE = 80877102

export type StartupPacket =
  | { readonly _tag: "SslRequest" }
  | { readonly _tag: "GssEncRequest" }
  | { readonly _tag: "CancelRequest"; readonly processId: number; readonly secretKey: Buffer }
  | { readonly _tag: "StartupMessage"; readonly message: StartupMessage }
  | { readonly _tag: "Malformed"; readonly why: string }

export interface StartupMessage {
  readonly major: number
  readonly minor: number
  /** In the order of the packet; a later value of one name wins. `_pq_.` options are not among them. */
  readonly parameters: ReadonlyMap<string, string>
  /** Names that begin with `_pq_.`: protocol options, to be negotiated. */
  readonly protocolOptions: ReadonlyArray<string>
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true })

const decodeText = (bytes: Uint8Array): string | null => {
  try {
    return utf8.decode(bytes)
  } catch {
    return null
  }
}

const malformed = (why: string): StartupPacket => ({ _tag: "Malformed", why })

/** Decodes one whole packet, its length word included. */
export const decode = (packet: Buffer): StartupPacket => {
  if (packet.length < 8) return malformed("startup packet is too short")
  const code = packet.readUInt32BE(4)
  switch (code) {
    case SSL_REQUEST_CODE:
      return packet.length === 8 ? { _tag: "SslRequest" } : malformed("SSLRequest has a body")
    case GSSENC_REQUEST_CODE:
      return packet.length === 8 ? { _tag: "GssEncRequest" } : malformed("GSSENCRequest has a body")
    case CANCEL_REQUEST_CODE: {
      // 4 bytes of key in protocol 3.0, up to 256 in 3.2. One of another length is nobody's, and as PostgreSQL nobody says so.
      const whole = packet.length >= 12
      return {
        _tag: "CancelRequest",
        processId: whole ? packet.readUInt32BE(8) : 0,
        secretKey: Buffer.from(packet.subarray(12))
      }
    }
  }
  return decodeStartupMessage(packet, code >>> 16, code & 0xffff)
}

const decodeStartupMessage = (packet: Buffer, major: number, minor: number): StartupPacket => {
  if (major !== 3) return malformed(`unsupported protocol version ${major}.${minor}`)
  const parameters = new Map<string, string>()
  const protocolOptions: Array<string> = []
  let at = 8
  while (true) {
    const nameEnd = packet.indexOf(0, at)
    if (nameEnd === -1) return malformed("startup packet has no terminator")
    if (nameEnd === at) {
      return nameEnd === packet.length - 1
        ? { _tag: "StartupMessage", message: { major, minor, parameters, protocolOptions } }
        : malformed("startup packet goes on behind its terminator")
    }
    const valueEnd = packet.indexOf(0, nameEnd + 1)
    if (valueEnd === -1) return malformed("startup packet has a name without a value")
    const name = decodeText(packet.subarray(at, nameEnd))
    const value = decodeText(packet.subarray(nameEnd + 1, valueEnd))
    if (name === null || value === null) return malformed("startup packet is not valid UTF-8")
    if (name.startsWith("_pq_.")) protocolOptions.push(name)
    else parameters.set(name, value)
    at = valueEnd + 1
  }
}

/**
 * What libpq's `options` (PGOPTIONS) holds: `-c name=value`, `-cname=value` and `--name=value`, words split at white
 * space, a backslash taking the next character as it is (PostgreSQL's pg_split_opts). Null where another switch stands
 * there, for PostgreSQL itself would do more with it than set a parameter.
 */
export const parseOptions = (options: string): ReadonlyArray<readonly [name: string, value: string]> | null => {
  const words = splitWords(options)
  const settings: Array<readonly [string, string]> = []
  for (let index = 0; index < words.length; index++) {
    const word = words[index]!
    let assignment: string | undefined
    if (word === "-c" || word === "--") assignment = words[++index]
    else if (word.startsWith("--")) assignment = word.slice(2)
    else if (word.startsWith("-c")) assignment = word.slice(2)
    if (assignment === undefined) return null
    const equals = assignment.indexOf("=")
    if (equals < 1) return null
    settings.push([assignment.slice(0, equals).replaceAll("-", "_"), assignment.slice(equals + 1)])
  }
  return settings
}

const splitWords = (text: string): ReadonlyArray<string> => {
  const words: Array<string> = []
  let word: string | null = null
  for (let index = 0; index < text.length; index++) {
    const character = text[index]!
    if (/[ \t\n\v\f\r]/.test(character)) {
      if (word !== null) words.push(word)
      word = null
    } else if (character === "\\") {
      word = (word ?? "") + (text[++index] ?? "")
    } else {
      word = (word ?? "") + character
    }
  }
  if (word !== null) words.push(word)
  return words
}
