/**
 * The TLS in force on either side, and how it follows the configuration and its files.
 *
 * A side's mode and credentials change together or not at all: what cannot be used changes nothing, and the log says why. So the
 * last good pair stays while a new one is half written, and a mode never stands without what it needs. Files are read again with
 * each reload, and every CHECK_PERIOD for those who write them and tell nobody. Clients that are connected keep what they have;
 * a pool sees that what is given for its servers is another, and makes its connections anew.
 *
 * At start everything must be usable.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { createHash } from "node:crypto"
import { readFile } from "node:fs/promises"
import { ConfigInvalid } from "../errors.ts"
import {
  Acceptor,
  Connector,
  type Handshake,
  type KeyPair,
  type Part,
  type Unusable,
  type Verification
} from "../net/Tls.ts"
import { LiveConfig } from "./LiveConfig.ts"
import type { TLSSettings } from "./PerseusConfig.ts"

const CHECK_PERIOD = "10 seconds"

/** What holds for a client that connects now. */
export type TlsToClients =
  | { readonly mode: "disable" }
  | {
      readonly mode: "allow" | "require" | "verify-full"
      readonly accept: (alpn: "required" | "optional") => Handshake
    }

/** What holds for a connection to a server that is opened now. */
export type TlsToServers =
  | { readonly mode: "disable" }
  | {
      readonly mode: "prefer" | "require" | "verify-ca" | "verify-full"
      readonly connect: (host: string) => Handshake
    }

export class LiveTls extends Context.Service<
  LiveTls,
  {
    readonly toClients: () => TlsToClients
    readonly toServers: () => TlsToServers
  }
>()("perseus/config/LiveTls") {
  static readonly layer: Layer.Layer<LiveTls, ConfigInvalid, LiveConfig> = Layer.effect(
    LiveTls,
    Effect.gen(function* () {
      const config = yield* LiveConfig
      const wanted = () => config.current().TLSSettings
      const [clients, servers] = yield* startSides(wanted())
      const refresh = Effect.suspend(() =>
        Effect.andThen(clients.refresh(wanted()), servers.refresh(wanted()))
      )
      const oneAtATime = yield* Semaphore.make(1)
      yield* Effect.sleep(CHECK_PERIOD).pipe(
        Effect.andThen(oneAtATime.withPermits(1)(refresh)),
        Effect.forever,
        Effect.forkScoped({ startImmediately: true })
      )
      yield* SubscriptionRef.changes(config.reloads).pipe(
        Stream.runForEach(() => oneAtATime.withPermits(1)(refresh)),
        Effect.forkScoped({ startImmediately: true })
      )
      return LiveTls.of({ toClients: () => clients.current, toServers: () => servers.current })
    })
  )
}

/** Whether a service would start with these settings: reads the files, and keeps nothing. */
export const check = (settings: TLSSettings): Effect.Effect<void, ConfigInvalid> => Effect.asVoid(startSides(settings))

const startSides = (settings: TLSSettings) =>
  Effect.gen(function* () {
    const [clients, servers] = [yield* load(toClients, settings), yield* load(toServers, settings)]
    if (Result.isSuccess(clients.made) && Result.isSuccess(servers.made)) {
      return [
        new Side(toClients, clients.seen, clients.made.success),
        new Side(toServers, servers.seen, servers.made.success)
      ] as const
    }
    const problems = [...problemsOf(clients.made), ...problemsOf(servers.made)]
    return yield* new ConfigInvalid({ source: "TLSSettings", problems })
  })

const problemsOf = <A>(made: Result.Result<A, ReadonlyArray<string>>): ReadonlyArray<string> =>
  Result.isFailure(made) ? made.failure : []

// ---------------------------------------------------------------------------------------------------------------------
// What each side wants, and makes of it
// ---------------------------------------------------------------------------------------------------------------------

/** The keys of a side's files, and what it makes of their texts; null for a file that is not named. */
interface Plan<Tls> {
  readonly name: string
  readonly files: Readonly<Record<Part, FileKey>>
  readonly mode: (settings: TLSSettings) => string
  readonly make: (settings: TLSSettings, texts: Texts) => Result.Result<Tls, Unusable>
}

type FileKey = Exclude<keyof TLSSettings, "ClientMode" | "ServerMode">
type Texts = Readonly<Record<Part, string | null>>

/** The configuration sees to it that what a mode needs is named. */
const pairOf = ({ certificate, key }: Texts): KeyPair => ({ cert: certificate ?? "", key: key ?? "" })

const toClients: Plan<TlsToClients> = {
  name: "TLS from clients",
  files: { certificate: "ClientCertFile", key: "ClientKeyFile", authorities: "ClientCAFile" },
  mode: ({ ClientMode }) => ClientMode,
  make: ({ ClientMode: mode }, texts) =>
    mode === "disable"
      ? Result.succeed({ mode })
      : Result.map(Acceptor.make(pairOf(texts), mode === "verify-full" ? texts.authorities : null), (acceptor) => ({
          mode,
          accept: (alpn) => acceptor.handshake(alpn)
        }))
}

const verifications: Readonly<Record<Exclude<TlsToServers["mode"], "disable">, Verification>> = {
  prefer: "nothing",
  require: "nothing",
  "verify-ca": "chain",
  "verify-full": "chain and name"
}

const toServers: Plan<TlsToServers> = {
  name: "TLS to servers",
  files: { certificate: "ServerCertFile", key: "ServerKeyFile", authorities: "ServerCAFile" },
  mode: ({ ServerMode }) => ServerMode,
  make: ({ ServerMode: mode }, texts) =>
    mode === "disable"
      ? Result.succeed({ mode })
      : Result.map(
          Connector.make(verifications[mode], texts.authorities, texts.certificate === null ? null : pairOf(texts)),
          (connector) => ({ mode, connect: (host) => connector.handshake(host) })
        )
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading
// ---------------------------------------------------------------------------------------------------------------------

interface Loaded<Tls> {
  /** Equal where settings and files say the same as before. */
  readonly seen: string
  readonly made: Result.Result<Tls, ReadonlyArray<string>>
}

const load = <Tls>(plan: Plan<Tls>, settings: TLSSettings): Effect.Effect<Loaded<Tls>> =>
  Effect.gen(function* () {
    const problems: Array<string> = []
    const read = Effect.fnUntraced(function* (part: Part) {
      const path = settings[plan.files[part]]
      if (path === "" || plan.mode(settings) === "disable") return null
      const text = yield* Effect.result(Effect.tryPromise({ try: () => readFile(path, "utf8"), catch: whyUnreadable }))
      if (Result.isSuccess(text)) return text.success
      problems.push(`${plan.files[part]}: ${text.failure}`)
      return null
    })
    const texts: Texts = {
      certificate: yield* read("certificate"),
      key: yield* read("key"),
      authorities: yield* read("authorities")
    }
    const made =
      problems.length > 0
        ? Result.fail(problems)
        : Result.mapError(plan.make(settings, texts), ({ part, why }) => [`${plan.files[part]}: ${why}`])
    return { seen: digest([plan.mode(settings), texts, problems]), made }
  })

const whyUnreadable = (error: unknown): string => {
  const { code } = Object(error) as { readonly code?: unknown }
  if (code === "ENOENT") return "the file does not exist"
  if (code === "EACCES") return "the file may not be read: permission denied"
  return `the file cannot be read (${String(code)})`
}

/** No second copy of a private key is kept for comparing. */
const digest = (content: unknown): string => createHash("sha256").update(JSON.stringify(content)).digest("base64")

class Side<Tls> {
  current: Tls
  readonly #plan: Plan<Tls>
  /** What was looked at last, whether it could be used or not: nothing is complained of twice. */
  #seen: string

  constructor(plan: Plan<Tls>, seen: string, current: Tls) {
    this.#plan = plan
    this.#seen = seen
    this.current = current
  }

  refresh(settings: TLSSettings): Effect.Effect<void> {
    return Effect.flatMap(load(this.#plan, settings), ({ seen, made }) => {
      if (seen === this.#seen) return Effect.void
      this.#seen = seen
      if (Result.isFailure(made)) return Effect.logWarning(`${this.#plan.name} stays as it was: ${made.failure.join(", ")}`)
      this.current = made.success
      return Effect.logInfo(`${this.#plan.name}: new settings or certificates hold from now on`)
    })
  }
}
