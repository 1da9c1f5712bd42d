/**
 * X.509 certificates for TLS tests, made on the spot: nothing expires, and no private key lies in the repository.
 * Just enough DER for an ECDSA certificate with names, signed by itself or by another.
 *
 * @see https://www.rfc-editor.org/rfc/rfc5280
 */
import * as Effect from "effect/Effect"
import { generateKeyPairSync, type KeyObject, randomBytes, sign } from "node:crypto"
import { mkdtemp, rename, rm, writeFile } from "node:fs/promises"
import { isIPv4 } from "node:net"
import { tmpdir } from "node:os"
import * as path from "node:path"

export interface Certificate {
  /** PEM. */
  readonly cert: string
  /** PEM, PKCS #8. */
  readonly key: string
  readonly commonName: string
  readonly privateKey: KeyObject
}

/** A certificate by which others can be signed. */
export const authority = (commonName = "Test CA"): Certificate => make({ commonName, names: [], isAuthority: true })

/** A certificate for these DNS names and IPv4 addresses, with the first as its common name. */
export const signedBy = (issuer: Certificate, ...names: readonly [string, ...Array<string>]): Certificate =>
  make({ commonName: names[0], names, issuer })

/** PEM files in a directory of the test's own. A new content replaces the old at once. */
export const pemFiles = Effect.gen(function* () {
  const root = yield* Effect.acquireRelease(
    Effect.promise(() => mkdtemp(path.join(tmpdir(), "perseus-tls-"))),
    (root) => Effect.promise(() => rm(root, { recursive: true }))
  )
  return (name: string, text: string) =>
    Effect.promise(async () => {
      const file = path.join(root, name)
      await writeFile(`${file}.new`, text, { mode: 0o600 })
      await rename(`${file}.new`, file)
      return file
    })
})

const make = (options: {
  readonly commonName: string
  readonly names: ReadonlyArray<string>
  readonly isAuthority?: boolean
  readonly issuer?: Certificate
}): Certificate => {
  const { publicKey, privateKey } = generateKeyPairSync("ec", { namedCurve: "P-256" })
  const extensions = sequence(
    options.isAuthority === true
      ? sequence(oid(2, 5, 29, 19), boolean, octetString(sequence(boolean)))
      : sequence(oid(2, 5, 29, 17), octetString(sequence(...options.names.map(generalName))))
  )
  const tbsCertificate = sequence(
    tagged(0xa0, integer(Buffer.from([2]))),
    integer(Buffer.concat([Buffer.from([1]), randomBytes(15)])),
    ecdsaWithSha256,
    distinguishedName(options.issuer?.commonName ?? options.commonName),
    sequence(utcTime("200101000000Z"), utcTime("491231235959Z")),
    distinguishedName(options.commonName),
    publicKey.export({ type: "spki", format: "der" }),
    tagged(0xa3, extensions)
  )
  const signature = sign("sha256", tbsCertificate, options.issuer?.privateKey ?? privateKey)
  const der = sequence(tbsCertificate, ecdsaWithSha256, tagged(0x03, Buffer.from([0]), signature))
  return {
    cert: `-----BEGIN CERTIFICATE-----\n${der.toString("base64").replace(/.{64}/g, "$&\n")}\n-----END CERTIFICATE-----\n`,
    key: privateKey.export({ type: "pkcs8", format: "pem" }).toString(),
    commonName: options.commonName,
    privateKey
  }
}

// ---- DER ---------------------------------------------------------------------------------------------------------

const tagged = (tag: number, ...contents: ReadonlyArray<Uint8Array>): Buffer => {
  const content = Buffer.concat(contents)
  const length = content.length < 0x80 ? [content.length] : [0x82, content.length >> 8, content.length & 0xff]
  return Buffer.concat([Buffer.from([tag, ...length]), content])
}

const sequence = (...contents: ReadonlyArray<Uint8Array>) => tagged(0x30, ...contents)
const integer = (bytes: Uint8Array) => tagged(0x02, bytes)
const octetString = (content: Uint8Array) => tagged(0x04, content)
const utcTime = (text: string) => tagged(0x17, Buffer.from(text))
const boolean = tagged(0x01, Buffer.from([0xff]))

const oid = (first: number, second: number, ...rest: ReadonlyArray<number>) =>
  tagged(0x06, Buffer.from([40 * first + second, ...rest.flatMap(base128)]))

const base128 = (value: number): Array<number> => {
  const digits = [value & 0x7f]
  for (let high = value >> 7; high > 0; high >>= 7) digits.unshift((high & 0x7f) | 0x80)
  return digits
}

const ecdsaWithSha256 = sequence(oid(1, 2, 840, 10045, 4, 3, 2))

const distinguishedName = (commonName: string) =>
  sequence(tagged(0x31, sequence(oid(2, 5, 4, 3), tagged(0x0c, Buffer.from(commonName)))))

const generalName = (name: string) =>
  isIPv4(name) ? tagged(0x87, Buffer.from(name.split(".").map(Number))) : tagged(0x82, Buffer.from(name))
