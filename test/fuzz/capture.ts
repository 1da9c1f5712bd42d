/**
 * Writes `captures.json` anew: what clients and a real PostgreSQL said to each other, turn by turn, as the fuzz tests' first
 * inputs. `node test/fuzz/capture.ts && oxfmt test/fuzz` where the protocol or a driver has changed.
 *
 * Each session goes through a proxy that notes whoever speaks. Process ids, keys, nonces and salts differ from run to run;
 * nothing depends on them.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { once } from "node:events"
import { writeFile } from "node:fs/promises"
import * as Net from "node:net"
import { Client } from "pg"
import postgres from "postgres"
import { start } from "../../src/cli/demo/EmbeddedPostgres.ts"
import { switchTo, clientSettings } from "../../src/pool/Reset.ts"
import {
  bind,
  closeStatement,
  copyData,
  copyDone,
  copyFail,
  describePortal,
  describeStatement,
  execute,
  flush,
  functionCall,
  parse,
  query,
  RawClient,
  sync,
  terminate,
  type Address
} from "../support/rawClient.ts"

type Turn = readonly [from: "client" | "server", base64: string]

const PASSWORD = "pencil"

/** The address to connect to in place of the server's, and what was said there. */
const recorder = (
  server: Address
): Effect.Effect<{ address: Address; turns: () => ReadonlyArray<Turn> }, never, Scope.Scope> =>
  Effect.gen(function* () {
    const said: Array<{ from: "client" | "server"; bytes: Buffer }> = []
    const note = (from: "client" | "server", bytes: Buffer) => {
      const last = said.at(-1)
      if (last?.from === from) last.bytes = Buffer.concat([last.bytes, bytes])
      else said.push({ from, bytes })
    }
    const proxy = Net.createServer((client) => {
      const upstream = Net.connect(server)
      client.on("data", (bytes: Buffer) => (note("client", bytes), upstream.write(bytes)))
      upstream.on("data", (bytes: Buffer) => (note("server", bytes), client.write(bytes)))
      client.on("close", () => upstream.destroy()).on("error", () => upstream.destroy())
      upstream.on("close", () => client.destroy()).on("error", () => client.destroy())
    })
    yield* Effect.acquireRelease(
      Effect.promise(() => once(proxy.listen(0, "127.0.0.1"), "listening")),
      () => Effect.sync(() => proxy.close())
    )
    const { port } = proxy.address() as Net.AddressInfo
    return {
      address: { host: "127.0.0.1", port },
      turns: () => said.map(({ from, bytes }) => [from, bytes.toString("base64")] as const)
    }
  })

const session = (server: Address, speak: (address: Address) => Effect.Effect<unknown, unknown, Scope.Scope>) =>
  Effect.gen(function* () {
    const { address, turns } = yield* recorder(server)
    yield* Effect.scoped(speak(address))
    return turns()
  })

const loggedIn = (address: Address, user: string) =>
  Effect.gen(function* () {
    const client = yield* RawClient.connect(address)
    yield* client.logIn({ user, database: "postgres", search_path: "", client_encoding: "UTF8" }, PASSWORD)
    return client
  })

/** What the pooler says to a server, and what is answered. */
const asPooler = (address: Address) =>
  Effect.gen(function* () {
    const client = yield* loggedIn(address, "plain")
    yield* client.exchange(switchTo(["red"], clientSettings([["application_name", "fuzz"]])).bytes, 2)
    yield* client.query("SELECT 1 AS one, 'two' AS two, NULL AS three")
    yield* client.query("SELECT 1/0")
    yield* client.exchange(query(""))
    yield* client.exchange(Buffer.concat([parse("s", "SELECT $1::text"), bind("", "s", "x"), execute(), sync]))
    client.send(terminate)
    yield* client.closed()
  })

const extended = (address: Address) =>
  Effect.gen(function* () {
    const client = yield* loggedIn(address, "postgres")
    yield* client.exchange(
      Buffer.concat([
        parse("named", "SELECT $1::int + 1 AS n FROM generate_series(1, 3)"),
        describeStatement("named"),
        bind("portal", "named", "41"),
        describePortal("portal"),
        execute("portal", 2),
        execute("portal", 0),
        closeStatement("named"),
        sync
      ])
    )
    yield* client.exchange(
      Buffer.concat([parse("", "SELECT broken"), bind("", ""), execute(), sync, parse("", ""), sync]),
      2
    )
    client.send(parse("", "SELECT 'flushed'"), bind("", ""), execute(), flush)
    yield* client.take(({ type }) => type === "C")
    yield* client.exchange(sync)
    yield* client.exchange(functionCall(1397, "-5"))
    yield* client.query("BEGIN; LISTEN news; NOTIFY news, 'hello'; COMMIT")
    yield* client.query("SET application_name = 'other'; DO $$ BEGIN RAISE NOTICE 'note'; END $$")
  })

const copies = (address: Address) =>
  Effect.gen(function* () {
    const client = yield* loggedIn(address, "postgres")
    yield* client.query("CREATE TEMP TABLE t (a int, b text)")
    client.send(query("COPY t FROM STDIN"))
    yield* client.take(({ type }) => type === "G")
    yield* client.exchange(Buffer.concat([copyData("1\tone\n2\ttwo\n"), copyDone]))
    yield* client.query("COPY t TO STDOUT")
    client.send(query("COPY t FROM STDIN"))
    yield* client.take(({ type }) => type === "G")
    yield* client.exchange(Buffer.concat([copyData("3\tthree\n"), copyFail("changed my mind")]))
  })

const nodePostgres = ({ host, port }: Address) =>
  Effect.promise(async () => {
    const client = new Client({ host, port, user: "postgres", password: PASSWORD, database: "postgres" })
    await client.connect()
    await client.query({ name: "one", text: "SELECT $1::text AS a, $2::int AS b", values: ["x", 7] })
    await client.query({ name: "one", text: "SELECT $1::text AS a, $2::int AS b", values: [null, 8] })
    await client.query("SELECT nothing").catch(() => undefined)
    await client.end()
  })

const postgresJs = ({ host, port }: Address) =>
  Effect.promise(async () => {
    const sql = postgres({
      host,
      port,
      user: "postgres",
      password: PASSWORD,
      database: "postgres",
      max: 1,
      fetch_types: false
    })
    await sql`SELECT ${"é"}::text AS a, ${null}::int AS b`
    await sql.begin(async (transaction) => transaction`SELECT generate_series(1, 5)`)
    await sql.end()
  })

const capture = Effect.gen(function* () {
  const server = yield* start({
    password: Redacted.make(PASSWORD),
    files: { "pg_hba.conf": "host all plain 127.0.0.1/32 password\nhost all all 127.0.0.1/32 scram-sha-256\n" }
  })
  const address = { host: server.host, port: server.port }
  yield* Effect.scoped(
    Effect.flatMap(loggedIn(address, "postgres"), (client) =>
      client.query(`CREATE ROLE plain LOGIN PASSWORD '${PASSWORD}'`)
    )
  )
  const sessions = yield* Effect.all({
    asPooler: session(address, asPooler),
    extended: session(address, extended),
    copies: session(address, copies),
    nodePostgres: session(address, nodePostgres),
    postgresJs: session(address, postgresJs)
  })
  const text = `${JSON.stringify(sessions, null, 1)}\n`
  yield* Effect.promise(() => writeFile(new URL("captures.json", import.meta.url), text))
})

await Effect.runPromise(Effect.scoped(capture))
