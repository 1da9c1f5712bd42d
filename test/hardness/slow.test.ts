/**
 * Peers that do not read, or read slowly, while gigabytes are offered to them. Memory is that of the process under test, against
 * what it was after as many bytes had gone through it at full speed.
 *
 * A client that reads slowly does so for thirty seconds. One that does not read at all is no different after five:
 * where memory is not flat it grows with what is offered, at hundreds of megabytes a second.
 */
import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Socket } from "node:net"
import { eventually, SharedPerseus, type TestPerseus } from "../support/perseus.ts"
import {
  bind,
  copyData,
  execute,
  int32,
  parse,
  query,
  rowsOf,
  startup,
  password,
  sync,
  text,
  type RawClient
} from "../support/rawClient.ts"
import { type Daemon, MB, startDaemon } from "./Daemon.ts"

const READING_SECONDS = 30
const SECONDS = 5
const ALLOWED_GROWTH = 32 * MB
const LONGEST_ANSWER_MS = 2_000
const OFFERED = 2 * 1024 * MB
/** What may be under way in the kernel's buffers, two on each of two connections, of which Linux lets each grow to many megabytes. */
const UNDER_WAY = 128 * MB

/** A bare socket, logged in; paused. */
const bare = (stage: TestPerseus, daemon: Daemon, schema: string): Effect.Effect<Socket, never, Scope.Scope> =>
  Effect.gen(function* () {
    const socket = yield* daemon.socket
    const tenant = stage.tenant(schema)
    let greeting = ""
    socket.on("data", (chunk: Buffer) => {
      if (greeting.length < 10_000) greeting += chunk.toString("latin1")
    })
    socket.write(startup(tenant.startup))
    yield* eventually(
      Effect.sync(() => greeting),
      (heard) => heard.startsWith("R")
    )
    socket.write(password(tenant.password))
    yield* eventually(
      Effect.sync(() => greeting),
      (heard) => heard.endsWith("Z\0\0\0\x05I")
    )
    socket.removeAllListeners("data")
    socket.pause()
    return socket
  })

/** Reads a megabyte a second; tells how much that was. */
const readSlowly = (socket: Socket): Effect.Effect<() => number, never, Scope.Scope> =>
  Effect.gen(function* () {
    let read = 0
    const since = performance.now()
    socket.on("data", (chunk: Buffer) => {
      read += chunk.length
      socket.pause()
    })
    const clock = setInterval(() => {
      if (read < ((performance.now() - since) / 1000) * MB) socket.resume()
    }, 10)
    yield* Effect.addFinalizer(() => Effect.sync(() => clearInterval(clock)))
    return () => read
  })

/** For as long as the test lasts, another's queries are answered and memory stays where it was. */
const staysFlat = (daemon: Daemon, other: RawClient, before: number, seconds = SECONDS) =>
  Effect.gen(function* () {
    const until = performance.now() + seconds * 1000
    while (performance.now() < until) {
      const asked = performance.now()
      assert.deepStrictEqual(rowsOf(yield* other.query("SELECT 'served'")), ["served"])
      assert.isBelow(performance.now() - asked, LONGEST_ANSWER_MS)
      assert.isBelow((yield* daemon.resident) - before, ALLOWED_GROWTH)
      yield* Effect.sleep("50 millis")
    }
  })

/** Everything is given back: no query runs on and no connection is held. */
const isOver = (stage: TestPerseus, daemon: Daemon) =>
  Effect.gen(function* () {
    yield* eventually(
      Effect.all([daemon.metric("perseus_in_use_connections"), daemon.metric("perseus_open_connections")]),
      ([inUse]) => inUse === 0
    )
    yield* eventually(stage.backends, (backends) => backends.every(({ state }) => state === "idle"))
  })

/** Takes whatever comes as fast as it comes, until this many bytes. */
const drain = (socket: Socket, bytes: number): Effect.Effect<void> =>
  Effect.callback<void>((resume) => {
    let read = 0
    socket.on("data", (chunk: Buffer) => {
      read += chunk.length
      if (read >= bytes) resume(Effect.void)
    })
    socket.resume()
  })

/** Writes until there is nothing more, and then the end, as fast as it is taken; tells how much was taken from it. */
const offer = (socket: Socket, chunk: Buffer, total = OFFERED, end: Buffer = Buffer.alloc(0)): (() => number) => {
  const before = socket.bytesWritten
  let offered = 0
  const more = () => {
    while (offered < total && !socket.destroyed) {
      offered += chunk.length
      if (!socket.write(chunk)) return void socket.once("drain", more)
    }
    socket.write(end)
  }
  more()
  return () => socket.bytesWritten - before - socket.writableLength
}

const rows = (size: number): Buffer =>
  query(`SELECT repeat('x', ${size}) FROM generate_series(1, ${Math.ceil(OFFERED / size)})`)

/** As PostgreSQL's COPY takes it. */
const lines = copyData(`${"y".repeat(1023)}\n`.repeat(63))

const daemonOf = (stage: TestPerseus) =>
  startDaemon(stage, { LimitSettings: { CancelTimeoutSecs: 5 }, PoolSettings: { MaxOpen: 4, MaxIdle: 4 } })

layer(SharedPerseus.with({ tenants: ["red", "green"] }), { excludeTestServices: true })("memory stays flat", (it) => {
  for (const [what, size] of [
    ["a kilobyte", 1024],
    ["a megabyte", MB]
  ] as const) {
    it.effect(
      `under a client that reads 2 GB in rows of ${what} at 1 MB/s and is then gone; others are served`,
      () =>
        Effect.gen(function* () {
          const stage = yield* SharedPerseus
          const daemon = yield* daemonOf(stage)
          const other = yield* daemon.login("green")
          yield* Effect.scoped(
            Effect.gen(function* () {
              const quick = yield* bare(stage, daemon, "red")
              quick.write(rows(size))
              yield* drain(quick, 128 * MB)
            })
          )
          yield* isOver(stage, daemon)
          const before = yield* daemon.resident
          yield* Effect.scoped(
            Effect.gen(function* () {
              const slow = yield* bare(stage, daemon, "red")
              const read = yield* readSlowly(slow)
              slow.write(rows(size))
              yield* staysFlat(daemon, other, before, READING_SECONDS)
              // It has really read, and slowly.
              assert.isAbove(read(), (READING_SECONDS / 2) * MB)
              assert.isBelow(read(), (READING_SECONDS + 2) * MB)
            })
          )
          yield* isOver(stage, daemon)
          yield* staysFlat(daemon, other, before, 0.5)
        }),
      { timeout: 60_000 + READING_SECONDS * 2000 }
    )
  }

  it.effect(
    "under a client that sends 2 GB of COPY to a server that does not read; others are served",
    () =>
      Effect.gen(function* () {
        const stage = yield* SharedPerseus
        const daemon = yield* daemonOf(stage)
        const other = yield* daemon.login("green")
        yield* stage.query("red", "CREATE TABLE lines (line text)")
        const warm = yield* daemon.login("red")
        warm.send(query("COPY lines FROM STDIN"))
        yield* warm.take(({ type }) => type === "G")
        for (let megabyte = 0; megabyte < 16; megabyte++) {
          for (let part = 0; part < 16; part++) warm.send(lines)
          yield* Effect.yieldNow
        }
        warm.vanish()
        yield* isOver(stage, daemon)
        const before = yield* daemon.resident
        const blocker = yield* stage.destination.client
        yield* Effect.promise(() => blocker.query("BEGIN; LOCK TABLE red.lines"))
        yield* Effect.scoped(
          Effect.gen(function* () {
            const client = yield* bare(stage, daemon, "red")
            client.write(query("COPY lines FROM STDIN"))
            const taken = offer(client, lines)
            yield* staysFlat(daemon, other, before)
            assert.isBelow(taken(), UNDER_WAY)
          })
        )
        yield* Effect.promise(() => blocker.query("ROLLBACK"))
        yield* isOver(stage, daemon)
      }),
    { timeout: 60_000 + SECONDS * 1000 }
  )

  it.effect(
    "under a Bind of 512 MB that is sent to a server which does not read; others are served",
    () =>
      Effect.gen(function* () {
        const stage = yield* SharedPerseus
        const daemon = yield* daemonOf(stage)
        const other = yield* daemon.login("green")
        const length = 512 * MB
        const warm = yield* daemon.login("red")
        const large = "x".repeat(32 * MB)
        yield* warm.exchange(Buffer.concat([parse("", "SELECT length($1)"), bind("", "", large), execute(), sync]))
        const before = yield* daemon.resident
        const blocker = yield* stage.destination.client
        yield* Effect.promise(() => blocker.query("SELECT pg_advisory_lock(14)"))
        yield* Effect.scoped(
          Effect.gen(function* () {
            const client = yield* bare(stage, daemon, "red")
            const header = [text(""), text(""), Buffer.from([0, 0, 0, 1]), int32(length)]
            const body = Buffer.concat(header)
            client.write(query("SELECT pg_advisory_lock(14)"))
            client.write(parse("", "SELECT length($1)"))
            client.write(Buffer.concat([Buffer.from("B"), int32(4 + body.length + length + 2), body]))
            const taken = offer(client, Buffer.alloc(64 * 1024, 0x78), length)
            yield* staysFlat(daemon, other, before)
            assert.isBelow(taken(), UNDER_WAY)
          })
        )
        yield* Effect.promise(() => blocker.query("SELECT pg_advisory_unlock(14)"))
        yield* isOver(stage, daemon)
      }),
    { timeout: 60_000 + SECONDS * 1000 }
  )

  it.effect(
    "under a Bind of 100 MB whose statement gets another name on its way; others are served",
    () =>
      Effect.gen(function* () {
        const stage = yield* SharedPerseus
        const daemon = yield* daemonOf(stage)
        const other = yield* daemon.login("green")
        const length = 100 * MB
        const sent = (client: Socket, name: string) => {
          const body = Buffer.concat([text(""), text(name), Buffer.from([0, 0, 0, 1]), int32(length)])
          client.write(parse(name, "SELECT length($1)"))
          client.write(Buffer.concat([Buffer.from("B"), int32(4 + body.length + length + 2), body]))
          offer(client, Buffer.alloc(64 * 1024, 0x78), length, Buffer.concat([Buffer.alloc(2), execute(), sync]))
        }
        const answered = (client: Socket) => {
          let heard = ""
          client.on("data", (chunk: Buffer) => (heard += chunk.toString("latin1")))
          client.resume()
          return () => (heard.endsWith("Z\0\0\0\x05I") ? heard : null)
        }
        const warm = yield* bare(stage, daemon, "red")
        const warmed = answered(warm)
        sent(warm, "")
        yield* eventually(Effect.sync(warmed), (heard) => heard !== null)
        const before = yield* daemon.resident
        const client = yield* bare(stage, daemon, "red")
        const done = answered(client)
        sent(client, "mine")
        let looks = 0
        for (; done() === null; looks++) yield* staysFlat(daemon, other, before, 0.01)
        assert.include(done(), String(length))
        // The message was under way while memory was looked at.
        assert.isAbove(looks, 2)
        yield* isOver(stage, daemon)
      }),
    { timeout: 60_000 }
  )

  it.effect(
    "under a client that asks for ever and reads nothing; others are served",
    () =>
      Effect.gen(function* () {
        const stage = yield* SharedPerseus
        const daemon = yield* daemonOf(stage)
        const other = yield* daemon.login("green")
        const question = query("SELECT repeat('z', 1000)")
        const batch = Buffer.concat(Array.from({ length: 500 }, () => question))
        const warm = yield* daemon.login("red")
        for (let turn = 0; turn < 20; turn++) yield* warm.exchange(batch, 500)
        const before = yield* daemon.resident
        yield* Effect.scoped(
          Effect.gen(function* () {
            const client = yield* bare(stage, daemon, "red")
            const taken = offer(client, batch)
            yield* staysFlat(daemon, other, before)
            assert.isBelow(taken(), UNDER_WAY)
          })
        )
        yield* isOver(stage, daemon)
      }),
    { timeout: 60_000 + SECONDS * 1000 }
  )
})
