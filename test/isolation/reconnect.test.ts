/**
 * What DISCARD ALL leaves of a session: each thing is seen to survive a switch by "discard", and to be gone where a switch is
 * a new connection. State inside procedural languages is of the same kind; those that have any need libraries of the system's.
 */
import { assert, it, layer } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { eventually, SharedPerseus, startPerseus } from "../support/perseus.ts"
import { rowsOf } from "../support/rawClient.ts"

/** Both tenants need the one connection there may be. */
const PoolSettings = { MaxOpen: 1, MaxIdle: 1, MaxPinned: 1 }

interface Remainder {
  readonly what: string
  readonly leave: string
  readonly look: string
  readonly survives: string
  readonly gone: string
}

const remainders: ReadonlyArray<Remainder> = [
  {
    what: "dblink's named connections",
    leave: "SELECT common.dblink_connect('mine', dsn) FROM common.login",
    look: "SELECT common.dblink_get_connections()",
    survives: "{mine}",
    gone: ""
  },
  {
    what: "functions that PL/pgSQL compiled against the last tenant's types",
    leave: "SELECT common.type_of_mood()",
    look: "SELECT common.type_of_mood()",
    survives: "red.mood",
    gone: "mood"
  },
  {
    what: "the random seed",
    leave: "SELECT setseed(0.5)",
    look: "SELECT random() = (SELECT first FROM common.seeded)",
    survives: "t",
    gone: "f"
  },
  {
    what: "that there was a setting of the last tenant's invention",
    leave: "SELECT set_config('my.mark', 'red', false)",
    look: "SELECT current_setting('my.mark', true) IS NULL",
    survives: "f",
    gone: "t"
  }
]

const stage = (TenantSwitch: "discard" | "reconnect") =>
  SharedPerseus.with({
    tenants: ["red", "green"],
    config: { PoolSettings: { ...PoolSettings, TenantSwitch } }
  }).pipe(
    Layer.tap((context) => {
      const perseus = Context.get(context, SharedPerseus)
      const { destination } = perseus
      return Effect.all([
        destination.script(`
          CREATE SCHEMA common; GRANT USAGE ON SCHEMA common TO public;
          CREATE EXTENSION dblink SCHEMA common;
          SET check_function_bodies = off;
          CREATE FUNCTION common.type_of_mood() RETURNS text LANGUAGE plpgsql AS
            $$ DECLARE it mood; BEGIN RETURN pg_typeof(it); END $$;
          SELECT setseed(0.5);
          CREATE TABLE common.seeded AS SELECT random() AS first;
          CREATE TABLE common.login (dsn text);
          GRANT SELECT ON ALL TABLES IN SCHEMA common TO public;
        `),
        destination.query("INSERT INTO common.login VALUES ($1)", [Redacted.value(destination.dsn())]),
        perseus.query("red", "CREATE TYPE mood AS ENUM ('red')"),
        perseus.query("green", "CREATE TYPE mood AS ENUM ('green')")
      ])
    })
  )

for (const [TenantSwitch, outcome] of [
  ["discard", "survives"],
  ["reconnect", "gone"]
] as const) {
  layer(stage(TenantSwitch), { excludeTestServices: true })(`what DISCARD ALL leaves, with "${TenantSwitch}"`, (it) => {
    for (const remainder of remainders) {
      it.effect(`${outcome === "gone" ? "is gone" : "survives"}: ${remainder.what}`, () =>
        Effect.gen(function* () {
          const perseus = yield* SharedPerseus
          // In another session than any other test's: what survives would survive for the next one as well.
          const [{ pid } = { pid: 0 }] = yield* perseus.backends
          yield* perseus.destination.query("SELECT pg_terminate_backend($1)", [pid])
          yield* eventually(Effect.sync(perseus.pool), ({ open }) => open === 0)
          yield* Effect.scoped(Effect.flatMap(perseus.login("red"), (red) => red.query(remainder.leave)))
          const green = yield* perseus.login("green")
          assert.deepStrictEqual(rowsOf(yield* green.query(remainder.look)), [remainder[outcome]])
        })
      )
    }

    it.effect("and a tenant that comes again finds the session that it left only where nobody came between", () =>
      Effect.gen(function* () {
        const perseus = yield* SharedPerseus
        const [red, green] = [yield* perseus.login("red"), yield* perseus.login("green")]
        const backend = (client: typeof red) => Effect.map(client.query("SELECT pg_backend_pid()"), rowsOf)
        const first = yield* backend(red)
        assert.deepStrictEqual(yield* backend(red), first)
        const others = [yield* backend(green), yield* backend(red), yield* backend(green)]
        const all = new Set([first, ...others].map(String))
        assert.strictEqual(all.size, TenantSwitch === "reconnect" ? 4 : 1)
      })
    )
  })
}

it.live('a reload to "reconnect" holds for what tenants left before it', () =>
  Effect.gen(function* () {
    const perseus = yield* startPerseus({ tenants: ["red", "green"], config: { PoolSettings } })
    const green = yield* perseus.login("green")
    yield* perseus.query("red", "SELECT set_config('my.mark', 'red', false)")
    yield* green.query("SELECT 1")
    yield* perseus.reload({ PoolSettings: { ...PoolSettings, TenantSwitch: "reconnect" } })
    const absent = yield* green.query("SELECT current_setting('my.mark', true) IS NULL")
    assert.deepStrictEqual(rowsOf(absent), ["t"])
  })
)

for (const [TenantSwitch, outcome] of [
  ["discard", "meets"],
  ["always", "does not meet"]
] as const) {
  it.live(`with "${TenantSwitch}" a client ${outcome} what another of its tenant has left behind a plain SELECT`, () =>
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: ["red"],
        config: { PoolSettings: { ...PoolSettings, TenantSwitch } }
      })
      yield* perseus.query(
        "red",
        "CREATE FUNCTION mark() RETURNS text LANGUAGE sql AS $$ SELECT set_config('my.mark', 'left', false) $$"
      )
      const [leaves, looks] = [yield* perseus.login("red"), yield* perseus.login("red")]
      yield* leaves.query("SELECT mark()")
      const [found] = rowsOf(yield* looks.query("SELECT coalesce(current_setting('my.mark', true), '') = 'left'"))
      assert.strictEqual(found, TenantSwitch === "discard" ? "t" : "f")
      // Their prepared statements go with it, and are there whenever they are needed.
      for (let turn = 0; turn < 2; turn++) {
        const client = yield* perseus.connect("red")
        const prepared = () => client.query({ name: "mine", text: "SELECT 1 AS one" })
        assert.deepStrictEqual((yield* Effect.promise(prepared)).rows, [{ one: 1 }])
        assert.deepStrictEqual((yield* Effect.promise(prepared)).rows, [{ one: 1 }])
      }
    })
  )
}
