import { assert, describe, it } from "@effect/vitest"
import * as Equal from "effect/Equal"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import { inspect } from "node:util"
import { decode } from "../../src/config/Decode.ts"
import { parseJsonc } from "../../src/config/Jsonc.ts"
import { keepReadAtStart, poolSettingsFor, settings, valueAt } from "../../src/config/PerseusConfig.ts"
import { configOf, filledIn, minimal, problemsOf, seedSample } from "./fixtures.ts"

describe("a good file", () => {
  it("may be the sample of the first README, filled in", () => {
    const config = configOf(Result.getOrThrow(parseJsonc(filledIn(seedSample))))
    assert.strictEqual(config.ListenAddress, ":5433")
    assert.strictEqual(
      Redacted.value(config.AuthDBSettings.AuthDBDSN),
      "postgres://mmuser:mostest@localhost:5432/loadtest?sslmode=disable&pool_min_conns=2"
    )
    assert.deepInclude(config.PoolSettings, { MaxIdle: 3, MaxOpen: 5, SchemaExecTimeoutSecs: 5 })
  })

  it("gets a default for every key that the Go version did not need", () => {
    const config = configOf(minimal())
    assert.strictEqual(config.MetricsAddress, "")
    assert.strictEqual(config.AuthDBSettings.AuthCacheTtlSecs, 5)
    assert.strictEqual(config.AWSSettings.AccessKeyId, "")
    assert.strictEqual(Redacted.value(config.AWSSettings.SecretAccessKey), "")
    assert.strictEqual(config.AWSSettings.Endpoint, "")
    assert.deepStrictEqual(config.PoolSettings, {
      MaxIdle: 3,
      MaxOpen: 0,
      MaxLifetimeSecs: 0,
      MaxIdletimeSecs: 0,
      ConnCreateTimeoutSecs: 5,
      ConnCloseTimeoutSecs: 1,
      SchemaExecTimeoutSecs: 5,
      ExtraSchemas: [],
      TenantSwitch: "discard",
      Mode: "transaction",
      Pinning: "auto",
      PinningNotice: false,
      MaxPinned: -1,
      MaxPreparedStatements: 200
    })
    assert.deepStrictEqual(config.OverrideSettings, {})
    assert.deepStrictEqual(config.LimitSettings, {
      ClientLoginTimeoutSecs: 60,
      AcquireTimeoutSecs: 30,
      CancelTimeoutSecs: 10,
      ShutdownTimeoutSecs: 30,
      IdleInTransactionTimeoutSecs: 0,
      QueryTimeoutSecs: 0,
      MaxClients: 10000,
      MaxClientsPerTenant: 0,
      MaxServersPerTenant: -1,
      ServerCheckDelaySecs: 30
    })
    assert.deepStrictEqual(config.LoginSettings, {
      RequireTLS: false,
      UnknownTenant: "clear",
      FailuresBeforeDelay: 10,
      FailuresBeforeBlock: 100,
      FailureWindowSecs: 300,
      BlockSecs: 60
    })
    assert.deepStrictEqual(config.ServerSettings, { AllowTrust: false, AllowClearText: false })
    assert.deepStrictEqual(config.TLSSettings, {
      ClientMode: "disable",
      ClientCertFile: "",
      ClientKeyFile: "",
      ClientCAFile: "",
      ServerMode: "prefer",
      ServerCAFile: "",
      ServerCertFile: "",
      ServerKeyFile: ""
    })
    assert.deepStrictEqual(config.LogSettings, { Level: "INFO", Json: false })
  })

  it("may spell keys and the log level in any case", () => {
    const { PoolSettings, ...others } = minimal()
    const config = configOf({
      ...others,
      poolSETTINGS: { ...PoolSettings, maxopen: 7 },
      logsettings: { LEVEL: "warn" }
    })
    assert.strictEqual(config.PoolSettings.MaxOpen, 7)
    assert.strictEqual(config.LogSettings.Level, "WARN")
  })

  it("may have null for absent, for a key, a section and an override", () => {
    const config = configOf({
      ...minimal(),
      MetricsAddress: null,
      LogSettings: null,
      LimitSettings: { MaxClients: null },
      OverrideSettings: { a: null, b: { MaxOpen: null, MaxIdle: 2 } }
    })
    assert.strictEqual(config.MetricsAddress, "")
    assert.strictEqual(config.LogSettings.Level, "INFO")
    assert.strictEqual(config.LimitSettings.MaxClients, 10000)
    assert.deepStrictEqual(config.OverrideSettings, { b: { MaxIdle: 2 } })
  })

  it("may switch limits and lifetimes off by zero or less, as Go did", () => {
    const off = { MaxOpen: 0, MaxLifetimeSecs: -1, MaxIdletimeSecs: 0 }
    assert.deepInclude(
      configOf({ ...minimal(), PoolSettings: { ...minimal().PoolSettings, ...off } }).PoolSettings,
      off
    )
  })

  it("may name a KMS endpoint without a scheme, which means https as Go's SDK had it", () => {
    const endpointOf = (Endpoint: string) =>
      configOf({ ...minimal(), AWSSettings: { ...minimal().AWSSettings, Endpoint } }).AWSSettings.Endpoint
    assert.strictEqual(endpointOf("kms.local:8080"), "https://kms.local:8080")
    assert.strictEqual(endpointOf("http://127.0.0.1:8080"), "http://127.0.0.1:8080")
  })

  it("may name system schemas among ExtraSchemas", () => {
    const ExtraSchemas = ["public", "pg_catalog", "Ünï", "x".repeat(63)]
    const config = configOf({ ...minimal(), PoolSettings: { ...minimal().PoolSettings, ExtraSchemas } })
    assert.deepStrictEqual(config.PoolSettings.ExtraSchemas, ExtraSchemas)
  })
})

describe("a bad file", () => {
  it("is told everything that is wrong with it at once, whichever section it is in", () => {
    const problems = problemsOf({
      ListenAddress: 5433,
      Listenaddres: ":1",
      MetricsAddress: "localhost",
      AuthDBSettings: { AuthDBDSN: "mysql://x", AuthQueryTimeoutSecs: 0 },
      AWSSettings: { Region: " ", Endpoint: "http://", SecretAccessKey: 5 },
      PoolSettings: {
        MaxIdle: 10,
        MaxOpen: 5,
        MaxLifetimeSecs: "1h",
        ConnCreateTimeoutSecs: 1.5,
        ConnCloseTimeoutSecs: -1,
        ExtraSchemas: ["ok", 7, "", "$user", "x".repeat(64), "a\0b", "\ud800"],
        TenantSwitch: "Discard",
        maxopen: 6
      },
      OverrideSettings: {
        app: { MaxIdle: 0 },
        "db:5432/app": { MaxOpen: 2, MaxIdel: 1 },
        "": {},
        "host/": {},
        other: []
      },
      LimitSettings: { MaxClients: 1e12, AcquireTimeoutSecs: 0 },
      ServerSettings: true,
      TLSSettings: { ClientMode: "prefer", ServerMode: "verify-ca", ServerKeyFile: "k", ServerCertFile: 5 },
      LogSettings: { Level: "LOUD", Json: "true" }
    })
    assert.sameMembers(
      [...problems],
      [
        "Listenaddres: unknown key; did you mean ListenAddress?",
        'ListenAddress: expected an address such as ":5433", "127.0.0.1:5433" or "[::1]:5433", got an integer',
        "MetricsAddress: a port is missing (an IPv6 address stands in brackets)",
        "AuthDBSettings.AuthDBDSN: expected a URL postgres://user:password@host:port/database",
        "AuthDBSettings.AuthQueryTimeoutSecs: expected an integer from 1 to 2147483647",
        "AWSSettings.SecretAccessKey: expected a string, got an integer",
        "AWSSettings.Region: expected the name of a region",
        "AWSSettings.Endpoint: expected a URL https://host:port, or blank",
        "AWSSettings.KMSKeyARN: is missing; expected the ARN of a KMS key",
        "AWSSettings: give both AccessKeyId and SecretAccessKey, or neither",
        "PoolSettings.MaxOpen and PoolSettings.maxopen: the same key twice; keep one",
        "PoolSettings.MaxIdle: must not be greater than PoolSettings.MaxOpen",
        "PoolSettings.MaxLifetimeSecs: expected an integer, got a string",
        "PoolSettings.ConnCreateTimeoutSecs: expected an integer from 1 to 2147483647, got a fraction",
        "PoolSettings.ConnCloseTimeoutSecs: expected an integer from 1 to 2147483647",
        "PoolSettings.SchemaExecTimeoutSecs: is missing; expected an integer from 1 to 2147483647",
        "PoolSettings.ExtraSchemas[1]: expected a string, got an integer",
        "PoolSettings.ExtraSchemas[2]: a schema's name has 1 to 63 bytes and is not $user",
        "PoolSettings.ExtraSchemas[3]: a schema's name has 1 to 63 bytes and is not $user",
        "PoolSettings.ExtraSchemas[4]: a schema's name has 1 to 63 bytes and is not $user",
        "PoolSettings.ExtraSchemas[5]: a schema's name has 1 to 63 bytes and is not $user",
        "PoolSettings.ExtraSchemas[6]: a schema's name has 1 to 63 bytes and is not $user",
        'PoolSettings.TenantSwitch: expected "discard", "always" or "reconnect"',
        "OverrideSettings.app.MaxIdle: expected an integer from 1 to 2147483647",
        'OverrideSettings["db:5432/app"].MaxIdel: unknown key; did you mean MaxIdle?',
        'OverrideSettings["db:5432/app"]: MaxIdle must not be greater than MaxOpen (what an entry leaves out comes from PoolSettings)',
        'OverrideSettings[""]: the name must be "dest_host/dest_db" or "dest_db"',
        'OverrideSettings["host/"]: the name must be "dest_host/dest_db" or "dest_db"',
        "OverrideSettings.other: expected an object, got a list",
        "LimitSettings.MaxClients: expected an integer from 0 to 2147483647",
        "LimitSettings.AcquireTimeoutSecs: expected an integer from 1 to 2147483647",
        "ServerSettings: expected an object, got a boolean",
        'TLSSettings.ClientMode: expected "disable", "allow", "require" or "verify-full"',
        "TLSSettings.ServerCertFile: expected a string, got an integer",
        'TLSSettings.ServerCAFile: is missing; ServerMode "verify-ca" needs it',
        "LogSettings.Level: expected DEBUG, INFO, WARN or ERROR",
        "LogSettings.Json: expected true or false, got a string"
      ]
    )
  })

  it("is told where the sample was not filled in", () => {
    const sample = Result.getOrThrow(parseJsonc(seedSample.replace(/postgres:[^"]*/, "<>")))
    const unfilled = 'still says "<>", as in the sample: fill it in'
    assert.deepStrictEqual(problemsOf(sample), [
      `AuthDBSettings.AuthDBDSN: ${unfilled}`,
      `AWSSettings.AccessKeyId: ${unfilled}`,
      `AWSSettings.SecretAccessKey: ${unfilled}`,
      `AWSSettings.KMSKeyARN: ${unfilled}`
    ])
  })

  it("is told which files each mode of TLS needs", () => {
    for (const [TLSSettings, expected] of [
      [{ ClientMode: "allow" }, ["TLSSettings.ClientCertFile", "TLSSettings.ClientKeyFile"]],
      [{ ClientMode: "require", ClientCertFile: "c" }, ["TLSSettings.ClientKeyFile"]],
      [{ ClientMode: "verify-full", ClientCertFile: "c", ClientKeyFile: "k" }, ["TLSSettings.ClientCAFile"]],
      [{ ClientMode: "verify-full", ClientCertFile: "c", ClientKeyFile: "k", ClientCAFile: "a" }, []],
      [{ ClientMode: "disable", ServerMode: "require" }, []],
      [{ ServerMode: "verify-full" }, ["TLSSettings.ServerCAFile"]],
      [{ ServerCertFile: "c" }, ["TLSSettings"]],
      [{ ServerCertFile: "c", ServerKeyFile: "k" }, []]
    ] as const) {
      const problems = problemsOf({ ...minimal(), TLSSettings })
      assert.deepStrictEqual(
        problems.map((problem) => problem.split(":")[0] ?? ""),
        [...expected]
      )
    }
  })

  it("is told of each key that must be given when it is empty", () => {
    const required = settings.filter(({ fallback }) => fallback === undefined).map(({ key }) => key)
    assert.deepStrictEqual(
      problemsOf({}).map((problem) => problem.split(":")[0]),
      required
    )
  })

  it("does not get an absent key from one without a name", () => {
    const { ListenAddress, ...file } = minimal()
    assert.deepStrictEqual(
      problemsOf({ ...file, "": ListenAddress }).map((problem) => problem.split(";")[0]),
      ['[""]: unknown key', "ListenAddress: is missing"]
    )
  })

  it("is told when it is not an object", () => {
    assert.deepStrictEqual(problemsOf([]), ["the configuration: expected an object, got a list"])
    assert.deepStrictEqual(problemsOf(null), ["the configuration: expected an object, got null"])
  })

  it("is told one line a problem, whatever its keys are called", () => {
    for (const problem of problemsOf({ "a\nb": 1, OverrideSettings: { "x\r\ny": 5 } })) {
      assert.notMatch(problem, /[\r\n]/)
    }
  })

  it("never sees a rejected value again, wherever it stood", () => {
    for (const { path } of settings) {
      for (const rejected of ["hunter2", ["hunter2"], { password: "hunter2" }]) {
        const [section = "", key] = path
        const file = { [section]: key === undefined ? rejected : { [key]: rejected } }
        assert.notInclude(problemsOf(file).join("\n"), "hunter2")
      }
    }
  })
})

describe("a secret", () => {
  it("does not show when the configuration is printed", () => {
    const config = configOf({
      ...minimal(),
      AWSSettings: { ...minimal().AWSSettings, AccessKeyId: "id", SecretAccessKey: "hunter2" }
    })
    for (const text of [JSON.stringify(config), inspect(config, { depth: 9 }), `${config.AuthDBSettings.AuthDBDSN}`]) {
      assert.notInclude(text, "hunter2")
    }
  })
})

describe("a value from above the file", () => {
  it("replaces the file's, in a section that the file does not have too", () => {
    const config = Result.getOrThrow(
      decode(minimal(), [
        { path: ["PoolSettings", "MaxIdle"], value: 4, source: "A" },
        { path: ["LogSettings", "Json"], value: true, source: "B" }
      ])
    )
    assert.strictEqual(config.PoolSettings.MaxIdle, 4)
    assert.isTrue(config.LogSettings.Json)
  })

  it("is reported under its own name", () => {
    assert.deepStrictEqual(
      problemsOf(minimal(), [{ path: ["PoolSettings", "MaxIdle"], value: "four", source: "--max-idle" }]),
      ["--max-idle: expected an integer from 1 to 2147483647, got a string"]
    )
  })
})

describe("poolSettingsFor", () => {
  const config = configOf({
    ...minimal(),
    OverrideSettings: { app: { MaxOpen: 20 }, "db-1:5432/app": { MaxIdle: 1 }, "db-1/app": { MaxOpen: 30 } }
  })
  const { PoolSettings } = config

  it("takes host/db before db, the host as it stands in the row, and the rest from PoolSettings", () => {
    assert.deepStrictEqual(poolSettingsFor(config, "db-1:5432", "app"), { ...PoolSettings, MaxIdle: 1 })
    assert.deepStrictEqual(poolSettingsFor(config, "db-1", "app"), { ...PoolSettings, MaxOpen: 30 })
    assert.deepStrictEqual(poolSettingsFor(config, "db-2", "app"), { ...PoolSettings, MaxOpen: 20 })
    assert.deepStrictEqual(poolSettingsFor(config, "db-1", "other"), PoolSettings)
  })

  it("finds no override in what every object inherits", () => {
    for (const name of ["constructor", "toString", "__proto__"]) {
      assert.deepStrictEqual(poolSettingsFor(config, "db-1", name), PoolSettings)
    }
  })

  it("finds an override of a database with such a name", () => {
    const file = JSON.parse('{ "__proto__": { "MaxIdle": 9 }, "constructor": { "MaxIdle": 8 } }')
    const config = configOf({ ...minimal(), OverrideSettings: file })
    assert.strictEqual(poolSettingsFor(config, "h", "__proto__").MaxIdle, 9)
    assert.strictEqual(poolSettingsFor(config, "h", "constructor").MaxIdle, 8)
  })
})

describe("the table of settings", () => {
  it("names an environment variable for every string, integer and boolean, and for nothing else", () => {
    assert.deepStrictEqual(
      settings.filter(({ variable }) => variable === undefined).map(({ key }) => key),
      ["PoolSettings.ExtraSchemas", "OverrideSettings"]
    )
    assert.include(
      settings.map(({ variable }) => variable),
      "PERSEUS_AWSSETTINGS_SECRETACCESSKEY"
    )
  })

  it("says of the same keys that they need a restart as a reload keeps", () => {
    const running = configOf(minimal())
    const next = configOf({
      ListenAddress: ":1",
      MetricsAddress: ":2",
      AuthDBSettings: { AuthDBDSN: "postgres://other", AuthQueryTimeoutSecs: 9, AuthCacheTtlSecs: 9 },
      AWSSettings: { AccessKeyId: "a", SecretAccessKey: "b", Region: "c", Endpoint: "https://d", KMSKeyARN: "e" },
      PoolSettings: {
        MaxIdle: 9,
        MaxOpen: 9,
        MaxLifetimeSecs: 9,
        MaxIdletimeSecs: 9,
        ConnCreateTimeoutSecs: 9,
        ConnCloseTimeoutSecs: 9,
        SchemaExecTimeoutSecs: 9,
        ExtraSchemas: ["public"],
        TenantSwitch: "reconnect",
        Mode: "session",
        Pinning: "off",
        PinningNotice: true,
        MaxPinned: 9,
        MaxPreparedStatements: 9
      },
      OverrideSettings: { app: { MaxOpen: 20 } },
      LimitSettings: Object.fromEntries(Object.keys(running.LimitSettings).map((key) => [key, 9])),
      LoginSettings: {
        RequireTLS: true,
        UnknownTenant: "scram",
        FailuresBeforeDelay: 9,
        FailuresBeforeBlock: 9,
        FailureWindowSecs: 9,
        BlockSecs: 9
      },
      ServerSettings: { AllowTrust: true, AllowClearText: true },
      TLSSettings: {
        ClientMode: "verify-full",
        ClientCertFile: "a",
        ClientKeyFile: "b",
        ClientCAFile: "c",
        ServerMode: "verify-full",
        ServerCAFile: "d",
        ServerCertFile: "e",
        ServerKeyFile: "f"
      },
      LogSettings: { Level: "DEBUG", Json: true }
    })
    const applied = keepReadAtStart(running, next)
    for (const { path, key, needsRestart } of settings) {
      assert.isFalse(Equal.equals(valueAt(running, path), valueAt(next, path)), key)
      assert.strictEqual(valueAt(applied, path), valueAt(needsRestart ? running : next, path), key)
    }
  })
})
