import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { Socket } from "node:net"
import { eventually, SharedPerseus } from "../support/perseus.ts"
import { seeded } from "../support/random.ts"
import { rowsOf, sqlStatesOf, sslRequest, startup, type RawClient } from "../support/rawClient.ts"
import { type Daemon, MB, startDaemon } from "./Daemon.ts"

const LOGIN_TIMEOUT_SECS = 3
/** 5 000 connections that are closed at one moment need some 20 kB each; what is still held of them when the next come would not fit. */
const HEAP_MEGABYTES = 192
/** Generous for a machine that runs other tests beside this: whoever is harmed waits for seconds or for ever. */
const LONGEST_ANSWER_MS = 2_000

interface Uninvited {
  readonly socket: Socket
  readonly closed: Promise<void>
}

/** Connections that all say the same kind of nothing; none is closed by its own side. */
const uninvited = (daemon: Daemon, count: number, first: (index: number) => Buffer) =>
  Effect.forEach(
    Array.from({ length: count }, (_, index) => index),
    (index) =>
      Effect.map(daemon.socket, (socket): Uninvited => {
        const closed = new Promise<void>((resolve) => socket.once("close", () => resolve()))
        socket.resume()
        socket.write(first(index))
        return { socket, closed }
      }),
    { concurrency: 100 }
  )

/** Somebody else's query is answered, and how long it took at most. */
const isServed = (client: RawClient, times: number) =>
  Effect.gen(function* () {
    let longest = 0
    for (let turn = 0; turn < times; turn++) {
      const before = performance.now()
      assert.deepStrictEqual(rowsOf(yield* client.query("SELECT 'served'")), ["served"])
      longest = Math.max(longest, performance.now() - before)
    }
    assert.isBelow(longest, LONGEST_ANSWER_MS)
  })

const allClosed = (clients: ReadonlyArray<Uninvited>) =>
  Effect.promise(() => Promise.all(clients.map(({ closed }) => closed)))

const daemonOf = (stage: SharedPerseus["Service"], ClientLoginTimeoutSecs = LOGIN_TIMEOUT_SECS) =>
  startDaemon(stage, { LimitSettings: { ClientLoginTimeoutSecs } }, HEAP_MEGABYTES)

layer(SharedPerseus.with({ tenants: ["red", "green"] }), { excludeTestServices: true })(
  "connections that never log in",
  (it) => {
    it.effect(
      "5 000 at once are closed in time and take bounded memory, again and again, and others are served",
      () =>
        Effect.gen(function* () {
          const stage = yield* SharedPerseus
          const daemon = yield* daemonOf(stage)
          const served = yield* daemon.login("green")
          const packet = startup(stage.tenant("red").startup)
          const firsts = [
            Buffer.alloc(0),
            packet.subarray(0, 3),
            packet.subarray(0, packet.length / 2),
            sslRequest,
            packet
          ]
          const wave = Effect.scoped(
            Effect.gen(function* () {
              const clients = yield* uninvited(daemon, 5_000, (index) => firsts[index % firsts.length]!)
              yield* isServed(served, 20)
              const during = yield* daemon.resident
              const since = performance.now()
              yield* allClosed(clients)
              // The last of them came before `since`; the sweep of sockets itself takes time on a busy machine.
              assert.isBelow(performance.now() - since, (LOGIN_TIMEOUT_SECS + 10) * 1000)
              yield* eventually(daemon.metric("perseus_clients"), (count) => count === 1)
              yield* isServed(served, 5)
              return during
            })
          )
          const before = yield* daemon.resident
          let most = 0
          for (let turn = 0; turn < 2; turn++) most = Math.max(most, yield* wave, yield* daemon.resident)
          assert.isBelow(most - before, (HEAP_MEGABYTES + 32) * MB)
        }),
      { timeout: 90_000 }
    )

    it.effect("and speak another protocol are closed at once: HTTP, TLS, noise", () =>
      Effect.gen(function* () {
        const stage = yield* SharedPerseus
        const daemon = yield* daemonOf(stage, 600)
        const served = yield* daemon.login("green")
        const random = seeded(13)
        const wave = Effect.scoped(
          Effect.gen(function* () {
            const clients = yield* uninvited(daemon, 1_000, (index) => {
              switch (index % 4) {
                case 0:
                  return Buffer.from("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                case 1:
                  return Buffer.from("16030100c8010000c40303", "hex")
                case 2:
                  return Buffer.concat([Buffer.of(0x80 | random.below(128)), random.bytes(random.below(4096) + 7)])
                default:
                  return Buffer.alloc(64 * 1024)
              }
            })
            yield* isServed(served, 20)
            // Not by the login's timeout, which lasts longer than this test.
            yield* allClosed(clients)
          })
        )
        const before = yield* daemon.resident
        for (let turn = 0; turn < 2; turn++) yield* wave
        assert.isBelow((yield* daemon.resident) - before, 128 * MB)
      })
    )

    it.effect("though one sends a startup packet byte for byte for ever, its time is over like any other's", () =>
      Effect.gen(function* () {
        const stage = yield* SharedPerseus
        const daemon = yield* daemonOf(stage)
        const slow = yield* daemon.raw
        const since = performance.now()
        slow.send(Buffer.from([0, 0, 0x20, 0]), Buffer.from([0, 3, 0, 0]))
        const drip = setInterval(() => slow.send(Buffer.from("x")), 100)
        const answers = yield* slow.closed()
        clearInterval(drip)
        assert.strictEqual(sqlStatesOf(answers).length, 1)
        assert.isAtLeast(performance.now() - since, LOGIN_TIMEOUT_SECS * 1000 - 100)
      })
    )
  }
)
