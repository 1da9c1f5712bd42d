import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import * as Result from "effect/Result"
import { spawn } from "node:child_process"
import { createHash } from "node:crypto"
import * as Net from "node:net"
import { platform } from "node:os"
import { execArgv, execPath } from "node:process"
import { Duplex } from "node:stream"
import * as NodeTls from "node:tls"
import { fileURLToPath } from "node:url"
import { ByteReader } from "../../src/net/ByteReader.ts"
import { accountOfSockets, kernelSockets } from "../../src/net/KernelSockets.ts"
import { Network, type Listening } from "../../src/net/Network.ts"
import { accepted as transportOf, connect } from "../../src/net/SocketTransport.ts"
import { Acceptor, Connector, type Handshake } from "../../src/net/Tls.ts"
import type { Transport } from "../../src/net/Transport.ts"
import { authority, signedBy } from "../support/certificates.ts"

const LOOPBACK = "127.0.0.1"

/** What a handler heard, and a way to wait for it. */
class Listener {
  readonly closes: Array<string | null> = []
  received = ""
  length = 0
  drains = 0
  #look: () => void = () => {}

  constructor(transport: Transport) {
    transport.handler = {
      onData: (chunk) => {
        this.length += chunk.length
        if (this.received.length < 1000) this.received += chunk.toString("latin1")
        this.#look()
      },
      onDrain: () => {
        this.drains++
        this.#look()
      },
      onClose: (reason) => {
        this.closes.push(reason)
        this.#look()
      }
    }
  }

  until(condition: (listener: Listener) => boolean): Effect.Effect<void> {
    return Effect.callback<void>((resume) => {
      this.#look = () => {
        if (condition(this)) resume(Effect.void)
      }
      this.#look()
    })
  }

  get untilClosed(): Effect.Effect<void> {
    return this.until(({ closes }) => closes.length > 0)
  }
}

/** A plain socket of Node's, the other side of what is tested. */
interface Peer {
  readonly socket: Net.Socket
  readonly untilClosed: Effect.Effect<void>
  /** All that it has read until it was closed. */
  readonly untilEnded: Effect.Effect<string>
  /** Ends the connection in no good order. */
  readonly breakOff: () => void
}

const peerOf = (socket: Net.Socket): Peer => {
  const closed = Deferred.makeUnsafe<void>()
  const ended = Deferred.makeUnsafe<string>()
  const chunks: Array<Buffer> = []
  socket.on("error", () => {})
  socket.on("data", (chunk: Buffer) => chunks.push(chunk))
  socket.on("close", () => {
    Deferred.doneUnsafe(ended, Effect.succeed(Buffer.concat(chunks).toString("latin1")))
    Deferred.doneUnsafe(closed, Effect.void)
  })
  return {
    socket,
    untilClosed: Deferred.await(closed),
    untilEnded: Deferred.await(ended),
    breakOff: () => void socket.resetAndDestroy()
  }
}

const within = <A, E>(effect: Effect.Effect<A, E>) => Effect.timeout(effect, "10 seconds")

/** A server of Node's, and connections to it. */
const nodeServer: Effect.Effect<
  { readonly port: number; readonly accepted: () => Effect.Effect<Peer> },
  never,
  Scope.Scope
> = Effect.gen(function* () {
  const peers: Array<Peer> = []
  let look = () => {}
  const server = Net.createServer((socket) => {
    peers.push(peerOf(socket))
    look()
  })
  yield* Effect.acquireRelease(
    Effect.callback<void>((resume) => {
      server.listen(0, LOOPBACK, () => resume(Effect.void))
    }),
    () =>
      Effect.sync(() => {
        for (const { socket } of peers) socket.destroy()
        server.close()
      })
  )
  const { port } = server.address() as Net.AddressInfo
  const accepted = () =>
    Effect.callback<Peer>((resume) => {
      look = () => {
        const peer = peers.shift()
        if (peer !== undefined) resume(Effect.succeed(peer))
      }
      look()
    })
  return { port, accepted }
})

/** Both ends of one connection: ours by `connect`, theirs of Node's. */
const dialled = Effect.gen(function* () {
  const { port, accepted } = yield* nodeServer
  const transport = yield* Effect.acquireRelease(connect({ host: LOOPBACK, port }), (it) =>
    Effect.sync(() => it.destroy())
  )
  return { transport, heard: new Listener(transport), peer: yield* accepted() }
})

/** Both ends of one connection: ours by the service's listener, theirs of Node's. */
const accepted = Effect.gen(function* () {
  const network = yield* Network
  const arrived = yield* Deferred.make<{ readonly transport: Transport; readonly heard: Listener }>()
  const listening = yield* network.listen({ host: LOOPBACK, port: 0 }, (transport) => {
    Deferred.doneUnsafe(arrived, Effect.succeed({ transport, heard: new Listener(transport) }))
  })
  const peer = peerOf(Net.connect({ host: LOOPBACK, port: listening.port }))
  yield* Effect.addFinalizer(() => Effect.sync(() => peer.socket.destroy()))
  const { transport, heard } = yield* Deferred.await(arrived)
  yield* Effect.addFinalizer(() => Effect.sync(() => transport.destroy()))
  return { transport, heard, peer }
}).pipe(Effect.provide(Network.layer))

const certificates = (() => {
  const ca = authority()
  return { ca, server: signedBy(ca, "localhost", LOOPBACK) }
})()
const acceptor = Result.getOrThrow(Acceptor.make(certificates.server, null))
const connector = Result.getOrThrow(Connector.make("chain and name", certificates.ca.cert, null))

const startTls = (transport: Transport, handshake: Handshake) =>
  Effect.callback<void, string>((resume) =>
    transport.startTls(handshake, Buffer.alloc(0), (failure) =>
      resume(failure === null ? Effect.void : Effect.fail(failure))
    )
  )

/** The same pair, after a handshake: theirs is Node's own TLS socket. */
const underTls = <E, R>(
  pair: Effect.Effect<Ends, E, R>,
  handshake: Handshake,
  theirs: (socket: Net.Socket) => Net.Socket
) =>
  Effect.gen(function* () {
    const { heard, peer, transport } = yield* pair
    // What node:tls wraps is not to be read by others.
    peer.socket.removeAllListeners("data")
    const socket = theirs(peer.socket)
    const secured = peerOf(socket)
    yield* within(startTls(transport, handshake))
    return { transport, heard, peer: { ...secured, breakOff: () => void peer.socket.write("this is no TLS") } }
  })

interface Ends {
  readonly transport: Transport
  readonly heard: Listener
  readonly peer: Peer
}

for (const [kind, pair] of [
  ["dialled", dialled],
  ["accepted", accepted],
  [
    "dialled, under TLS",
    underTls(
      dialled,
      connector.handshake(LOOPBACK),
      (socket) => new NodeTls.TLSSocket(socket, { isServer: true, ...certificates.server })
    )
  ],
  [
    "accepted, under TLS",
    underTls(accepted, acceptor.handshake("optional"), (socket) =>
      NodeTls.connect({ socket, ca: certificates.ca.cert, checkServerIdentity: () => undefined })
    )
  ]
] as const) {
  describe(`a transport that was ${kind}`, () => {
    it.live("carries bytes both ways, and knows that nobody can read along on loopback", () =>
      Effect.gen(function* () {
        const { heard, peer, transport } = yield* pair
        assert.isTrue(transport.local)
        assert.match(transport.remote, /^(::ffff:)?127\.0\.0\.1:\d+$/)
        peer.socket.write("hello")
        yield* within(heard.until(({ received }) => received === "hello"))
        transport.write(Buffer.from("good"))
        transport.end(Buffer.from("bye"))
        assert.strictEqual(yield* within(peer.untilEnded), "goodbye")
      })
    )

    it.live("tells once that the peer has gone, in good order or not, and nothing after it", () =>
      Effect.gen(function* () {
        const orderly = yield* pair
        orderly.peer.socket.end("last words")
        yield* within(orderly.heard.untilClosed)
        assert.deepStrictEqual([orderly.heard.received, orderly.heard.closes], ["last words", [null]])
        yield* within(orderly.peer.untilClosed)
        assert.deepStrictEqual([orderly.heard.closes, orderly.transport.closed], [[null], true])

        const reset = yield* pair
        reset.peer.breakOff()
        yield* within(reset.heard.untilClosed)
        assert.match(reset.heard.closes.join(), /^ECONNRESET$|^ERR_SSL_[A-Z_]+$/)
        assert.isTrue(reset.transport.closed)
      })
    )

    it.live("takes writes and ends after the peer has gone without a word", () =>
      Effect.gen(function* () {
        const { heard, peer, transport } = yield* pair
        peer.breakOff()
        yield* within(heard.untilClosed)
        assert.isTrue(transport.write(Buffer.from("x")))
        transport.end(Buffer.from("x"))
        transport.pause()
        transport.resume()
        transport.destroy()
        assert.lengthOf(heard.closes, 1)
      })
    )

    it.live("does not hear of its own destruction, and the peer does", () =>
      Effect.gen(function* () {
        const { heard, peer, transport } = yield* pair
        transport.destroy()
        assert.isTrue(transport.closed)
        yield* within(peer.untilClosed)
        transport.destroy()
        assert.deepStrictEqual(heard.closes, [])
      })
    )

    it.live("hears nothing of what comes after its destruction, even in the same turn", () =>
      Effect.gen(function* () {
        const { peer, transport } = yield* pair
        let chunks = 0
        transport.handler = {
          onData: () => {
            chunks++
            transport.destroy()
          },
          onDrain: () => {},
          onClose: () => chunks++
        }
        peer.socket.write(Buffer.alloc(1024 * 1024))
        yield* within(peer.untilClosed)
        assert.strictEqual(chunks, 1)
      })
    )

    it.live("says when the peer is slow and when there is room again, and loses nothing", () =>
      Effect.gen(function* () {
        const { heard, peer, transport } = yield* pair
        peer.socket.pause()
        let written = 0
        while (transport.write(Buffer.alloc(256 * 1024))) written++
        assert.strictEqual(heard.drains, 0)
        peer.socket.resume()
        yield* within(heard.until(({ drains }) => drains === 1))
        transport.end()
        assert.strictEqual((yield* within(peer.untilEnded)).length, (written + 1) * 256 * 1024)
      })
    )

    it.live(
      "sends what it was lent as it was lent, small or large, whatever is written over it and however slow the peer",
      () =>
        Effect.gen(function* () {
          const { heard, peer, transport } = yield* pair
          peer.socket.pause()
          const lent = Buffer.allocUnsafe(200 * 1024)
          const sent = createHash("sha256")
          let total = 0
          for (let turn = 0; turn < 400; turn++) {
            const length = [10, 8 * 1024, 64 * 1024, 100, 30_000, 200 * 1024][turn % 6]!
            const bytes = lent.subarray(0, length).fill(`${turn} `)
            sent.update(bytes)
            total += length
            const taken = transport.writeLent(bytes)
            lent.fill("x")
            // From then on buffers come back while others wait.
            if (!taken && peer.socket.isPaused()) peer.socket.resume()
            if (!taken) yield* within(heard.until(({ drains }) => drains > 0))
            heard.drains = 0
          }
          transport.end()
          const received = Buffer.from(yield* within(peer.untilEnded), "latin1")
          assert.strictEqual(received.length, total)
          assert.strictEqual(createHash("sha256").update(received).digest("hex"), sent.digest("hex"))
        })
    )

    it.live("stops the peer while it is paused, and hears all of it when it goes on", () =>
      Effect.gen(function* () {
        const { heard, peer, transport } = yield* pair
        transport.pause()
        const length = 32 * 1024 * 1024
        const flushed = yield* Deferred.make<void>()
        peer.socket.write(Buffer.alloc(length), () => Deferred.doneUnsafe(flushed, Effect.void))
        // More than all buffers of the kernel hold: it cannot be written off before we read.
        const before = heard.length
        assert.isAtMost(before, 64 * 1024)
        transport.resume()
        yield* within(Deferred.await(flushed))
        yield* within(heard.until((listener) => listener.length === length))
      })
    )
  })
}

describe("sockets", () => {
  it("are read by the kernel's own calls, and by Node's streams where it has no FFI", () => {
    assert.strictEqual(kernelSockets() === null, execArgv.includes("--no-experimental-ffi") || platform() !== "linux")
  })
})

describe("a handshake that begins unasked", () => {
  it.live("is taken up with what has been heard of it, wherever that was cut", () =>
    Effect.gen(function* () {
      const { peer, transport } = yield* accepted
      const reader = new ByteReader(transport)
      peer.socket.removeAllListeners("data")
      // Each byte in a segment of its own: the first is heard in clear, and maybe more.
      const dribble = new Duplex({
        read: () => void peer.socket.resume(),
        write: (chunk: Buffer, _, done) => {
          for (const byte of chunk) peer.socket.write(Buffer.of(byte))
          done()
        }
      })
      peer.socket.setNoDelay(true).on("data", (chunk) => dribble.push(chunk))
      const theirs = NodeTls.connect({ socket: dribble, rejectUnauthorized: false, ALPNProtocols: ["postgresql"] })
      theirs.on("error", () => {})
      assert.strictEqual(yield* within(reader.firstByte), 0x16)
      yield* within(reader.secure(acceptor.handshake("required"), "is the handshake's"))
      theirs.write("hello")
      assert.strictEqual((yield* within(reader.read(5))).toString(), "hello")
      assert.strictEqual(transport.tls?.peerVerified, false)
      theirs.destroy()
    })
  )

  it.live("closes the stream where it fails, and where nobody waits for it any more", () =>
    Effect.gen(function* () {
      const failing = yield* accepted
      const failingReader = new ByteReader(failing.transport)
      failing.peer.socket.write("\x16 and no more of TLS")
      yield* within(failingReader.firstByte)
      const failure = yield* within(
        Effect.flip(failingReader.secure(acceptor.handshake("required"), "is the handshake's"))
      )
      assert.strictEqual(failure._tag, "HandshakeFailed")
      yield* within(failing.peer.untilClosed)

      const left = yield* accepted
      const leftReader = new ByteReader(left.transport)
      const waiting = yield* Effect.forkChild(leftReader.secure(acceptor.handshake("optional"), "must not be"), {
        startImmediately: true
      })
      yield* Fiber.interrupt(waiting)
      yield* within(left.peer.untilClosed)
      assert.deepStrictEqual([failing.transport.closed, left.transport.closed], [true, true])
    })
  )

  it.live("is none after words in clear that nobody has read", () =>
    Effect.gen(function* () {
      const { peer, transport } = yield* accepted
      const reader = new ByteReader(transport)
      peer.socket.write("Splanted")
      assert.strictEqual((yield* within(reader.read(1))).toString(), "S")
      const failure = yield* Effect.flip(reader.secure(acceptor.handshake("optional"), "must not be"))
      assert.deepStrictEqual([failure, transport.tls], [{ _tag: "UnreadBytes" }, null])
    })
  )
})

describe("connect", () => {
  it.live("fails with the system's code where nobody listens, and where a name does not resolve", () =>
    Effect.gen(function* () {
      const { port } = yield* Effect.scoped(nodeServer)
      assert.strictEqual(yield* within(Effect.flip(connect({ host: LOOPBACK, port }))), "ECONNREFUSED")
      assert.match(yield* within(Effect.flip(connect({ host: "no.such.host.invalid", port: 1 }))), /^E[A-Z_]+$/)
    })
  )

  it.live("closes by interruption what was half open", () =>
    Effect.gen(function* () {
      const { accepted, port } = yield* nodeServer
      const dialling = yield* Effect.forkChild(connect({ host: LOOPBACK, port }), { startImmediately: true })
      yield* Fiber.interrupt(dialling)
      const transport = yield* connect({ host: LOOPBACK, port })
      transport.end(Buffer.from("the next"))
      // Whether the kernel had accepted the first one or not: it is closed without a word.
      const said: Array<string> = []
      while (said.at(-1) !== "the next") said.push(yield* within((yield* within(accepted())).untilEnded))
      assert.isAtMost(said.filter((words) => words === "").length, 1)
    })
  )
})

const listenOn = (port: number): Effect.Effect<Listening, string, Network | Scope.Scope> =>
  Network.use((network) => network.listen({ host: LOOPBACK, port }, (transport) => transport.end(Buffer.from("hi"))))

const greeting = (port: number): Effect.Effect<string, string> =>
  Effect.flatMap(connect({ host: LOOPBACK, port }), (transport) => {
    const heard = new Listener(transport)
    return Effect.map(heard.untilClosed, () => heard.received)
  })

describe("listen", () => {
  it.live("takes a free port for 0, says which, and says in words that a port is taken", () =>
    Effect.gen(function* () {
      const { host, port } = yield* listenOn(0)
      assert.strictEqual(host, LOOPBACK)
      assert.strictEqual(yield* within(greeting(port)), "hi")
      assert.strictEqual(yield* Effect.flip(listenOn(port)), "the port is already in use")
    }).pipe(Effect.provide(Network.layer))
  )

  it.live("takes no new connection after stopAccepting, and leaves those that exist alone", () =>
    Effect.gen(function* () {
      const network = yield* Network
      const arrived = yield* Deferred.make<Transport>()
      const { port, stopAccepting } = yield* network.listen({ host: LOOPBACK, port: 0 }, (transport) => {
        Deferred.doneUnsafe(arrived, Effect.succeed(transport))
      })
      const ours = yield* connect({ host: LOOPBACK, port })
      const heard = new Listener(ours)
      const theirs = yield* Deferred.await(arrived)
      yield* stopAccepting
      yield* stopAccepting
      assert.strictEqual(yield* within(Effect.flip(connect({ host: LOOPBACK, port }))), "ECONNREFUSED")
      theirs.end(Buffer.from("still here"))
      yield* within(heard.untilClosed)
      assert.strictEqual(heard.received, "still here")
      ours.destroy()
    }).pipe(Effect.provide(Network.layer))
  )

  it.live("knows who has come, over IPv4, over IPv6 and where one socket takes both", () =>
    Effect.gen(function* () {
      const network = yield* Network
      for (const [host, from, remote] of [
        [LOOPBACK, LOOPBACK, /^127\.0\.0\.1:/],
        ["::1", "::1", /^::1:/],
        [undefined, LOOPBACK, /^::ffff:127\.0\.0\.1:/]
      ] as const) {
        const arrived = yield* Deferred.make<Transport>()
        const { port } = yield* network.listen({ host, port: 0 }, (transport) => {
          Deferred.doneUnsafe(arrived, Effect.succeed(transport))
        })
        const client = Net.connect({ host: from, port })
        const transport = yield* within(Deferred.await(arrived))
        assert.match(transport.remote, remote)
        assert.strictEqual(transport.remote.split(":").at(-1), String(client.localPort))
        assert.isTrue(transport.local)
        transport.destroy()
        client.destroy()
      }
    }).pipe(Effect.scoped, Effect.provide(Network.layer))
  )

  it.live("takes all of many that come at once, among them some that have gone again", () =>
    Effect.gen(function* () {
      const { port } = yield* listenOn(0)
      const come = Effect.callback<string>((resume) => {
        let heard = ""
        const socket = Net.connect(port, LOOPBACK)
        socket.on("data", (bytes: Buffer) => void (heard += bytes.toString("latin1")))
        socket.on("close", () => resume(Effect.succeed(heard)))
      })
      const goAgain = Effect.callback<string>((resume) => {
        const socket = Net.connect(port, LOOPBACK, () => socket.resetAndDestroy())
        socket.on("error", () => {}).on("close", () => resume(Effect.succeed("hi")))
      })
      const all = Array.from({ length: 400 }, (_, index) => (index % 4 === 3 ? goAgain : come))
      const heard = yield* within(Effect.all(all, { concurrency: "unbounded" }))
      assert.deepStrictEqual(new Set(heard), new Set(["hi"]))
    }).pipe(Effect.scoped, Effect.provide(Network.layer))
  )

  // Node itself closes the connections for which it has no descriptor.
  if (kernelSockets() !== null)
    it.live("lets those wait for whom there is no descriptor, and takes them when there is", () =>
      Effect.gen(function* () {
        const module = (name: string) => JSON.stringify(new URL(`../../src/net/${name}.ts`, import.meta.url).href)
        // Each that has come is let go 10 ms later. There are no descriptors at first, and then few more than 20.
        const program = `
          const [{ Network }, Effect, fs] = await Promise.all(
            [import(${module("Network")}), import("effect/Effect"), import("node:fs")]
          )
          if (${accountOfSockets() !== "io_uring"}) (await import(${module("KernelSockets")})).forbidRing("as here")
          let [come, most, now] = [0, 0, 0]
          let stop
          const stopped = new Promise((resolve) => (stop = resolve))
          const onConnection = (transport) => {
            most = Math.max(most, ++now)
            setTimeout(() => {
              now--
              transport.destroy()
              if (++come === 150) stop()
            }, 10)
          }
          await Effect.runPromise(Effect.scoped(Effect.gen(function* () {
            const { port } = yield* (yield* Network).listen({ host: "127.0.0.1", port: 0 }, onConnection)
            const taken = []
            const told = new Promise((resolve) => process.stdin.once("data", resolve))
            try { for (;;) taken.push(fs.openSync("/dev/null")) } catch {}
            process.stdout.write(port + "\\n")
            const before = process.cpuUsage()
            yield* Effect.promise(() => told)
            const { user, system } = process.cpuUsage(before)
            for (const fd of taken) fs.closeSync(fd)
            process.stdin.destroy()
            console.log("said", come, (user + system) / 1000)
            yield* Effect.promise(() => stopped)
          })).pipe(Effect.provide(Network.layer)))
          console.log("said", most)`
        const limited = 'ulimit -n $(($(ls /proc/self/fd | wc -l) + 60)); exec "$@"'
        const args = [
          "-c",
          limited,
          "sh",
          execPath,
          ...execArgv,
          "--disable-warning=ExperimentalWarning",
          "--input-type=module",
          "--eval",
          program
        ]
        const child = spawn("sh", args, { cwd: fileURLToPath(new URL("../..", import.meta.url)) })
        yield* Effect.addFinalizer(() => Effect.sync(() => child.kill("SIGKILL")))
        let words = ""
        child.stdout.on("data", (bytes: Buffer) => void (words += bytes.toString()))
        let errors = ""
        child.stderr.on("data", (bytes: Buffer) => void (errors += bytes.toString()))
        const listens = new Promise<void>((resolve) => child.stdout.once("data", () => resolve()))
        const ended = new Promise<void>((resolve) => child.once("close", () => resolve()))
        yield* within(Effect.promise(() => listens))
        const arrive = Effect.callback<void>((resume) => {
          const socket = Net.connect(Number.parseInt(words), LOOPBACK, () => resume(Effect.void)).on("error", () => {})
          socket.resume()
        })
        // The kernel takes them, for as long as nobody accepts them.
        yield* within(
          Effect.all(
            Array.from({ length: 150 }, () => arrive),
            { concurrency: "unbounded" }
          )
        )
        // Five pauses: to ask in vain all the time would take most of it.
        yield* Effect.sleep("500 millis")
        child.stdin.write("now")
        // It ends by itself: nothing that listened keeps it.
        yield* within(Effect.promise(() => ended))
        assert.strictEqual(errors, "")
        assert.strictEqual(words.match(/new clients wait.*EMFILE/g)?.length, 1)
        const said = [...words.matchAll(/^said (.*)$/gm)].flatMap(([, numbers]) => numbers!.split(" ").map(Number))
        const [comeBefore, cpuMillis, most] = said
        assert.strictEqual(comeBefore, 0)
        assert.isBelow(cpuMillis!, 250)
        assert.isBelow(most!, 100)
      }).pipe(Effect.scoped)
    )

  it.live("gives the port back with its scope", () =>
    Effect.gen(function* () {
      const { port } = yield* Effect.scoped(listenOn(0))
      assert.strictEqual((yield* Effect.scoped(listenOn(port))).port, port)
    }).pipe(Effect.provide(Network.layer))
  )
})

describe("a socket that was accepted", () => {
  for (const [how, hide] of [
    ["with one buffer for the reads of all", false],
    ["by its events, where Node does not show its handle", true]
  ] as const) {
    it.live(`is read ${how}, and paused, resumed, written to and closed alike`, () =>
      Effect.gen(function* () {
        const arrived = yield* Deferred.make<Transport>()
        const server = Net.createServer({ pauseOnConnect: true }, (socket) => {
          if (hide) Object.defineProperty(socket, "_handle", { value: undefined, configurable: true })
          const transport = transportOf(socket)
          if (hide) Reflect.deleteProperty(socket, "_handle")
          Deferred.doneUnsafe(arrived, Effect.succeed(transport))
        })
        yield* Effect.acquireRelease(
          Effect.promise(() => new Promise<void>((resolve) => server.listen(0, LOOPBACK, resolve))),
          () => Effect.sync(() => server.close())
        )
        const { port } = server.address() as Net.AddressInfo
        const client = yield* connect({ host: LOOPBACK, port })
        const heardByClient = new Listener(client)
        client.write(Buffer.from("one "))
        const transport = yield* within(Deferred.await(arrived))
        const heard = new Listener(transport)
        if (!hide) assert.match(transport.remote, /^127\.0\.0\.1:\d+$/)
        yield* within(heard.until(({ received }) => received === "one "))
        transport.pause()
        client.write(Buffer.from("two"))
        transport.write(Buffer.from("and back"))
        yield* within(heardByClient.until(({ received }) => received === "and back"))
        assert.strictEqual(heard.received, "one ")
        transport.resume()
        yield* within(heard.until(({ received }) => received === "one two"))
        client.end()
        yield* within(heard.untilClosed)
        yield* within(heardByClient.untilClosed)
        // None is counted that has gone.
        const left = Effect.callback<number>((resume) => {
          server.getConnections((_, count) => resume(Effect.succeed(count)))
        })
        assert.strictEqual(yield* within(left), 0)
      })
    )
  }
})
