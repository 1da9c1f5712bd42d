import { assert, describe, it } from "@effect/vitest"
import { Lane, QUANTUM, Waiter, WaitQueue } from "../../src/pool/WaitQueue.ts"
import { seeded, type Chance } from "../support/random.ts"

type Queue = WaitQueue<string, string>

const anyone = () => true

const enter = (queue: Queue, lane: Lane<string, string>, client: string, now = 0): Waiter<string, string> => {
  const waiter = new Waiter<string, string>(client)
  queue.enter(lane, waiter, now)
  return waiter
}

/** One connection serves so many transactions: a visit is up to a quantum of one tenant's, then it is the next one's turn. */
const serve = (queue: Queue, transactions: number, onServed: (lane: Lane<string, string>) => void = () => {}) => {
  const served: Array<string> = []
  while (served.length < transactions) {
    const lane = queue.peek(anyone)
    if (lane === null) return served
    queue.endTurn(lane)
    for (let turn = 0; turn < QUANTUM && served.length < transactions; turn++) {
      const waiter = queue.take(lane)
      if (waiter === null) break
      served.push(waiter.client)
      onServed(lane)
    }
  }
  return served
}

/** Those that wait, in the order of their tenants' turns; taken out for it. */
const drain = (queue: Queue): ReadonlyArray<string> => {
  const order: Array<string> = []
  for (let lane = queue.peek(anyone); lane !== null; lane = queue.peek(anyone)) {
    order.push(queue.take(lane)!.client)
  }
  return order
}

describe("whose turn it is", () => {
  it("is first come first served within one tenant", () => {
    const queue: Queue = new WaitQueue()
    const lane = new Lane<string, string>("a")
    const clients = Array.from({ length: 100 }, (_, index) => `a${index}`)
    for (const client of clients) enter(queue, lane, client)
    assert.deepStrictEqual(serve(queue, 1000), clients)
    assert.strictEqual(queue.length, 0)
  })

  it("comes to a quiet tenant after one visit of a noisy one with 1000 waiters", () => {
    const queue: Queue = new WaitQueue()
    const [noisy, quiet] = [new Lane<string, string>("noisy"), new Lane<string, string>("quiet")]
    for (let index = 0; index < 1000; index++) enter(queue, noisy, "noisy")
    enter(queue, quiet, "quiet")
    assert.deepStrictEqual(serve(queue, QUANTUM + 2), [...Array(QUANTUM).fill("noisy"), "quiet", "noisy"])
  })

  it("comes to each of many quiet tenants within a quantum of every other one, however noisy those are", () => {
    const queue: Queue = new WaitQueue()
    const noisy = ["n1", "n2", "n3"].map((name) => new Lane<string, string>(name))
    for (const lane of noisy) for (let index = 0; index < 1000; index++) enter(queue, lane, lane.owner)
    const quiet = Array.from({ length: 10 }, (_, index) => new Lane<string, string>(`q${index}`))
    for (const lane of quiet) enter(queue, lane, lane.owner)
    const served = serve(queue, 3 * QUANTUM + 10)
    for (const lane of quiet) assert.include(served, lane.owner)
  })

  it("is shared equally by tenants that always have somebody waiting, whatever their numbers", () => {
    const queue: Queue = new WaitQueue()
    const lanes = [1, 10, 1000].map((waiters) => {
      const lane = new Lane<string, string>(`${waiters}`)
      for (let index = 0; index < waiters; index++) enter(queue, lane, lane.owner)
      return lane
    })
    const counts = new Map<string, number>()
    // Each served client asks again.
    for (const client of serve(queue, 3000, (lane) => enter(queue, lane, lane.owner))) {
      counts.set(client, (counts.get(client) ?? 0) + 1)
    }
    for (const lane of lanes) assert.isAtLeast(counts.get(lane.owner) ?? 0, 1000 - QUANTUM)
  })

  it("passes over a tenant that may not be served, which keeps its place", () => {
    const queue: Queue = new WaitQueue()
    const lanes = ["a", "b"].map((name) => new Lane<string, string>(name))
    for (const lane of lanes) enter(queue, lane, lane.owner)
    assert.strictEqual(queue.peek((lane) => lane.owner !== "a")?.owner, "b")
    assert.isNull(queue.peek(() => false))
    assert.strictEqual(queue.peek(anyone)?.owner, "a")
  })
})

describe("a tenant that waits", () => {
  const busy = () => {
    const queue: Queue = new WaitQueue()
    const [often, seldom] = [new Lane<string, string>("often"), new Lane<string, string>("seldom")]
    return { queue, often, seldom, take: (lane: Lane<string, string>) => (queue.endTurn(lane), queue.take(lane)) }
  }

  it("is fresh until it has its visit", () => {
    const { queue, seldom, take } = busy()
    enter(queue, seldom, "a")
    enter(queue, seldom, "b")
    assert.isTrue(queue.somebodyIsFresh)
    take(seldom)
    assert.isFalse(queue.somebodyIsFresh)
  })

  it("is fresh again when it has been away for a visit of each who waits, and of one more", () => {
    const { queue, often, seldom, take } = busy()
    enter(queue, seldom, "a")
    take(seldom)
    for (let turn = 0; turn < 2 * QUANTUM - 1; turn++) {
      enter(queue, often, "x")
      take(often)
    }
    enter(queue, often, "x")
    const early = enter(queue, seldom, "b")
    assert.isFalse(queue.somebodyIsFresh)
    queue.leave(early)
    enter(queue, often, "x")
    take(often)
    enter(queue, seldom, "b")
    assert.isTrue(queue.somebodyIsFresh)
  })

  it("is fresh no more when it leaves, or where it has been its turn until now", () => {
    const { queue, often, seldom, take } = busy()
    const waiter = enter(queue, seldom, "a")
    queue.leave(waiter)
    assert.isFalse(queue.somebodyIsFresh)
    enter(queue, often, "x")
    take(often)
    queue.visited(often)
    enter(queue, often, "x")
    assert.isFalse(queue.somebodyIsFresh)
  })

  it("is fresh where it has not waited for a second, though nothing was granted meanwhile", () => {
    const { queue, seldom, take } = busy()
    enter(queue, seldom, "a")
    take(seldom)
    enter(queue, seldom, "b", 999)
    assert.isFalse(queue.somebodyIsFresh)
    take(seldom)
    enter(queue, seldom, "c", 1999)
    assert.isTrue(queue.somebodyIsFresh)
  })

  it("is still fresh when one of its clients has waited in vain, which is no visit", () => {
    const { queue, seldom } = busy()
    enter(queue, seldom, "a", 0)
    enter(queue, seldom, "b", 5)
    assert.lengthOf(queue.takeOlderThan(1), 1)
    assert.isTrue(queue.somebodyIsFresh)
  })
})

describe("a waiter", () => {
  it("that leaves is gone at once, wherever it stood, and may leave again", () => {
    for (const leaving of [0, 1, 2]) {
      const queue: Queue = new WaitQueue()
      const lane = new Lane<string, string>("a")
      const waiters = ["x", "y", "z"].map((client) => enter(queue, lane, client))
      queue.leave(waiters[leaving]!)
      queue.leave(waiters[leaving]!)
      assert.strictEqual(queue.length, 2)
      assert.deepStrictEqual(
        drain(queue),
        ["x", "y", "z"].filter((_, index) => index !== leaving)
      )
    }
  })

  it("that leaves as its tenant's only one takes the tenant's turn with it", () => {
    const queue: Queue = new WaitQueue()
    const [a, b] = [new Lane<string, string>("a"), new Lane<string, string>("b")]
    const only = enter(queue, a, "a")
    enter(queue, b, "b")
    queue.leave(only)
    assert.isNull(a.queue)
    assert.deepStrictEqual(drain(queue), ["b"])
    assert.isNull(queue.oldest())
  })

  it("that was never in a queue, or was served, may leave too", () => {
    const queue: Queue = new WaitQueue()
    const lane = new Lane<string, string>("a")
    queue.leave(new Waiter<string, string>("x"))
    const waiter = enter(queue, lane, "y")
    assert.strictEqual(queue.take(lane), waiter)
    queue.leave(waiter)
    assert.strictEqual(queue.length, 0)
    assert.isNull(queue.take(lane))
  })

  it("that goes back is first of its tenant, its tenant first of all, and has waited since it first came", () => {
    const queue: Queue = new WaitQueue()
    const [a, b] = [new Lane<string, string>("a"), new Lane<string, string>("b")]
    const first = enter(queue, b, "b1", 5)
    enter(queue, a, "a1", 6)
    enter(queue, b, "b2", 7)
    assert.strictEqual(queue.take(b), first)
    queue.endTurn(b)
    queue.enterFirst(b, first)
    assert.deepStrictEqual([queue.length, queue.oldest()], [3, 5])
    assert.deepStrictEqual(drain(queue), ["b1", "b2", "a1"])
  })
})

describe("waiting times", () => {
  it("are looked up across tenants, and those that are too long are taken", () => {
    const queue: Queue = new WaitQueue()
    const lanes = ["a", "b", "c"].map((name) => new Lane<string, string>(name))
    for (let now = 1; now <= 9; now++) enter(queue, lanes[now % 3]!, `${now}`, now)
    assert.strictEqual(queue.oldest(), 1)
    assert.deepStrictEqual(queue.takeOlderThan(0), [])
    const taken = queue.takeOlderThan(4).map(({ client }) => client)
    assert.deepStrictEqual(taken.sort(), ["1", "2", "3", "4"])
    assert.deepStrictEqual([queue.length, queue.oldest()], [5, 5])
    assert.lengthOf(queue.takeOlderThan(Number.POSITIVE_INFINITY), 5)
    assert.deepStrictEqual([queue.length, queue.oldest()], [0, null])
    for (const lane of lanes) assert.isNull(lane.queue)
  })
})

/** The same with arrays: tenants in turn, each with its clients. */
class NaiveQueue {
  readonly lanes: Array<{ readonly name: string; readonly waiters: Array<string> }> = []

  #lane(name: string) {
    return this.lanes.find((lane) => lane.name === name)
  }

  enter(name: string, client: string): void {
    const lane = this.#lane(name)
    if (lane === undefined) this.lanes.push({ name, waiters: [client] })
    else lane.waiters.push(client)
  }

  enterFirst(name: string, client: string): void {
    const waiters = this.#lane(name)?.waiters ?? []
    this.#drop(name)
    this.lanes.unshift({ name, waiters: [client, ...waiters] })
  }

  remove(client: string): void {
    const lane = this.lanes.find(({ waiters }) => waiters.includes(client))
    if (lane === undefined) return
    lane.waiters.splice(lane.waiters.indexOf(client), 1)
    if (lane.waiters.length === 0) this.#drop(lane.name)
  }

  endTurn(name: string): void {
    const lane = this.#lane(name)
    if (lane === undefined) return
    this.#drop(name)
    this.lanes.push(lane)
  }

  #drop(name: string): void {
    const at = this.lanes.findIndex((lane) => lane.name === name)
    if (at !== -1) this.lanes.splice(at, 1)
  }
}

/** The queue's own order, walked along its links in both directions. */
const walk = (queue: Queue): ReadonlyArray<{ readonly name: string; readonly waiters: ReadonlyArray<string> }> => {
  const walked: Array<{ readonly name: string; readonly waiters: ReadonlyArray<string> }> = []
  for (let lane = queue.peek(anyone); lane !== null; lane = lane.next) {
    const waiters: Array<string> = []
    for (let waiter = lane.first; waiter !== null; waiter = waiter.next) {
      const linked = waiter.next === null ? waiter === lane.last : waiter.next.previous === waiter
      if (!linked || waiter.lane !== lane) assert.fail(`${waiter.client} is linked wrong`)
      waiters.push(waiter.client)
    }
    if (lane.next !== null && lane.next.previous !== lane) assert.fail(`${lane.owner} is linked wrong`)
    walked.push({ name: lane.owner, waiters })
  }
  return walked
}

const randomRun = (random: Chance): void => {
  const queue: Queue = new WaitQueue()
  const naive = new NaiveQueue()
  const lanes = Array.from({ length: 1 + random.below(5) }, (_, index) => new Lane<string, string>(`t${index}`))
  const waiters = Array.from({ length: 12 }, (_, index) => new Waiter<string, string>(`c${index}`))
  for (let now = 1; now <= 60; now++) {
    const lane = random.pick(lanes)
    const waiter = random.pick(waiters)
    switch (random.below(6)) {
      case 0:
      case 1:
        if (waiter.lane !== null) break
        queue.enter(lane, waiter, now)
        naive.enter(lane.owner, waiter.client)
        break
      case 2:
        if (waiter.lane !== null) break
        queue.enterFirst(lane, waiter)
        naive.enterFirst(lane.owner, waiter.client)
        break
      case 3:
        queue.leave(waiter)
        naive.remove(waiter.client)
        break
      case 4: {
        const taken = queue.take(lane)
        if (taken !== null) naive.remove(taken.client)
        break
      }
      default:
        queue.endTurn(lane)
        naive.endTurn(lane.owner)
    }
    assert.strictEqual(JSON.stringify(walk(queue)), JSON.stringify(naive.lanes))
    assert.strictEqual(queue.length, waiters.filter((each) => each.lane !== null).length)
    assert.strictEqual(
      queue.somebodyIsFresh,
      lanes.some(({ fresh }) => fresh)
    )
    for (const { fresh, queue: waitsIn } of lanes) if (fresh) assert.strictEqual(waitsIn, queue)
  }
}

describe("any operations in any order", () => {
  it("leave the queue as they leave one made of arrays", () => {
    for (let seed = 1; seed <= 300; seed++) randomRun(seeded(seed))
  })
})
