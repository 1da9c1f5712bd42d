/**
 * `/metrics`: what the service counts, as Prometheus text 0.0.4, made when somebody scrapes.
 *
 * Nothing is measured here and nothing is kept between two scrapes: the counts are the pools' and sessions' own plain
 * numbers, so the series of a closed pool are gone with the pool. A label's value is a destination, a state, a SQLSTATE or
 * an outcome, never what a client chose: the configuration and the rows bound the number of series.
 *
 * The text is written here and not by Effect's PrometheusMetrics, which can express all of it (`Metric.registerUnsafe`
 * with a registry of its own) but takes 0.3 ms for a pool's 37 lines where this takes 0.02: with 100 destinations each
 * scrape would stop the relay for 30 ms.
 *
 * The process's own figures carry the names that Prometheus' client libraries gave them, so that common dashboards
 * work as they are.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { readFileSync, statSync } from "node:fs"
import { monitorEventLoopDelay, performance } from "node:perf_hooks"
import { cpuUsage, memoryUsage } from "node:process"
import type { BuildInfo } from "../BuildInfo.ts"
import type { ThrottleCounts } from "../tenant/LoginThrottle.ts"
import { type PoolSnapshot, WAIT_BUCKETS } from "../pool/PoolStatistics.ts"

/** The `Content-Type` of what `format` returns. */
export const CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

/** The service at one moment. Maps and counters count from its start. */
export interface ServiceSnapshot {
  /** One for each pair of `destHost` and `destDb`. */
  readonly pools: ReadonlyArray<PoolSnapshot>
  /** Client connections now, each in one state. */
  readonly clients: {
    readonly login: number
    readonly idle: number
    readonly waiting: number
    readonly active: number
  }
  /** 0: no limit. */
  readonly maxClients: number
  /** By outcome: "ok", "unknown tenant", "wrong password", … */
  readonly logins: ReadonlyMap<string, number>
  /** Logins that were delayed or refused because others of their address or tenant had failed. */
  readonly throttledLogins: ThrottleCounts
  /** Faults that this service answered clients with. */
  readonly errorsBySqlState: ReadonlyMap<string, number>
  readonly transactions: number
  /** Times that a connection stayed with its client, by what it had there. */
  readonly pinnedBy: ReadonlyMap<string, number>
  /** CancelRequests: passed on to a server, or without effect (unknown key, or nothing was running). */
  readonly cancels: { readonly forwarded: number; readonly withoutEffect: number }
  readonly draining: boolean
}

/** The process at one moment. */
export interface ProcessSnapshot {
  /** Unix time, seconds. */
  readonly startTime: number
  /** User and system time together. */
  readonly cpuSeconds: number
  readonly residentBytes: number
  readonly heapUsedBytes: number
  readonly heapTotalBytes: number
  readonly externalBytes: number
  /** Undefined where the system does not say (Linux from 6.2 does). */
  readonly openFds: number | undefined
  readonly maxFds: number | undefined
  /** How long the event loop has not been idle, since the start. */
  readonly eventLoopActiveSeconds: number
  /** How late the event loop ran its timers, since the previous look. */
  readonly eventLoopLagSeconds: { readonly p50: number; readonly p99: number; readonly max: number }
}

// ---------------------------------------------------------------------------------------------------------------------
// The text
// ---------------------------------------------------------------------------------------------------------------------

/** The format's only escapes; everything else may stand in a label as it is. */
const escapeLabel = (value: string): string =>
  value.replace(/[\\"\n]/g, (character) => (character === "\n" ? "\\n" : `\\${character}`))

/** `{a="b",c="d"}` */
const labelText = (labels: Readonly<Record<string, string>>): string =>
  `{${Object.entries(labels)
    .map(([name, value]) => `${name}="${escapeLabel(value)}"`)
    .join(",")}}`

const withLe = (labels: string, bound: number | "+Inf"): string => `${labels.slice(0, -1)},le="${bound}"}`

interface Series {
  /** As `labelText` writes them, or "". */
  readonly labels: string
  readonly value: number
}

/** All series of one name, which must stand together. Of the help's escapes none is needed. */
const family = (
  type: "counter" | "gauge",
  name: string,
  help: string,
  series: ReadonlyArray<Series>
): ReadonlyArray<string> =>
  series.length === 0
    ? []
    : [
        `# HELP ${name} ${help}`,
        `# TYPE ${name} ${type}`,
        ...series.map(({ labels, value }) => `${name}${labels} ${value}`)
      ]

const single = (value: number): ReadonlyArray<Series> => [{ labels: "", value }]

/** One series for each value of `label`. */
const by = (label: string, values: Iterable<readonly [string, number]>): ReadonlyArray<Series> =>
  Array.from(values, ([of, value]) => ({ labels: labelText({ [label]: of }), value }))

// ---------------------------------------------------------------------------------------------------------------------
// Pools
// ---------------------------------------------------------------------------------------------------------------------

type PoolSeries = readonly [name: string, help: string, value: (pool: PoolSnapshot) => number]

const POOL_GAUGES: ReadonlyArray<PoolSeries> = [
  ["perseus_max_open_connections", "Limit of server connections, 0: none.", (pool) => pool.maxOpen],
  ["perseus_open_connections", "Server connections, idle, in use or closing.", (pool) => pool.open],
  ["perseus_in_use_connections", "Server connections that are lent or made ready to be.", (pool) => pool.inUse],
  ["perseus_idle_connections", "Server connections that are idle.", (pool) => pool.idle],
  [
    "perseus_pinned_connections",
    "Server connections that stay with one client between transactions.",
    (pool) => pool.pinned
  ],
  ["perseus_opening_connections", "Server connections that are being opened.", (pool) => pool.opening],
  ["perseus_waiting_clients", "Clients that wait for a server connection.", (pool) => pool.waiting]
]

const POOL_COUNTERS: ReadonlyArray<PoolSeries> = [
  ["perseus_wait_count_total", "Leases that had to wait.", ({ statistics }) => statistics.waitCount],
  [
    "perseus_wait_duration_seconds_total",
    "Time that leases waited, all together.",
    ({ statistics }) => statistics.waitMillis / 1000
  ],
  [
    "perseus_max_idle_closed_total",
    "Server connections closed because MaxIdle were idle already.",
    ({ statistics }) => statistics.maxIdleClosed
  ],
  [
    "perseus_max_idle_time_closed_total",
    "Server connections closed because they were idle for MaxIdletimeSecs.",
    ({ statistics }) => statistics.maxIdleTimeClosed
  ],
  [
    "perseus_max_lifetime_closed_total",
    "Server connections closed because they were MaxLifetimeSecs old.",
    ({ statistics }) => statistics.maxLifetimeClosed
  ],
  ["perseus_leases_total", "Times that a server connection was lent.", ({ statistics }) => statistics.leases],
  [
    "perseus_tenant_switches_total",
    "Times that a server connection was cleared and given a tenant's search_path.",
    ({ statistics }) => statistics.tenantSwitches
  ],
  [
    "perseus_setting_changes_total",
    "Times that only settings were changed before a lease.",
    ({ statistics }) => statistics.settingChanges
  ],
  [
    "perseus_connection_checks_total",
    "Empty round trips before a lease, on connections long unused.",
    ({ statistics }) => statistics.checks
  ],
  [
    "perseus_inspections_total",
    "Times that a server was asked what a transaction had left behind.",
    ({ statistics }) => statistics.inspections
  ],
  ["perseus_connections_opened_total", "Server connections opened.", ({ statistics }) => statistics.opened],
  [
    "perseus_connect_failures_total",
    "Server connections that could not be opened.",
    ({ statistics }) => statistics.connectFailures
  ],
  [
    "perseus_discarded_connections_total",
    "Server connections closed because their state was in doubt.",
    ({ statistics }) => statistics.discarded
  ],
  [
    "perseus_acquire_timeouts_total",
    "Clients that gave up waiting after AcquireTimeoutSecs.",
    ({ statistics }) => statistics.acquireTimeouts
  ],
  [
    "perseus_cancels_forwarded_total",
    "Cancel requests passed on to the server.",
    ({ statistics }) => statistics.cancelsForwarded
  ]
]

interface LabelledPool {
  readonly labels: string
  readonly pool: PoolSnapshot
}

/** Buckets count up: each holds what the ones before it hold, and the last all. */
const waitLines = ({ labels, pool: { statistics } }: LabelledPool): ReadonlyArray<string> => {
  let count = 0
  const buckets = [...WAIT_BUCKETS, "+Inf" as const].map((bound, i) => {
    count += statistics.waitBuckets[i] ?? 0
    return `perseus_wait_seconds_bucket${withLe(labels, bound)} ${count}`
  })
  return [
    ...buckets,
    `perseus_wait_seconds_sum${labels} ${statistics.waitMillis / 1000}`,
    `perseus_wait_seconds_count${labels} ${count}`
  ]
}

const poolLines = (snapshots: ReadonlyArray<PoolSnapshot>): ReadonlyArray<string> => {
  if (snapshots.length === 0) return []
  const pools = snapshots.map((pool): LabelledPool => ({
    labels: labelText({ dest_host: pool.destHost, dest_db: pool.destDb }),
    pool
  }))
  const families = (type: "counter" | "gauge", table: ReadonlyArray<PoolSeries>) =>
    table.flatMap(([name, help, value]) =>
      family(
        type,
        name,
        help,
        pools.map(({ labels, pool }) => ({ labels, value: value(pool) }))
      )
    )
  return [
    ...families("gauge", POOL_GAUGES),
    ...families("counter", POOL_COUNTERS),
    "# HELP perseus_wait_seconds How long a lease waited, of those that had to.",
    "# TYPE perseus_wait_seconds histogram",
    ...pools.flatMap(waitLines)
  ]
}

// ---------------------------------------------------------------------------------------------------------------------
// Service and process
// ---------------------------------------------------------------------------------------------------------------------

const serviceLines = (service: ServiceSnapshot): ReadonlyArray<string> => [
  ...family(
    "gauge",
    "perseus_clients",
    "Client connections by what they do.",
    by("state", Object.entries(service.clients))
  ),
  ...family("gauge", "perseus_max_clients", "Limit of client connections, 0: none.", single(service.maxClients)),
  ...family("counter", "perseus_logins_total", "Logins by how they ended.", by("outcome", service.logins)),
  ...family(
    "counter",
    "perseus_logins_throttled_total",
    "Logins that were delayed or blocked because others had failed.",
    (["delayed", "blocked"] as const).flatMap((action) =>
      (["address", "tenant"] as const).map((by) => ({
        labels: labelText({ action, by }),
        value: service.throttledLogins[action][by]
      }))
    )
  ),
  ...family(
    "counter",
    "perseus_errors_total",
    "Faults that clients were answered with.",
    by("sqlstate", service.errorsBySqlState)
  ),
  ...family("counter", "perseus_transactions_total", "Transactions that ended.", single(service.transactions)),
  ...family(
    "counter",
    "perseus_cancels_total",
    "Cancel requests from clients by what came of them.",
    by("outcome", [
      ["forwarded", service.cancels.forwarded],
      ["without effect", service.cancels.withoutEffect]
    ])
  ),
  ...family(
    "counter",
    "perseus_pinned_total",
    "Connections that were pinned, by the reason.",
    by("hold", service.pinnedBy)
  ),
  ...family("gauge", "perseus_draining", "1 while the service goes down.", single(service.draining ? 1 : 0))
]

const buildLines = (build: BuildInfo): ReadonlyArray<string> =>
  family("gauge", "perseus_build_info", "Always 1; the labels say which build runs.", [
    { labels: labelText({ version: build.build_version, commit: build.commit_hash }), value: 1 }
  ])

/** No line where the system does not say. */
const known = (value: number | undefined): ReadonlyArray<Series> => (value === undefined ? [] : single(value))

const processLines = (now: ProcessSnapshot): ReadonlyArray<string> => {
  const lag = now.eventLoopLagSeconds
  return [
    ...family("gauge", "process_start_time_seconds", "Unix time of the process's start.", single(now.startTime)),
    ...family("counter", "process_cpu_seconds_total", "CPU time of user and system.", single(now.cpuSeconds)),
    ...family("gauge", "process_resident_memory_bytes", "Resident memory.", single(now.residentBytes)),
    ...family("gauge", "process_open_fds", "Open file descriptors.", known(now.openFds)),
    ...family("gauge", "process_max_fds", "Limit of open file descriptors.", known(now.maxFds)),
    ...family("gauge", "nodejs_heap_size_used_bytes", "JavaScript heap in use.", single(now.heapUsedBytes)),
    ...family("gauge", "nodejs_heap_size_total_bytes", "JavaScript heap held.", single(now.heapTotalBytes)),
    ...family(
      "gauge",
      "nodejs_external_memory_bytes",
      "Memory of buffers outside the heap.",
      single(now.externalBytes)
    ),
    ...family(
      "counter",
      "nodejs_eventloop_active_seconds_total",
      "Time in which the event loop was not idle.",
      single(now.eventLoopActiveSeconds)
    ),
    ...family(
      "gauge",
      "nodejs_eventloop_lag_p50_seconds",
      "Median lag of timers since the last scrape.",
      single(lag.p50)
    ),
    ...family("gauge", "nodejs_eventloop_lag_p99_seconds", "99th percentile of that lag.", single(lag.p99)),
    ...family("gauge", "nodejs_eventloop_lag_max_seconds", "Greatest such lag.", single(lag.max))
  ]
}

/** The whole text of one scrape, of content type `CONTENT_TYPE`. */
export const format = (service: ServiceSnapshot, process: ProcessSnapshot, build: BuildInfo): string =>
  [...poolLines(service.pools), ...serviceLines(service), ...buildLines(build), ...processLines(process), ""].join("\n")

// ---------------------------------------------------------------------------------------------------------------------
// Reading the process
// ---------------------------------------------------------------------------------------------------------------------

/** How often the event loop's lag is sampled: 50 timers a second cost nothing that can be measured. */
const LAG_RESOLUTION_MS = 20

/** What `read` gives, or undefined: /proc is Linux's, and a sandbox may hide it. */
const ifReadable = <A>(read: () => A | undefined): A | undefined => {
  try {
    return read()
  } catch {
    return undefined
  }
}

/** Linux 6.2 made this size the number of descriptors; it is 0 before. Listing the directory would cost 10,000 names. */
const openFds = (): number | undefined => ifReadable(() => statSync("/proc/self/fd").size || undefined)

const maxFds = (): number | undefined =>
  ifReadable(() => {
    const soft = /^Max open files\s+(\d+)/m.exec(readFileSync("/proc/self/limits", "latin1"))?.[1]
    return soft === undefined ? undefined : Number(soft)
  })

/** Samples the event loop's lag until the scope closes. What it gives reads the process, and begins a new look at the lag. */
export const processSnapshots: Effect.Effect<() => ProcessSnapshot, never, Scope.Scope> = Effect.gen(function* () {
  const lag = yield* Effect.acquireRelease(
    Effect.sync(() => {
      const histogram = monitorEventLoopDelay({ resolution: LAG_RESOLUTION_MS })
      histogram.enable()
      return histogram
    }),
    (histogram) => Effect.sync(() => histogram.disable())
  )
  // A sample is the time between two timers, in ns, and so includes the resolution. Without a sample all are near 0.
  const seconds = (nanos: number) => Math.max(0, nanos / 1e9 - LAG_RESOLUTION_MS / 1000)
  return () => {
    const cpu = cpuUsage()
    const memory = memoryUsage()
    const eventLoopLagSeconds = {
      p50: seconds(lag.percentile(50)),
      p99: seconds(lag.percentile(99)),
      max: seconds(lag.max)
    }
    lag.reset()
    return {
      startTime: performance.timeOrigin / 1000,
      cpuSeconds: (cpu.user + cpu.system) / 1e6,
      residentBytes: memory.rss,
      heapUsedBytes: memory.heapUsed,
      heapTotalBytes: memory.heapTotal,
      externalBytes: memory.external,
      openFds: openFds(),
      maxFds: maxFds(),
      eventLoopActiveSeconds: performance.eventLoopUtilization().active / 1000,
      eventLoopLagSeconds
    }
  }
})
