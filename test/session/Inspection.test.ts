import { assert, describe, it } from "@effect/vitest"
import * as Redacted from "effect/Redacted"
import { ShuttingDown } from "../../src/errors.ts"
import { Credential } from "../../src/pool/Credential.ts"
import type { Findings } from "../../src/pool/Inspection.ts"
import type { Pool } from "../../src/pool/Pool.ts"
import { CredentialGroup, PoolTenant, Usage, type Connection } from "../../src/pool/PoolTenant.ts"
import { clientSettings, noSettings } from "../../src/pool/Reset.ts"
import { ServerConnection } from "../../src/pool/ServerConnection.ts"
import { frame, cString, int16 } from "../../src/protocol/Encoder.ts"
import { parse, query, sync, terminate } from "../../src/protocol/Frontend.ts"
import { Expectations } from "../../src/session/Expectations.ts"
import { HeldAllowance } from "../../src/session/HeldBytes.ts"
import { PreparedStatements } from "../../src/session/PreparedStatements.ts"
import { Relay } from "../../src/session/Relay.ts"
import { SessionCounters } from "../../src/session/SessionCounters.ts"
import { Traces } from "../../src/session/Traces.ts"
import { RecordedTransport } from "../support/RecordedTransport.ts"
import { rewritten } from "../support/rewritten.ts"

/** A client that can be slow. */
class SlowTransport extends RecordedTransport {
  slow = false
  override write(bytes: Uint8Array): boolean {
    super.write(bytes)
    return !this.slow
  }
  catchUp(): void {
    this.slow = false
    this.handler.onDrain()
  }
}

const ready = frame(0x5a, Buffer.from("I"))
const done = (tag: string) => frame(0x43, cString(tag))

const world = (maxPinned = 1) => {
  const group = new CredentialGroup("app", new Credential("app", Redacted.make("secret")))
  const tenant = new PoolTenant("t", new Usage("t"), "transaction", "red", ["red"], "x", group)
  const server = new RecordedTransport()
  const login = {
    transport: server,
    processId: 1,
    secretKey: Buffer.alloc(4),
    parameters: new Map(),
    rest: Buffer.alloc(0)
  }
  const connection: Connection = new ServerConnection(login, group, 0, () => {})
  const client = new SlowTransport()
  let found: (findings: Findings | null) => void = () => {}
  const given: Array<Connection> = []
  let ended: unknown = "no"
  const pool = {
    name: "p",
    pins: true,
    pinningNotice: false,
    maxPreparedStatements: 200,
    take: (taker: Relay) => {
      connection.lessee = taker
      return connection
    },
    inspect: (_: unknown, asker: Relay, __: unknown, tell: typeof found) => {
      connection.lessee = null
      found = (findings) => {
        connection.lessee = asker
        tell(findings)
      }
    },
    restore: (_: unknown, __: unknown, tell: (fine: boolean) => void) => tell(true),
    pin: () => (connection.pinned = maxPinned > 0),
    give: () => {
      connection.lessee = null
      given.push(connection)
    },
    discard: () => {},
    leave: () => {}
  }
  const relay = new Relay({
    client,
    pool: pool as unknown as Pool,
    tenant,
    settings: noSettings,
    limits: () => {
      throw new Error("not asked")
    },
    counters: new SessionCounters(),
    allowance: new HeldAllowance(),
    onPinned: () => {},
    onEnd: (fault) => (ended = fault)
  })
  relay.start(Buffer.alloc(0))
  return { client, server, relay, given, found: (f: Findings | null) => found(f), ended: () => ended }
}

type World = ReturnType<typeof world>

const listening: Findings = { settings: null, holds: ["LISTEN"], unsettled: false }

describe("a relay whose server is being asked", () => {
  it("and which ends meanwhile is nowhere any more: who moves it is told at once", () => {
    const { client, server, relay } = world()
    client.say(query("LISTEN news"))
    server.say(Buffer.concat([done("LISTEN"), ready]))
    relay.dispose()
    let moved = 0
    relay.moveTo({} as Pool, relay.tenant, () => moved++)
    assert.strictEqual(moved, 1)
  })

  it("a client that was slow while its connection was pinned is served when it has caught up", () => {
    const { client, server, found } = world()
    client.say(query("LISTEN news"))
    client.slow = true
    server.say(Buffer.concat([done("LISTEN"), ready]))
    client.say(query("SELECT 1"))
    found(listening)
    client.catchUp()
    assert.isFalse(client.paused)
    assert.isTrue(server.written.includes("SELECT 1"))
  })

  it("a client that a notification found slow during the inspection is heard again", () => {
    const { client, server, relay, found } = world()
    client.say(query("LISTEN news"))
    server.say(Buffer.concat([done("LISTEN"), ready]))
    client.slow = true
    relay.onNotification(Buffer.concat([Buffer.alloc(4), cString("news"), cString("")]))
    found(listening)
    client.catchUp()
    client.say(query("SELECT 1"))
    assert.isTrue(server.written.includes("SELECT 1"))
  })

  it("what a client asks and leaves by Terminate during the inspection is run, as it is while it waits", () => {
    const { client, server, found } = world()
    client.say(query("SET work_mem = '9MB'"))
    server.say(Buffer.concat([done("SET"), ready]))
    client.say(Buffer.concat([query("INSERT INTO t VALUES (1)"), terminate]))
    client.leave()
    found({ settings: [["work_mem", "9216"]], holds: [], unsettled: false })
    assert.isTrue(server.written.includes("INSERT"))
  })

  it("what a client asks during the inspection is run, however long a message was that came in pieces before", () => {
    const { client, server, found } = world()
    const long = parse("s", Buffer.concat([cString(`SELECT ${"1".repeat(20_000)}`), int16(0)]))
    client.say(query("LISTEN news"))
    client.say(long.subarray(0, 10_000))
    client.say(Buffer.concat([long.subarray(10_000), sync]))
    server.say(Buffer.concat([done("LISTEN"), ready, frame(0x31, Buffer.alloc(0)), ready]))
    client.say(query("SELECT 2"))
    found(listening)
    assert.isTrue(server.written.includes("SELECT 2"))
  })

  const leavings: ReadonlyArray<readonly [how: string, maxPinned: number, leave: (world: World) => void]> = [
    ["says goodbye", 1, ({ client }) => client.say(terminate)],
    [
      "says goodbye and is gone",
      1,
      ({ client }) => {
        client.say(terminate)
        client.leave()
      }
    ],
    ["is gone without a word", 1, ({ client }) => client.leave()],
    ["is ended at its transaction's border", 1, ({ relay }) => relay.endAtBorder(new ShuttingDown())],
    ["may not be pinned any more", 0, () => {}]
  ]
  for (const [how, maxPinned, leave] of leavings) {
    it(`what a client has left is reset before anybody else has the connection, where it ${how} meanwhile`, () => {
      const there = world(maxPinned)
      there.client.say(query("SELECT pg_advisory_lock(1)"))
      there.server.say(Buffer.concat([done("SELECT 1"), ready]))
      leave(there)
      there.found({ settings: [], holds: ["advisory lock"], unsettled: false })
      assert.deepStrictEqual(
        there.given.map(({ mustReset }) => mustReset),
        [true]
      )
      assert.notStrictEqual(there.ended(), "no")
    })
  }

  it("200 statements of a client with a setting of 400 kB take no 80 MB", () => {
    const group = new CredentialGroup("app", new Credential("app", Redacted.make("secret")))
    const login = {
      transport: new RecordedTransport(),
      processId: 1,
      secretKey: Buffer.alloc(4),
      parameters: new Map(),
      rest: Buffer.alloc(0)
    }
    const connection: Connection = new ServerConnection(login, group, 0, () => {})
    connection.settings = clientSettings([["my.claims", "x".repeat(400_000)]])
    const statements = new PreparedStatements(new Traces(), { pool: { maxPreparedStatements: 200 } })
    const expectations = new Expectations()
    const before = process.memoryUsage().heapUsed
    for (let at = 0; at < 200; at++) {
      const rest = Buffer.concat([cString(`SELECT ${at}`), int16(0)])
      rewritten((out) => statements.parse(parse(`s${at}`, rest), connection, expectations, out))
    }
    const grown = process.memoryUsage().heapUsed - before
    assert.isBelow(grown, 20_000_000)
  })
})
