/**
 * What Linux tells of processes and of the machine: CPU time, resident memory, and how much of the CPU went to anybody else.
 *
 * Reads `/proc` alone, so it works on Linux and nowhere else. CPU times are in microseconds; the kernel counts them in ticks of
 * 10 ms, which is 0.2 % of a measurement of five seconds.
 */
import { readdirSync, readFileSync, readlinkSync, writeFileSync } from "node:fs"
import { pid as ownPid } from "node:process"

const TICK_US = 10_000

interface ProcessTimes {
  readonly parent: number
  /** Of the process and of its threads. */
  readonly own: number
  /** Of its children that have ended and were waited for. */
  readonly ended: number
}

const timesOf = (pid: number): ProcessTimes | null => {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1")
    // The second field is the program's name, which may hold anything.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ")
    const ticks = (index: number) => Number(fields[index])
    return { parent: ticks(1), own: (ticks(11) + ticks(12)) * TICK_US, ended: (ticks(13) + ticks(14)) * TICK_US }
  } catch {
    return null
  }
}

/** CPU time of one process, µs. */
export const cpuOf = (pid: number): number => timesOf(pid)?.own ?? 0

/** CPU time of a process and all that it has started, those that have ended included, µs. */
export const cpuOfTree = (root: number): number => {
  const times = new Map<number, ProcessTimes>()
  for (const name of readdirSync("/proc")) {
    const pid = Number(name)
    const found = Number.isInteger(pid) ? timesOf(pid) : null
    if (found !== null) times.set(pid, found)
  }
  let sum = 0
  for (const [pid, { own, ended }] of times) if (descends(pid, root, times)) sum += own + ended
  return sum
}

const descends = (pid: number, root: number, times: ReadonlyMap<number, ProcessTimes>): boolean => {
  for (let at: number | undefined = pid; at !== undefined && at > 0; at = times.get(at)?.parent) {
    if (at === root) return true
  }
  return false
}

/** Resident memory of a process, in bytes. `peak`: the most that it ever was. */
export const memoryOf = (pid: number): { readonly resident: number; readonly peak: number } => {
  const status = readFileSync(`/proc/${pid}/status`, "latin1")
  const bytes = (key: string) => Number(new RegExp(`^${key}:\\s+(\\d+) kB`, "m").exec(status)?.[1] ?? 0) * 1024
  return { resident: bytes("VmRSS"), peak: bytes("VmHWM") }
}

/** The peak begins anew, at what is resident now. Of processes of the same user only. */
export const resetPeak = (pid: number): void => writeFileSync(`/proc/${pid}/clear_refs`, "5")

const ESTABLISHED = "01"

/**
 * Connections of a process over IPv4: those to a port, and those that others made to a port of its own. Told by its sockets, so
 * that other processes' connections to the same port are not among them.
 */
export const connectionsOf = (pid: number, end: { readonly to: number } | { readonly at: number }): number => {
  const sockets = new Set<string>()
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    try {
      const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`))?.[1]
      if (inode !== undefined) sockets.add(inode)
    } catch {
      // Closed since it was listed.
    }
  }
  const [column, port] = "to" in end ? [2, end.to] : [1, end.at]
  const suffix = `:${port.toString(16).toUpperCase().padStart(4, "0")}`
  let count = 0
  for (const line of readFileSync("/proc/net/tcp", "latin1").split("\n")) {
    const fields = line.trim().split(/\s+/)
    if (fields[3] === ESTABLISHED && fields[column]?.endsWith(suffix) === true && sockets.has(fields[9]!)) count++
  }
  return count
}

/** Files that a process which this one starts may have open: Node itself raises its own limit to the highest allowed. */
export const openFilesLimit = (): number => {
  const limit = /^Max open files\s+\S+\s+(\S+)/m.exec(readFileSync("/proc/self/limits", "latin1"))?.[1]
  return limit === undefined || limit === "unlimited" ? Infinity : Number(limit)
}

/** CPU time that all processors have spent on anything, time taken away by the hypervisor included, µs. */
const cpuOfMachine = (): number => {
  const [first = ""] = readFileSync("/proc/stat", "latin1").split("\n", 1)
  const [user = 0, nice = 0, system = 0, , , irq = 0, softirq = 0, steal = 0] = first
    .trim()
    .split(/\s+/)
    .slice(1)
    .map(Number)
  return (user + nice + system + irq + softirq + steal) * TICK_US
}

/** CPU time that went to nobody that this program has started, and to it itself neither, since `begin`, µs. */
export const watchOthers = (): (() => number) => {
  const foreign = () => cpuOfMachine() - cpuOfTree(ownPid)
  const before = foreign()
  return () => Math.max(0, foreign() - before)
}
