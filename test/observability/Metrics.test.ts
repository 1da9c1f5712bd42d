import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { BuildInfo } from "../../src/BuildInfo.ts"
import {
  format,
  processSnapshots,
  type ProcessSnapshot,
  type ServiceSnapshot
} from "../../src/observability/Metrics.ts"
import { type PoolSnapshot, PoolStatistics, WAIT_BUCKETS } from "../../src/pool/PoolStatistics.ts"

// ---------------------------------------------------------------------------------------------------------------------
// A strict reader of the exposition format, text 0.0.4
// ---------------------------------------------------------------------------------------------------------------------

interface Sample {
  readonly name: string
  readonly labels: Readonly<Record<string, string>>
  readonly value: number
}

interface Family {
  readonly type: string
  readonly help: string
  readonly samples: Array<Sample>
}

const HELP = /^# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$/
const TYPE = /^# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge|histogram)$/
const SAMPLE = /^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)$/
const LABEL = /([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(,|$)/y
const NUMBER = /^(?:[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?|NaN|[+-]Inf)$/

const unescape = (text: string) => text.replace(/\\([\\"n])/g, (_, escaped) => (escaped === "n" ? "\n" : escaped))

const parseLabels = (text: string): Record<string, string> => {
  const labels: Record<string, string> = {}
  LABEL.lastIndex = 0
  while (LABEL.lastIndex < text.length) {
    const at = LABEL.lastIndex
    const [, name, value, end] = LABEL.exec(text) ?? assert.fail(`no label at ${at} of ${text}`)
    assert.isFalse(end === "," && LABEL.lastIndex === text.length, `a comma ends ${text}`)
    assert.notProperty(labels, name!)
    labels[name!] = unescape(value!)
  }
  return labels
}

const parseNumber = (text: string): number => {
  assert.match(text, NUMBER)
  return text.endsWith("Inf") ? Number(`${text}inity`) : Number(text)
}

const isOf = (family: string, type: string, sample: string): boolean =>
  type === "histogram" ? [`${family}_bucket`, `${family}_sum`, `${family}_count`].includes(sample) : sample === family

/** Each family once, HELP before TYPE before its samples, no sample outside its family and no series twice. */
const parse = (text: string): ReadonlyMap<string, Family> => {
  assert.isTrue(text.endsWith("\n"), "the last line has its end")
  const families = new Map<string, Family>()
  const seen = new Set<string>()
  let help: RegExpExecArray | null = null
  let name = ""
  for (const line of text.slice(0, -1).split("\n")) {
    if (line.startsWith("# HELP")) {
      help = HELP.exec(line) ?? assert.fail(line)
    } else if (line.startsWith("#")) {
      const type = TYPE.exec(line) ?? assert.fail(line)
      name = type[1]!
      assert.strictEqual(help?.[1], name)
      assert.isFalse(families.has(name), `${name} comes twice`)
      families.set(name, { type: type[2]!, help: help![2]!, samples: [] })
    } else {
      const [, sampleName, labelText, value] = SAMPLE.exec(line) ?? assert.fail(line)
      const family = families.get(name) ?? assert.fail(`${line} has no family`)
      const labels = parseLabels(labelText ?? "")
      const series = JSON.stringify([sampleName, Object.entries(labels).sort()])
      assert.isTrue(isOf(name, family.type, sampleName!), `${line} stands under ${name}`)
      assert.isFalse(seen.has(series), `${line} comes twice`)
      seen.add(series)
      family.samples.push({ name: sampleName!, labels, value: parseNumber(value!) })
    }
  }
  return families
}

// ---------------------------------------------------------------------------------------------------------------------
// What is scraped
// ---------------------------------------------------------------------------------------------------------------------

const build: BuildInfo = {
  commit_hash: "c0ffee",
  build_version: "1.2.3",
  build_date: "2026-11-23",
  node_version: "v26.10.0"
}

const process: ProcessSnapshot = {
  startTime: 1_795_465_384.752,
  cpuSeconds: 12.5,
  residentBytes: 104_857_600,
  heapUsedBytes: 40_000_000,
  heapTotalBytes: 50_000_000,
  externalBytes: 3_000_000,
  openFds: 42,
  maxFds: 1024,
  eventLoopActiveSeconds: 7.25,
  eventLoopLagSeconds: { p50: 0.0002, p99: 0.003, max: 0.11 }
}

const poolOf = (destHost: string, destDb: string, statistics = new PoolStatistics()): PoolSnapshot => ({
  destHost,
  destDb,
  maxOpen: 10,
  open: 7,
  idle: 2,
  inUse: 4,
  closing: 1,
  pinned: 0,
  opening: 3,
  waiting: 5,
  statistics
})

const service = (changes: Partial<ServiceSnapshot> = {}): ServiceSnapshot => ({
  pools: [],
  clients: { login: 1, idle: 20, waiting: 3, active: 4 },
  maxClients: 10_000,
  logins: new Map(),
  throttledLogins: { delayed: { address: 0, tenant: 0 }, blocked: { address: 0, tenant: 0 } },
  errorsBySqlState: new Map(),
  pinnedBy: new Map(),
  transactions: 0,
  cancels: { forwarded: 0, withoutEffect: 0 },
  draining: false,
  ...changes
})

const scrape = (changes: Partial<ServiceSnapshot> = {}, now = process) => parse(format(service(changes), now, build))

/** The value of the one series of `name` that has `labels`. */
const valueOf = (families: ReadonlyMap<string, Family>, name: string, labels: Record<string, string> = {}): number => {
  const found = (families.get(name)?.samples ?? []).filter(
    (sample) => JSON.stringify(sample.labels) === JSON.stringify(labels)
  )
  assert.lengthOf(found, 1, `${name} ${JSON.stringify(labels)}`)
  return found[0]!.value
}

const statisticsOf = (numbers: Partial<PoolStatistics>) => Object.assign(new PoolStatistics(), numbers)

describe("the text of a scrape", () => {
  it("has the nine names that dashboards of the Go version use, with their types and labels", () => {
    const statistics = statisticsOf({
      waitCount: 11,
      waitMillis: 2500,
      maxIdleClosed: 12,
      maxIdleTimeClosed: 13,
      maxLifetimeClosed: 14
    })
    const families = scrape({ pools: [poolOf("db.example.com", "app", statistics)] })
    const expected: ReadonlyArray<readonly [string, string, number]> = [
      ["perseus_max_open_connections", "gauge", 10],
      ["perseus_open_connections", "gauge", 7],
      ["perseus_in_use_connections", "gauge", 4],
      ["perseus_idle_connections", "gauge", 2],
      ["perseus_wait_count_total", "counter", 11],
      ["perseus_wait_duration_seconds_total", "counter", 2.5],
      ["perseus_max_idle_closed_total", "counter", 12],
      ["perseus_max_idle_time_closed_total", "counter", 13],
      ["perseus_max_lifetime_closed_total", "counter", 14]
    ]
    for (const [name, type, value] of expected) {
      assert.strictEqual(families.get(name)?.type, type, name)
      assert.strictEqual(valueOf(families, name, { dest_host: "db.example.com", dest_db: "app" }), value, name)
    }
  })

  it("has what else a pool counts", () => {
    const statistics = statisticsOf({
      leases: 1,
      tenantSwitches: 2,
      settingChanges: 3,
      checks: 4,
      opened: 5,
      connectFailures: 6,
      discarded: 7,
      acquireTimeouts: 8,
      cancelsForwarded: 9
    })
    const families = scrape({ pools: [poolOf("h", "d", statistics)] })
    const names = [
      "perseus_leases_total",
      "perseus_tenant_switches_total",
      "perseus_setting_changes_total",
      "perseus_connection_checks_total",
      "perseus_connections_opened_total",
      "perseus_connect_failures_total",
      "perseus_discarded_connections_total",
      "perseus_acquire_timeouts_total",
      "perseus_cancels_forwarded_total"
    ]
    assert.deepStrictEqual(
      names.map((name) => valueOf(families, name, { dest_host: "h", dest_db: "d" })),
      [1, 2, 3, 4, 5, 6, 7, 8, 9]
    )
    assert.strictEqual(valueOf(families, "perseus_opening_connections", { dest_host: "h", dest_db: "d" }), 3)
    assert.strictEqual(valueOf(families, "perseus_waiting_clients", { dest_host: "h", dest_db: "d" }), 5)
  })

  it("has logins that were slowed down or refused by what was done and whose failures were counted", () => {
    const families = scrape({
      throttledLogins: { delayed: { address: 1, tenant: 2 }, blocked: { address: 3, tenant: 4 } }
    })
    const labels = ["delayed", "blocked"].flatMap((action) => ["address", "tenant"].map((by) => ({ action, by })))
    assert.deepStrictEqual(
      labels.map((of) => valueOf(families, "perseus_logins_throttled_total", of)),
      [1, 2, 3, 4]
    )
  })

  it("has clients by state, logins by outcome, errors by SQLSTATE and cancels by what came of them", () => {
    const families = scrape({
      logins: new Map([
        ["ok", 100],
        ["wrong password", 2]
      ]),
      errorsBySqlState: new Map([["28P01", 2]]),
      pinnedBy: new Map([["LISTEN", 3]]),
      transactions: 12_345,
      cancels: { forwarded: 6, withoutEffect: 7 },
      draining: true
    })
    assert.strictEqual(valueOf(families, "perseus_clients", { state: "login" }), 1)
    assert.strictEqual(valueOf(families, "perseus_clients", { state: "idle" }), 20)
    assert.strictEqual(valueOf(families, "perseus_clients", { state: "waiting" }), 3)
    assert.strictEqual(valueOf(families, "perseus_clients", { state: "active" }), 4)
    assert.strictEqual(valueOf(families, "perseus_max_clients"), 10_000)
    assert.strictEqual(valueOf(families, "perseus_logins_total", { outcome: "ok" }), 100)
    assert.strictEqual(valueOf(families, "perseus_logins_total", { outcome: "wrong password" }), 2)
    assert.strictEqual(valueOf(families, "perseus_errors_total", { sqlstate: "28P01" }), 2)
    assert.strictEqual(valueOf(families, "perseus_transactions_total"), 12_345)
    assert.strictEqual(valueOf(families, "perseus_cancels_total", { outcome: "forwarded" }), 6)
    assert.strictEqual(valueOf(families, "perseus_cancels_total", { outcome: "without effect" }), 7)
    assert.strictEqual(valueOf(families, "perseus_draining"), 1)
  })

  it("says which build runs, and what the process uses", () => {
    const families = scrape()
    assert.strictEqual(valueOf(families, "perseus_build_info", { version: "1.2.3", commit: "c0ffee" }), 1)
    assert.strictEqual(valueOf(families, "process_start_time_seconds"), 1_795_465_384.752)
    assert.strictEqual(valueOf(families, "process_cpu_seconds_total"), 12.5)
    assert.strictEqual(valueOf(families, "process_resident_memory_bytes"), 104_857_600)
    assert.strictEqual(valueOf(families, "process_open_fds"), 42)
    assert.strictEqual(valueOf(families, "process_max_fds"), 1024)
    assert.strictEqual(valueOf(families, "nodejs_eventloop_lag_max_seconds"), 0.11)
  })

  it("leaves out what the system does not say", () => {
    const families = scrape({}, { ...process, openFds: undefined, maxFds: undefined })
    assert.isFalse(families.has("process_open_fds"))
    assert.isFalse(families.has("process_max_fds"))
  })

  it("keeps the series of many pools apart and each name's together", () => {
    const families = scrape({ pools: [poolOf("a", "x"), poolOf("a", "y"), poolOf("b", "x")] })
    const labels = (families.get("perseus_open_connections")?.samples ?? []).map((sample) => sample.labels)
    assert.deepStrictEqual(labels, [
      { dest_host: "a", dest_db: "x" },
      { dest_host: "a", dest_db: "y" },
      { dest_host: "b", dest_db: "x" }
    ])
    assert.lengthOf(families.get("perseus_wait_seconds")?.samples ?? [], 3 * (WAIT_BUCKETS.length + 3))
  })

  it("has no family without a series", () => {
    for (const [name, { samples }] of scrape()) assert.isNotEmpty(samples, name)
  })

  it("names counters with _total, and only them", () => {
    for (const [name, { type }] of scrape({ pools: [poolOf("h", "d")], logins: new Map([["ok", 1]]) })) {
      assert.strictEqual(name.endsWith("_total"), type === "counter", name)
    }
  })

  it("escapes a label so that it reads back as it was", () => {
    const destDb = 'a"b\\c\nd\\n,e="f"} 1\n# TYPE x counter €'
    const families = scrape({ pools: [poolOf("h", destDb)] })
    assert.strictEqual(valueOf(families, "perseus_open_connections", { dest_host: "h", dest_db: destDb }), 7)
  })
})

describe("the wait histogram", () => {
  /** Bounds and counts of its buckets, its sum and its count. */
  const histogramAfter = (...waits: ReadonlyArray<number>) => {
    const statistics = new PoolStatistics()
    for (const millis of waits) statistics.waited(millis)
    const samples = scrape({ pools: [poolOf("h", "d", statistics)] }).get("perseus_wait_seconds")?.samples ?? []
    return {
      buckets: samples
        .filter(({ labels }) => "le" in labels)
        .map(({ labels, value }) => [labels["le"], value] as const),
      sum: samples.find(({ name }) => name.endsWith("_sum"))?.value,
      count: samples.find(({ name }) => name.endsWith("_count"))?.value
    }
  }

  it("has every bound of the pool's buckets and +Inf, in order", () => {
    assert.deepStrictEqual(
      histogramAfter().buckets.map(([bound]) => bound),
      [...WAIT_BUCKETS.map(String), "+Inf"]
    )
  })

  it("is cumulative, ends with the count, and puts a wait at a bound below it", () => {
    const { buckets, sum, count } = histogramAfter(0, 1, 1.5, 100, 29_999, 60_000)
    const counts = new Map(buckets)
    assert.strictEqual(counts.get("0.001"), 2)
    assert.strictEqual(counts.get("0.0025"), 3)
    assert.strictEqual(counts.get("0.1"), 4)
    assert.strictEqual(counts.get("10"), 4)
    assert.strictEqual(counts.get("30"), 5)
    assert.strictEqual(counts.get("+Inf"), 6)
    assert.strictEqual(count, 6)
    assert.closeTo(sum ?? 0, 90.1015, 1e-9)
    for (const [i, [bound, value]] of buckets.entries()) {
      assert.isAtLeast(value, buckets[i - 1]?.[1] ?? 0, `le=${bound}`)
    }
  })

  it("is all zero where nobody waited", () => {
    const { buckets, sum, count } = histogramAfter()
    assert.isTrue(buckets.every(([, value]) => value === 0))
    assert.strictEqual(sum, 0)
    assert.strictEqual(count, 0)
  })
})

describe("the process's figures", () => {
  it.live("are those of this process", () =>
    Effect.gen(function* () {
      const read = yield* processSnapshots
      const first = read()
      const second = read()
      assert.isAbove(first.residentBytes, first.heapUsedBytes / 2)
      assert.isAbove(first.cpuSeconds, 0)
      assert.isAtLeast(second.cpuSeconds, first.cpuSeconds)
      assert.isAtLeast(second.eventLoopActiveSeconds, first.eventLoopActiveSeconds)
      assert.isBelow(first.startTime, Date.now() / 1000)
      assert.isAbove(first.startTime, Date.now() / 1000 - 86_400)
    })
  )

  it.live("have no lag where nothing was sampled yet", () =>
    Effect.gen(function* () {
      const read = yield* processSnapshots
      assert.deepStrictEqual(read().eventLoopLagSeconds, { p50: 0, p99: 0, max: 0 })
    })
  )
})
