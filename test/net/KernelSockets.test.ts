import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { execFile, spawn, spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import { closeSync, fstatSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync } from "node:fs"
import type * as Ffi from "node:ffi"
import { createRequire } from "node:module"
import * as Net from "node:net"
import { platform, tmpdir } from "node:os"
import { join } from "node:path"
import { execPath, nextTick } from "node:process"
import { fileURLToPath } from "node:url"
import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { Worker } from "node:worker_threads"
import type { Peer } from "../../src/net/Descriptors.ts"
import type { Acceptor } from "../../src/net/KernelSocket.ts"
import { accountOfSockets, kernelSockets } from "../../src/net/KernelSockets.ts"
import { nativeMemory } from "../../src/net/NativeMemory.ts"
import { descriptorOf } from "../../src/net/NodeHandles.ts"
import { accepted, acceptedBy } from "../../src/net/SocketTransport.ts"
import type { Handshake } from "../../src/net/Tls.ts"
import type { Transport, TransportHandler } from "../../src/net/Transport.ts"
import { seeded } from "../support/random.ts"

const handler = (onData: TransportHandler["onData"]): TransportHandler => ({
  onData,
  onDrain: () => {},
  onClose: () => {}
})

/** A connection: what takes over what was accepted, and its peer. */
interface Pair {
  readonly accept: () => Transport
  readonly peer: Net.Socket
}

const listening = async (): Promise<Net.Server> => {
  const server = Net.createServer({ pauseOnConnect: true })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  return server
}

const dialledAt = (port: number): Net.Socket => {
  const peer = Net.connect(port, "127.0.0.1")
  peer.on("error", () => {})
  return peer
}

const dialled = (server: Net.Server): Net.Socket => dialledAt((server.address() as Net.AddressInfo).port)

/** What Node has accepted. `whileDialled`: before it is, when its peer's end is there. */
const pairOfNodeWhile = (whileDialled: () => void) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const server = await listening()
      const arrived = new Promise<Net.Socket>((resolve) => server.once("connection", resolve))
      const peer = dialled(server)
      await new Promise<void>((resolve) => nextTick(resolve))
      whileDialled()
      const ours = await arrived
      return { server, ours, peer, accept: () => accepted(ours) }
    }),
    ({ server, ours, peer }) =>
      Effect.sync(() => {
        peer.destroy()
        ours.destroy()
        server.close()
      })
  )
const pairOfNode = pairOfNodeWhile(() => {})

/** What the kernel has accepted for us. */
interface PairOfOurs extends Pair {
  readonly fd: number
  readonly acceptor: Acceptor
}

const pairOfOurs = Effect.acquireRelease(
  Effect.promise(async (): Promise<PairOfOurs> => {
    const kernel = kernelSockets()!
    const server = await listening()
    let acceptor: Acceptor | null = null
    const arrived = new Promise<readonly [fd: number, peer: Peer]>((resolve) => {
      acceptor = kernel.accept(descriptorOf(server), {
        onAccepted: (...connection) => resolve(connection),
        onNoRoom: () => {}
      })
    })
    const peer = dialled(server)
    server.close()
    let transport: Transport | null = null
    const [fd, address] = await arrived
    const accept = () => (transport ??= acceptedBy(kernel, fd, address))
    return { fd, acceptor: acceptor!, accept, peer }
  }),
  ({ acceptor, accept, peer }) =>
    Effect.sync(() => {
      peer.destroy()
      accept().destroy()
      acceptor.stop()
    })
)

const sent = (peer: Net.Socket, bytes: Uint8Array | string) =>
  Effect.promise(() => new Promise<void>((resolve) => peer.write(bytes, () => resolve())))

/** Of the event loop. */
const turns = (count: number) =>
  Effect.promise(async () => {
    for (let turn = 0; turn < count; turn++) await new Promise<void>((resolve) => setImmediate(resolve))
  })

const until = (isSo: () => boolean) =>
  Effect.promise(async () => {
    while (!isSo()) await new Promise<void>((resolve) => setImmediate(resolve))
  })

/** More reads than there are buffers for: what anybody still looks at is not what it was. */
const manyReads = Effect.fnUntraced(function* (pair: Effect.Effect<Pair, never, Scope.Scope>) {
  const pairs = yield* Effect.forEach(Array.from({ length: 80 }), () => pair, { concurrency: 20 })
  const transports = pairs.map(({ accept }) => accept())
  return Effect.promise(async () => {
    const heard = transports.map((transport) => {
      return new Promise<void>((resolve) => void (transport.handler = handler(() => resolve())))
    })
    for (const { peer } of pairs) peer.write(Buffer.alloc(3000, "another's "))
    await Promise.all(heard)
  })
})

/** What another reader, who takes over now and reads when it is asked, has of it up to some length. */
const takenByHandshake = (transport: Transport, received: string, length: number): (() => Promise<string>) => {
  let socket: Net.Socket | undefined
  const handshake: Handshake = (its) => void (socket = its)
  transport.startTls(handshake, Buffer.from(received), () => {})
  return () =>
    new Promise((resolve) => {
      let text = ""
      socket!.on("data", (bytes: Buffer) => {
        text += bytes.toString("latin1")
        if (text.length >= length) resolve(text)
      })
      socket!.resume()
    })
}

describe.skipIf(platform() !== "linux")("the kernel's own calls", () => {
  it("are there in the main thread alone", async () => {
    // A kernel may forbid io_uring, and these tests run once more without.
    assert.match(accountOfSockets(), /^(io_uring|epoll \(no io_uring: .+\))$/)
    assert.isNotNull(kernelSockets())
    const module = JSON.stringify(new URL("../../src/net/KernelSockets.ts", import.meta.url).href)
    const program = `import(${module}).then((it) => require("node:worker_threads").parentPort.postMessage(it.accountOfSockets()))`
    const worker = new Worker(program, { eval: true })
    const account = await new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject))
    await worker.terminate()
    assert.strictEqual(account, "Node's streams (this is a worker thread)")
  })

  it.live("never write to who has got the number of a descriptor that Node has closed, nor read from there", () =>
    Effect.gen(function* () {
      const { ours } = yield* pairOfNode
      const transport = accepted(ours)
      const number = descriptorOf(ours)
      const folder = mkdtempSync(join(tmpdir(), "perseus-descriptor-"))
      const file = join(folder, "another's")
      // As Node does where a write fails: whoever has the transport is told later.
      ours.destroy()
      const another = openSync(file, "w+")
      assert.strictEqual(another, number)
      transport.write(Buffer.from("a tenant's secret"))
      transport.writeLent(Buffer.from("a tenant's secret"))
      transport.resume()
      transport.end(Buffer.from("a tenant's secret"))
      const written = readFileSync(file, "latin1")
      closeSync(another)
      rmSync(folder, { recursive: true })
      assert.strictEqual(written, "")
    })
  )

  it.live("leave alone who has got the number of a descriptor, when its former owner hears of its end", () =>
    Effect.gen(function* () {
      const former = yield* pairOfNode
      const transport = accepted(former.ours)
      const number = descriptorOf(former.ours)
      former.ours.removeAllListeners("close").destroy()
      const placeholder = openSync("/dev/null", "r")
      const { ours, peer } = yield* pairOfNodeWhile(() => closeSync(placeholder))
      assert.deepStrictEqual([placeholder, descriptorOf(ours)], [number, number])
      const successor = accepted(ours)
      const heard = new Promise<string>((resolve) => {
        successor.handler = handler((chunk) => resolve(chunk.toString("latin1")))
      })
      transport.destroy()
      peer.write("still heard")
      assert.strictEqual(yield* Effect.promise(() => heard), "still heard")
    })
  )

  it("keep a program alive that has nothing but a socket, until that is closed", async () => {
    const server = Net.createServer((socket) => {
      // Long enough for a program to end that nothing keeps alive.
      socket.once("data", () => execFile(execPath, ["--eval", "0"], () => socket.write("at last")))
    })
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
    const { port } = server.address() as Net.AddressInfo
    const module = JSON.stringify(new URL("../../src/net/SocketTransport.ts", import.meta.url).href)
    const program = `
      import * as Effect from "effect/Effect"
      const { connect } = await import(${module})
      const transport = await Effect.runPromise(connect({ host: "127.0.0.1", port: ${port} }))
      const onData = (chunk) => { console.log(chunk.toString()); transport.destroy() }
      transport.handler = { onData, onDrain: () => {}, onClose: () => {} }
      transport.write(Buffer.from("hello"))`
    const options = { cwd: fileURLToPath(new URL("../..", import.meta.url)), encoding: "utf8" as const }
    const said = await new Promise<string>((resolve) => {
      execFile(execPath, ["--input-type=module", "--eval", program], options, (_, stdout) => resolve(stdout))
    })
    server.close()
    assert.strictEqual(said, "at last\n")
  })

  it("hear one that goes on in a program where nothing else happens", async () => {
    const server = Net.createServer((socket) =>
      socket.write("first", () => socket.once("data", () => socket.write("second")))
    )
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
    const { port } = server.address() as Net.AddressInfo
    const module = JSON.stringify(new URL("../../src/net/SocketTransport.ts", import.meta.url).href)
    const program = `
      import * as Effect from "effect/Effect"
      const { connect } = await import(${module})
      const transport = await Effect.runPromise(connect({ host: "127.0.0.1", port: ${port} }))
      const onData = (chunk) => {
        console.log(chunk.toString())
        transport.pause()
        if (chunk.toString() === "second") return transport.destroy()
        transport.write(Buffer.from("go on"))
        // In the phase of timers: the loop sleeps next.
        setTimeout(() => setTimeout(() => transport.resume(), 100), 100)
      }
      transport.handler = { onData, onDrain: () => {}, onClose: () => {} }`
    const options = {
      cwd: fileURLToPath(new URL("../..", import.meta.url)),
      encoding: "utf8" as const,
      timeout: 20_000
    }
    const said = await new Promise<string>((resolve) => {
      execFile(execPath, ["--input-type=module", "--eval", program], options, (_, stdout) => resolve(stdout))
    })
    server.close()
    assert.strictEqual(said, "first\nsecond\n")
  })

  it.live("write in its order to a peer that reads meanwhile, of which the kernel takes a part", () =>
    Effect.gen(function* () {
      const { ours: clock, peer: starts } = yield* pairOfNode
      const turning = accepted(clock)
      const server = Net.createServer({ pauseOnConnect: true })
      yield* Effect.promise(() => new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve)))
      const { port } = server.address() as Net.AddressInfo
      const program = `
        let [rest, next] = [Buffer.alloc(0), 0]
        const socket = require("node:net").connect(${port}, "127.0.0.1")
        socket.on("data", (chunk) => {
          const bytes = Buffer.concat([rest, chunk])
          let at = 0
          for (; bytes.length - at >= 4; at += 4) if (bytes.readUInt32BE(at) !== next++) {
            console.log("wanted " + (next - 1) + ", got " + bytes.readUInt32BE(at))
            process.exit()
          }
          rest = bytes.subarray(at)
        })
        socket.on("close", () => console.log("all " + next))`
      const said = new Promise<string>((resolve) => {
        execFile(execPath, ["--eval", program], { encoding: "utf8" }, (_, stdout) => resolve(stdout))
      })
      const socket = yield* Effect.promise(
        () => new Promise<Net.Socket>((resolve) => server.once("connection", resolve))
      )
      const transport = accepted(socket)
      let word = 0
      const words = (count: number): Buffer => {
        const bytes = Buffer.alloc(count * 4)
        for (let index = 0; index < count; index++) bytes.writeUInt32BE(word++, index * 4)
        return bytes
      }
      const goOn = (): void => void (word < 20_000_000 && !transport.closed ? starts.write("x") : transport.end())
      // In a turn, where a second write has the first one sent.
      turning.handler = handler(() => {
        const lengths = [10_000, 10_000, 2000, 15_000, 15_000, 3000]
        for (let write = 0; write < 12; write++) if (!transport.write(words(lengths[write % 6]!))) return
        goOn()
      })
      transport.handler = { onData: () => {}, onDrain: goOn, onClose: () => {} }
      goOn()
      const account = yield* Effect.promise(() => said)
      socket.destroy()
      server.close()
      assert.strictEqual(account, `all ${word}\n`)
    })
  )

  it.live("read nothing of who gets the number of a descriptor in the turn in which its owner is destroyed", () =>
    Effect.gen(function* () {
      const [former, other] = [yield* pairOfNode, yield* pairOfNode]
      const transport = accepted(former.ours)
      const destroying = accepted(other.ours)
      const number = descriptorOf(former.ours)
      yield* turns(2)
      const said = new Promise<readonly [number: number, text: string]>((resolve) => {
        destroying.handler = handler(() => {
          // It was read before in this turn, and is about to be read again.
          transport.destroy()
          const child = spawn("echo", ["a child's words"], { stdio: ["ignore", "pipe", "ignore"] })
          const pipe = descriptorOf(child.stdout as Net.Socket)
          let text = ""
          child.stdout.on("data", (bytes: Buffer) => void (text += bytes.toString("latin1")))
          child.on("close", () => resolve([pipe, text]))
          // Until it has said them: the next turn is too late.
          spawnSync(execPath, ["--eval", "0"])
        })
      })
      former.peer.write("x")
      other.peer.write("x")
      assert.deepStrictEqual(yield* Effect.promise(() => said), [number, "a child's words\n"])
    })
  )

  it.live("read nothing of who has got the number of a descriptor that Node has closed, before its owner is told", () =>
    Effect.gen(function* () {
      const former = yield* pairOfNode
      accepted(former.ours)
      const number = descriptorOf(former.ours)
      yield* turns(2)
      former.ours.removeAllListeners("close").destroy()
      const placeholder = openSync("/dev/null", "r")
      const { ours, peer } = yield* pairOfNodeWhile(() => closeSync(placeholder))
      assert.strictEqual(descriptorOf(ours), number)
      const successor = accepted(ours)
      let heard = ""
      successor.handler = handler((chunk) => void (heard += chunk.toString("latin1")))
      yield* turns(2)
      yield* sent(former.peer, "the former's last words")
      yield* turns(2)
      yield* sent(peer, "the successor's words")
      yield* turns(5)
      assert.strictEqual(heard, "the successor's words")
    })
  )
})

const kinds: ReadonlyArray<readonly [whose: string, pair: Effect.Effect<Pair, never, Scope.Scope>]> = [
  ["Node has accepted", pairOfNode],
  ["the kernel has accepted for us", pairOfOurs]
]

describe.skipIf(platform() !== "linux").each(kinds)("sockets that %s, by the kernel's own calls", (_, pair) => {
  it.live("tell nothing to one that another has destroyed in the same turn", () =>
    Effect.gen(function* () {
      const pairs = [yield* pair, yield* pair]
      const transports = pairs.map(({ accept }) => accept())
      const heard: Array<Transport> = []
      const first = new Promise<void>((resolve) => {
        for (const [index, transport] of transports.entries()) {
          transport.handler = handler(() => {
            heard.push(transport)
            transports[1 - index]!.destroy()
            resolve()
          })
          transport.pause()
        }
      })
      for (const { peer } of pairs) yield* Effect.promise(() => new Promise((resolve) => peer.write("x", resolve)))
      for (const transport of transports) transport.resume()
      yield* Effect.promise(() => first)
      // Another turn, in which the other one would have been read.
      yield* Effect.promise(() => new Promise((resolve) => setImmediate(() => setImmediate(resolve))))
      assert.lengthOf(heard, 1)
    })
  )

  it.live("keep from one that is paused what had been asked for before, and tell it once when that goes on", () =>
    Effect.gen(function* () {
      const { accept, peer } = yield* pair
      const transport = accept()
      const heard: Array<string> = []
      let onHeard = () => {}
      transport.handler = handler((chunk) => {
        heard.push(chunk.toString("latin1"))
        onHeard()
      })
      const untilHeard = (count: number) =>
        Effect.callback<void>((resume) => {
          onHeard = () => {
            if (heard.join("").length >= count) resume(Effect.void)
          }
          onHeard()
        })
      peer.write("first ")
      yield* untilHeard(6)
      // Another read is with the kernel by now.
      transport.pause()
      yield* sent(peer, "second ")
      yield* turns(3)
      assert.deepStrictEqual(heard, ["first "])
      transport.resume()
      transport.pause()
      yield* sent(peer, "third ")
      yield* turns(3)
      assert.deepStrictEqual(heard, ["first "])
      transport.resume()
      yield* untilHeard(19)
      assert.strictEqual(heard.join(""), "first second third ")
      // Nor does one that is destroyed hear what was kept.
      transport.pause()
      yield* sent(peer, "fourth ")
      yield* turns(3)
      transport.resume()
      transport.destroy()
      yield* turns(3)
      assert.strictEqual(heard.join(""), "first second third ")
    })
  )

  it.live("keep from one that is paused its peer's end, too, which comes behind all that was said", () =>
    Effect.gen(function* () {
      const { accept, peer } = yield* pair
      const transport = accept()
      const heard: Array<string> = []
      const ended = new Promise<void>((resolve) => {
        transport.handler = {
          onData: (chunk) => void heard.push(chunk.toString("latin1")),
          onDrain: () => {},
          onClose: (reason) => {
            heard.push(`closed: ${reason}`)
            resolve()
          }
        }
      })
      yield* turns(2)
      transport.pause()
      peer.end("last words")
      yield* turns(5)
      assert.deepStrictEqual(heard, [])
      transport.resume()
      yield* Effect.promise(() => ended)
      assert.deepStrictEqual(heard, ["last words", "closed: null"])
      const silent = yield* pair
      const other = silent.accept()
      let isOver = false
      const over = new Promise<void>((resolve) => {
        other.handler = {
          ...other.handler,
          onClose: () => {
            isOver = true
            resolve()
          }
        }
      })
      yield* turns(2)
      other.pause()
      silent.peer.end()
      yield* Effect.promise(() => new Promise((resolve) => silent.peer.once("finish", resolve)))
      yield* turns(5)
      assert.isFalse(isOver)
      other.resume()
      yield* Effect.promise(() => over)
    })
  )

  it.live("hear all that many sockets have at once, and all of their ends", () =>
    Effect.gen(function* () {
      const pairs = yield* Effect.forEach(Array.from({ length: 150 }), () => pair, { concurrency: 20 })
      const transports = pairs.map(({ accept }) => accept())
      const heard = transports.map(() => createHash("sha256"))
      const said = pairs.map((_, index) => Buffer.alloc(70_000, `${index} `))
      const ended = transports.map((transport, index) => {
        transport.pause()
        return new Promise<string | null>((resolve) => {
          transport.handler = {
            onData: (chunk) => void heard[index]!.update(chunk),
            onDrain: () => {},
            onClose: resolve
          }
        })
      })
      for (const [index, { peer }] of pairs.entries()) yield* sent(peer, said[index]!)
      for (const { peer } of pairs) peer.end()
      for (const transport of transports) transport.resume()
      const reasons = yield* Effect.promise(() => Promise.all(ended))
      assert.deepStrictEqual(new Set(reasons), new Set([null]))
      assert.deepStrictEqual(
        heard.map((hash) => hash.digest("hex")),
        said.map((bytes) => createHash("sha256").update(bytes).digest("hex"))
      )
    })
  )

  it.live(
    "write in its order what is written in one turn: more than the kernel takes at once, in pieces, lent or given",
    () =>
      Effect.gen(function* () {
        const { accept, peer } = yield* pair
        const transport = accept()
        const expected = createHash("sha256")
        let length = 0
        const written = new Promise<ReadonlyArray<boolean>>((resolve) => {
          transport.handler = handler((chunk) => {
            const lent = Buffer.alloc(100_000)
            const taken: Array<boolean> = []
            const lengths = [1, 20, 3000, 0, 7000, 16 * 1024, 100_000, 40, 60_000, 5]
            for (let piece = 0; piece < 1500; piece++) {
              const bytes =
                piece % 3 === 0 ? chunk : lent.fill(`${piece} `).subarray(0, lengths[piece % lengths.length])
              expected.update(bytes)
              length += bytes.length
              taken.push(piece % 2 === 0 ? transport.write(Buffer.from(bytes)) : transport.writeLent(bytes))
            }
            resolve(taken)
          })
        })
        peer.pause()
        peer.write("a chunk that lies where it was read ".repeat(100))
        assert.include(yield* Effect.promise(() => written), false)
        const received = createHash("sha256")
        const all = new Promise<void>((resolve) => {
          let count = 0
          peer.on("data", (bytes: Buffer) => {
            received.update(bytes)
            count += bytes.length
            if (count === length) resolve()
          })
        })
        peer.resume()
        yield* Effect.promise(() => all)
        assert.strictEqual(received.digest("hex"), expected.digest("hex"))
      })
  )

  it.live("write to more sockets in one turn than the kernel is told of at once, and to each its own", () =>
    Effect.gen(function* () {
      const pairs = yield* Effect.forEach(Array.from({ length: 600 }), () => pair, { concurrency: 20 })
      const transports = pairs.map(({ accept }) => accept())
      transports[0]!.handler = handler(() => {
        for (const [index, transport] of transports.entries()) {
          transport.writeLent(Buffer.from(`for ${index}`))
          transport.write(Buffer.from(` and ${index}`.padEnd(3000)))
          if (index % 2 === 1) transport.end()
        }
      })
      const heard = pairs.map(
        ({ peer }) =>
          new Promise<string>((resolve) => {
            let text = ""
            peer.on("data", (bytes: Buffer) => {
              text += bytes.toString("latin1")
              if (text.length >= 3000) resolve(text.slice(0, text.indexOf("  ")))
            })
          })
      )
      pairs[0]!.peer.write("now")
      assert.deepStrictEqual(
        yield* Effect.promise(() => Promise.all(heard)),
        pairs.map((_, index) => `for ${index} and ${index}`)
      )
    })
  )

  it.live("hand over to another reader what was read and not told", () =>
    Effect.gen(function* () {
      const { accept, peer } = yield* pair
      const transport = accept()
      yield* turns(2)
      // In the kernel or already read: the handshake has all of it, behind what was heard before.
      yield* sent(peer, " second")
      const taken = new Promise<string>((resolve) => {
        const handshake: Handshake = (socket, done) => {
          let text = ""
          socket.on("data", (bytes: Buffer) => {
            text += bytes.toString("latin1")
            if (text.endsWith("third")) {
              resolve(text)
              done({ _tag: "Failed", reason: "that is all" })
            }
          })
          socket.resume()
        }
        transport.startTls(handshake, Buffer.from("first"), () => {})
      })
      peer.write(" third")
      assert.strictEqual(yield* Effect.promise(() => taken), "first second third")
    })
  )

  it.live("keep what was read for one that is paused, until it goes on or another reader does", () =>
    Effect.gen(function* () {
      const overwrite = yield* manyReads(pair)
      const { accept, peer } = yield* pair
      const transport = accept()
      let heard = ""
      transport.handler = handler((chunk) => void (heard += chunk.toString("latin1")))
      yield* turns(2)
      // A read is with the kernel.
      transport.pause()
      yield* sent(peer, "first ")
      yield* overwrite
      assert.strictEqual(heard, "")
      transport.resume()
      transport.pause()
      yield* overwrite
      assert.strictEqual(heard, "")
      transport.resume()
      yield* turns(2)
      assert.strictEqual(heard, "first ")
      transport.pause()
      yield* sent(peer, "second ")
      yield* overwrite
      const taken = takenByHandshake(transport, "heard before ", 20)
      yield* overwrite
      assert.strictEqual(yield* Effect.promise(taken), "heard before second ")
    })
  )

  it.live("write to each its own where more is written in one turn than the kernel is told of at once", () =>
    Effect.gen(function* () {
      const pairs = yield* Effect.forEach(Array.from({ length: 600 }), () => pair, { concurrency: 20 })
      const transports = pairs.map(({ accept }) => accept())
      const expected = pairs.map(() => "")
      const write = (index: number, length: number): void => {
        const text = `${index}:${length} `.repeat(length).slice(0, length)
        expected[index] += text
        transports[index]!.writeLent(Buffer.from(text))
      }
      const written = new Promise<void>((resolve) => {
        transports[0]!.handler = handler(() => {
          // Many short ones, then long ones; and behind what was written before last.
          for (let index = 0; index < 560; index++) write(index, 20)
          for (let index = 560; index < 600; index++) write(index, 20_000)
          for (let index = 1; index < 600; index++) {
            write(index, 2000 + (index % 7) * 300)
            write(index - 1, 3000)
          }
          resolve()
        })
      })
      const heard = pairs.map(({ peer }) => {
        const chunks: Array<Buffer> = []
        peer.on("data", (bytes: Buffer) => void chunks.push(bytes))
        return () => Buffer.concat(chunks).toString("latin1")
      })
      pairs[0]!.peer.write("now")
      yield* Effect.promise(() => written)
      yield* until(() => heard.every((said, index) => said().length >= expected[index]!.length))
      assert.deepStrictEqual(
        heard.flatMap((said, index) => (said() === expected[index] ? [] : [index])),
        []
      )
    })
  )

  it.live("leave a chunk as it is while it is heard, and until it is sent, though many others are read meanwhile", () =>
    Effect.gen(function* () {
      // As much as a short read takes: the next one is a long one, which begins at once.
      const first = "first ".padEnd(16 * 1024)
      const waiting = yield* Effect.forEach(Array.from({ length: 600 }), () => pair, { concurrency: 20 })
      const heard = waiting.map(() => "")
      const transports = waiting.map(({ accept }, index) => {
        const transport = accept()
        transport.handler = handler((chunk) => {
          heard[index] += chunk.toString("latin1")
          // It has no read with the kernel then.
          if (heard[index]!.length >= first.length) transport.pause()
        })
        return transport
      })
      for (const { peer } of waiting) yield* sent(peer, first)
      yield* until(() => heard.every((text) => text.length === first.length))
      for (const [index, { peer }] of waiting.entries()) yield* sent(peer, `for ${index} alone`)
      const [resuming, lending, flushing, sink] = [yield* pair, yield* pair, yield* pair, yield* pair]
      const [resumer, lender, flusher, to] = [resuming, lending, flushing, sink].map(({ accept }) => accept())
      let lengthOfFirsts = 0
      for (const transport of [lender!, flusher!]) {
        transport.handler = handler((chunk) => void (lengthOfFirsts += chunk.length))
      }
      yield* sent(lending.peer, first)
      yield* sent(flushing.peer, first)
      yield* until(() => lengthOfFirsts === 2 * first.length)
      yield* turns(2)
      let stays = false
      resumer!.handler = handler(() => transports.slice(0, 10).forEach((transport) => transport.resume()))
      lender!.handler = handler((chunk) => void to!.writeLent(chunk))
      flusher!.handler = handler((chunk) => {
        for (const transport of transports) transport.resume()
        const before = chunk.toString("latin1")
        to!.write(Buffer.from("and "))
        stays = to!.flushed && chunk.toString("latin1") === before
        to!.writeLent(chunk)
      })
      let received = ""
      sink.peer.on("data", (bytes: Buffer) => void (received += bytes.toString("latin1")))
      resuming.peer.write("x")
      lending.peer.write("lent by one ")
      flushing.peer.write("lent by another")
      yield* until(() => received.length >= 31 && heard.every((text) => text.length > first.length))
      assert.strictEqual(received, "lent by one and lent by another")
      assert.isTrue(stays)
      assert.deepStrictEqual(
        heard.filter((text, index) => text !== `${first}for ${index} alone`).map((text) => text.trim()),
        []
      )
    })
  )

  it.live("go on to read, however many leave between what was read for them and its being told", () =>
    Effect.gen(function* () {
      const overwrite = yield* manyReads(pair)
      for (let round = 0; round < 3; round++) {
        const leaving = yield* Effect.forEach(Array.from({ length: 60 }), () => pair, { concurrency: 20 })
        const transports = leaving.map(({ accept }) => accept())
        yield* turns(2)
        let told = 0
        for (const transport of transports) {
          transport.handler = handler(() => {
            told++
            for (const other of transports) other.destroy()
          })
        }
        for (const { peer } of leaving) peer.write("x")
        yield* until(() => told > 0)
        yield* turns(2)
        assert.strictEqual(told, 1)
        const handed = yield* Effect.forEach(Array.from({ length: 60 }), () => pair, { concurrency: 20 })
        const others = handed.map(({ accept }) => accept())
        yield* turns(2)
        for (const [index, { peer }] of handed.entries()) peer.write(`for ${index}`)
        const taken = others.map((transport, index) => takenByHandshake(transport, "", `for ${index}`.length))
        yield* overwrite
        assert.deepStrictEqual(
          yield* Effect.promise(() => Promise.all(taken.map((take) => take()))),
          handed.map((_, index) => `for ${index}`)
        )
      }
    })
  )

  it.live("read much at once where there is much, and no more than 64 kB of a client", () =>
    Effect.gen(function* () {
      const { accept, peer } = yield* pair
      const transport = accept()
      transport.pause()
      let [total, longest] = [0, 0]
      transport.handler = handler((chunk) => {
        total += chunk.length
        longest = Math.max(longest, chunk.length)
      })
      peer.write(Buffer.alloc(2_000_000))
      yield* turns(3)
      transport.resume()
      yield* until(() => total === 2_000_000)
      assert.strictEqual(longest, 64 * 1024)
    })
  )

  it.live("hold nothing of one that is over", () =>
    Effect.gen(function* () {
      setFlagsFromString("--expose-gc")
      const collect = runInNewContext("gc") as () => void
      const over = yield* Effect.scoped(
        Effect.gen(function* () {
          const { accept, peer } = yield* pair
          const transport = accept()
          transport.handler = handler(() => {})
          const owner = new WeakRef(transport.handler)
          yield* sent(peer, "x")
          yield* turns(2)
          transport.destroy()
          return owner
        })
      )
      for (let turn = 0; turn < 100 && over.deref() !== undefined; turn++) {
        yield* turns(1)
        collect()
      }
      assert.isUndefined(over.deref())
    })
  )

  it.live("carry what a relay carries, whoever is slow, pauses or leaves, and never to another", () =>
    Effect.gen(function* () {
      const { below: random } = seeded(4242)
      const lines = yield* Effect.forEach(Array.from({ length: 24 }), () => Effect.all([pair, pair]), {
        concurrency: 8
      })
      const ends = lines.map(([from, to], index) => {
        const [source, sink] = [from.accept(), to.accept()]
        const leavesAt = index % 6 === 5 ? 200_000 : Infinity
        let carried = 0
        source.handler = {
          onData: (chunk) => {
            const cut = random(chunk.length)
            const taken = [sink.writeLent(chunk.subarray(0, cut)), sink.write(Buffer.from(chunk.subarray(cut)))]
            carried += chunk.length
            if (carried > leavesAt) return [source, sink].forEach((transport) => transport.destroy())
            if (taken.includes(false)) source.pause()
            else if (random(8) === 0) {
              source.pause()
              setImmediate(() => source.resume())
            }
          },
          onDrain: () => {},
          onClose: () => sink.end()
        }
        sink.handler = { onData: () => {}, onDrain: () => source.resume(), onClose: () => source.destroy() }
        const said = createHash("sha256")
        const pieces = Array.from({ length: 60 }, (_, piece) => Buffer.alloc(random(60_000), `${index}:${piece} `))
        for (const piece of pieces) said.update(piece)
        const received = createHash("sha256")
        let length = 0
        const finished = new Promise<void>((resolve) => {
          to.peer.on("data", (bytes: Buffer) => {
            received.update(bytes)
            length += bytes.length
            if (random(10) > 0) return
            to.peer.pause()
            setImmediate(() => to.peer.resume())
          })
          to.peer.on("close", () => resolve())
        })
        const say = (): void => {
          const piece = pieces.shift()
          if (piece === undefined) return void from.peer.end()
          if (from.peer.write(piece)) setImmediate(say)
          else from.peer.once("drain", say)
        }
        say()
        const total = pieces.reduce((sum, piece) => sum + piece.length, 0)
        return {
          finished,
          leaves: leavesAt < total,
          digests: () => [received.digest("hex"), said.digest("hex")] as const
        }
      })
      for (const { finished, leaves, digests } of ends) {
        yield* Effect.promise(() => finished)
        const [received, said] = digests()
        assert.strictEqual(received === said, !leaves)
      }
    })
  )
})

/** The C library's calls for options of sockets. */
const options = () => {
  const ffi = createRequire(import.meta.url)("node:ffi") as typeof Ffi
  const { functions } = ffi.dlopen(null, {
    getsockopt: { arguments: ["int32", "int32", "int32", "pointer", "pointer"], return: "int32" },
    setsockopt: { arguments: ["int32", "int32", "int32", "pointer", "int32"], return: "int32" }
  })
  return { ...functions, value: nativeMemory(ffi, 4), length: nativeMemory(ffi, 4) }
}

const SO_SNDBUF = 7
const SO_RCVBUF = 8

const limitBuffer = (fd: number, which: number): void => {
  const { setsockopt, value } = options()
  value.words[0] = 32 * 1024
  assert.strictEqual(setsockopt(fd, 1, which, value.address, 4), 0)
}

describe.skipIf(platform() !== "linux")("what the kernel has accepted for us", () => {
  /** Descriptors that others have got, among them the number that was free. */
  const opened = (number: number) =>
    Effect.acquireRelease(
      Effect.sync(() => {
        const folder = mkdtempSync(join(tmpdir(), "perseus-descriptor-"))
        const others = [openSync(join(folder, "0"), "w+")]
        while (!others.includes(number)) others.push(openSync(join(folder, `${others.length}`), "w+"))
        return { folder, others }
      }),
      ({ folder, others }) =>
        Effect.sync(() => {
          for (const other of others) closeSync(other)
          rmSync(folder, { recursive: true })
        })
    )

  const sizes = (others: ReadonlyArray<number>) => others.map((other) => fstatSync(other).size)

  it.live("is closed once, by whoever ended it, however often that is said: the number is another's then", () =>
    Effect.gen(function* () {
      const destroyed = yield* pairOfOurs
      const ended = yield* pairOfOurs
      const [first, second] = [destroyed.accept(), ended.accept()]
      const over = new Promise<string | null>((resolve) => {
        second.handler = { onData: () => {}, onDrain: () => {}, onClose: resolve }
      })
      first.destroy()
      ended.peer.end()
      assert.isNull(yield* Effect.promise(() => over))
      yield* turns(2)
      for (const number of [destroyed.fd, ended.fd]) {
        const { others } = yield* opened(number)
        for (const transport of [first, second]) {
          transport.write(Buffer.from("a tenant's secret"))
          transport.pause()
          transport.resume()
          assert.isTrue(transport.flushed)
          transport.end(Buffer.from("a tenant's secret"))
          transport.destroy()
        }
        yield* turns(2)
        // Throws where one is closed.
        assert.deepStrictEqual(
          sizes(others),
          others.map(() => 0)
        )
      }
    })
  )

  it.live("has what is left of it dropped where it is destroyed in the turn of a write that is taken in part", () =>
    Effect.gen(function* () {
      const piece = (length = 10_000) => Buffer.alloc(length, "secret")
      /** Its peer reads nothing, and what lies between the two is always as long. */
      const stalledPair = Effect.map(pairOfOurs, (pair) => {
        pair.peer.pause()
        limitBuffer(pair.fd, SO_SNDBUF)
        limitBuffer(descriptorOf(pair.peer), SO_RCVBUF)
        return pair
      })
      const clock = yield* pairOfOurs
      const ticking = clock.accept()
      const probe = (yield* stalledPair).accept()
      let taken = 0
      // Its peer takes some before it notices that nobody reads.
      for (; probe.flushed; taken++) {
        probe.write(piece())
        yield* turns(2)
      }
      for (let round = 0; round < 5; round++) {
        const [former, other] = [yield* stalledPair, yield* pairOfOurs]
        const [from, to] = [former.accept(), other.accept()]
        // What it has heard is kept, so that no read of it is with the kernel: its token is free at once.
        from.pause()
        yield* sent(former.peer, "x")
        yield* turns(3)
        for (let count = 1; count < taken; count++) {
          from.write(piece())
          yield* turns(2)
        }
        const heard = new Promise<string>((resolve) => {
          other.peer.once("data", (bytes: Buffer) => resolve(bytes.toString("latin1")))
        })
        const done = new Promise<void>((resolve) => {
          ticking.handler = handler(() => {
            from.write(piece(60_000))
            from.destroy()
            to.write(Buffer.from("for the other"))
            resolve()
          })
        })
        yield* sent(clock.peer, "now")
        yield* Effect.promise(() => done)
        const { others } = yield* opened(former.fd)
        const later = yield* pairOfOurs
        let words = ""
        later.accept().handler = handler((chunk) => void (words += chunk.toString("latin1")))
        later.peer.on("data", (bytes: Buffer) => void (words += bytes.toString("latin1")))
        former.peer.resume()
        yield* turns(10)
        assert.strictEqual(yield* Effect.promise(() => heard), "for the other")
        assert.strictEqual(words, "")
        assert.deepStrictEqual(
          sizes(others),
          others.map(() => 0)
        )
      }
    })
  )

  it.live("does not wait to send what is written, looks after its peer, and is not given to other programs", () =>
    Effect.gen(function* () {
      const { fd } = yield* pairOfOurs
      const { getsockopt, value, length } = options()
      const option = (level: number, name: number): number => {
        length.words[0] = 4
        assert.strictEqual(getsockopt(fd, level, name, value.address, length.address), 0)
        return value.words[0]!
      }
      const [nagleOff, keptAlive, idle, interval, count] = [
        option(6, 1),
        option(1, 9),
        option(6, 4),
        option(6, 5),
        option(6, 6)
      ]
      assert.deepStrictEqual(
        { nagleOff, keptAlive, idle, interval, count },
        {
          nagleOff: 1,
          keptAlive: 1,
          idle: 60,
          interval: 1,
          count: 10
        }
      )
      const flags = Number.parseInt(/^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "latin1"))![1]!, 8)
      // O_CLOEXEC, O_NONBLOCK
      assert.strictEqual(flags & 0o2004000, 0o2004000)
    })
  )

  it.live(
    "is all closed where its listener stops between it and those that come next, or where it had gone again",
    () =>
      Effect.gen(function* () {
        const descriptors = () => readdirSync("/proc/self/fd").length
        const kernel = kernelSockets()!
        const before = descriptors()
        for (let round = 0; round < 5; round++) {
          const server = yield* Effect.promise(listening)
          const { port } = server.address() as Net.AddressInfo
          let acceptor: Acceptor | null = null
          let told = 0
          const first = new Promise<void>((resolve) => {
            acceptor = kernel.accept(descriptorOf(server), {
              onAccepted: (fd) => {
                told++
                closeSync(fd)
                acceptor!.stop()
                resolve()
              },
              onNoRoom: () => {}
            })
          })
          server.close()
          // They come and go while this process does nothing else.
          const program = `
          const net = require("node:net")
          let count = 0
          for (let index = 0; index < 8; index++) {
            const socket = net.connect(${port}, "127.0.0.1", () => {
              if (index < 4) socket.resetAndDestroy()
              if (++count === 8) setTimeout(() => process.exit(), 20)
            })
            socket.on("error", () => {})
          }`
          const child = spawnSync(execPath, ["--eval", program], { stdio: "ignore" })
          assert.strictEqual(child.status, 0)
          const last = dialledAt(port)
          yield* Effect.promise(() =>
            Promise.race([first, new Promise<void>((resolve) => last.once("close", resolve))])
          )
          acceptor!.stop()
          yield* turns(3)
          const others = Array.from({ length: 300 }, () => openSync("/dev/null", "r"))
          acceptor!.stop()
          yield* turns(3)
          // Throws where one is closed.
          for (const other of others) closeSync(other)
          assert.isAtMost(told, 1)
          last.destroy()
        }
        yield* until(() => descriptors() <= before)
      })
  )
})
