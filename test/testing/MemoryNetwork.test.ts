import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Scope from "effect/Scope"
import type { Transport } from "../../src/net/Transport.ts"
import * as MemoryNetwork from "../../src/testing/MemoryNetwork.ts"

/** Deliveries wait here until the test runs them. */
const manual = () => {
  const waiting: Array<() => void> = []
  const runOne = () => waiting.shift()?.()
  const runAll = () => {
    while (waiting.length > 0) runOne()
  }
  return { schedule: (delivery: () => void) => void waiting.push(delivery), waiting, runOne, runAll }
}

interface Heard {
  readonly events: Array<string>
}

const listenTo = (transport: Transport): Heard => {
  const events: Array<string> = []
  transport.handler = {
    onData: (chunk) => void events.push(chunk.toString()),
    onDrain: () => void events.push("<drain>"),
    onClose: (reason) => void events.push(`<close ${reason}>`)
  }
  return { events }
}

/** A client of a listener, both ends heard. */
const connected = (options: MemoryNetwork.Options = {}) =>
  Effect.gen(function* () {
    const deliveries = manual()
    const memory = MemoryNetwork.make({ schedule: deliveries.schedule, ...options })
    let accepted: Transport | null = null
    yield* memory.network.listen({ host: undefined, port: 5433 }, (transport) => {
      accepted = transport
    })
    const client = memory.dial()
    deliveries.runAll()
    if (accepted === null) return yield* Effect.die("nothing was accepted")
    const server: Transport = accepted
    return { ...deliveries, memory, client, server, atClient: listenTo(client), atServer: listenTo(server) }
  })

const bytes = (text: string) => Buffer.from(text)

describe("a pair of transports", () => {
  it.effect("delivers in order and never inside the call that writes", () =>
    Effect.gen(function* () {
      const { client, atServer, runAll } = yield* connected()
      client.write(bytes("one"))
      client.write(bytes("two"))
      assert.deepStrictEqual(atServer.events, [])
      runAll()
      assert.deepStrictEqual(atServer.events, ["one", "two"])
    })
  )

  it.effect("keeps the order of one direction whichever delivery is run first", () =>
    Effect.gen(function* () {
      const { client, server, atServer, atClient, waiting } = yield* connected()
      for (const text of ["1", "2", "3"]) {
        client.write(bytes(text))
        server.write(bytes(text))
      }
      while (waiting.length > 0) waiting.pop()!()
      assert.deepStrictEqual(
        [atServer.events, atClient.events],
        [
          ["1", "2", "3"],
          ["1", "2", "3"]
        ]
      )
    })
  )

  it.effect("hands a chunk over in the pieces that were asked for", () =>
    Effect.gen(function* () {
      const { client, atServer, runAll } = yield* connected({
        split: (chunk) => [chunk.subarray(0, 1), chunk.subarray(1, 1), chunk.subarray(1)]
      })
      client.write(bytes("abc"))
      runAll()
      assert.deepStrictEqual(atServer.events, ["a", "bc"])
    })
  )

  it.effect("overwrites a chunk once it was handed over, but not what the writer holds", () =>
    Effect.gen(function* () {
      const { client, server, runAll } = yield* connected()
      let kept: Buffer = Buffer.alloc(0)
      server.handler = { onData: (chunk) => void (kept = chunk), onDrain: () => {}, onClose: () => {} }
      const written = bytes("secret")
      client.write(written)
      runAll()
      assert.deepStrictEqual(kept, Buffer.alloc(6, 0xaa))
      assert.deepStrictEqual(written, bytes("secret"))
    })
  )

  it.effect("shows it when a lent chunk is written without a copy", () =>
    Effect.gen(function* () {
      const { client, server, atClient, runAll } = yield* connected()
      server.handler = { onData: (chunk) => void server.write(chunk), onDrain: () => {}, onClose: () => {} }
      client.write(bytes("abc"))
      runAll()
      assert.deepStrictEqual(atClient.events, [Buffer.alloc(3, 0xaa).toString()])
    })
  )

  it.effect("holds what comes for a paused reader until it resumes", () =>
    Effect.gen(function* () {
      const { client, server, atServer, runAll } = yield* connected()
      server.pause()
      client.write(bytes("later"))
      client.end()
      runAll()
      assert.deepStrictEqual(atServer.events, [])
      server.resume()
      runAll()
      assert.deepStrictEqual(atServer.events, ["later", "<close null>"])
    })
  )

  it.effect("tells a writer to stop above the high water mark and to go on when all was taken", () =>
    Effect.gen(function* () {
      const { client, atClient, runOne, runAll } = yield* connected({ highWaterMark: 4 })
      assert.isTrue(client.write(bytes("1234")))
      assert.isFalse(client.write(bytes("5")))
      runOne()
      assert.deepStrictEqual(atClient.events, [])
      runAll()
      assert.deepStrictEqual(atClient.events, ["<drain>"])
    })
  )
})

describe("an end", () => {
  it.effect("comes behind what was written and is answered by an end", () =>
    Effect.gen(function* () {
      const { client, server, atClient, atServer, memory, runAll } = yield* connected()
      server.write(bytes("answer"))
      client.write(bytes("request"))
      client.end(bytes("bye"))
      runAll()
      assert.deepStrictEqual(atServer.events, ["request", "bye", "<close null>"])
      assert.deepStrictEqual(atClient.events, ["answer", "<close null>"])
      assert.deepStrictEqual([client.closed, server.closed, memory.openTransports().accepted], [true, true, 0])
    })
  )

  it.effect("resumes a paused reader, or the peer's end would never be seen", () =>
    Effect.gen(function* () {
      const { client, atClient, runAll } = yield* connected()
      client.pause()
      client.end()
      runAll()
      assert.deepStrictEqual(atClient.events, ["<close null>"])
    })
  )

  it.effect("breaks the stream of one who writes behind it", () =>
    Effect.gen(function* () {
      const { client, atClient, atServer, runAll } = yield* connected()
      client.end()
      client.write(bytes("late"))
      runAll()
      assert.deepStrictEqual(atClient.events, ["<close ERR_STREAM_WRITE_AFTER_END>"])
      assert.deepStrictEqual(atServer.events, ["<close null>"])
    })
  )
})

describe("destroy", () => {
  it.effect("is not told to the one who destroys, and resets the peer behind what is under way", () =>
    Effect.gen(function* () {
      const { client, atClient, atServer, memory, runAll } = yield* connected()
      client.write(bytes("last"))
      client.destroy()
      client.destroy()
      runAll()
      assert.deepStrictEqual(atServer.events, ["last", "<close ECONNRESET>"])
      assert.deepStrictEqual(atClient.events, [])
      assert.strictEqual(memory.openTransports().accepted, 0)
    })
  )

  it.effect("loses what is under way where that was asked for", () =>
    Effect.gen(function* () {
      const { client, atServer, runAll } = yield* connected({ losesInFlight: () => true })
      client.write(bytes("lost"))
      client.destroy()
      runAll()
      assert.deepStrictEqual(atServer.events, ["<close ECONNRESET>"])
    })
  )

  it.effect("is found out by a paused peer that writes", () =>
    Effect.gen(function* () {
      const { client, server, atServer, runAll } = yield* connected()
      server.pause()
      client.destroy()
      runAll()
      assert.deepStrictEqual(atServer.events, [])
      server.write(bytes("are you there?"))
      runAll()
      assert.deepStrictEqual(atServer.events, ["<close ECONNRESET>"])
    })
  )

  it.effect("drops what comes for it", () =>
    Effect.gen(function* () {
      const { client, server, atClient, runAll } = yield* connected()
      server.write(bytes("too late"))
      client.destroy()
      runAll()
      assert.deepStrictEqual(atClient.events, [])
    })
  )

  it.effect("behind an end is still an end for the peer", () =>
    Effect.gen(function* () {
      const { client, atServer, runAll } = yield* connected()
      client.end(bytes("bye"))
      client.destroy()
      runAll()
      assert.deepStrictEqual(atServer.events, ["bye", "<close null>"])
    })
  )
})

describe("listen and dial", () => {
  it.effect("refuses a client where nobody listens", () =>
    Effect.sync(() => {
      const { schedule, runAll } = manual()
      const client = MemoryNetwork.make({ schedule }).dial()
      const { events } = listenTo(client)
      runAll()
      assert.deepStrictEqual(events, ["<close ECONNREFUSED>"])
    })
  )

  it.effect("refuses a client once accepting was stopped, and leaves the others alone", () =>
    Effect.gen(function* () {
      const { schedule, runAll } = manual()
      const memory = MemoryNetwork.make({ schedule })
      const accepted: Array<Transport> = []
      const listening = yield* memory.network.listen({ host: undefined, port: 0 }, (one) => void accepted.push(one))
      memory.dial(listening.port)
      runAll()
      yield* listening.stopAccepting
      const late = listenTo(memory.dial(listening.port))
      runAll()
      assert.deepStrictEqual(late.events, ["<close ECONNREFUSED>"])
      assert.deepStrictEqual([accepted.length, accepted[0]?.closed], [1, false])
    })
  )

  it.effect("gives a port to one listener at a time, until its scope ends", () =>
    Effect.gen(function* () {
      const { network } = MemoryNetwork.make()
      const listen = network.listen({ host: undefined, port: 5433 }, () => {})
      const scope = yield* Scope.make()
      yield* Scope.provide(listen, scope)
      assert.strictEqual(yield* Effect.flip(Effect.scoped(listen)), "the port is already in use")
      yield* Scope.close(scope, Exit.void)
      yield* Effect.scoped(listen)
    })
  )
})

describe("connect", () => {
  it.effect("fails where no server is", () =>
    Effect.gen(function* () {
      const { network } = MemoryNetwork.make()
      assert.strictEqual(yield* Effect.flip(network.connect({ host: "db", port: 5432 })), "ECONNREFUSED")
    })
  )

  it.effect("reaches the server of that name and port, until it refuses", () =>
    Effect.gen(function* () {
      const memory = MemoryNetwork.make()
      const greet = (text: string) => (transport: Transport) => transport.end(bytes(text))
      memory.serve("db", 5432, greet("one"))
      memory.serve("db", 5433, greet("two"))
      const transport = yield* memory.network.connect({ host: "db", port: 5433 })
      const said = yield* Effect.callback<string>((resume) => {
        transport.handler = {
          onData: (chunk) => resume(Effect.succeed(chunk.toString())),
          onDrain: () => {},
          onClose: () => {}
        }
      })
      assert.deepStrictEqual([said, transport.remote, transport.local], ["two", "db:5433", true])
      memory.refuse("db", 5433)
      assert.strictEqual(yield* Effect.flip(memory.network.connect({ host: "db", port: 5433 })), "ECONNREFUSED")
    })
  )

  it.effect("waits for a stalled server until it is interrupted, and leaves nothing behind", () =>
    Effect.gen(function* () {
      const memory = MemoryNetwork.make()
      memory.stall("db", 5432)
      const connecting = yield* Effect.forkChild(memory.network.connect({ host: "db", port: 5432 }), {
        startImmediately: true
      })
      yield* Effect.yieldNow
      assert.deepStrictEqual(memory.openTransports(), { accepted: 0, connected: 0, connecting: 1 })
      yield* Fiber.interrupt(connecting)
      assert.deepStrictEqual(memory.openTransports(), { accepted: 0, connected: 0, connecting: 0 })
    })
  )

  it.effect("that is interrupted before its answer opens nothing", () =>
    Effect.gen(function* () {
      const { schedule, runAll } = manual()
      const memory = MemoryNetwork.make({ schedule })
      let served = 0
      memory.serve("db", 5432, () => void served++)
      const connecting = yield* Effect.forkChild(memory.network.connect({ host: "db", port: 5432 }), {
        startImmediately: true
      })
      yield* Fiber.interrupt(connecting)
      runAll()
      assert.deepStrictEqual([served, memory.openTransports().connected], [0, 0])
    })
  )
})
