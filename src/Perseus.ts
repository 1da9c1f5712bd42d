/**
 * The whole service as one Layer: what is wired to what, in which order it starts, and how it drains.
 *
 * ```
 * Network ──┐
 * LiveConfig┴─> Pools ──────────────┐
 * AuthRepo, KmsDecrypt, PasswordHash ─> Authenticator ─> Sessions ─> Status, HTTP ─> the listener
 * ```
 * Start goes left to right, so that nobody is let in before there is somewhere to go. The end goes right to left: stop
 * accepting, let transactions end (while /ready says 503), close the server connections, close what was asked of others.
 *
 * No signal handler, no exit, no environment: those are main.ts's, or the embedding program's.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import { readBuildInfo } from "./BuildInfo.ts"
import { LiveConfig } from "./config/LiveConfig.ts"
import { LiveTls } from "./config/LiveTls.ts"
import { ListenFailed, type AuthTableInvalid, type ConfigInvalid } from "./errors.ts"
import { formatAddress, type ListenAddress, parseListenAddress } from "./net/Address.ts"
import { Network } from "./net/Network.ts"
import * as Http from "./observability/Http.ts"
import type { ServiceSnapshot } from "./observability/Metrics.ts"
import { Status } from "./observability/Status.ts"
import { Pools } from "./pool/Pools.ts"
import type { PoolSnapshot } from "./pool/PoolStatistics.ts"
import type { LiveSessions } from "./session/LiveSessions.ts"
import { Sessions } from "./session/Sessions.ts"
import { Authenticator } from "./tenant/Authenticator.ts"
import { AuthRepo } from "./tenant/AuthRepo.ts"
import { KmsDecrypt, settingsFrom } from "./tenant/KmsDecrypt.ts"
import { PasswordHash } from "./tenant/PasswordHash.ts"

/** `MetricsAddress`, if there is one. Built before the listener opens and closed after the drain. */
const http = Layer.unwrap(
  Effect.gen(function* () {
    const address = (yield* LiveConfig).current().MetricsAddress
    const { snapshot, ready } = yield* Status
    return Http.layer({ address, snapshot, ready, build: yield* readBuildInfo() })
  })
)

export class Perseus extends Context.Service<
  Perseus,
  {
    /** Where clients connect to; the port that was given where the configuration said 0. */
    readonly address: { readonly host: string; readonly port: number }
    /** Where monitoring finds /metrics, /health and /ready; undefined where `MetricsAddress` is blank. */
    readonly httpAddress: ListenAddress | undefined
    readonly live: LiveSessions
    readonly pools: () => ReadonlyArray<PoolSnapshot>
    /** What /metrics shows. */
    readonly snapshot: () => ServiceSnapshot
    /** What /ready answers. */
    readonly ready: Effect.Effect<Http.Readiness>
    /** While the service goes down: do not wait any longer for transactions to end. */
    readonly cut: Effect.Effect<void>
  }
>()("perseus/Perseus") {
  /** The service without the parts that a host may put its own in place of. */
  static readonly layerNoDeps: Layer.Layer<
    Perseus,
    ListenFailed | ConfigInvalid,
    LiveConfig | Network | AuthRepo | KmsDecrypt | PasswordHash
  > = Layer.effect(
    Perseus,
    Effect.gen(function* () {
      const config = yield* LiveConfig
      const network = yield* Network
      const sessions = yield* Sessions
      const pools = yield* Pools
      const status = yield* Status
      const { bound: httpAddress } = yield* Http.HttpAddress
      const key = "ListenAddress"
      const text = config.current().ListenAddress
      const fail = (detail: string) => new ListenFailed({ key, address: text, detail })
      const address = yield* Effect.fromResult(Result.mapError(parseListenAddress(text), fail))
      const listening = yield* Effect.mapError(network.listen(address, sessions.accept), fail)
      yield* Effect.addFinalizer(() =>
        Effect.all([
          listening.stopAccepting,
          Effect.logInfo(`shutting down: ${sessions.live.count} clients are connected, their transactions may end`),
          sessions.drain
        ])
      )
      if (httpAddress !== undefined)
        yield* Effect.logInfo(`metrics are on http://${formatAddress(httpAddress)}/metrics`)
      yield* Effect.logInfo(`listening for clients on ${formatAddress(listening)}`)
      return Perseus.of({
        address: listening,
        httpAddress,
        live: sessions.live,
        pools: pools.snapshots,
        ...status,
        cut: sessions.cut
      })
    })
  ).pipe(
    Layer.provide(http),
    Layer.provide(Status.layer),
    Layer.provide(Sessions.layer),
    Layer.provide([Pools.layer, Authenticator.layer]),
    Layer.provide(LiveTls.layer)
  )

  /** The service as it runs in production; the configuration is the host's to provide. */
  static readonly layer: Layer.Layer<Perseus, ListenFailed | AuthTableInvalid | ConfigInvalid, LiveConfig> =
    Perseus.layerNoDeps.pipe(
      Layer.provide([
        Network.layer,
        PasswordHash.layer(),
        Layer.unwrap(Effect.map(LiveConfig, (config) => authRepoOf(config))),
        Layer.unwrap(Effect.map(LiveConfig, (config) => kmsOf(config)))
      ])
    )
}

const authRepoOf = (config: LiveConfig["Service"]) => {
  const settings = config.current().AuthDBSettings
  return AuthRepo.layer({
    dsn: settings.AuthDBDSN,
    queryTimeoutSecs: settings.AuthQueryTimeoutSecs,
    cacheTtlSecs: settings.AuthCacheTtlSecs
  })
}

const kmsOf = (config: LiveConfig["Service"]) => KmsDecrypt.layer(settingsFrom(config.current().AWSSettings))
