import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as AuthDsn from "../../src/tenant/AuthDsn.ts"

const parse = (text: string) => AuthDsn.parse(Redacted.make(text))
const parsed = (text: string) => Result.getOrThrow(parse(text))
const refused = (text: string) => Result.getOrElse(Result.flip(parse(text)), () => "accepted")
const withParameter = (parameter: string) => `postgres://u:hunter2@h/d?${parameter}`

describe("parse", () => {
  it("reads the DSN of the sample configuration", () => {
    const dsn = parsed("postgres://mmuser:mostest@localhost:5432/loadtest?sslmode=disable&pool_min_conns=2")
    assert.deepInclude(dsn, {
      host: "localhost",
      port: 5432,
      user: "mmuser",
      database: "loadtest",
      sslMode: "disable",
      startupParameters: {}
    })
    assert.strictEqual(dsn.password && Redacted.value(dsn.password), "mostest")
    assert.strictEqual(dsn.pool.minConnections, 2)
  })

  it("has the defaults of pgx and its pool", () => {
    const dsn = parsed("postgresql://u@h")
    assert.deepStrictEqual(dsn, {
      host: "h",
      port: 5432,
      user: "u",
      password: undefined,
      database: "u",
      sslMode: "prefer",
      sslRootCert: undefined,
      sslCert: undefined,
      sslKey: undefined,
      connectTimeout: Duration.seconds(5),
      applicationName: "perseus",
      options: undefined,
      startupParameters: {},
      pool: {
        maxConnections: 4,
        minConnections: 0,
        maxConnectionLifetime: Duration.hours(1),
        maxConnectionLifetimeJitter: Duration.zero,
        maxConnectionIdleTime: Duration.minutes(30),
        healthCheckPeriod: Duration.minutes(1)
      }
    })
  })

  it("decodes what is percent-encoded, and takes an @ in the password as it stands", () => {
    const dsn = parsed("postgres://us%40er:p%40ss%2Fw%23rd%25@h/my%2Fdb")
    assert.strictEqual(dsn.user, "us@er")
    assert.strictEqual(dsn.password && Redacted.value(dsn.password), "p@ss/w#rd%")
    assert.strictEqual(dsn.database, "my/db")
    const unescaped = parsed("postgres://u:p@ss@h/d").password
    assert.strictEqual(unescaped && Redacted.value(unescaped), "p@ss")
  })

  it("takes an IPv6 address, a socket's directory, and where to connect from the parameters", () => {
    assert.deepInclude(parsed("postgres://u@[::1]:5433/d"), { host: "::1", port: 5433 })
    assert.deepInclude(parsed("postgres:///d?host=/var/run/postgresql&user=u"), {
      host: "/var/run/postgresql",
      user: "u"
    })
    assert.deepInclude(parsed("postgres://a:b@h:1/d?user=u&host=other&port=2&dbname=e"), {
      user: "u",
      host: "other",
      port: 2,
      database: "e"
    })
  })

  it("reads all the pool's parameters", () => {
    const { pool } = parsed(
      withParameter(
        "pool_max_conns=20&pool_min_conns=3&pool_max_conn_lifetime=1h30m&pool_max_conn_idle_time=90s" +
          "&pool_health_check_period=500ms&pool_max_conn_lifetime_jitter=1.5m"
      )
    )
    assert.deepStrictEqual(pool, {
      maxConnections: 20,
      minConnections: 3,
      maxConnectionLifetime: Duration.minutes(90),
      maxConnectionIdleTime: Duration.seconds(90),
      maxConnectionLifetimeJitter: Duration.seconds(90),
      healthCheckPeriod: Duration.millis(500)
    })
  })

  it("reads durations as Go does", () => {
    const cases: ReadonlyArray<readonly [string, number | undefined]> = [
      ["0", 0],
      ["0s", 0],
      [".5s", 500],
      ["1.s", 1000],
      ["2h45m30.5s", 9_930_500],
      ["1500us", 1.5],
      ["1500µs", 1.5],
      ["1500μs", 1.5],
      ["2000000ns", 2],
      ["1", undefined],
      ["", 3_600_000],
      ["s", undefined],
      [".s", undefined],
      ["1d", undefined],
      ["-1s", undefined],
      ["1h ", undefined],
      ["1hour", undefined]
    ]
    for (const [text, millis] of cases) {
      const result = parse(withParameter(`pool_max_conn_lifetime=${encodeURIComponent(text)}`))
      assert.strictEqual(
        Result.getOrUndefined(Result.map(result, (dsn) => Duration.toMillis(dsn.pool.maxConnectionLifetime))),
        millis,
        text
      )
    }
  })

  it("knows every sslmode and the files that go with it", () => {
    for (const mode of AuthDsn.sslModes) assert.strictEqual(parsed(withParameter(`sslmode=${mode}`)).sslMode, mode)
    assert.deepInclude(parsed(withParameter("sslrootcert=/ca.pem&sslcert=/c.pem&sslkey=/k.pem")), {
      sslRootCert: "/ca.pem",
      sslCert: "/c.pem",
      sslKey: "/k.pem"
    })
  })

  it("waits for a connection as long as connect_timeout says, and 0 is for ever", () => {
    assert.deepStrictEqual(parsed(withParameter("connect_timeout=7")).connectTimeout, Duration.seconds(7))
    assert.deepStrictEqual(parsed(withParameter("connect_timeout=0")).connectTimeout, Duration.infinity)
  })

  it("passes settings of the server on, and nothing that only pgx understands", () => {
    const dsn = parsed(
      withParameter(
        "application_name=auth&options=-c%20geqo%3Doff&search_path=a,b&statement_timeout=1000&myapp.x=1" +
          "&default_query_exec_mode=exec&statement_cache_capacity=0"
      )
    )
    assert.strictEqual(dsn.applicationName, "auth")
    assert.strictEqual(dsn.options, "-c geqo=off")
    assert.deepStrictEqual(dsn.startupParameters, { search_path: "a,b", statement_timeout: "1000", "myapp.x": "1" })
  })

  it("counts the first of a parameter that is given twice", () => {
    assert.strictEqual(parsed(withParameter("sslmode=require&sslmode=disable")).sslMode, "require")
  })

  it("names the parameter that is wrong, and what it may be", () => {
    const cases: ReadonlyArray<readonly [string, string]> = [
      ["sslmode=verify", "sslmode: must be one of disable, allow, prefer, require, verify-ca, verify-full"],
      ["pool_max_conns=0", "pool_max_conns: must be an integer from 1 to 2147483647"],
      ["pool_max_conns=four", "pool_max_conns: must be an integer from 1 to 2147483647"],
      ["pool_min_conns=-1", "pool_min_conns: must be an integer from 0 to 2147483647"],
      ["pool_health_check_period=1", "pool_health_check_period: must be a duration such as 1h30m, 90s or 500ms"],
      ["pool_health_check_period=0", "pool_health_check_period: must be above 0"],
      ["pool_min_conns=5", "pool_min_conns: must not be above pool_max_conns"],
      ["pool_max_conn_idle_time=5", "pool_max_conn_idle_time: must be a duration such as 1h30m, 90s or 500ms"],
      ["pool_max_con=5", "pool_max_con: is not a setting of the pool"],
      ["connect_timeout=1s", "connect_timeout: must be an integer from 0 to 2147483647"],
      ["port=0", "port: must be an integer from 1 to 65535"],
      ["service=x", "service: is not supported"],
      ["target_session_attrs=read-write", "target_session_attrs: is not supported"],
      ["client_encoding=latin1", "client_encoding: must be UTF8"],
      ["a%00b=c", "a parameter has a name that no setting has"],
      ["pool_max%20conns=5", "a parameter has a name that no setting has"],
      ["search_path=a%00b", "search_path: must not have a NUL"]
    ]
    for (const [parameter, reason] of cases) assert.strictEqual(refused(withParameter(parameter)), reason)
  })

  it("says what is wrong with a URL, and has no part of it in the reason", () => {
    const cases: ReadonlyArray<readonly [string, RegExp]> = [
      ["", /^it must begin with postgres/],
      ["host=h user=u password=hunter2", /^it must begin with postgres/],
      ["mysql://u:hunter2@h/d", /^it must begin with postgres/],
      ["postgres://u:hun#ter2@h/d", /%23/],
      ["postgres://u:12#hunter2@h/d", /%23/],
      ["postgres://u:hun/ter2@h/d", /%2F/],
      ["postgres://u:hun?ter2@h/d", /%3F/],
      ["postgres:///d?user=u&pool_%3Ahunter2@h=1", /^a parameter has a name that no setting has$/],
      ["postgres://u:hunter2@h:99999/d", /not a URL/],
      ["postgres://u:hunter2%zz@h/d", /^its password has a %/],
      ["postgres://h/d", /^it names no user/],
      ["postgres://u:hunter2@a,b/d", /^it names several hosts/]
    ]
    for (const [text, reason] of cases) {
      assert.match(refused(text), reason, text)
      assert.notMatch(refused(text), /hunter2|ter2/)
    }
  })

  it("keeps the password out of what is printed", () => {
    const dsn = parsed("postgres://u:hunter2@h/d")
    assert.notMatch(`${JSON.stringify(dsn)} ${String(dsn.password)}`, /hunter2/)
  })

  it.prop(
    "gives back any user, password and database that was encoded",
    { user: Schema.NonEmptyString, password: Schema.NonEmptyString, database: Schema.NonEmptyString },
    ({ user, password, database }) => {
      // No URL can have half a surrogate pair, or a last segment that is a dot or two.
      if (![user, password, database].every((text) => text.isWellFormed()) || /^\.{1,2}$/.test(database)) return
      const encoded = [user, password, database].map(encodeURIComponent)
      const dsn = parsed(`postgres://${encoded[0]}:${encoded[1]}@h/${encoded[2]}`)
      assert.strictEqual(dsn.user, user)
      assert.strictEqual(dsn.password && Redacted.value(dsn.password), password)
      assert.strictEqual(dsn.database, database)
    }
  )

  it.prop("never throws", { text: Schema.String }, ({ text }) => {
    parse(text)
    parse(`postgres://${text}`)
    parse(withParameter(text))
  })
})
