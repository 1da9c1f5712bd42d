import { assert, describe, it } from "@effect/vitest"
import type * as Ffi from "node:ffi"
import { createRequire } from "node:module"
import { platform } from "node:os"
import { NOTHING, Ring } from "../../src/net/Ring.ts"

/** Null where the kernel has none, or forbids it: EpollSockets is for that. */
const opened = (): Ring | null => {
  const ffi = createRequire(import.meta.url)("node:ffi") as typeof Ffi
  const ring = Ring.open(ffi, () => assert.fail("nothing was sent"))
  if (typeof ring !== "string") return ring
  assert.match(ring, /^(ENOSYS|EPERM|EINVAL|a kernel that is too old)$/)
  return null
}

describe.skipIf(platform() !== "linux")("an io_uring", () => {
  it("loses no completion where there are more than it has room for", () => {
    const ring = opened()
    if (ring === null) return
    const nudges = 10_000
    for (let nudge = 0; nudge < nudges; nudge++) ring.nudge()
    ring.submit()
    assert.isBelow(ring.count, nudges)
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
})
