/**
 * The raw clients, in a process of their own, so that they do not disturb what measures. Told by its parent over IPC what to do;
 * ends when the parent does.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import process from "node:process"
import { cString, frame, int16, int32 } from "../src/protocol/Encoder.ts"
import { Frontend } from "../src/protocol/Frame.ts"
import { parse, query, sync } from "../src/protocol/Frontend.ts"
import { PasswordHash } from "../src/tenant/PasswordHash.ts"
import type { Answer, Group, Order } from "./wire/Order.ts"
import { Wire, type Address } from "./wire/Wire.ts"

/** Logins under way at a time where not all are to come at once. */
const LOGINS_AT_ONCE = 64
/** Rows are sent in chunks of about this size. */
const WRITE_BYTES = 64 * 1024

const kept: Array<Wire> = []
let transactions = 0
let isDriving = false
let underWay = 0
let onStill: (() => void) | null = null

/** The groups' clients, one of each group in turn. */
const inTurn = (groups: ReadonlyArray<Group>) => {
  const longest = groups.reduce((most, { count }) => Math.max(most, count), 0)
  return Array.from({ length: longest }, (_, turn) => groups.filter(({ count }) => turn < count)).flatMap((turn) =>
    turn.map(({ login }) => login)
  )
}

const open = async (at: Address, groups: ReadonlyArray<Group>): Promise<number> => {
  const logins = inTurn(groups)
  const next = async (): Promise<void> => {
    for (let login = logins.pop(); login !== undefined; login = logins.pop()) kept.push(await Wire.open(at, login))
  }
  await Promise.all(Array.from({ length: LOGINS_AT_ONCE }, next))
  return kept.length
}

const close = (): number => {
  for (const wire of kept) wire.close()
  return kept.splice(0).length
}

const storm = async (at: Address, groups: ReadonlyArray<Group>, sql: string): Promise<number> => {
  const frames = query(sql)
  const startedAt = performance.now()
  const wires = await Promise.all(
    inTurn(groups).map(async (login) => {
      const wire = await Wire.open(at, login)
      await wire.run(frames)
      return wire
    })
  )
  const seconds = (performance.now() - startedAt) / 1000
  for (const wire of wires) wire.close()
  return seconds
}

const execute = (statement: number): Buffer =>
  Buffer.concat([
    frame(Frontend.bind, cString(""), cString(`s${statement}`), int16(0), int16(0), int16(0)),
    frame(Frontend.execute, cString(""), int32(0)),
    sync
  ])

const prepare = async (statements: number): Promise<number> => {
  for (let index = 0; index < statements; index++) {
    const text = Buffer.concat([cString(`SELECT ${index}`), int16(0)])
    const frames = Buffer.concat([parse(`s${index}`, text), execute(index)])
    await Promise.all(kept.map((wire) => wire.run(frames)))
  }
  return statements
}

const begin = ({ sql, statements = 0, inFlight }: Extract<Order, { do: "begin" }>): number => {
  const frames = sql === undefined ? Array.from({ length: statements }, (_, index) => execute(index)) : [query(sql)]
  const idle = kept.slice()
  transactions = 0
  isDriving = true
  const next = (): void => {
    const chosen = Math.floor(Math.random() * idle.length)
    const wire = idle[chosen]!
    underWay++
    idle[chosen] = idle.at(-1)!
    idle.pop()
    wire.send(frames[Math.floor(Math.random() * frames.length)]!, (failure) => {
      if (failure !== null) throw failure
      idle.push(wire)
      transactions++
      underWay--
      if (isDriving) next()
      else if (underWay === 0) onStill?.()
    })
  }
  for (let count = 0; count < Math.min(inFlight, kept.length); count++) next()
  return 0
}

/** What is under way comes to its end. */
const stop = async (): Promise<number> => {
  isDriving = false
  if (underWay > 0) await new Promise<void>((resolve) => (onStill = resolve))
  return transactions
}

const read = async (at: Address, login: Group["login"], sql: string): Promise<number> => {
  const wire = await Wire.open(at, login)
  const [before, startedAt] = [wire.received, performance.now()]
  await wire.run(query(sql))
  const perSecond = ((wire.received - before) * 1000) / (performance.now() - startedAt)
  wire.close()
  return perSecond
}

const write = async ({ at, login, sql, rowBytes, rows }: Extract<Order, { do: "write" }>): Promise<number> => {
  const row = frame(Frontend.copyData, Buffer.from(`${"x".repeat(rowBytes)}\n`))
  const together = Math.max(1, Math.floor(WRITE_BYTES / row.length))
  const wire = await Wire.open(at, login)
  const startedAt = performance.now()
  await wire.copyIn(sql, Buffer.concat(Array<Buffer>(together).fill(row)), Math.ceil(rows / together))
  const bytes = Math.ceil(rows / together) * together * row.length
  const perSecond = (bytes * 1000) / (performance.now() - startedAt)
  wire.close()
  return perSecond
}

const derive = ({ hash, password, times }: Extract<Order, { do: "derive" }>): Promise<number> =>
  Effect.gen(function* () {
    const passwords = yield* PasswordHash
    const startedAt = performance.now()
    yield* Effect.forEach(
      Array.from({ length: times }, (_, index) => `t${index}`),
      (tenant) => passwords.verify({ tenant, stored: hash, password: Redacted.make(password) }),
      { concurrency: "unbounded", discard: true }
    )
    return (performance.now() - startedAt) / 1000
  }).pipe(Effect.provide(PasswordHash.layer()), Effect.runPromise)

const obey = async (order: Order): Promise<number> => {
  switch (order.do) {
    case "open":
      return open(order.at, order.groups)
    case "close":
      return close()
    case "storm":
      return storm(order.at, order.groups, order.sql)
    case "prepare":
      return prepare(order.statements)
    case "begin":
      return begin(order)
    case "count":
      return transactions
    case "stop":
      return stop()
    case "read":
      return read(order.at, order.login, order.sql)
    case "write":
      return write(order)
    case "derive":
      return derive(order)
  }
}

const answer = (answer: Answer): void => void process.send!(answer)

process.on("message", (order: Order) => {
  obey(order).then(
    (value) => answer({ value }),
    (cause: unknown) => answer({ failure: `${order.do}: ${cause instanceof Error ? cause.message : String(cause)}` })
  )
})
process.on("disconnect", () => process.exit())
