import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { execFile } from "node:child_process"
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from "node:fs"
import * as Net from "node:net"
import { platform, tmpdir } from "node:os"
import { join } from "node:path"
import { execPath, nextTick } from "node:process"
import { fileURLToPath } from "node:url"
import { Worker } from "node:worker_threads"
import { kernelSockets, whyNoKernelSockets } from "../../src/net/KernelSockets.ts"
import { accepted } from "../../src/net/SocketTransport.ts"
import type { Transport, TransportHandler } from "../../src/net/Transport.ts"

const handler = (onData: TransportHandler["onData"]): TransportHandler => ({
  onData,
  onDrain: () => {},
  onClose: () => {}
})

/** A connection: what was accepted, and its peer. `whileDialled`: before it is accepted, when its peer's end is there. */
const pairWhile = (whileDialled: () => void) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const server = Net.createServer({ pauseOnConnect: true })
      await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
      const ours = new Promise<Net.Socket>((resolve) => server.once("connection", resolve))
      const peer = Net.connect((server.address() as Net.AddressInfo).port, "127.0.0.1")
      peer.on("error", () => {})
      await new Promise<void>((resolve) => nextTick(resolve))
      whileDialled()
      return { server, ours: await ours, peer }
    }),
    ({ server, ours, peer }) =>
      Effect.sync(() => {
        peer.destroy()
        ours.destroy()
        server.close()
      })
  )
const pair = pairWhile(() => {})

const descriptorOf = (socket: Net.Socket): number => (socket as unknown as { _handle: { fd: number } })._handle.fd

describe.skipIf(platform() !== "linux")("the kernel's own calls", () => {
  it("are there in the main thread alone", async () => {
    assert.isNotNull(kernelSockets())
    assert.strictEqual(whyNoKernelSockets(), "")
    const module = JSON.stringify(new URL("../../src/net/KernelSockets.ts", import.meta.url).href)
    const program = `import(${module}).then((it) => require("node:worker_threads").parentPort.postMessage(it.whyNoKernelSockets()))`
    const worker = new Worker(program, { eval: true })
    const why = await new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject))
    await worker.terminate()
    assert.strictEqual(why, "this is a worker thread")
  })

  it.live("never write to who has got the number of a descriptor that Node has closed, nor read from there", () =>
    Effect.gen(function* () {
      const { ours } = yield* pair
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
      const former = yield* pair
      const transport = accepted(former.ours)
      const number = descriptorOf(former.ours)
      former.ours.removeAllListeners("close").destroy()
      const placeholder = openSync("/dev/null", "r")
      const { ours, peer } = yield* pairWhile(() => closeSync(placeholder))
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

  it.live("tell nothing to one that another has destroyed in the same turn", () =>
    Effect.gen(function* () {
      const pairs = [yield* pair, yield* pair]
      const transports = pairs.map(({ ours }) => accepted(ours))
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
})
