import { assert, describe, it } from "@effect/vitest"
import * as Redacted from "effect/Redacted"
import { Credential } from "../../src/pool/Credential.ts"
import { CredentialGroup, type Connection } from "../../src/pool/PoolTenant.ts"
import { clientSettings } from "../../src/pool/Reset.ts"
import { ServerConnection } from "../../src/pool/ServerConnection.ts"
import { cString, frame, int16 } from "../../src/protocol/Encoder.ts"
import { Backend, FrameCollector, Frontend, HEADER_LENGTH, lengthAt } from "../../src/protocol/Frame.ts"
import { describeStatement, closeStatement, parse } from "../../src/protocol/Frontend.ts"
import { entries, Expectations, type Entry } from "../../src/session/Expectations.ts"
import type { Outgoing } from "../../src/session/Outgoing.ts"
import {
  MAX_STATEMENT_BYTES_PER_CLIENT,
  MAX_STATEMENTS_PER_CLIENT,
  PreparedStatements
} from "../../src/session/PreparedStatements.ts"
import { Traces } from "../../src/session/Traces.ts"
import { RecordedTransport } from "../support/RecordedTransport.ts"
import { seeded, type Chance } from "../support/random.ts"
import { rewritten } from "../support/rewritten.ts"

const credential = new Credential("app", Redacted.make("secret"))

const newStatements = () => new PreparedStatements(new Traces(), { pool: { maxPreparedStatements: 200 } })

const connect = (settings: ReadonlyArray<readonly [string, string]> = []): Connection => {
  const login = {
    transport: new RecordedTransport(),
    processId: 1,
    secretKey: Buffer.alloc(4),
    parameters: new Map<string, string>(),
    rest: Buffer.alloc(0)
  }
  const group = new CredentialGroup("app", credential)
  const connection: Connection = new ServerConnection(login, group, 0, () => {})
  connection.settings = clientSettings(settings)
  return connection
}

/** Query text and no parameter types, as a Parse has them behind its name. */
const says = (sql: string) => Buffer.concat([cString(sql), int16(0)])
const parseOf = (name: string, sql: string) => parse(name, says(sql))
const bindOf = (name: string, portal = "", rest: Uint8Array = Buffer.alloc(6)) =>
  frame(Frontend.bind, cString(portal), cString(name), rest)

/** A server's part in it: what is prepared there, and one letter for each answer. */
class Prepared {
  readonly statements = new Map<string, string>()
  #skipping = false

  hear(bytes: Buffer): ReadonlyArray<number> {
    const frames = new FrameCollector(1 << 20).push(bytes)
    assert.isNotNull(frames)
    return frames.flatMap(({ type, body }) => this.#answer(type, body))
  }

  #answer(type: number, body: Buffer): ReadonlyArray<number> {
    if (type === Frontend.sync) {
      this.#skipping = false
      return [Backend.readyForQuery]
    }
    if (this.#skipping) return []
    const strings = body.toString("latin1").split("\0")
    const answer = this.#run(type, strings)
    this.#skipping = answer === null
    return [answer ?? Backend.errorResponse]
  }

  #run(type: number, [first = "", second = ""]: ReadonlyArray<string>): number | null {
    switch (type) {
      case Frontend.parse:
        if ((first !== "" && this.statements.has(first)) || second.startsWith("wrong")) return null
        this.statements.set(first, second)
        return Backend.parseComplete
      case Frontend.bind:
        return this.statements.has(second) ? Backend.bindComplete : null
      case Frontend.describe:
        return this.statements.has(first.slice(1)) ? Backend.noData : null
      default:
        this.statements.delete(first.slice(1))
        return Backend.closeComplete
    }
  }
}

/** One client at one server connection, as the relay brings them together. */
class Lease {
  readonly connection: Connection
  readonly server: Prepared
  readonly statements: PreparedStatements
  readonly expectations = new Expectations()
  /** What went to the client. */
  readonly toClient: Array<number> = []
  #due: Array<number> = []

  constructor(statements: PreparedStatements, connection = connect(), server = new Prepared()) {
    this.statements = statements
    this.connection = connection
    this.server = server
  }

  /** Goes to the server. */
  write(write: (out: Outgoing) => void): Buffer {
    return this.send(rewritten(write))
  }

  send(bytes: Buffer): Buffer {
    this.#due.push(...this.server.hear(bytes))
    this.#giveMadeUp()
    return bytes
  }

  parse(name: string, sql: string): Buffer {
    return this.parseMessage(parseOf(name, sql))
  }

  parseMessage(message: Buffer): Buffer {
    return this.write((out) => this.statements.parse(message, this.connection, this.expectations, out))
  }

  bind(name: string, portal = ""): Buffer {
    const message = bindOf(name, portal)
    return this.write((out) =>
      this.statements.bind(message, lengthAt(message, 1), this.connection, this.expectations, out)
    )
  }

  describe(name: string): Buffer {
    return this.write((out) =>
      this.statements.describe(describeStatement(name), this.connection, this.expectations, out)
    )
  }

  /** A message that the relay forwards as it is; a Parse or a Bind here. */
  asItIs(message: Buffer, entry: Entry = message[0] === Frontend.parse ? entries.parse : entries.bind): Buffer {
    this.expectations.pushExtended(entry)
    return this.send(message)
  }

  close(name: string): Buffer {
    return this.write((out) => this.statements.close(closeStatement(name), this.expectations, out))
  }

  sync(): void {
    this.statements.onSync()
    this.expectations.pushSync()
    this.send(frame(Frontend.sync))
  }

  /** So many of the server's answers arrive; all, if none is said. */
  listen(count = this.#due.length): void {
    for (const type of this.#due.splice(0, count)) {
      const { expectations } = this
      const forward =
        type === Backend.errorResponse
          ? expectations.onError()
          : expectations.passes(type) || expectations.onAnswer(type)
      if (forward) this.toClient.push(type)
      this.#giveMadeUp()
    }
  }

  /** Sync, and what the client saw of the batch as letters. */
  answers(): string {
    this.sync()
    this.listen()
    assert.isTrue(this.expectations.settled)
    return String.fromCharCode(...this.toClient.splice(0))
  }

  #giveMadeUp(): void {
    while (this.expectations.madeUpIsDue) this.toClient.push(this.expectations.takeMadeUp()![0]!)
  }
}

const nameIn = (bytes: Buffer): string => bytes.toString("latin1", HEADER_LENGTH, bytes.indexOf(0, HEADER_LENGTH))

describe("a named statement", () => {
  it("is prepared under a name that no client could have chosen, and used and described by it", () => {
    const lease = new Lease(newStatements())
    const name = nameIn(lease.parse("s", "SELECT 1"))
    assert.match(name, /^perseus_[0-9a-f]{12}_\d+$/)
    lease.bind("s", "portal")
    lease.describe("s")
    assert.strictEqual(lease.answers(), "12nZ")
    assert.deepStrictEqual([...lease.server.statements], [[name, "SELECT 1"]])
  })

  it("is prepared again, unseen, on another connection where it is first needed there", () => {
    const statements = newStatements()
    const first = new Lease(statements)
    first.parse("s", "SELECT 1")
    assert.strictEqual(first.answers(), "1Z")
    for (const use of ["bind", "describe"] as const) {
      const second = new Lease(statements)
      second[use]("s")
      second[use]("s")
      assert.strictEqual(second.answers(), use === "bind" ? "22Z" : "nnZ")
      assert.deepStrictEqual([...second.server.statements.values()], ["SELECT 1"])
    }
  })

  it("is one statement of the connection for all clients who say the same, and none is asked twice", () => {
    const one = new Lease(newStatements())
    one.parse("mine", "SELECT 1")
    one.answers()
    const other = new Lease(newStatements(), one.connection, one.server)
    assert.lengthOf(other.parse("yours", "SELECT 1"), 0)
    other.bind("yours")
    assert.strictEqual(other.answers(), "12Z")
    assert.strictEqual(one.server.statements.size, 1)
  })

  it("is another statement where the parameter types differ", () => {
    const lease = new Lease(newStatements())
    lease.parse("a", "SELECT $1")
    const typed = parse("b", Buffer.concat([cString("SELECT $1"), int16(1), Buffer.of(0, 0, 0, 23)]))
    lease.parseMessage(typed)
    assert.strictEqual(lease.answers(), "11Z")
    assert.strictEqual(lease.server.statements.size, 2)
  })

  it("is shared only under equal settings, for what is parsed may depend on them", () => {
    const dmy = [["datestyle", "ISO, DMY"]] as const
    const one = new Lease(newStatements(), connect(dmy))
    one.parse("s", "SELECT '01/02/2020'::date")
    one.answers()
    const prepared = one.server.statements
    one.connection.settings = clientSettings([["datestyle", "ISO, MDY"]])
    const other = new Lease(newStatements(), one.connection, one.server)
    assert.isAbove(other.parse("s", "SELECT '01/02/2020'::date").length, 0)
    assert.strictEqual(other.answers(), "1Z")
    assert.strictEqual(prepared.size, 2)
    one.connection.settings = clientSettings([["DateStyle", "ISO, DMY"]])
    const third = new Lease(newStatements(), one.connection, one.server)
    assert.lengthOf(third.parse("s", "SELECT '01/02/2020'::date"), 0)
    assert.strictEqual(third.answers(), "1Z")
  })

  it("that is taken is refused by the server itself, wherever the client is served", () => {
    const statements = newStatements()
    const first = new Lease(statements)
    first.parse("s", "SELECT 1")
    first.parse("s", "SELECT 2")
    first.bind("s")
    assert.strictEqual(first.answers(), "1EZ")
    const second = new Lease(statements)
    second.parse("s", "SELECT 2")
    assert.strictEqual(second.answers(), "EZ")
    second.bind("s")
    assert.strictEqual(second.answers(), "2Z")
    assert.deepStrictEqual([...second.server.statements.values()], ["SELECT 1"])
  })

  it("that is not known goes as it is, so that the server says so", () => {
    const lease = new Lease(newStatements())
    assert.deepStrictEqual(lease.bind("s"), bindOf("s"))
    assert.strictEqual(lease.answers(), "EZ")
    assert.deepStrictEqual(lease.describe("s"), describeStatement("s"))
    assert.strictEqual(lease.answers(), "EZ")
    assert.deepStrictEqual(lease.close("s"), closeStatement("s"))
    assert.strictEqual(lease.answers(), "3Z")
  })

  it("is named byte by byte, valid UTF-8 or not", () => {
    const lease = new Lease(newStatements())
    for (const byte of [0x80, 0xff]) {
      const message = frame(Frontend.parse, Buffer.of(byte, 0), says(`SELECT ${byte}`))
      lease.parseMessage(message)
    }
    assert.strictEqual(lease.answers(), "11Z")
    assert.strictEqual(lease.statements.size, 2)
  })

  it("whose Parse has no end to its name goes as it is", () => {
    const lease = new Lease(newStatements())
    const message = frame(Frontend.parse, Buffer.from("no end"))
    assert.deepStrictEqual(lease.parseMessage(message), message)
    assert.strictEqual(lease.statements.size, 0)
  })

  it("keeps no view of the client's bytes in what is remembered", () => {
    const lease = new Lease(newStatements())
    const message = parseOf("s", "SELECT 1")
    lease.parseMessage(message)
    message.fill(0xaa)
    lease.bind("s")
    assert.strictEqual(lease.answers(), "12Z")
    const elsewhere = new Lease(lease.statements)
    elsewhere.bind("s")
    assert.strictEqual(elsewhere.answers(), "2Z")
    assert.deepStrictEqual([...elsewhere.server.statements.values()], ["SELECT 1"])
  })
})

describe("Close", () => {
  it("of one client's name leaves the statement to the others, and the name free", () => {
    const one = new Lease(newStatements())
    one.parse("s", "SELECT 1")
    assert.lengthOf(one.close("s"), 0)
    assert.strictEqual(one.answers(), "13Z")
    assert.deepStrictEqual([one.statements.size, one.server.statements.size], [0, 1])
    one.bind("s")
    assert.strictEqual(one.answers(), "EZ")
    one.parse("s", "SELECT 2")
    assert.strictEqual(one.answers(), "1Z")
  })

  it("without a lease forgets the name alone", () => {
    const statements = newStatements()
    const lease = new Lease(statements)
    lease.parse("s", "SELECT 1")
    lease.answers()
    statements.closeWithoutLease(closeStatement("s"))
    statements.closeWithoutLease(closeStatement("s"))
    assert.strictEqual(statements.size, 0)
  })
})

describe("a message that is skipped", () => {
  it("as a Parse is forgotten on both sides", () => {
    const lease = new Lease(newStatements())
    lease.bind("nothing")
    lease.parse("s", "SELECT 1")
    assert.strictEqual(lease.answers(), "EZ")
    assert.deepStrictEqual([lease.statements.size, lease.connection.statements.size], [0, 0])
    lease.parse("s", "SELECT 1")
    lease.bind("s")
    assert.strictEqual(lease.answers(), "12Z")
  })

  it("as a refused Parse is forgotten on both sides", () => {
    const lease = new Lease(newStatements())
    lease.parse("s", "wrong")
    assert.strictEqual(lease.answers(), "EZ")
    assert.deepStrictEqual([lease.statements.size, lease.connection.statements.size], [0, 0])
  })

  it("as a Parse of ours on a new connection is forgotten there alone", () => {
    const statements = newStatements()
    const first = new Lease(statements)
    first.parse("s", "SELECT 1")
    first.answers()
    const second = new Lease(statements)
    second.bind("nothing")
    second.bind("s")
    assert.strictEqual(second.answers(), "EZ")
    assert.deepStrictEqual([statements.size, second.connection.statements.size], [1, 0])
    second.bind("s")
    assert.strictEqual(second.answers(), "2Z")
  })

  it("as a Close leaves the name what it was, even if it was given anew behind that", () => {
    const lease = new Lease(newStatements())
    lease.parse("s", "SELECT 1")
    lease.answers()
    lease.bind("nothing")
    lease.close("s")
    lease.parse("s", "SELECT 2")
    assert.strictEqual(lease.answers(), "EZ")
    lease.bind("s")
    assert.strictEqual(lease.answers(), "2Z")
    const elsewhere = new Lease(lease.statements)
    elsewhere.bind("s")
    elsewhere.answers()
    assert.deepStrictEqual([...elsewhere.server.statements.values()], ["SELECT 1"])
  })
})

/** What the relay does with a Bind of the unnamed statement. */
const bindUnnamed = (lease: Lease): Buffer =>
  lease.statements.unnamedIsElsewhere(Frontend.bind) ? lease.bind("") : lease.asItIs(bindOf(""))

/** Parses it as the relay does. */
const parseUnnamed = (lease: Lease, sql: string, whole = true): void => {
  const message = parseOf("", sql)
  lease.statements.onUnnamedParse(whole ? message : null)
  lease.asItIs(message, lease.statements.unnamedEntry)
}

describe("the unnamed statement", () => {
  it("passes untouched where it is bound in the lease that parsed it, as often as the client likes", () => {
    const lease = new Lease(newStatements())
    lease.statements.beginLease()
    parseUnnamed(lease, "SELECT 1")
    for (let round = 0; round < 2; round++) assert.deepStrictEqual(bindUnnamed(lease), bindOf(""))
    assert.isFalse(lease.statements.unnamedIsElsewhere(Frontend.describe))
    assert.strictEqual(lease.answers(), "122Z")
    lease.statements.endLease()
    assert.strictEqual(lease.statements.size, 0)
  })

  it("that was parsed in one lease is found in the next, wherever that is and whatever lies unnamed there", () => {
    const statements = newStatements()
    const first = new Lease(statements)
    statements.beginLease()
    parseUnnamed(first, "SELECT 1")
    assert.strictEqual(first.answers(), "1Z")
    statements.endLease()
    const second = new Lease(statements)
    second.asItIs(parseOf("", "SELECT 'of another client'"))
    second.answers()
    statements.beginLease()
    bindUnnamed(second)
    assert.strictEqual(second.answers(), "2Z")
    assert.deepStrictEqual([...second.server.statements.values()], ["SELECT 'of another client'", "SELECT 1"])
  })

  it("that was skipped behind an error is not believed in by what follows its Sync in the same breath", () => {
    const statements = newStatements()
    const lease = new Lease(statements)
    lease.asItIs(parseOf("", "SELECT 'of another client'"))
    lease.answers()
    statements.beginLease()
    lease.parse("s", "wrong")
    parseUnnamed(lease, "SELECT 1")
    lease.sync()
    bindUnnamed(lease)
    assert.strictEqual(lease.answers(), "EZ2Z")
    assert.strictEqual([...lease.server.statements.values()].at(-1), "SELECT 1")
  })

  it("of another client is never bound: the server is made to say that there is none", () => {
    for (const forget of [
      () => {},
      (statements: PreparedStatements) => statements.dropUnnamed(),
      (statements: PreparedStatements) => {
        statements.onUnnamedParse(null)
        statements.endLease()
      },
      (statements: PreparedStatements) => {
        statements.onUnnamedParse(parseOf("", "SELECT 1"))
        statements.dropUnnamed()
        statements.endLease()
      }
    ]) {
      const statements = newStatements()
      forget(statements)
      const lease = new Lease(statements)
      lease.asItIs(parseOf("", "SELECT 'of another client'"))
      lease.answers()
      statements.beginLease()
      bindUnnamed(lease)
      assert.strictEqual(lease.answers(), "EZ")
      assert.strictEqual(statements.size, 0)
    }
  })

  it("is kept as its last Parse said it", () => {
    const statements = newStatements()
    const first = new Lease(statements)
    statements.beginLease()
    parseUnnamed(first, "SELECT 1")
    bindUnnamed(first)
    parseUnnamed(first, "SELECT 2")
    first.answers()
    statements.endLease()
    const second = new Lease(statements)
    statements.beginLease()
    bindUnnamed(second)
    assert.strictEqual(second.answers(), "2Z")
    assert.deepStrictEqual([...second.server.statements.values()], ["SELECT 2"])
  })

  it("is not kept where it came in pieces, was bound already, or is over the limit", () => {
    const statements = newStatements()
    const lease = new Lease(statements)
    statements.beginLease()
    parseUnnamed(lease, "SELECT 1", false)
    statements.endLease()
    assert.strictEqual(statements.size, 0)
    statements.beginLease()
    statements.onUnnamedParse(parse("", Buffer.alloc(MAX_STATEMENT_BYTES_PER_CLIENT + 1)))
    statements.endLease()
    assert.isFalse(statements.wouldExceed(MAX_STATEMENT_BYTES_PER_CLIENT))
  })
})

describe("a name of Perseus' own making", () => {
  it("is nobody's, even for a client that has guessed it", () => {
    const owner = new Lease(newStatements())
    const name = nameIn(owner.parse("s", "SELECT 1"))
    owner.answers()
    for (const use of ["bind", "describe"] as const) {
      const thief = new Lease(newStatements(), owner.connection, owner.server)
      thief[use](name)
      assert.strictEqual(thief.answers(), "EZ")
    }
  })
})

describe("Bind", () => {
  it("has its length recomputed for the other name, whatever follows and whether it has come or not", () => {
    for (const name of ["s", "x".repeat(100), "\xe4"]) {
      for (const portal of ["", "portal"]) {
        const lease = new Lease(newStatements())
        lease.parse(name, "SELECT 1")
        const rest = Buffer.alloc(1000, 1)
        const whole = bindOf(name, portal, rest)
        const namesEnd = whole.length - rest.length
        for (const here of [whole, whole.subarray(0, namesEnd)]) {
          const written = rewritten((out) =>
            lease.statements.bind(here, lengthAt(whole, 1), lease.connection, lease.expectations, out)
          )
          const arrived = Buffer.concat([written, whole.subarray(here.length)])
          assert.strictEqual(lengthAt(arrived, 1), arrived.length - 1)
          assert.isTrue(arrived.subarray(-rest.length).equals(rest))
          assert.strictEqual(nameIn(arrived), portal)
        }
      }
    }
  })
})

describe("limits", () => {
  it("close a statement not used of late where a connection has 200", () => {
    const lease = new Lease(newStatements())
    const names = Array.from({ length: 200 }, (_, index) => nameIn(lease.parse(`s${index}`, `SELECT ${index}`)))
    lease.bind("s0")
    lease.answers()
    const written = lease.parse("one more", "SELECT 'one more'")
    assert.strictEqual(written.toString("latin1", 6, written.indexOf(0, 6)), names[1])
    assert.strictEqual(lease.answers(), "1Z")
    assert.deepStrictEqual([lease.server.statements.size, lease.connection.statements.size], [200, 200])
    // The client still has it: it is prepared again, and another makes room.
    lease.bind("s1")
    assert.strictEqual(lease.answers(), "2Z")
    assert.strictEqual(lease.server.statements.size, 200)
    assert.isFalse(lease.server.statements.has(names[2]!))
  })

  it("keep what they would have closed where that Close was skipped", () => {
    const lease = new Lease(newStatements())
    for (let index = 0; index < 200; index++) lease.parse(`s${index}`, `SELECT ${index}`)
    lease.answers()
    lease.bind("nothing")
    lease.parse("one more", "SELECT 'one more'")
    assert.strictEqual(lease.answers(), "EZ")
    assert.deepStrictEqual(lease.connection.statements.names.toSorted(), [...lease.server.statements.keys()].sort())
  })

  it("hold for one client's statements and for their bytes, and closing makes room", () => {
    const statements = newStatements()
    const lease = new Lease(statements)
    assert.isFalse(statements.wouldExceed(MAX_STATEMENT_BYTES_PER_CLIENT))
    assert.isTrue(statements.wouldExceed(MAX_STATEMENT_BYTES_PER_CLIENT + 1))
    for (let index = 0; index < MAX_STATEMENTS_PER_CLIENT; index++) {
      const message = parseOf(`s${index}`, "SELECT 1")
      rewritten((out) => statements.parse(message, lease.connection, lease.expectations, out))
    }
    assert.isTrue(statements.wouldExceed(1))
    statements.closeWithoutLease(closeStatement("s7"))
    assert.isFalse(statements.wouldExceed(1))
    statements.clear()
    assert.deepStrictEqual([statements.size, statements.wouldExceed(MAX_STATEMENT_BYTES_PER_CLIENT)], [0, false])
  })
})

const names = ["a", "b", "c"]
const texts = ["SELECT 1", "SELECT 2", "SELECT 3", "wrong"]

/** One batch of one client, as Perseus serves it and as a server of its own would. */
const batch = (random: Chance, lease: Lease, direct: Prepared): readonly [pooled: string, direct: string] => {
  const expected: Array<number> = []
  for (let steps = 1 + random.below(6); steps > 0; steps--) {
    const name = random.pick(names)
    switch (random.below(4)) {
      case 0: {
        const text = random.pick(texts)
        lease.parse(name, text)
        expected.push(...direct.hear(parseOf(name, text)))
        break
      }
      case 1:
        lease.bind(name)
        expected.push(...direct.hear(bindOf(name)))
        break
      case 2:
        lease.describe(name)
        expected.push(...direct.hear(describeStatement(name)))
        break
      default:
        lease.close(name)
        expected.push(...direct.hear(closeStatement(name)))
    }
    lease.listen(random.below(3))
  }
  expected.push(...direct.hear(frame(Frontend.sync)))
  return [lease.answers(), String.fromCharCode(...expected)]
}

describe("any batches of any clients on any connections", () => {
  it("are answered as each client's own server would answer them", () => {
    for (let seed = 1; seed <= 2000; seed++) {
      const random = seeded(seed)
      const clients = [0, 1, 2].map(() => ({ statements: newStatements(), direct: new Prepared() }))
      const servers = [0, 1].map(() => ({ connection: connect(), prepared: new Prepared() }))
      for (let round = 0; round < 12; round++) {
        const { statements, direct } = random.pick(clients)
        const { connection, prepared } = random.pick(servers)
        const lease = new Lease(statements, connection, prepared)
        const [pooled, expected] = batch(random, lease, direct)
        assert.strictEqual(pooled, expected, `seed ${seed}, round ${round}`)
        assert.strictEqual(statements.size, direct.statements.size, `seed ${seed}, round ${round}`)
        // What was sent and perhaps skipped is still to be closed, if it is there.
        const names = new Set([...connection.statements.names, ...connection.statements.broken])
        const unknown = [...prepared.statements.keys()].filter((name) => !names.has(name))
        const missing = connection.statements.names.filter((name) => !prepared.statements.has(name))
        assert.deepStrictEqual([unknown, missing], [[], []])
      }
      for (const { statements } of clients) {
        for (const name of names) statements.closeWithoutLease(closeStatement(name))
        assert.isFalse(statements.wouldExceed(MAX_STATEMENT_BYTES_PER_CLIENT), `seed ${seed}: bytes are counted wrong`)
      }
    }
  })
})
