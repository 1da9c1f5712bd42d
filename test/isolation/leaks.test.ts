/**
 * What one tenant leaves on a server connection, and what the next one finds of it there. Each is shown twice, on one and the
 * same connection: first with the switch's statements made harmless on their way, so that it leaks, then with all of them.
 */
import { assert, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { bytesOf, change, faultyServer, noFault, pass, sqlOf, withSql } from "../support/faultyServer.ts"
import type { Fault, FaultyServer } from "../support/faultyServer.ts"
import { eventually, startPerseus, type TestPerseus } from "../support/perseus.ts"
import { connection } from "../support/postgres.ts"
import {
  bind,
  columnsOf,
  execute,
  fieldsOf,
  message,
  parse,
  rowsOf,
  sync,
  text,
  type Message,
  type RawClient
} from "../support/rawClient.ts"

/** Both tenants meet on the one connection there is. */
const PoolSettings = { MaxOpen: 1, MaxIdle: 1, MaxPinned: 1 }

interface World {
  readonly perseus: TestPerseus
  readonly server: FaultyServer
}

class Stage extends Context.Service<Stage, World>()("test/leaks/Stage") {}

/** Red and green share a role; gold and silver share a superuser. */
const stageWith = (more: Readonly<Record<string, unknown>>) =>
  Layer.effect(
    Stage,
    Effect.gen(function* () {
      const server = yield* faultyServer(connection())
      const perseus = yield* startPerseus({
        tenants: ["red", "green", { schema: "gold", destUser: "super" }, { schema: "silver", destUser: "super" }],
        through: server,
        config: { PoolSettings: { ...PoolSettings, ...more } }
      })
      const { role } = perseus.tenant("red")
      yield* perseus.destination.script(`
      GRANT pg_monitor TO ${role} WITH SET TRUE;
      ALTER ROLE ${perseus.tenant("gold").role} SUPERUSER;
      CREATE SCHEMA common AUTHORIZATION ${role};
    `)
      yield* perseus.query("red", "CREATE SEQUENCE common.number CACHE 20")
      for (const tenant of ["red", "green", "gold", "silver"]) {
        yield* perseus.query(
          tenant,
          `CREATE TABLE me (name text); INSERT INTO me VALUES ('${tenant}');
         CREATE TYPE mood AS ENUM ('${tenant}');
         CREATE FUNCTION quicken() RETURNS text LANGUAGE sql AS
           $$ SELECT set_config('work_mem', '64kB', false) || set_config('my.mark', '${tenant}', false) $$`
        )
      }
      return { perseus, server }
    })
  )

const stage = stageWith({})

/** What the switch says, up to the path. */
const resets = new Set(["RESET ALL", "DISCARD ALL"])

const without = (strip: (sql: string) => boolean): Fault => ({
  // The switch sends Parse messages, the tenants here Query: what they do themselves is done.
  fromFrontend: (sent) =>
    sent.type === "P" && strip(sqlOf(sent) ?? "") ? change(withSql(sent, "SELECT 'harmless'")) : pass
})

const withoutReset = without((sql) => resets.has(sql))
/** The path of the one who comes second; the first one has its own. */
const withoutSwitch = without((sql) => resets.has(sql) || sql === 'SET search_path = "green"')

/** Rows, SQLSTATEs, and what comes unasked, in their order. */
const said = (messages: ReadonlyArray<Message>): string =>
  messages
    .flatMap((each) => {
      if (each.type === "D") return [columnsOf(each).join("|")]
      if (each.type === "E") return [fieldsOf(each)["C"]]
      if (each.type === "A") return ["notified"]
      if (each.type === "S") return ["reported"]
      return each.type === "N" ? ["noticed"] : []
    })
    .join(" ")

/** The first one's client does its deed and is gone before the second one's comes. Both tell on which backend they were. */
const meet = Effect.fnUntraced(function* <A>(
  { perseus, server }: World,
  fault: Fault,
  leave: (first: RawClient) => Effect.Effect<unknown>,
  look: (second: RawClient) => Effect.Effect<A>,
  tenants: readonly [first: string, second: string] = ["red", "green"]
) {
  // A connection that nobody has used.
  yield* server.cutAll
  yield* eventually(Effect.sync(perseus.pool), ({ open }) => open === 0)
  yield* server.inject(fault)
  const backend = (client: RawClient) => Effect.map(client.query("SELECT pg_catalog.pg_backend_pid()"), rowsOf)
  const before = yield* Effect.scoped(
    Effect.gen(function* () {
      const first = yield* perseus.login(tenants[0])
      const pid = yield* backend(first)
      yield* leave(first)
      return pid
    })
  )
  return yield* Effect.scoped(
    Effect.gen(function* () {
      const second = yield* perseus.login(tenants[1])
      const found = yield* look(second)
      assert.deepStrictEqual(yield* backend(second), before, "both on one connection")
      return found
    })
  ).pipe(Effect.ensuring(server.inject(noFault)))
})

interface Leak {
  readonly what: string
  /** The first tenant's statements, each a Query of its own. */
  readonly leave: ReadonlyArray<string>
  /** The second tenant's question, and what it hears. */
  readonly look: string
  readonly leaked: string
  readonly clean: string
  readonly tenants?: readonly [string, string]
  /** What of the switch is left out. */
  readonly fault?: Fault
}

const asSuperuser = { tenants: ["gold", "silver"] } as const
const name = "SELECT name FROM me"

const leaks: ReadonlyArray<Leak> = [
  // Settings
  { what: "a setting", leave: ["SET work_mem = '64kB'"], look: "SHOW work_mem", leaked: "64kB", clean: "4MB" },
  {
    what: "a setting changed by set_config inside a function",
    leave: ["SELECT quicken()"],
    look: "SHOW work_mem",
    leaked: "64kB",
    clean: "4MB"
  },
  {
    what: "a setting changed inside DO",
    leave: ["DO $$ BEGIN PERFORM set_config('work_mem', '64kB', false); END $$"],
    look: "SHOW work_mem",
    leaked: "64kB",
    clean: "4MB"
  },
  {
    what: "a setting changed before an error in the next statement",
    leave: ["SET work_mem = '64kB'", "SELECT 1/0"],
    look: "SHOW work_mem",
    leaked: "64kB",
    clean: "4MB"
  },
  {
    what: "a setting committed beside a SET LOCAL and a savepoint",
    leave: [
      "BEGIN; SET LOCAL lock_timeout = 1; SET work_mem = '64kB'; SAVEPOINT s; SET work_mem = '1MB'; ROLLBACK TO s; COMMIT"
    ],
    look: "SHOW work_mem",
    leaked: "64kB",
    clean: "4MB"
  },
  {
    what: "a setting of the tenant's own invention",
    leave: ["SELECT set_config('my.mark', 'red', false)"],
    look: "SELECT current_setting('my.mark', true)",
    leaked: "red",
    clean: ""
  },
  {
    what: "the name of the application",
    leave: ["SET application_name = 'red'"],
    look: "SHOW application_name",
    leaked: "red",
    clean: ""
  },
  {
    what: "the time zone",
    leave: ["SET TimeZone = 'Asia/Tokyo'"],
    look: "SELECT current_setting('TimeZone') = 'Asia/Tokyo'",
    leaked: "t",
    clean: "f"
  },
  {
    what: "client_encoding",
    leave: ["SET client_encoding = LATIN1"],
    look: "SELECT length('ü')",
    leaked: "2",
    clean: "1"
  },
  {
    what: "standard_conforming_strings",
    leave: ["SET standard_conforming_strings = off; SET escape_string_warning = off"],
    look: "SELECT length('\\\\')",
    leaked: "1",
    clean: "2"
  },
  {
    what: "a read-only default",
    leave: ["SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"],
    look: "INSERT INTO me SELECT 'green' WHERE false",
    leaked: "25006",
    clean: ""
  },
  { what: "row_security", leave: ["SET row_security = off"], look: "SHOW row_security", leaked: "off", clean: "on" },
  {
    what: "session_replication_role, which silences triggers and foreign keys",
    leave: ["SET session_replication_role = replica"],
    look: "SHOW session_replication_role",
    leaked: "replica",
    clean: "origin",
    ...asSuperuser
  },
  // Who it is
  {
    what: "a role",
    leave: ["SET ROLE pg_monitor"],
    look: "SELECT current_user = session_user",
    leaked: "f",
    clean: "t"
  },
  {
    what: "a session authorization",
    leave: ["SET SESSION AUTHORIZATION pg_monitor"],
    look: "SELECT session_user = 'pg_monitor'",
    leaked: "t",
    clean: "f",
    ...asSuperuser
  },
  // Where it looks
  {
    what: "the search path that was set for a tenant",
    leave: [],
    look: name,
    leaked: "red",
    clean: "green",
    fault: withoutSwitch
  },
  {
    what: "a search path that the tenant set",
    leave: ["SET search_path = pg_catalog, red"],
    look: name,
    leaked: "red",
    clean: "green",
    fault: withoutSwitch
  },
  {
    what: "a search path that the tenant set by set_config",
    leave: ["SELECT set_config('search_path', 'pg_temp', false)"],
    look: name,
    leaked: "42P01",
    clean: "green",
    fault: withoutSwitch
  },
  ...["RESET search_path", "RESET ALL", "DISCARD ALL"].map((reset) => ({
    what: `a search path that the tenant put off by ${reset}`,
    leave: [reset],
    look: name,
    leaked: "42P01",
    clean: "green",
    fault: withoutSwitch
  })),
  // What hides another's under the same name
  {
    what: "a temporary table that hides the other's",
    leave: ["CREATE TEMP TABLE me AS SELECT 'red was here'"],
    look: "SELECT * FROM me",
    leaked: "red was here",
    clean: "green"
  },
  {
    what: "a temporary table made by SELECT INTO",
    leave: ["SELECT 'red was here' AS name INTO TEMP me"],
    look: name,
    leaked: "red was here",
    clean: "green"
  },
  {
    what: "a temporary view",
    leave: ["CREATE TEMP VIEW me AS SELECT 'red was here' AS name"],
    look: name,
    leaked: "red was here",
    clean: "green"
  },
  {
    what: "a type in pg_temp that hides the other's",
    leave: ["CREATE TYPE pg_temp.mood AS ENUM ('red was here')"],
    look: "SELECT enum_first(NULL::mood)",
    leaked: "red was here",
    clean: "green"
  },
  {
    what: "a domain in pg_temp that hides a type",
    leave: ["CREATE DOMAIN pg_temp.mood AS text DEFAULT 'red was here'"],
    look: "SELECT 'anything'::mood",
    leaked: "anything",
    clean: "22P02"
  },
  {
    what: "a function in pg_temp",
    leave: ["CREATE FUNCTION pg_temp.mine() RETURNS text LANGUAGE sql AS 'SELECT ''red was here'''"],
    look: "SELECT pg_temp.mine()",
    leaked: "red was here",
    // There is no pg_temp yet, or no function in it.
    clean: "42883"
  },
  {
    what: "a temporary sequence",
    leave: ["CREATE TEMP SEQUENCE number START 77"],
    look: "SELECT nextval('number')",
    leaked: "77",
    clean: "42P01"
  },
  // What runs or waits
  {
    what: "a statement prepared by SQL",
    leave: ["PREPARE mine AS SELECT name FROM me"],
    look: "EXECUTE mine",
    // Under the other's path it even reads the other's rows; that it is there at all is the leak.
    leaked: "green",
    clean: "26000"
  },
  {
    what: "a cursor WITH HOLD",
    leave: ["DECLARE held CURSOR WITH HOLD FOR SELECT name FROM me"],
    look: "FETCH ALL FROM held",
    leaked: "red",
    clean: "34000"
  },
  { what: "LISTEN", leave: ["LISTEN news"], look: "NOTIFY news", leaked: "notified", clean: "" },
  {
    what: "advisory locks",
    leave: ["SELECT pg_advisory_lock(1), pg_advisory_lock_shared(2), pg_advisory_lock(3, 4)"],
    look: "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
    leaked: "3",
    clean: "0"
  },
  {
    what: "a sequence's current value",
    leave: ["ALTER SEQUENCE common.number RESTART", "SELECT nextval('common.number')"],
    look: "SELECT currval('common.number')",
    leaked: "1",
    clean: "55000"
  },
  {
    what: "the last value of any sequence",
    leave: ["ALTER SEQUENCE common.number RESTART", "SELECT nextval('common.number')"],
    look: "SELECT lastval()",
    leaked: "1",
    clean: "55000"
  },
  {
    what: "values that a sequence has cached",
    leave: ["ALTER SEQUENCE common.number RESTART", "SELECT nextval('common.number')"],
    look: "SELECT nextval('common.number')",
    leaked: "2",
    clean: "21"
  }
]

layer(stage, { excludeTestServices: true })("what one tenant leaves on a connection", (it) => {
  for (const { what, leave, look, leaked, clean, tenants, fault = withoutReset } of leaks) {
    it.effect(`is not found by the next: ${what}`, () =>
      Effect.gen(function* () {
        const world = yield* Stage
        const found = (fault: Fault) =>
          meet(
            world,
            fault,
            (first) => Effect.forEach(leave, (statement) => first.query(statement)),
            (second) => Effect.map(second.query(look), said),
            tenants
          )
        assert.strictEqual(yield* found(fault), leaked, "without the switch's statements")
        assert.strictEqual(yield* found(noFault), clean, "with them")
      })
    )
  }

  it.effect("is not found by the next: a statement prepared by the protocol, under whatever name it has there", () =>
    Effect.gen(function* () {
      const world = yield* Stage
      const leave = (first: RawClient) => first.exchange(Buffer.concat([parse("mine", "SELECT 'red', $1::text"), sync]))
      // Its name cannot be guessed, but be read.
      const look = Effect.fnUntraced(function* (second: RawClient) {
        const names = said(yield* second.query("SELECT name FROM pg_prepared_statements"))
        const called = yield* second.query(`EXECUTE "${names}"('to green')`)
        const bound = yield* second.exchange(Buffer.concat([bind("", names, "to green"), execute(), sync]))
        const guessed = yield* second.exchange(Buffer.concat([bind("", "mine", "to green"), execute(), sync]))
        return [called, bound, guessed].map(said)
      })
      // By a Bind no client can name what it has not prepared itself, whatever the switch forgets.
      assert.deepStrictEqual(yield* meet(world, withoutReset, leave, look), ["red|to green", "26000", "26000"])
      assert.deepStrictEqual(yield* meet(world, noFault, leave, look), ["42601", "26000", "26000"])
    })
  )

  it.effect("cannot be found by the next, whatever the switch forgets: the unnamed statement", () =>
    Effect.gen(function* () {
      const world = yield* Stage
      const leave = (first: RawClient) => first.exchange(Buffer.concat([parse("", "SELECT name FROM me"), sync]))
      const look = (second: RawClient) =>
        Effect.map(second.exchange(Buffer.concat([bind("", ""), execute(), sync])), said)
      // The switch's own statements have taken its place, and what a client has not parsed itself is not bound for it.
      assert.strictEqual(yield* meet(world, withoutReset, leave, look), "26000")
      assert.strictEqual(yield* meet(world, noFault, leave, look), "26000")
    })
  )

  it.effect("is not heard by the next: the notices that it asked for, of the switch's own statements", () =>
    Effect.gen(function* () {
      const world = yield* Stage
      const leave = (first: RawClient) => first.query("SET client_min_messages = debug5")
      const look = (second: RawClient) => Effect.map(second.query("SELECT name FROM me"), said)
      assert.match(yield* meet(world, withoutReset, leave, look), /noticed/)
      // RESET ALL itself is still spoken of.
      let heardBySwitch = 0
      const count: Fault = {
        fromBackend: ({ type }) => {
          if (type === "N") heardBySwitch++
          return pass
        }
      }
      const leaveAndCount = (first: RawClient) => Effect.andThen(leave(first), world.server.inject(count))
      assert.strictEqual(yield* meet(world, noFault, leaveAndCount, look), "green")
      assert.isAbove(heardBySwitch, 0)
    })
  )
})

layer(stageWith({ MaxPreparedStatements: 0 }), { excludeTestServices: true })(
  "where a statement's name means on the connection what its client says",
  (it) => {
    for (const [whom, second] of [
      ["the next tenant", "green"],
      ["the next client of the same tenant", "red"]
    ] as const) {
      it.effect(`it is not found by ${whom}`, () =>
        Effect.gen(function* () {
          const world = yield* Stage
          const leave = (first: RawClient) =>
            first.exchange(Buffer.concat([parse("mine", "SELECT 'red', $1::text"), sync]))
          const look = (second: RawClient) =>
            Effect.map(second.exchange(Buffer.concat([bind("", "mine", "to the next"), execute(), sync])), said)
          const tenants = ["red", second] as const
          assert.strictEqual(yield* meet(world, withoutReset, leave, look, tenants), "red|to the next")
          assert.strictEqual(yield* meet(world, noFault, leave, look, tenants), "26000")
        })
      )
    }
  }
)

layer(stage, { excludeTestServices: true })("what the server says late", (it) => {
  const unasked: ReadonlyArray<readonly [what: string, said: Buffer]> = [
    ["a notice", message("N", text("SNOTICE"), text("C00000"), text("Mred was here"), Buffer.of(0))],
    ["a notification", message("A", Buffer.from([0, 0, 0, 1]), text("news"), text("red was here"))]
  ]
  /** A fault that puts it before, or behind, the backend's next message that fits; and whether it has. */
  const insertion = (bytes: Buffer, place: "before" | "behind", fits: (sent: Message) => boolean) => {
    const inserted = { done: false }
    const fault: Fault = {
      fromBackend: (sent) => {
        if (inserted.done || !fits(sent)) return pass
        inserted.done = true
        return place === "before" ? change(bytes, bytesOf(sent)) : change(bytesOf(sent), bytes)
      }
    }
    return { fault, inserted }
  }
  const completes = (tag: string) => (sent: Message) => sent.type === "C" && sent.body.toString() === `${tag}\0`
  const isReady = ({ type }: Message) => type === "Z"
  const look = (second: RawClient) => Effect.map(second.query("SELECT name FROM me"), said)
  const places: ReadonlyArray<readonly [where: string, "before" | "behind", (sent: Message) => boolean]> = [
    ["behind the last one's ReadyForQuery", "behind", isReady],
    ["before the switch's first answer", "before", completes("RESET")],
    ["in the midst of the switch", "before", completes("DISCARD ALL")],
    ["before the switch's last answer", "before", completes("SET")]
  ]

  for (const [what, bytes] of unasked) {
    for (const [where, place, fits] of places) {
      it.effect(`is kept from the next tenant where ${what} comes ${where}`, () =>
        Effect.gen(function* () {
          const world = yield* Stage
          const { fault, inserted } = insertion(bytes, place, fits)
          const leave = (first: RawClient) => Effect.andThen(world.server.inject(fault), first.query("SELECT 1"))
          assert.strictEqual(yield* meet(world, noFault, leave, look), "green")
          assert.isTrue(inserted.done)
        })
      )
    }

    it.effect(`would be heard where ${what} came any later`, () =>
      Effect.gen(function* () {
        const world = yield* Stage
        const { fault } = insertion(bytes, "before", ({ type }) => type === "D")
        const leave = () => Effect.void
        const lookThen = (second: RawClient) => Effect.andThen(world.server.inject(fault), look(second))
        assert.match(yield* meet(world, noFault, leave, lookThen), /^not(ic|ifi)ed green$/)
      })
    )
  }
})
