/**
 * What one run of one target measured, and the arithmetic over several.
 */

/** Left out where a scenario does not measure it. CPU in µs for each transaction, latencies in milliseconds. */
export interface Sample {
  /** Of the pooler's process. */
  readonly cpuPerTx?: number
  /** Of PostgreSQL, all its processes. */
  readonly serverCpuPerTx?: number
  /** Of the two together. */
  readonly totalCpuPerTx?: number
  readonly tps?: number
  readonly p50?: number
  readonly p95?: number
  readonly p99?: number
  /** Of the pooler's process, resident at the end. */
  readonly memoryMb?: number
  /** By how much the pooler's memory was higher at its peak than before. */
  readonly growthMb?: number
  /** Resident memory for each client, kB. */
  readonly kbPerClient?: number
  readonly mbPerSec?: number
  readonly seconds?: number
  /** Connections that PostgreSQL had open. */
  readonly serverConnections?: number
}

export type Measure = keyof Sample

/** In the order of the tables. `better`: which way is up. */
export const measures: ReadonlyArray<{
  readonly key: Measure
  readonly title: string
  readonly better: "less" | "more"
}> = [
  { key: "cpuPerTx", title: "CPU/tx µs", better: "less" },
  { key: "serverCpuPerTx", title: "server µs", better: "less" },
  { key: "totalCpuPerTx", title: "both µs", better: "less" },
  { key: "tps", title: "tx/s", better: "more" },
  { key: "mbPerSec", title: "MB/s", better: "more" },
  { key: "seconds", title: "seconds", better: "less" },
  { key: "p50", title: "p50 ms", better: "less" },
  { key: "p95", title: "p95 ms", better: "less" },
  { key: "p99", title: "p99 ms", better: "less" },
  { key: "memoryMb", title: "RSS MB", better: "less" },
  { key: "growthMb", title: "growth MB", better: "less" },
  { key: "kbPerClient", title: "kB/client", better: "less" },
  { key: "serverConnections", title: "server conns", better: "less" }
]

/** Some of a sample's measures, where the others would mean nothing. */
export const only = (sample: Sample, ...keys: ReadonlyArray<Measure>): Sample =>
  byMeasure((key) => (keys.includes(key) ? sample[key] : undefined))

export const median = (values: ReadonlyArray<number>): number =>
  quantile(
    values.toSorted((a, b) => a - b),
    0.5
  )

/** Of sorted values, at least one. */
export const quantile = (sorted: ArrayLike<number>, q: number): number => {
  const at = q * (sorted.length - 1)
  const below = sorted[Math.floor(at)] ?? Number.NaN
  const above = sorted[Math.ceil(at)] ?? Number.NaN
  return below + (above - below) * (at - Math.floor(at))
}

const byMeasure = (of: (key: Measure) => number | undefined): Sample =>
  Object.fromEntries(
    measures.flatMap(({ key }) => {
      const value = of(key)
      return value === undefined || !Number.isFinite(value) ? [] : [[key, value]]
    })
  )

const defined = (values: ReadonlyArray<number | undefined>): ReadonlyArray<number> =>
  values.filter((value) => value !== undefined)

/** Each measure's median. */
export const medianOf = (samples: ReadonlyArray<Sample>): Sample =>
  byMeasure((key) => {
    const values = defined(samples.map((sample) => sample[key]))
    return values.length === 0 ? undefined : median(values)
  })

/** The median of the rounds' own ratios: what slows a whole round slows both, and falls out. */
export const ratioOf = (ours: ReadonlyArray<Sample>, baseline: ReadonlyArray<Sample>): Sample =>
  byMeasure((key) => {
    const ratios = ours.flatMap((sample, round) => {
      const [mine, other] = [sample[key], baseline[round]?.[key]]
      return mine === undefined || other === undefined || other === 0 ? [] : [mine / other]
    })
    return ratios.length === 0 ? undefined : median(ratios)
  })
