import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import { Network } from "../../src/net/Network.ts"
import { Answer, inspection, type Questions } from "../../src/pool/Inspection.ts"
import { Credential } from "../../src/pool/Credential.ts"
import { CredentialGroup, type PoolTenant } from "../../src/pool/PoolTenant.ts"
import { switchTo, noSettings } from "../../src/pool/Reset.ts"
import { ServerConnection, type ConversationEnd, type LoggedIn } from "../../src/pool/ServerConnection.ts"
import { openAndLogIn } from "../../src/pool/ServerLogin.ts"
import {
  authenticationCleartextPassword,
  authenticationOk,
  closeComplete,
  parseComplete,
  readyForQuery
} from "../../src/protocol/Backend.ts"
import { cString, frame, int32 } from "../../src/protocol/Encoder.ts"
import { Backend, Frontend, frontendLimits, HEADER_LENGTH, lengthAt } from "../../src/protocol/Frame.ts"
import { Answer as Owed, entries, entry, Expectations, Expected } from "../../src/session/Expectations.ts"
import { mayBeNamed, namedPart, statementNameAt } from "../../src/session/NamedMessages.ts"
import type { Outgoing } from "../../src/session/Outgoing.ts"
import { PreparedStatements } from "../../src/session/PreparedStatements.ts"
import { Traces } from "../../src/session/Traces.ts"
import { bindComplete, dataRow } from "../../src/testing/ServerMessages.ts"
import { World } from "../simulation/World.ts"
import { RecordedTransport } from "../support/RecordedTransport.ts"
import { rewritten } from "../support/rewritten.ts"
import { clientTurns, serverTurns, turnsOf } from "./captures.ts"
import { fuzz, isReplay, TIMEOUT, watch } from "./fuzz.ts"
import type { Mutator } from "./Mutator.ts"

/** Where the input is one of several turns of a server's, the longest of which has 64 kB. */
const SERVER_TURN_ALLOCATION = 512 * 1024

watch()

const credential = new Credential("app", Redacted.make("pencil"))

const loggedIn = (transport: RecordedTransport): LoggedIn => ({
  transport,
  processId: 1,
  secretKey: Buffer.alloc(4),
  parameters: new Map(),
  rest: Buffer.alloc(0)
})

const group = new CredentialGroup("app", credential)

const parsed = Buffer.concat([parseComplete, bindComplete])

const connectionOn = (transport: RecordedTransport, onLost: () => void = () => {}) =>
  new ServerConnection<PoolTenant, CredentialGroup>(loggedIn(transport), group, 0, onLost)

describe("what the server owes", () => {
  const answers = Object.values(Backend).filter((type) => type !== Backend.errorResponse)
  const requests = [Expected.parse, Expected.bind, Expected.close, Expected.describe, Expected.execute]
  const named = [entries.parse, entries.bind, entries.close, entries.describe, entries.execute]

  /** As the relay hears it. */
  const hear = (owed: Expectations, type: number): void => {
    if (!owed.passes(type)) owed.onAnswer(type)
  }

  /** A byte of the input is one event: what the client sends, or what the server answers, in any order. */
  const happen = (owed: Expectations, byte: number): void => {
    const argument = byte >> 4
    switch (byte & 15) {
      case 0:
        return owed.pushSimple(entries.query)
      case 1:
        return owed.pushSimple(entries.functionCall)
      case 2:
      case 3:
        return owed.pushExtended(named[argument % requests.length]!)
      case 4:
      case 5:
        return owed.pushSync()
      case 6:
        return owed.pushFlush()
      case 7:
        return owed.pushCopyEnd()
      case 8:
        return void (owed.head === null || owed.onError())
      case 9:
        return void (owed.madeUpIsDue && owed.takeMadeUp())
      case 10:
        return owed.pushExtended(entry(Expected.close, { answer: Owed.makeUp, bytes: closeComplete }))
      case 11:
        return void owed.onAnswer(Backend.readyForQuery)
      case 12:
        return void owed.onAnswer(Backend.copyInResponse)
      default:
        return hear(owed, answers[argument % answers.length]!)
    }
  }

  it("is counted without an end or a doubt, whatever is sent and answered in whatever order", TIMEOUT, () => {
    fuzz({
      from: "clients",
      corpus: [
        Buffer.from([0, 0x0d, 11]),
        Buffer.from([2, 0x12, 0x42, 4, 0x0d, 0x1d, 0x3d, 11]),
        Buffer.from([0, 12, 4, 7, 0x3d, 11]),
        Buffer.from([2, 8, 2, 10, 5, 9, 11])
      ],
      count: 60_000,
      check: (input) => {
        const owed = new Expectations()
        for (const byte of input) {
          happen(owed, byte)
          // Nothing owed is nothing due, and a server that is busy owes something.
          if (owed.serverBusy) assert.isFalse(owed.settled)
          if (owed.head === null) assert.isFalse(owed.serverBusy)
        }
        // Enough Syncs and their answers settle it, however it came to stand; or it says that it cannot tell.
        if (owed.copyIn) owed.pushCopyEnd()
        owed.pushSync()
        for (let turn = 0; turn <= input.length + 1 && !owed.settled; turn++) {
          while (owed.madeUpIsDue) owed.takeMadeUp()
          owed.onAnswer(Backend.readyForQuery)
        }
        assert.isTrue(owed.settled)
        owed.clear()
        assert.isTrue(owed.settled && !owed.inDoubt && !owed.serverBusy && !owed.copyIn)
      }
    })
  })
})

describe("a client's statements", () => {
  /** As the relay does: what must be whole is, lengths are legal. */
  const rewrite = (statements: PreparedStatements, stream: Buffer, owed: Expectations, connection: TestConnection) => {
    const out: Array<Buffer> = []
    for (let at = 0; stream.length - at >= HEADER_LENGTH;) {
      const type = stream[at]!
      const length = lengthAt(stream, at + 1)
      const limit = frontendLimits[type]!
      if (limit === 0 || length < 4 || length > limit) break
      const next = at + 1 + length
      const end = Math.min(next, stream.length)
      const name = mayBeNamed(type) ? statementNameAt(type, stream, at, end) : -1
      const message = name >= 0 && stream[name] !== 0 ? namedPart(type, stream, at, next) : null
      if (message !== null && !(type === Frontend.parse && statements.wouldExceed(length))) {
        out.push(rewritten((to) => replace(statements, type, message, length, owed, connection, to)))
        if (end === next) out.push(Buffer.from(stream.subarray(at + message.length, next)))
        else return { out, cut: true }
      }
      at = next
    }
    return { out, cut: false }
  }

  type TestConnection = ReturnType<typeof connectionOn>

  const replace = (
    statements: PreparedStatements,
    type: number,
    message: Buffer,
    length: number,
    owed: Expectations,
    connection: TestConnection,
    out: Outgoing
  ) => {
    switch (type) {
      case Frontend.parse:
        return statements.parse(message, connection, owed, out)
      case Frontend.bind:
        return statements.bind(message, length, connection, owed, out)
      case Frontend.describe:
        return statements.describe(message, connection, owed, out)
      default:
        return statements.close(message, owed, out)
    }
  }

  it("are renamed to whole messages of the same kind, whose lengths are true", TIMEOUT, () => {
    const connection = connectionOn(new RecordedTransport())
    fuzz({
      from: "clients",
      corpus: clientTurns.filter((turn) => /^[PBDC]/.test(turn.toString("latin1"))),
      count: 60_000,
      check: (input, random) => {
        if (random.chance(0.01)) connection.statements.clear()
        const statements = new PreparedStatements(new Traces(), { pool: { maxPreparedStatements: 200 } })
        const { out, cut } = rewrite(statements, input, new Expectations(), connection)
        const written = Buffer.concat(out)
        let at = 0
        while (written.length - at >= HEADER_LENGTH) {
          assert.include("PBDC", String.fromCharCode(written[at]!))
          at += 1 + lengthAt(written, at + 1)
        }
        if (!cut) assert.strictEqual(at, written.length)
        else assert.isAtLeast(at, written.length)
        assert.isAtMost(connection.statements.size, 200)
      }
    })
  })
})

describe("a login to a server", () => {
  /** A turn of the server's for each of ours, then silence. */
  const scripted = (turns: ReadonlyArray<Buffer>, random: Mutator) => {
    const transport = new RecordedTransport()
    const rest = [...turns]
    transport.onWrite = () => {
      const turn = rest.shift()
      if (turn !== undefined) transport.say(...random.pieces(turn))
    }
    return transport
  }

  const target = { host: "db", port: 5432, database: "shop" }
  const policy = { allowTrust: false, allowClearText: true }
  const greeting = turnsOf("asPooler")
    .filter(({ from }) => from === "server")
    .map(({ bytes }) => bytes)[1]!
  const md5 = frame(Backend.authentication, int32(5), Buffer.from([1, 2, 3, 4]))

  it("ends, with a connection or the reason why there is none, and leaves nothing open", TIMEOUT, () => {
    let successes = 0
    fuzz({
      from: "servers",
      corpus: [authenticationCleartextPassword, md5, greeting],
      count: 20_000,
      mayAllocate: SERVER_TURN_ALLOCATION,
      check: (_, random) => {
        const first = Buffer.from(random.pick([authenticationCleartextPassword, md5, authenticationOk]))
        const second = Buffer.from(greeting)
        const turns = random.chance(0.4)
          ? [random.mutate(first, serverTurns), second]
          : [first, random.mutate(second, serverTurns)]
        const transport = scripted(turns, random)
        const network = Network.of({ connect: () => Effect.succeed(transport), listen: () => Effect.fail("") })
        const world = new World(1)
        const login = Effect.runFork(
          world.provide(openAndLogIn(network, target, credential, policy, { mode: "disable" }))
        )
        world.settle()
        // It may wait for more: that is the pool's to end.
        if (!transport.closed) transport.leave("ECONNRESET")
        world.settle()
        const exit = login.pollUnsafe()
        if (exit === undefined) throw new Error("the login goes on although nobody is there")
        if (Exit.isSuccess(exit)) {
          successes++
          for (const [name, value] of exit.value.parameters) assert.notInclude(name + value, "\0")
          connectionOn(transport).onData(exit.value.rest)
          return
        }
        assert.match(String(exit.cause), /ConnectFailure/)
        assert.isTrue(transport.destroyed)
      }
    })
    // A fuzz that never gets in would test the door alone.
    if (!isReplay) assert.isAbove(successes, 1000)
  })

  it("by SCRAM ends too, in bounded time", TIMEOUT, async () => {
    const challenge = "r=%NONCE%server,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=16"
    const mechanisms = frame(Backend.authentication, int32(10), cString("SCRAM-SHA-256"), Buffer.of(0))
    const attempts: Array<Promise<void>> = []
    fuzz({
      from: "servers",
      corpus: [Buffer.from(challenge)],
      count: 2_000,
      check: (input, random) => {
        const transport = new RecordedTransport()
        let turn = 0
        transport.onWrite = (message) => {
          const nonce = /r=(\S+)$/.exec(message.toString("latin1"))?.[1] ?? ""
          const said = [
            mechanisms,
            frame(Backend.authentication, int32(11), Buffer.from(input.toString().replace("%NONCE%", nonce))),
            frame(Backend.authentication, int32(12), random.noise(40))
          ][turn++]
          if (said !== undefined) transport.say(...random.pieces(said))
          if (turn > 2 && !transport.closed) transport.leave()
        }
        const network = Network.of({ connect: () => Effect.succeed(transport), listen: () => Effect.fail("") })
        attempts.push(
          Effect.runPromiseExit(openAndLogIn(network, target, credential, policy, { mode: "disable" })).then((exit) => {
            assert.isTrue(Exit.isFailure(exit) && transport.destroyed)
            assert.match(String(exit), /SCRAM|closed|speak/)
          })
        )
      }
    })
    await Promise.all(attempts)
  })
})

describe("a connection to a server", () => {
  it("hears anything, idle or asked, and is whole or lost behind it", TIMEOUT, () => {
    let done = 0
    const answer = turnsOf("asPooler").filter(({ from }) => from === "server")[2]!.bytes
    fuzz({
      from: "servers",
      corpus: [answer, ...serverTurns],
      count: 60_000,
      mayAllocate: SERVER_TURN_ALLOCATION,
      check: (input, random) => {
        const transport = new RecordedTransport()
        let lost = 0
        const connection = connectionOn(transport, () => lost++)
        const ends: Array<ConversationEnd> = []
        const conversation = random.chance(0.8) ? switchTo(["red"], noSettings) : null
        if (conversation !== null) connection.converse(conversation, 1000, (end) => ends.push(end))
        transport.say(...random.pieces(random.chance(0.5) ? input : random.mutate(Buffer.from(answer), serverTurns)))
        if (lost === 0) connection.giveUpConversation()
        assert.strictEqual(ends.length, conversation === null ? 0 : 1)
        if (ends[0]?._tag === "Done") done++
        assert.strictEqual(transport.destroyed, lost > 0)
        assert.isAtMost(connection.takePending()?.length ?? 0, 1024 * 1024 + HEADER_LENGTH)
      }
    })
    if (!isReplay) assert.isAbove(done, 50)
  })

  it("says anything when it is asked what a lease left, and what is found is of known kinds", TIMEOUT, () => {
    const questions: Questions = { settings: true, holds: true, path: ["red"], customNames: ["my.setting"] }
    const complete = (tag: string) => frame(Backend.commandComplete, cString(tag))
    const timeout = Buffer.concat([parsed, dataRow(["5s"]), complete("SHOW")])
    const found = [
      ["setting", "work_mem", Buffer.from("9MB").toString("hex")],
      ["setting", "role", Buffer.from("none").toString("hex")],
      ["hold", "LISTEN", null]
    ].map(dataRow)
    const answers = [timeout, parsed, complete("RESET"), timeout, parsed, ...found, complete("SELECT 3")]
    const answer = Buffer.concat([...answers, readyForQuery(0x49)])
    let done = 0
    fuzz({
      from: "servers",
      corpus: [answer],
      count: 60_000,
      mayAllocate: SERVER_TURN_ALLOCATION,
      check: (input, random) => {
        const transport = new RecordedTransport()
        const connection = connectionOn(transport)
        const heard = new Answer(questions, "app")
        const ends: Array<ConversationEnd> = []
        connection.converse(inspection(questions, heard.read), 1000, (end) => ends.push(end))
        transport.say(...random.pieces(input))
        connection.giveUpConversation()
        assert.strictEqual(ends.length, 1)
        const { settings, holds } = heard.findings
        for (const pair of settings!) for (const text of pair) assert.isString(text)
        for (const hold of holds) assert.isString(hold)
        if (ends[0]!._tag === "Done") done++
      }
    })
    if (!isReplay) assert.isAbove(done, 1000)
  })
})
