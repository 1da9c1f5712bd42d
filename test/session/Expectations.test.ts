import { assert, describe, it } from "@effect/vitest"
import { memoryUsage } from "node:process"
import { Backend } from "../../src/protocol/Frame.ts"
import { Answer, entries, entry, Expectations, Expected, type Entry } from "../../src/session/Expectations.ts"
import { seeded, type Chance } from "../support/random.ts"

const entryOf = (expected: Expected, answer: Answer, onSkipped: () => void = () => {}): Entry =>
  entry(expected, { answer, bytes: answer === Answer.makeUp ? Buffer.from("made up") : null, onSkipped })

/** As the relay hears it; whether it went to the client. */
const hearOne = (expectations: Expectations, type: number): boolean =>
  type === Backend.errorResponse ? expectations.onError() : expectations.passes(type) || expectations.onAnswer(type)

/** All that a server says, in order; whether each went to the client. */
const hear = (expectations: Expectations, ...types: ReadonlyArray<number>): ReadonlyArray<boolean> =>
  types.map((type) => hearOne(expectations, type))

const { readyForQuery: Z, errorResponse: E, copyInResponse: G, commandComplete: C } = Backend

describe("the model", () => {
  it("Query, FunctionCall and Sync end with one ReadyForQuery", () => {
    const expectations = new Expectations()
    expectations.pushSimple(entries.query)
    expectations.pushSimple(entries.functionCall)
    expectations.pushSync()
    for (let owed = 3; owed > 0; owed--) {
      assert.deepStrictEqual([expectations.settled, expectations.serverBusy], [false, true])
      hear(expectations, Backend.dataRow, C, Z)
    }
    assert.deepStrictEqual([expectations.settled, expectations.serverBusy], [true, false])
  })

  it("keeps nothing of what was answered, where a client sees to it that always something is owed", () => {
    const expectations = new Expectations()
    const before = memoryUsage().heapUsed
    expectations.pushExtended(entries.close)
    for (let answered = 0; answered < 4_000_000; answered++) {
      expectations.pushExtended(entries.close)
      hearOne(expectations, Backend.closeComplete)
    }
    assert.isBelow(memoryUsage().heapUsed - before, 16 * 1024 * 1024)
  })

  it("Parse, Bind, Close, Describe and Execute have each one message that completes them", () => {
    const completions: ReadonlyArray<readonly [Entry, ReadonlyArray<number>]> = [
      [entries.parse, [Backend.parseComplete]],
      [entries.bind, [Backend.bindComplete]],
      [entries.close, [Backend.closeComplete]],
      [entries.describe, [Backend.rowDescription, Backend.noData]],
      [entries.execute, [C, Backend.emptyQueryResponse, Backend.portalSuspended]]
    ]
    for (const [asked, ends] of completions) {
      for (const type of Object.values(Backend)) {
        if (type === Z || type === G) continue
        const expectations = new Expectations()
        expectations.pushExtended(asked)
        assert.isTrue(expectations.passes(type) || expectations.onAnswer(type))
        assert.strictEqual(expectations.head === null, ends.includes(type), `${asked.expected} ${type}`)
      }
    }
  })

  it("an extended batch is open until its Sync, whatever was answered", () => {
    const expectations = new Expectations()
    expectations.pushExtended(entries.parse)
    hear(expectations, Backend.parseComplete)
    assert.deepStrictEqual([expectations.head, expectations.settled, expectations.serverBusy], [null, false, false])
    expectations.pushSync()
    hear(expectations, Z)
    assert.isTrue(expectations.settled)
  })

  it("what stands before a Flush is answered without a Sync, so the server is at work until it is", () => {
    const expectations = new Expectations()
    expectations.pushExtended(entries.parse)
    expectations.pushExtended(entries.bind)
    assert.isFalse(expectations.serverBusy)
    expectations.pushFlush()
    expectations.pushExtended(entries.execute)
    assert.isTrue(expectations.serverBusy)
    hear(expectations, Backend.parseComplete)
    assert.isTrue(expectations.serverBusy)
    hear(expectations, Backend.bindComplete)
    assert.deepStrictEqual([expectations.serverBusy, expectations.settled], [false, false])
  })

  it("a Flush behind an error waits for nothing", () => {
    const expectations = new Expectations()
    expectations.pushExtended(entries.parse)
    expectations.pushFlush()
    expectations.pushExtended(entries.bind)
    hear(expectations, E)
    expectations.pushFlush()
    assert.isFalse(expectations.serverBusy)
  })

  it("a last message that has not come to its end gives the server nothing to do", () => {
    for (const [push, before] of [
      [(it: Expectations) => it.pushSimple(entries.query), false],
      [(it: Expectations) => it.pushExtended(entries.bind), false]
    ] as const) {
      const expectations = new Expectations()
      push(expectations)
      assert.strictEqual(expectations.serverBusyBeforeLast, before)
      expectations.clear()
      expectations.pushSync()
      push(expectations)
      assert.isTrue(expectations.serverBusyBeforeLast)
      hear(expectations, Z)
      assert.isFalse(expectations.serverBusyBeforeLast)
    }
  })

  it("a Query behind an extended batch without a Sync closes it", () => {
    const expectations = new Expectations()
    expectations.pushExtended(entries.parse)
    expectations.pushSimple(entries.query)
    hear(expectations, Backend.parseComplete, C, Z)
    assert.isTrue(expectations.settled)
  })

  it("after an error all up to the next Sync are skipped unanswered, those sent before it is known and those sent after", () => {
    const expectations = new Expectations()
    expectations.pushExtended(entries.parse)
    expectations.pushExtended(entries.bind)
    expectations.pushSimple(entries.query)
    expectations.pushExtended(entries.execute)
    hear(expectations, E)
    assert.deepStrictEqual([expectations.head, expectations.settled, expectations.serverBusy], [null, false, false])
    expectations.pushSimple(entries.query)
    expectations.pushExtended(entries.parse)
    assert.isNull(expectations.head)
    expectations.pushSync()
    hear(expectations, Z)
    assert.isTrue(expectations.settled)
  })

  it("an error of a Query or of the Sync's own commit skips nothing", () => {
    for (const push of ["query", "sync"] as const) {
      const expectations = new Expectations()
      if (push === "query") expectations.pushSimple(entries.query)
      else expectations.pushSync()
      expectations.pushExtended(entries.parse)
      expectations.pushSync()
      hear(expectations, E, Z, Backend.parseComplete)
      assert.isFalse(expectations.settled)
      hear(expectations, Z)
      assert.isTrue(expectations.settled)
    }
  })

  it("Syncs that were sent before the data of a COPY vanish, whether its answer was known by then or not", () => {
    for (const known of [false, true]) {
      const expectations = new Expectations()
      expectations.pushExtended(entries.execute)
      if (known) hear(expectations, G)
      expectations.pushSync()
      if (!known) hear(expectations, G)
      assert.deepStrictEqual([expectations.copyIn, expectations.serverBusy], [true, false])
      expectations.pushCopyEnd()
      assert.isFalse(expectations.copyIn)
      hear(expectations, C)
      assert.isFalse(expectations.settled)
      expectations.pushSync()
      hear(expectations, Z)
      assert.deepStrictEqual([expectations.settled, expectations.inDoubt], [true, false])
    }
  })

  it("Syncs that were sent after CopyDone or CopyFail count, even if all was sent blindly", () => {
    const expectations = new Expectations()
    expectations.pushExtended(entries.execute)
    expectations.pushCopyEnd()
    expectations.pushSync()
    hear(expectations, G)
    assert.deepStrictEqual([expectations.copyIn, expectations.serverBusy], [false, true])
    hear(expectations, C)
    assert.isFalse(expectations.settled)
    hear(expectations, Z)
    assert.deepStrictEqual([expectations.settled, expectations.inDoubt], [true, false])
  })

  it("a batch that was begun behind a COPY sent blindly stays open when the COPY begins", () => {
    const expectations = new Expectations()
    expectations.pushExtended(entries.execute)
    expectations.pushCopyEnd()
    expectations.pushSync()
    expectations.pushExtended(entries.parse)
    hear(expectations, G, C, Z, Backend.parseComplete)
    assert.isFalse(expectations.settled)
    expectations.pushSync()
    hear(expectations, Z)
    assert.isTrue(expectations.settled)
  })

  it("each COPY of a Query has its own data", () => {
    const expectations = new Expectations()
    expectations.pushSimple(entries.query)
    hear(expectations, G)
    expectations.pushCopyEnd()
    hear(expectations, C, G)
    assert.isTrue(expectations.copyIn)
    expectations.pushCopyEnd()
    hear(expectations, C, Z)
    assert.isTrue(expectations.settled)
  })

  it("an end of data that comes too late for its COPY is forgotten", () => {
    const expectations = new Expectations()
    expectations.pushSimple(entries.query)
    hear(expectations, G, E)
    expectations.pushCopyEnd()
    hear(expectations, Z)
    assert.isTrue(expectations.settled)
    expectations.pushCopyEnd()
    assert.isTrue(expectations.settled)
  })

  it("what the server notices about a message of ours goes to nobody either", () => {
    const expectations = new Expectations()
    expectations.pushExtended(entryOf(Expected.parse, Answer.drop))
    expectations.pushExtended(entries.bind)
    const { bindComplete, noticeResponse, parseComplete } = Backend
    assert.deepStrictEqual(hear(expectations, noticeResponse, parseComplete, noticeResponse, bindComplete), [
      false,
      false,
      true,
      true
    ])
  })

  it("a dropped answer goes to nobody, an error in its place goes to the client", () => {
    const expectations = new Expectations()
    expectations.pushExtended(entryOf(Expected.parse, Answer.drop))
    expectations.pushExtended(entryOf(Expected.parse, Answer.drop))
    expectations.pushSync()
    assert.deepStrictEqual(hear(expectations, Backend.parseComplete, E, Z), [false, true, true])
    assert.isTrue(expectations.settled)
  })

  it("a made-up answer is due when all before it have been answered", () => {
    const expectations = new Expectations()
    expectations.pushExtended(entries.bind)
    expectations.pushExtended(entryOf(Expected.close, Answer.makeUp))
    assert.isFalse(expectations.madeUpIsDue)
    hear(expectations, Backend.bindComplete)
    assert.isTrue(expectations.madeUpIsDue)
    assert.strictEqual(expectations.takeMadeUp()?.toString(), "made up")
    assert.deepStrictEqual([expectations.madeUpIsDue, expectations.settled], [false, false])
  })

  it("an answer that nobody waits for puts the connection in doubt", () => {
    const expectations = new Expectations()
    hear(expectations, Backend.noticeResponse, Backend.parameterStatus)
    assert.isFalse(expectations.inDoubt)
    hear(expectations, Z)
    assert.isTrue(expectations.inDoubt)
  })

  it("a COPY that fails after a Sync in its data puts the connection in doubt: the server may have read it or not", () => {
    const expectations = new Expectations()
    expectations.pushExtended(entries.execute)
    hear(expectations, G)
    expectations.pushSync()
    hear(expectations, E)
    assert.isTrue(expectations.inDoubt)
  })

  // A statement-level trigger raises between CopyInResponse and the first byte of data. The Sync that was sent with the
  // statement then counts: seen on a real server, `G E Z Z` for Execute, Sync, CopyDone, Sync in one write, and
  // `G E Z Z T D C Z` for Query, Sync, CopyDone, Query. Whoever takes the first of those for the last answer lends a
  // connection on which rows are still to come, and the next tenant reads them.
  it("a COPY that fails before its Sync was read puts the connection in doubt, even if all was sent blindly", () => {
    const extended = new Expectations()
    extended.pushExtended(entries.execute)
    extended.pushSync()
    extended.pushCopyEnd()
    extended.pushSync()
    hear(extended, G, E)
    assert.isTrue(extended.inDoubt)

    const simple = new Expectations()
    simple.pushSimple(entries.query)
    simple.pushSync()
    simple.pushCopyEnd()
    simple.pushSimple(entries.query)
    hear(simple, G, E)
    assert.isTrue(simple.inDoubt)
  })

  it("a COPY that fails before its Sync was read leaves nothing open once the server is ready", () => {
    const expectations = new Expectations()
    expectations.pushExtended(entries.execute)
    expectations.pushSync()
    hear(expectations, G, E, Z)
    assert.deepStrictEqual([expectations.inDoubt, expectations.settled], [true, true])
  })

  it("undoes what was skipped in the reverse of the order in which it was done", () => {
    const undone: Array<number> = []
    const expectations = new Expectations()
    for (let index = 0; index < 3; index++) {
      expectations.pushExtended(entryOf(Expected.parse, Answer.forward, () => undone.push(index)))
    }
    hear(expectations, E)
    assert.deepStrictEqual(undone, [2, 1, 0])
  })

  it("is as new after clear, whatever was before", () => {
    const expectations = new Expectations()
    expectations.pushExtended(entries.execute)
    hear(expectations, G)
    expectations.pushSync()
    hear(expectations, E)
    expectations.pushExtended(entries.parse)
    expectations.clear()
    assert.deepStrictEqual(
      [expectations.settled, expectations.inDoubt, expectations.copyIn, expectations.serverBusy, expectations.head],
      [true, false, false, false, null]
    )
    expectations.pushExtended(entries.parse)
    assert.strictEqual(expectations.head, entries.parse)
  })
})

// ---- the property: against a server in miniature, written down from postgres.c and copyfromparse.c

type Kind =
  | "query"
  | "functionCall"
  | "sync"
  | "parse"
  | "bind"
  | "close"
  | "describe"
  | "execute"
  | "flush"
  | "data"
  | "copyEnd"

interface Message {
  readonly id: number
  readonly kind: Kind
  readonly answer: Answer
  /** A Sync between the statement of a COPY and its data. */
  readonly beforeData: boolean
  /**
   * What the server makes of it: of a Query, one for each statement; of data and its end, whether they are refused.
   * `copyFails`: a COPY that has begun fails before anything of it is read, as by a statement-level trigger.
   */
  readonly outcomes: ReadonlyArray<"ok" | "error" | "copy" | "copyFails" | "noticed" | "suspended">
}

/** One message of the server's, and whose it is. A made-up answer has type 0. */
interface Said {
  readonly type: number
  readonly of: Message
  /** How many messages went over the wire before it. */
  readonly after: number
}

const isExtended = (kind: Kind): boolean =>
  kind === "parse" || kind === "bind" || kind === "close" || kind === "describe" || kind === "execute"

const completion = (kind: Kind): number => {
  switch (kind) {
    case "parse":
      return Backend.parseComplete
    case "bind":
      return Backend.bindComplete
    case "close":
      return Backend.closeComplete
    case "functionCall":
      return Backend.functionCallResponse
    default:
      return C
  }
}

const isCopy = (outcome: Message["outcomes"][number] | undefined): outcome is "copy" | "copyFails" =>
  outcome === "copy" || outcome === "copyFails"

class MiniatureServer {
  /** What goes over the wire, and what the client is to see of it; made-up answers where they would have stood. */
  readonly wire: Array<Said> = []
  readonly transcript: Array<Said> = []
  /** Messages that were skipped or refused, and the error that did it. */
  readonly skipped = new Map<number, Said>()
  /** Skips to Sync; its error. */
  #skipping: Said | null = null
  #copy: { readonly of: Message; readonly rest: Message["outcomes"] } | null = null
  #batchOpen = false
  #saidLength = 0

  get atRest(): boolean {
    return this.#skipping === null && this.#copy === null && !this.#batchOpen
  }

  receive(message: Message): void {
    if (this.#copy !== null) this.#readCopy(message)
    else if (message.kind === "sync") this.#sync(message)
    else if (this.#skipping !== null) {
      if (isExtended(message.kind)) this.skipped.set(message.id, this.#skipping)
    } else if (isExtended(message.kind)) this.#extended(message)
    else if (message.kind === "query" || message.kind === "functionCall") {
      this.#batchOpen = false
      this.#runSimple(message, message.outcomes)
    }
  }

  #say(type: number, of: Message): Said {
    const madeUp = of.answer === Answer.makeUp
    const said = { type: madeUp ? 0 : type, of, after: this.#saidLength }
    if (madeUp) this.transcript.push(said)
    else {
      this.#saidLength++
      this.wire.push(said)
      if (of.answer !== Answer.drop || type === E) this.transcript.push(said)
    }
    return said
  }

  #fail(of: Message): void {
    const error = this.#say(E, of)
    if (isExtended(of.kind)) {
      this.#skipping = error
      this.skipped.set(of.id, error)
    } else this.#say(Z, of)
  }

  #sync(message: Message): void {
    if (this.#skipping === null && message.outcomes[0] === "error") this.#say(E, message)
    this.#skipping = null
    this.#batchOpen = false
    this.#say(Z, message)
  }

  #extended(message: Message): void {
    this.#batchOpen = true
    const outcome = message.outcomes[0]
    if (outcome === "noticed") this.#say(Backend.noticeResponse, message)
    if (outcome === "error") return this.#fail(message)
    if (message.kind === "describe") {
      this.#say(Backend.parameterDescription, message)
      this.#say(outcome === "ok" ? Backend.rowDescription : Backend.noData, message)
    } else if (isCopy(outcome)) this.#beginCopy(message, outcome, [])
    else if (message.kind === "execute") {
      this.#say(Backend.dataRow, message)
      this.#say(outcome === "suspended" ? Backend.portalSuspended : C, message)
    } else this.#say(completion(message.kind), message)
  }

  #runSimple(message: Message, outcomes: Message["outcomes"]): void {
    for (const [index, outcome] of outcomes.entries()) {
      if (outcome === "error") return this.#fail(message)
      if (isCopy(outcome)) return this.#beginCopy(message, outcome, outcomes.slice(index + 1))
      this.#say(Backend.rowDescription, message)
      this.#say(completion(message.kind), message)
    }
    this.#say(Z, message)
  }

  #beginCopy(of: Message, outcome: "copy" | "copyFails", rest: Message["outcomes"]): void {
    this.#say(G, of)
    if (outcome === "copy") this.#copy = { of, rest }
    else this.#fail(of)
  }

  /** CopyGetData: Sync and Flush are read and forgotten. */
  #readCopy(message: Message): void {
    const { of, rest } = this.#copy!
    if (message.kind === "sync") return
    if (message.outcomes[0] === "error") {
      this.#copy = null
      this.#fail(of)
    } else if (message.kind === "copyEnd") {
      this.#copy = null
      this.#say(C, of)
      if (of.kind === "query") this.#runSimple(of, rest)
    }
  }
}

/** What a client sends: any pipeline that PostgreSQL does not end for being out of step. */
const randomPipeline = (random: Chance): ReadonlyArray<Message> => {
  const messages: Array<Message> = []
  const errors = random.pick([0, 0.1, 0.3])
  const add = (kind: Kind, outcomes: Message["outcomes"], answer: Answer = Answer.forward, beforeData = false) =>
    messages.push({ id: messages.length, kind, answer, outcomes, beforeData })
  const outcome = () => (random.chance(errors) ? "error" : random.pick(["ok", "ok", "noticed"] as const))

  const copy = () => (random.chance(errors / 2) ? "copyFails" : "copy")

  /** The data of one COPY. A Sync between the statement and its data is swallowed; where the COPY never began, it counts. */
  const addCopy = () => {
    if (random.chance(0.3)) add("sync", ["ok"], Answer.forward, true)
    for (let rows = random.below(3); rows > 0; rows--) add("data", [random.chance(errors) ? "error" : "ok"])
    add("copyEnd", [random.chance(errors) ? "error" : "ok"])
  }

  const steps = 1 + random.below(10)
  for (let step = 0; step < steps; step++) {
    if (random.chance(0.2)) add("flush", ["ok"])
    switch (random.below(8)) {
      case 0: {
        const statements = Array.from({ length: 1 + random.below(3) }, () =>
          random.chance(0.3) ? copy() : random.chance(errors) ? "error" : "ok"
        )
        add("query", statements)
        for (const statement of statements) if (isCopy(statement)) addCopy()
        break
      }
      case 1:
        add("functionCall", [random.chance(errors) ? "error" : "ok"])
        break
      case 2:
      case 3:
        add("sync", [random.chance(errors / 2) ? "error" : "ok"])
        break
      case 4:
        add("execute", random.chance(0.5) ? ["suspended"] : [outcome()])
        break
      case 5:
        add("execute", [copy()])
        addCopy()
        break
      default: {
        const kind = random.pick(["parse", "bind", "close", "describe"] as const)
        const answer = kind === "parse" || kind === "close" ? random.pick([0, 1, 2] as const) : Answer.forward
        add(
          kind,
          answer === Answer.forward ? [outcome()] : [answer === Answer.drop && random.chance(errors) ? "error" : "ok"],
          answer
        )
      }
    }
  }
  if (random.chance(0.8)) add("sync", ["ok"])
  return messages
}

interface Tally {
  steps: number
  settled: number
  skipped: number
  inDoubt: number
}

/** One pipeline in one interleaving; throws with what differs. */
const run = (random: Chance, tally: Tally): void => {
  const pipeline = randomPipeline(random)
  const eagerness = random.pick([0.2, 0.5, 0.9])
  const server = new MiniatureServer()
  const expectations = new Expectations()
  const calls = new Map<number, number>()
  const heard = new Set<Said>()
  let toClient = 0
  let sent = 0
  /** A Sync was sent between a COPY and the end of its data. */
  let syncInCopy = false
  let copyFailed = false

  const say = (what: string) =>
    assert.fail(`${what}: ${JSON.stringify(pipeline)} after ${sent} sent, ${heard.size} heard`)

  const give = (type: number) => {
    const due = server.transcript[toClient++]
    if (due === undefined || due.type !== type) say(`the client was sent ${type}, not ${due?.type}`)
  }

  const giveMadeUp = () => {
    while (expectations.madeUpIsDue) {
      const bytes = expectations.takeMadeUp()
      if (bytes?.toString() !== `${server.transcript[toClient]?.of.id}`) say("another answer was made up")
      give(0)
    }
  }

  const send = (message: Message) => {
    const bytes = message.answer === Answer.makeUp ? Buffer.from(`${message.id}`) : null
    const onSkipped = () => calls.set(message.id, (calls.get(message.id) ?? 0) + 1)
    if (message.beforeData) syncInCopy = true
    server.receive(message)
    switch (message.kind) {
      case "data":
        return
      case "flush":
        return expectations.pushFlush()
      case "copyEnd":
        return expectations.pushCopyEnd()
      case "sync":
        return expectations.pushSync()
      case "query":
      case "functionCall":
        return expectations.pushSimple(entries[message.kind])
      default:
        return expectations.pushExtended(entry(Expected[message.kind], { answer: message.answer, bytes, onSkipped }))
    }
  }

  const listen = () => {
    const said = server.wire.shift()!
    const forwarded = hearOne(expectations, said.type)
    heard.add(said)
    if (said.type === E && said.of.outcomes.some(isCopy)) copyFailed = true
    if (forwarded) give(said.type)
  }

  const check = () => {
    const due = server.transcript[toClient]
    if (due?.type === 0 && due.after <= heard.size) say("a made-up answer is late")
    const owesNothing = server.wire.length === 0 && server.atRest
    if (expectations.settled !== owesNothing) say(`settled is ${expectations.settled}`)
    if (server.wire.length === 0 && expectations.serverBusy) say("the server has nothing more to do")
    for (const [id, error] of server.skipped) {
      const expected = heard.has(error) ? 1 : 0
      if ((calls.get(id) ?? 0) !== expected) say(`onSkipped of ${id} was called ${calls.get(id) ?? 0} times`)
    }
    for (const id of calls.keys()) if (!server.skipped.has(id)) say(`onSkipped of ${id} was called`)
  }

  while (sent < pipeline.length || server.wire.length > 0) {
    if (sent < pipeline.length && (server.wire.length === 0 || random.chance(eagerness))) send(pipeline[sent++]!)
    else listen()
    giveMadeUp()
    if (expectations.inDoubt) {
      if (!syncInCopy || !copyFailed) say("in doubt without reason")
      tally.inDoubt++
      return
    }
    check()
    tally.steps++
    if (expectations.settled) tally.settled++
  }
  tally.skipped += calls.size
  if (toClient !== server.transcript.length) say("the client is owed an answer")
}

describe("against a server in miniature", () => {
  it("is settled exactly when the server owes nothing, and answers come where PostgreSQL's would", () => {
    const tally = { steps: 0, settled: 0, skipped: 0, inDoubt: 0 }
    for (let seed = 1; seed <= 40_000; seed++) run(seeded(seed), tally)
    // A run that meets none of it would prove nothing.
    assert.isAbove(tally.settled, 40_000)
    assert.isAbove(tally.skipped, 10_000)
    assert.isAbove(tally.inDoubt, 100)
    assert.isBelow(tally.inDoubt, 4_000)
  })

  it("stays small in a session that never rests", () => {
    const expectations = new Expectations()
    expectations.pushSimple(entries.query)
    for (let round = 0; round < 10_000; round++) {
      expectations.pushExtended(entries.bind)
      expectations.pushExtended(entries.execute)
      expectations.pushSync()
      assert.isFalse(expectations.settled)
      hear(expectations, ...(round === 0 ? [C, Z] : [Backend.bindComplete, C, Z]))
    }
    hear(expectations, Backend.bindComplete, C, Z)
    assert.isTrue(expectations.settled)
  })
})
