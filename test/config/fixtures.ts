/** Configurations that the tests of this folder start from. */
import * as Result from "effect/Result"
import { decode, type Override } from "../../src/config/Decode.ts"
import type { PerseusConfig } from "../../src/config/PerseusConfig.ts"

/** What the first README of Perseus shows, character for character. */
export const seedSample = `{
    "ListenAddress": ":5433",
    "AuthDBSettings": {
        // Additional query param settings to control pool size
        // pool_max_conns: integer greater than 0 (default 4)
        // pool_min_conns: integer 0 or greater (default 0)
        // pool_max_conn_lifetime: duration string (default 1hr)
        // pool_max_conn_idle_time: duration string (default 30mins)
        // pool_health_check_period: duration string (default 1min)
        // pool_max_conn_lifetime_jitter: duration string
        "AuthDBDSN": "postgres://mmuser:mostest@localhost:5432/loadtest?sslmode=disable&pool_min_conns=2",
        "AuthQueryTimeoutSecs": 2
    },
    "AWSSettings": {
        "AccessKeyId": "<>",
        "SecretAccessKey": "<>",
        "Region": "us-east-1",
        "Endpoint": "", // This can be left as blank
        "KMSKeyARN": "<>"
    },
    "PoolSettings": {
        // Set these settings to some reasonable values
        "MaxIdle":               3,
        "MaxOpen":               5,
        "MaxLifetimeSecs":       3600,
        "MaxIdletimeSecs":       300,
        "ConnCreateTimeoutSecs": 5,
        "ConnCloseTimeoutSecs":  1,
        "SchemaExecTimeoutSecs": 5 // This is the timeout which controls the time taken to execute the setting of the schema search path every time
        // we acquire a connection from the pool.
    }
}
`

/** A sample, as somebody who uses it has changed it. */
export const filledIn = (sample: string): string => sample.replaceAll('"<>"', '"filled in"')

/** A file that gives only what must be given. Each call makes a new one, to be changed at will. */
export const minimal = () => ({
  ListenAddress: ":5433",
  AuthDBSettings: { AuthDBDSN: "postgres://perseus:hunter2@localhost:5432/auth", AuthQueryTimeoutSecs: 2 },
  AWSSettings: { Region: "us-east-1", KMSKeyARN: "arn:aws:kms:us-east-1:1:key/1" },
  PoolSettings: { MaxIdle: 3, ConnCreateTimeoutSecs: 5, ConnCloseTimeoutSecs: 1, SchemaExecTimeoutSecs: 5 }
})

/** The decoded `file`, which must be good. */
export const configOf = (file: unknown): PerseusConfig => Result.getOrThrow(decode(file))

/** The problems of `file`, none if it is good. */
export const problemsOf = (file: unknown, overrides: ReadonlyArray<Override> = []): ReadonlyArray<string> =>
  Result.match(decode(file, overrides), { onFailure: (problems) => problems, onSuccess: () => [] })
