/**
 * The three ways in which Perseus spells a network address: where to listen (`:5433`), a row's `dest_host`
 * (`host`, `host:port`, `[v6]:port`), and back to text for logs and labels.
 *
 * Pure: nothing is resolved or connected to. A refusal says what is allowed and never repeats the input, since a row's
 * content may not reach a log.
 */
import * as Result from "effect/Result"
import { isIPv6 } from "node:net"

/** The port of a `dest_host` that names none. */
export const DEFAULT_POSTGRES_PORT = 5432

const MAX_PORT = 65535

/** Where to listen. No host: every address of the machine. Port 0: the system chooses one. */
export interface ListenAddress {
  readonly host: string | undefined
  readonly port: number
}

/** Where a server is: a name or an IP address without brackets, and a port from 1. */
export interface DestHost {
  readonly host: string
  readonly port: number
}

/**
 * Letters of any script (a resolver turns them into punycode), digits, `-`, `_` and `.`. So no NUL or space, no `/`
 * (libpq takes such a host for a Unix socket's directory), no `,` (libpq's list of hosts), no `@`.
 */
const HOST_NAME = /^[\p{L}\p{M}\p{N}._-]+$/u

const isHost = (text: string): boolean => HOST_NAME.test(text) || isIPv6(text)

const parsePort = (text: string, least: number): Result.Result<number, string> => {
  const port = /^\d{1,5}$/.test(text) ? Number(text) : -1
  return port >= least && port <= MAX_PORT
    ? Result.succeed(port)
    : Result.fail(`the port must be a number from ${least} to ${MAX_PORT}`)
}

/** `host:port` at its last colon, brackets taken off; no port where there is no colon, or the text is bare IPv6. */
const split = (text: string): Result.Result<{ readonly host: string; readonly port: string | undefined }, string> => {
  if (text.startsWith("[")) {
    const end = text.indexOf("]")
    const host = text.slice(1, end)
    const rest = text.slice(end + 1)
    if (end === -1 || !isIPv6(host)) return Result.fail("brackets must hold an IPv6 address")
    if (rest !== "" && !rest.startsWith(":")) return Result.fail("only :port may follow the brackets")
    return Result.succeed({ host, port: rest === "" ? undefined : rest.slice(1) })
  }
  if (isIPv6(text)) return Result.succeed({ host: text, port: undefined })
  const colon = text.lastIndexOf(":")
  return Result.succeed(
    colon === -1 ? { host: text, port: undefined } : { host: text.slice(0, colon), port: text.slice(colon + 1) }
  )
}

/** Reads `:5433`, `127.0.0.1:5433`, `localhost:5433` or `[::1]:5433`; the failure is one line that says what is wrong. */
export const parseListenAddress = (text: string): Result.Result<ListenAddress, string> =>
  Result.gen(function* () {
    const { host, port } = yield* split(text)
    if (port === undefined) return yield* Result.fail("a port is missing (an IPv6 address stands in brackets)")
    if (host !== "" && !isHost(host)) return yield* Result.fail("the host must be a name or an IP address")
    return { host: host === "" ? undefined : host, port: yield* parsePort(port, 0) }
  })

/**
 * Reads a row's `dest_host`: `host`, `host:port`, `[v6]`, `[v6]:port`, or a bare IPv6 address, whose last group is
 * never taken for a port. The failure is one line without the input.
 */
export const parseDestHost = (text: string): Result.Result<DestHost, string> =>
  Result.gen(function* () {
    const { host, port } = yield* split(text)
    if (!isHost(host)) return yield* Result.fail("the host must be a name or an IP address")
    return { host, port: port === undefined ? DEFAULT_POSTGRES_PORT : yield* parsePort(port, 1) }
  })

/** The text that `parseListenAddress` and `parseDestHost` read back: `:5433`, `host:5433`, `[::1]:5433`. */
export const formatAddress = ({ host, port }: ListenAddress): string =>
  host === undefined ? `:${port}` : `${isIPv6(host) ? `[${host}]` : host}:${port}`
