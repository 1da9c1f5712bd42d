/**
 * Puts one frame together: type byte, length word, body. For frames that are built seldom; the relay forwards originals.
 *
 * The length is computed from what is really there and refuses to wrap (a message whose length word overflowed let
 * attackers smuggle messages past other drivers: CVE-2024-27304).
 */
const MAX_FRAME_LENGTH = 0x3fffffff

/** A NUL-terminated string. Refuses a NUL inside, which would begin a field of the sender's choosing. */
export const cString = (text: string): Buffer => {
  const bytes = Buffer.from(`${text}\0`, "utf8")
  if (bytes.indexOf(0) !== bytes.length - 1) throw new RangeError("a protocol string cannot hold a NUL")
  return bytes
}

export const int16 = (value: number): Buffer => {
  const bytes = Buffer.allocUnsafe(2)
  bytes.writeInt16BE(value)
  return bytes
}

export const int32 = (value: number): Buffer => {
  const bytes = Buffer.allocUnsafe(4)
  bytes.writeInt32BE(value)
  return bytes
}

/** Length word and body, without a type: the shape of startup packets. */
export const untyped = (...parts: ReadonlyArray<Uint8Array>): Buffer => {
  let length = 4
  for (const part of parts) length += part.length
  if (length > MAX_FRAME_LENGTH) throw new RangeError("a protocol message cannot be this long")
  return Buffer.concat([int32(length), ...parts], length)
}

export const frame = (type: number, ...parts: ReadonlyArray<Uint8Array>): Buffer => {
  const header = Buffer.allocUnsafe(5)
  let length = 4
  for (const part of parts) length += part.length
  if (length > MAX_FRAME_LENGTH) throw new RangeError("a protocol message cannot be this long")
  header[0] = type
  header.writeUInt32BE(length, 1)
  return Buffer.concat([header, ...parts], length + 1)
}
