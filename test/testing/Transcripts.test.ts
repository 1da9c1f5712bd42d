import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { Network } from "../../src/net/Network.ts"
import { noSettings, switchTo } from "../../src/pool/Reset.ts"
import { cString, frame, int16, int32 } from "../../src/protocol/Encoder.ts"
import { Frontend } from "../../src/protocol/Frame.ts"
import { closeStatement, describeStatement, flush, query, runUnnamed, sync } from "../../src/protocol/Frontend.ts"
import { MemoryClient, type Message } from "../../src/testing/MemoryClient.ts"
import { decodeError } from "../../src/protocol/Backend.ts"
import * as MemoryNetwork from "../../src/testing/MemoryNetwork.ts"
import * as MemoryPostgres from "../../src/testing/MemoryPostgres.ts"
import * as Postgres from "../support/postgres.ts"

const parse = (name: string, sql: string) => frame(Frontend.parse, cString(name), cString(sql), int16(0))
const bind = (portal: string, statement: string, ...values: ReadonlyArray<string>) =>
  frame(
    Frontend.bind,
    cString(portal),
    cString(statement),
    int16(0),
    int16(values.length),
    ...values.flatMap((value) => [int32(Buffer.byteLength(value)), Buffer.from(value)]),
    int16(0)
  )
const execute = (portal: string, maxRows = 0) => frame(Frontend.execute, cString(portal), int32(maxRows))
const describePortal = (portal: string) => frame(Frontend.describe, Buffer.of(0x50), cString(portal))
const copyData = frame(Frontend.copyData, Buffer.from("1\n"))
const copyDone = frame(Frontend.copyDone)
const copyFail = frame(Frontend.copyFail, cString("enough"))

/** What is sent in one write, and how many ReadyForQuery end the answer. */
interface Step {
  readonly send: ReadonlyArray<Uint8Array>
  readonly ready?: number
  /** Where the answer ends with another message than ReadyForQuery. */
  readonly until?: string
}

const scripts: Readonly<Record<string, ReadonlyArray<Step>>> = {
  "a simple query": [{ send: [query("SELECT 1")] }],
  "an empty query": [{ send: [query("")] }, { send: [query(" ; ")] }, { send: [runUnnamed(""), sync] }],
  "several statements in one Query": [{ send: [query("SET work_mem = '1MB'; SELECT 1; SHOW work_mem")] }],
  "a syntax error": [{ send: [query("NONSENSE")] }],
  "an error among several statements rolls back all": [
    { send: [query("SET work_mem = '1MB'; SELECT 1/0; SELECT 2")] },
    { send: [query("SHOW work_mem")] }
  ],
  "a transaction": [
    { send: [query("BEGIN")] },
    { send: [query("BEGIN")] },
    { send: [query("SELECT 1")] },
    { send: [query("COMMIT")] },
    { send: [query("COMMIT")] }
  ],
  "a failed transaction": [
    { send: [query("BEGIN")] },
    { send: [query("SELECT 1/0")] },
    { send: [query("SELECT 1")] },
    { send: [parse("", "SELECT 1"), sync] },
    { send: [query("COMMIT")] }
  ],
  "the extended protocol": [
    { send: [parse("s", "SELECT 'a'"), describeStatement("s"), sync] },
    { send: [bind("", "s"), describePortal(""), execute(""), sync] },
    { send: [closeStatement("s"), closeStatement("s"), sync] },
    { send: [bind("", "s"), sync] }
  ],
  "a parameter": [{ send: [parse("", "SELECT $1"), describeStatement(""), bind("", "", "x"), execute(""), sync] }],
  "too few parameters": [{ send: [parse("", "SELECT $1"), bind("", ""), sync] }],
  "an error skips to Sync": [
    {
      send: [parse("", "NONSENSE"), bind("", ""), execute(""), query("SELECT 1"), sync, runUnnamed("SELECT 1"), sync],
      ready: 2
    }
  ],
  "names that exist, or do not": [
    { send: [parse("s", "SELECT 1"), parse("s", "SELECT 2"), sync] },
    { send: [bind("", "none"), sync] },
    { send: [execute("none"), sync] },
    { send: [describePortal("none"), sync] },
    { send: [bind("p", "s"), bind("p", "s"), sync] },
    { send: [execute("p"), sync] },
    { send: [parse("", "SELECT 1; SELECT 2"), sync] }
  ],
  "a portal that is suspended": [
    { send: [parse("", "SELECT 'a'"), bind("", ""), execute("", 1), execute("", 1), sync] },
    { send: [execute(""), sync] }
  ],
  "a Flush": [{ send: [parse("", "SELECT 1"), flush], until: "1" }, { send: [sync] }],
  settings: [
    { send: [query("SET application_name = 'it''s'")] },
    { send: [query("SHOW application_name")] },
    { send: [query("RESET application_name")] },
    { send: [query("SET search_path = \"a b\", c, 'd'")] },
    { send: [query("SHOW search_path")] },
    { send: [query("SET no_such_setting = 1")] },
    { send: [query("SET my.own = 'x'")] },
    { send: [query("RESET ALL")] },
    { send: [query("SHOW my.own")] },
    { send: [query("SHOW search_path")] },
    { send: [query("SET client_encoding = 'klingon'")] },
    { send: [query("SET server_version = '1'")] },
    { send: [query("SET search_path TO DEFAULT")] }
  ],
  "a SET that is rolled back is reported back": [
    { send: [query("BEGIN; SET application_name = 'x'")] },
    { send: [query("ROLLBACK")] },
    { send: [query("BEGIN; SET LOCAL application_name = 'x'")] },
    { send: [query("COMMIT")] }
  ],
  "DISCARD ALL": [
    { send: [query("DISCARD ALL")] },
    { send: [query("SELECT 1; DISCARD ALL")] },
    { send: [runUnnamed("SELECT 1"), runUnnamed("DISCARD ALL"), sync] },
    { send: [runUnnamed("DISCARD ALL"), runUnnamed("SELECT 1"), sync] },
    { send: [query("BEGIN")] },
    { send: [query("DISCARD ALL")] }
  ],
  "the tenant switch": [
    { send: [query("SET search_path = x")] },
    { send: [switchTo(['b"c'], { key: "", list: [["application_name", "z"]] }).bytes], ready: 2 },
    { send: [switchTo(["d"], { key: "", list: [["no_such_setting", "1"]] }).bytes], ready: 2 },
    { send: [query("SHOW search_path")] },
    { send: [query("BEGIN")] },
    { send: [switchTo(["e"], noSettings).bytes], ready: 2 }
  ],
  DEALLOCATE: [
    { send: [parse("s", "SELECT 1"), sync] },
    { send: [query("DEALLOCATE s")] },
    { send: [query("DEALLOCATE s")] },
    { send: [query("DEALLOCATE ALL")] }
  ],
  "COPY from the client": [
    { send: [query("COPY t FROM STDIN"), copyData, copyData, copyDone] },
    { send: [query("COPY t FROM STDIN"), copyData, copyFail] },
    { send: [copyData, copyDone, query("SELECT 1")] }
  ],
  "COPY in the extended protocol, which swallows Sync and Flush": [
    { send: [runUnnamed("COPY t FROM STDIN"), sync, flush, copyData, copyDone, sync] },
    { send: [runUnnamed("COPY t FROM STDIN"), sync, copyFail, sync] }
  ],
  statement_timeout: [{ send: [query("SET statement_timeout = 100")] }, { send: [query("SELECT pg_sleep(5)")] }],
  "a NOTIFY to oneself": [
    { send: [query("LISTEN c")] },
    { send: [query("NOTIFY c, 'p'")] },
    { send: [query("UNLISTEN *")] }
  ]
}

/** A message as its letter, and what else must be the same: an error's code, a tag, a status, a setting, a row's bytes. */
const summary = ({ type, body }: Message): string => {
  switch (type) {
    case "E":
    case "N":
      return `${type} ${decodeError(body).sqlState}`
    case "C":
    case "Z":
    case "S":
    case "D":
      return `${type} ${JSON.stringify(body.toString("latin1"))}`
    default:
      return type
  }
}

const play = (client: MemoryClient, script: ReadonlyArray<Step>) =>
  Effect.gen(function* () {
    const transcript: Array<ReadonlyArray<string>> = []
    for (const { send, ready = 1, until = "Z" } of script) {
      client.send(...send)
      let left = ready
      const answer = yield* client.until(({ type }) => type === until && --left === 0)
      transcript.push(answer.map(summary))
    }
    return transcript
  })

const real = (script: ReadonlyArray<Step>) =>
  Effect.gen(function* () {
    const database = yield* Postgres.freshDatabase()
    yield* database.script("CREATE TABLE t (n int)")
    const network = yield* Network
    const transport = yield* Effect.acquireRelease(network.connect(database), (open) =>
      Effect.sync(() => open.destroy())
    )
    const client = MemoryClient.connect(transport)
    yield* client.startup({
      user: database.user,
      database: database.database,
      password: Redacted.value(database.password),
      parameters: { search_path: "public", client_encoding: "UTF8" }
    })
    const transcript = yield* play(client, script)
    return { transcript, reported: [...client.parameters.keys()].sort() }
  }).pipe(Effect.provide(Network.layer))

const inMemory = (script: ReadonlyArray<Step>) =>
  Effect.gen(function* () {
    const memory = MemoryNetwork.make()
    const postgres = yield* MemoryPostgres.make({ users: { app: "secret" } })
    postgres.attach(memory, "db", 5432)
    const client = MemoryClient.connect(yield* memory.network.connect({ host: "db", port: 5432 }))
    yield* client.startup({
      user: "app",
      database: "shop",
      password: "secret",
      parameters: { search_path: "public", client_encoding: "UTF8" }
    })
    const transcript = yield* play(client, script)
    return { transcript, reported: [...client.parameters.keys()].sort() }
  })

describe("the in-memory server answers as PostgreSQL does", () => {
  for (const [name, script] of Object.entries(scripts)) {
    it.live(name, () =>
      Effect.gen(function* () {
        const expected = yield* real(script)
        assert.deepStrictEqual(yield* inMemory(script), expected)
      })
    )
  }
})
