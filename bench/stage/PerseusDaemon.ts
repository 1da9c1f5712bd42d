/** Perseus as it is deployed: the built program, with a configuration file, in a process of its own. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { writeFile } from "node:fs/promises"
import * as path from "node:path"
import { execPath } from "node:process"
import { fileURLToPath } from "node:url"
import type { BenchFailed } from "../Scenario.ts"
import * as Child from "./Child.ts"
import { DATABASE, PASSWORD, USER, type Stage } from "./Stage.ts"
import type { Pooler } from "./Target.ts"

const program = fileURLToPath(new URL("../../dist/main.js", import.meta.url))

/** Keys of config.json, by section, over what the bench sets itself. */
export interface Overrides {
  readonly PoolSettings?: Readonly<Record<string, unknown>>
  readonly LimitSettings?: Readonly<Record<string, unknown>>
  readonly TLSSettings?: Readonly<Record<string, unknown>>
}

export const start = (
  stage: Stage,
  poolSize: number,
  overrides: Overrides = {},
  name = "perseus"
): Effect.Effect<Pooler, BenchFailed, Scope.Scope> =>
  Effect.gen(function* () {
    const port = yield* Child.freePort
    const file = path.join(stage.directory, `${name.replaceAll(/\W/g, "-")}-${port}.json`)
    const config = {
      ListenAddress: `127.0.0.1:${port}`,
      AuthDBSettings: { AuthDBDSN: stage.authDsn, AuthQueryTimeoutSecs: 10 },
      AWSSettings: {
        AccessKeyId: "bench",
        SecretAccessKey: "bench",
        Region: stage.kms.settings.region,
        Endpoint: stage.kms.endpoint,
        KMSKeyARN: stage.kms.keyArn
      },
      PoolSettings: {
        MaxIdle: poolSize,
        MaxOpen: poolSize,
        ConnCreateTimeoutSecs: 10,
        ConnCloseTimeoutSecs: 2,
        SchemaExecTimeoutSecs: 10,
        ...overrides.PoolSettings
      },
      LimitSettings: { ShutdownTimeoutSecs: 2, MaxClients: 20_000, ...overrides.LimitSettings },
      LogSettings: { Level: "WARN" },
      ServerSettings: { AllowTrust: true },
      ...(overrides.TLSSettings !== undefined && { TLSSettings: overrides.TLSSettings })
    }
    yield* Effect.promise(() => writeFile(file, JSON.stringify(config), { mode: 0o600 }))
    const { pid } = yield* Child.start({ command: execPath, args: [program, "--config", file], port })
    return {
      name,
      host: "127.0.0.1",
      port,
      pid,
      serverPid: stage.direct.serverPid,
      serverPort: stage.direct.port,
      login: (tenant) => ({
        user: USER,
        password: PASSWORD,
        database: DATABASE,
        options: `-c schema_search_path=${tenant}`,
        tls: overrides.TLSSettings !== undefined
      })
    }
  })
