import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import { formatAddress, parseDestHost, parseListenAddress } from "../../src/net/Address.ts"

const word = (bits: number) => Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 2 ** bits - 1 }))

const IPv4 = Schema.Tuple([word(8), word(8), word(8), word(8)])
const IPv6 = Schema.Array(word(16)).check(Schema.isBetweenLength(8, 8))
const Name = Schema.Literals([
  "localhost",
  "db-1.example.com",
  "my_db",
  "a",
  "xn--bcher-kva.de",
  "bücher.de",
  "10",
  "1.2.3"
])
const Host = Schema.Union([IPv4, IPv6, Name])
const Port = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 65535 }))

const textOf = (host: typeof Host.Type): string => {
  if (typeof host === "string") return host
  return host.length === 4 ? host.join(".") : host.map((group) => group.toString(16)).join(":")
}

const why = <A>(result: Result.Result<A, string>) =>
  Result.match(result, { onFailure: (reason) => reason, onSuccess: () => "it was accepted" })

describe("formatAddress", () => {
  it.effect.prop(
    "writes what parseListenAddress and parseDestHost read back",
    { host: Host, port: Port },
    ({ host, port }) =>
      Effect.sync(() => {
        const address = { host: textOf(host), port }
        assert.deepStrictEqual(parseListenAddress(formatAddress(address)), Result.succeed(address))
        assert.deepStrictEqual(parseDestHost(formatAddress(address)), Result.succeed(address))
      })
  )

  it("writes no host for every address of the machine", () => {
    assert.strictEqual(formatAddress({ host: undefined, port: 5433 }), ":5433")
    assert.deepStrictEqual(parseListenAddress(":5433"), Result.succeed({ host: undefined, port: 5433 }))
  })
})

describe("parseListenAddress", () => {
  it("reads what the README shows", () => {
    const cases = [
      [":5433", undefined, 5433],
      ["127.0.0.1:5433", "127.0.0.1", 5433],
      ["[::1]:5433", "::1", 5433],
      ["[::]:0", "::", 0],
      ["localhost:65535", "localhost", 65535]
    ] as const
    for (const [text, host, port] of cases) {
      assert.deepStrictEqual(parseListenAddress(text), Result.succeed({ host, port }), text)
    }
  })

  it("says what is wrong with anything else", () => {
    const cases = [
      ["", "a port is missing (an IPv6 address stands in brackets)"],
      ["5433", "a port is missing (an IPv6 address stands in brackets)"],
      ["localhost", "a port is missing (an IPv6 address stands in brackets)"],
      ["::1", "a port is missing (an IPv6 address stands in brackets)"],
      ["[::1]", "a port is missing (an IPv6 address stands in brackets)"],
      [":", "the port must be a number from 0 to 65535"],
      [":65536", "the port must be a number from 0 to 65535"],
      [":-1", "the port must be a number from 0 to 65535"],
      [":5433 ", "the port must be a number from 0 to 65535"],
      [":postgres", "the port must be a number from 0 to 65535"],
      ["[127.0.0.1]:5433", "brackets must hold an IPv6 address"],
      ["[::1:5433", "brackets must hold an IPv6 address"],
      ["[::1]x:5433", "only :port may follow the brackets"],
      ["a:b:5433", "the host must be a name or an IP address"],
      ["*:5433", "the host must be a name or an IP address"]
    ] as const
    for (const [text, reason] of cases) assert.strictEqual(why(parseListenAddress(text)), reason, text)
  })
})

describe("parseDestHost", () => {
  it("takes 5432 for the port where none is named", () => {
    for (const [text, host] of [
      ["db-1.example.com", "db-1.example.com"],
      ["10.0.0.1", "10.0.0.1"],
      ["[2001:db8::1]", "2001:db8::1"],
      ["2001:db8::1", "2001:db8::1"],
      ["fe80::1%eth0", "fe80::1%eth0"]
    ] as const) {
      assert.deepStrictEqual(parseDestHost(text), Result.succeed({ host, port: 5432 }), text)
    }
  })

  it("never takes the last group of a bare IPv6 address for a port", () => {
    assert.deepStrictEqual(parseDestHost("::1:5433"), Result.succeed({ host: "::1:5433", port: 5432 }))
  })

  it("refuses what is no host, or more than one, and what could mean a socket's directory or a user", () => {
    const bad = [
      "",
      " ",
      "a b",
      "a\0",
      "a\n",
      "/var/run",
      "a/b",
      "a,b",
      "u@h",
      "h?x=1",
      "h#x",
      "h%2f",
      "[]",
      "[::1",
      "h\\x"
    ]
    for (const host of bad) {
      assert.notStrictEqual(why(parseDestHost(host)), "it was accepted", JSON.stringify(host))
      assert.notStrictEqual(why(parseDestHost(`${host}:5432`)), "it was accepted", JSON.stringify(host))
    }
  })

  it("refuses a port that no server can have", () => {
    for (const port of ["", "0", "65536", "x", "+1", "1e3", " 5432", "123456"]) {
      assert.strictEqual(why(parseDestHost(`host:${port}`)), "the port must be a number from 1 to 65535", port)
    }
  })

  it.effect.prop("never repeats a row's content in a refusal", { text: Schema.String }, ({ text }) =>
    Effect.sync(() => {
      const reason = why(parseDestHost(`${text}hunter2:/`))
      assert.notStrictEqual(reason, "it was accepted")
      assert.notInclude(reason, "hunter2")
    })
  )
})
