import { assert, describe, it } from "@effect/vitest"
import type * as Ffi from "node:ffi"
import { createRequire } from "node:module"
import * as Net from "node:net"
import { platform } from "node:os"
import { NOTHING, Ring, type OnUnsent } from "../../src/net/Ring.ts"

/** Null where the kernel has none, or forbids it: EpollSockets is for that. */
const opened = (onUnsent: OnUnsent = () => assert.fail("nothing was sent")): Ring | null => {
  const ffi = createRequire(import.meta.url)("node:ffi") as typeof Ffi
  const ring = Ring.open(ffi, onUnsent)
  if (typeof ring !== "string") return ring
  assert.match(ring, /^(ENOSYS|EPERM|EINVAL|a kernel that is too old)$/)
  return null
}

/** The descriptor of a socket whose peer reads nothing. */
const slowPeer = async () => {
  const server = Net.createServer({ pauseOnConnect: true })
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  const accepted = new Promise<Net.Socket>((resolve) => server.once("connection", resolve))
  const ours = Net.connect((server.address() as Net.AddressInfo).port, "127.0.0.1")
  await new Promise<void>((resolve) => ours.once("connect", resolve))
  const peer = await accepted
  const close = (): void => {
    ours.destroy()
    peer.destroy()
    server.close()
  }
  return { socket: (ours as unknown as { _handle: { fd: number } })._handle.fd, close }
}

describe.skipIf(platform() !== "linux")("an io_uring", () => {
  it("loses no completion where there are more than it has room for", () => {
    const ring = opened()
    if (ring === null) return
    const nudges = 10_000
    for (let nudge = 0; nudge < nudges; nudge++) ring.nudge()
    ring.submit()
    let completed = 0
    for (;;) {
      if (ring.pending) ring.submit()
      if (ring.count === 0) break
      ring.next()
      assert.strictEqual(ring.kind, NOTHING)
      completed++
    }
    assert.strictEqual(completed, nudges)
  })
  it("tells with a submission what was sent in part and what not at all", async () => {
    const unsent: Array<readonly [token: number, sent: number]> = []
    const ring = opened((token, sent) => void unsent.push([token, sent]))
    if (ring === null) return
    const { socket, close } = await slowPeer()
    const bytes = Buffer.alloc(60_000)
    const send = (token: number): void => {
      ring.send(token, socket, ring.copy(bytes), bytes.length)
      ring.submit()
    }
    while (unsent.length === 0) send(1)
    assert.isBelow(unsent[0]![1], bytes.length)
    send(2)
    assert.deepStrictEqual(unsent.slice(1), [[2, 0]])
    close()
  })
  it("tells with a submission what was not sent, though more completions wait than it has room for", async () => {
    const unsent: Array<readonly [token: number, sent: number]> = []
    const ring = opened((token, sent) => void unsent.push([token, sent]))
    if (ring === null) return
    const { socket, close } = await slowPeer()
    const bytes = Buffer.alloc(60_000)
    const send = (token: number): void => {
      ring.send(token, socket, ring.copy(bytes), bytes.length)
      ring.submit()
    }
    while (unsent.length === 0) send(1)
    for (let nudge = 0; nudge < 10_000; nudge++) ring.nudge()
    ring.submit()
    send(2)
    assert.deepStrictEqual(unsent.slice(1), [[2, 0]])
    close()
  })
})
