/**
 * `check-config`: whether the daemon would accept the configuration, without starting anything.
 *
 * It reads the file, the files that it names for TLS, and the environment, connects to nothing, and prints no secret.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Command from "effect/cli/Command"
import * as LiveTls from "../../config/LiveTls.ts"
import type { AWSSettings, PerseusConfig, PoolSettings } from "../../config/PerseusConfig.ts"
import * as AuthDsn from "../../tenant/AuthDsn.ts"
import { CommandFailed, EX_CONFIG, fromConfigInvalid } from "./CommandFailed.ts"
import { loadConfig } from "./shared.ts"

export const checkConfig = Command.make(
  "check-config",
  {},
  Effect.fnUntraced(function* () {
    const config = yield* loadConfig
    const authDsn = AuthDsn.parse(config.AuthDBSettings.AuthDBDSN)
    if (Result.isFailure(authDsn)) {
      return yield* new CommandFailed({
        message: `AuthDBSettings.AuthDBDSN: ${authDsn.failure}`,
        exitCode: EX_CONFIG
      })
    }
    yield* Effect.mapError(LiveTls.check(config.TLSSettings), fromConfigInvalid)
    yield* Console.log(summary(config, authDsn.success))
  })
).pipe(
  Command.withDescription(
    "Check the configuration file, and the PERSEUS_* variables of the environment above it. Prints ok and a summary " +
      "without secrets, or everything that is wrong. Connects to nothing."
  ),
  Command.withShortDescription("Check the configuration file"),
  Command.withExamples([{ command: "perseus check-config --config config.json" }])
)

const summary = (config: PerseusConfig, authDsn: AuthDsn.AuthDsn): string => {
  const lines: ReadonlyArray<readonly [string, string]> = [
    ["clients", config.ListenAddress],
    ["metrics", config.MetricsAddress === "" ? "off" : config.MetricsAddress],
    ["auth database", describeDsn(authDsn)],
    ["KMS", describeKms(config.AWSSettings)],
    ["pools", describePool(config.PoolSettings)],
    ["overrides", Object.keys(config.OverrideSettings).join(", ") || "none"],
    ["TLS", `from clients: ${config.TLSSettings.ClientMode}, to servers: ${config.TLSSettings.ServerMode}`],
    ["clients at most", `${unlimited(config.LimitSettings.MaxClients)} in all`],
    ["log", `${config.LogSettings.Level}, ${config.LogSettings.Json ? "JSON" : "text"}`]
  ]
  return ["ok", ...lines.map(([name, value]) => `  ${name.padEnd(15)}  ${value}`)].join("\n")
}

const describeDsn = ({ database, host, pool, port, sslMode, user }: AuthDsn.AuthDsn): string =>
  `${database} on ${host}:${port} as ${user}, sslmode=${sslMode}, ${pool.maxConnections} connections at most`

const describeKms = ({ AccessKeyId, Endpoint, KMSKeyARN, Region }: AWSSettings): string =>
  `${KMSKeyARN} in ${Region} at ${Endpoint === "" ? "AWS's own endpoint" : Endpoint}, credentials from ` +
  (AccessKeyId === "" ? "the AWS SDK's default chain" : "AWSSettings")

const describePool = (pool: PoolSettings): string =>
  `${unlimited(pool.MaxOpen)} connections for each destination, ${pool.MaxIdle} of them idle at most, ` +
  `tenant switch by ${pool.TenantSwitch}`

const unlimited = (limit: number): string => (limit <= 0 ? "unlimited" : String(limit))
