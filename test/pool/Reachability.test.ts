import { assert, describe, it } from "@effect/vitest"
import { DestinationUnreachable } from "../../src/errors.ts"
import { Reachability, refusedAgain, type Refusal } from "../../src/pool/Reachability.ts"

const fault = (detail: string) => new DestinationUnreachable({ destination: "db/shop", detail })
const PATIENCE = 5_000

/** A destination that was there before and has failed once at 0. */
const restarting = () => {
  const destination = new Reachability()
  destination.reached()
  destination.failed(fault("down"), 0, 0, PATIENCE)
  return destination
}

describe("Reachability", () => {
  it("dials as it likes where nothing has failed", () => {
    const destination = new Reachability()
    assert.isTrue(destination.mayDial(0, 100))
    assert.isNull(destination.inVain(0, 0, PATIENCE))
    assert.isNull(destination.fault)
    assert.isFalse(destination.reached())
  })

  it("makes one attempt at a time during an outage, with pauses that double up to five seconds", () => {
    const destination = new Reachability()
    let now = 0
    for (const pause of [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]) {
      destination.failed(fault("down"), now, now, PATIENCE)
      assert.isFalse(destination.mayDial(now + pause - 1, 0), `${pause}`)
      assert.isTrue(destination.mayDial(now + pause, 0), `${pause}`)
      assert.isFalse(destination.mayDial(now + pause, 1), `${pause}`)
      now += pause
    }
  })

  it("never pauses for longer, however many attempts have failed", () => {
    const destination = new Reachability()
    for (let attempt = 0; attempt < 5000; attempt++) destination.failed(fault("down"), 0, 0, PATIENCE)
    assert.isTrue(destination.mayDial(5_000, 0))
  })

  it("says at once, and once, that the destination is back, and begins anew then", () => {
    const destination = restarting()
    destination.failed(fault("down"), 100, 100, PATIENCE)
    assert.isTrue(destination.reached())
    assert.isFalse(destination.reached())
    assert.isNull(destination.fault)
    assert.isTrue(destination.mayDial(100, 5))
    destination.failed(fault("down"), 1000, 1000, PATIENCE)
    assert.isTrue(destination.mayDial(1100, 0))
  })

  it("lets clients wait through a restart for as long as a connect may take, then tells them the last error", () => {
    const destination = restarting()
    for (let now = 100; now < PATIENCE; now += 500) {
      assert.isNull(destination.inVain(now, 1, PATIENCE), `${now}`)
      destination.failed(fault(`down at ${now}`), now, now, PATIENCE)
    }
    assert.isNull(destination.inVain(PATIENCE - 1, 0, PATIENCE))
    assert.strictEqual(destination.inVain(PATIENCE, 1, PATIENCE)?.detail, "down at 4600")
    assert.strictEqual(destination.fault?.detail, "down at 4600")
  })

  it("makes its last attempt for those who wait when their patience ends, however long the pause would have been", () => {
    const destination = restarting()
    for (const now of [100, 300, 700, 1500, 3100]) destination.failed(fault("down"), now, now, PATIENCE)
    assert.isFalse(destination.mayDial(PATIENCE - 1, 0))
    assert.isTrue(destination.mayDial(PATIENCE, 0))
    assert.isNull(destination.inVain(PATIENCE, 0, PATIENCE))
    destination.failed(fault("still down"), PATIENCE, PATIENCE, PATIENCE)
    assert.strictEqual(destination.inVain(PATIENCE, 0, PATIENCE)?.detail, "still down")
    assert.isFalse(destination.mayDial(2 * PATIENCE - 1, 0))
  })

  it("counts an outage from the beginning of its first attempt", () => {
    const destination = new Reachability()
    destination.reached()
    destination.failed(fault("slow"), 1_000, 4_000, PATIENCE)
    assert.isNull(destination.inVain(5_999, 1, PATIENCE))
    assert.isNotNull(destination.inVain(6_000, 1, PATIENCE))
  })

  it("has nobody wait for a destination that never answered", () => {
    const destination = new Reachability()
    destination.failed(fault("no such host"), 0, 0, PATIENCE)
    assert.strictEqual(destination.inVain(0, 0, PATIENCE)?.detail, "no such host")
  })

  it("lets whoever comes when an attempt is due wait for that attempt", () => {
    const destination = new Reachability()
    destination.failed(fault("down"), 0, 0, PATIENCE)
    assert.isNotNull(destination.inVain(99, 0, PATIENCE))
    assert.isNull(destination.inVain(100, 0, PATIENCE))
  })
})

describe("refusedAgain", () => {
  it("remembers the last words, and how long not to try again", () => {
    let refusal: Refusal | null = null
    const pauses: Array<number> = []
    for (let attempt = 1; attempt <= 8; attempt++) {
      refusal = refusedAgain(refusal, fault(`${attempt}`), 1000)
      pauses.push(refusal.until - 1000)
      assert.deepStrictEqual([refusal.failures, refusal.fault.detail], [attempt, `${attempt}`])
    }
    assert.deepStrictEqual(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000])
  })
})
