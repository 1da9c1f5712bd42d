/**
 * Two ends that look the same to a driver: a schema of a database on PostgreSQL itself, and a tenant's schema through Perseus.
 *
 * The pool behind Perseus has two connections, and while anything is compared, a second tenant works on them too: what one
 * transaction prepared or set is hardly ever on the connection of the next.
 */
import { assert } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { startPerseus, whole, type TestPerseus } from "../support/perseus.ts"
import { freshDatabase } from "../support/postgres.ts"

export interface Target {
  readonly name: "directly" | "pooled"
  readonly host: string
  readonly port: number
  readonly user: string
  readonly password: string
  readonly database: string
  readonly schema: string
  /** What names the schema at startup: PostgreSQL's own setting, or Perseus' parameter. */
  readonly parameter: "search_path" | "schema_search_path"
  /** The same in an `options` parameter. */
  readonly options: string
}

const SCHEMA = "red"

/** Of the pool. As many clients of the other tenant want them, so that no connection stays with one tenant. */
const CONNECTIONS = 2

const targetOf = (target: Omit<Target, "schema" | "options">): Target => ({
  ...target,
  schema: SCHEMA,
  options: `-c ${target.parameter}=${SCHEMA}`
})

/** What `connect` looks for, under an unqualified name. */
const home = (schema: string) =>
  `CREATE TABLE ${schema}.home AS SELECT 'the ${schema} house' AS name; GRANT SELECT ON ${schema}.home TO PUBLIC`

/** Another tenant's transactions, one behind the other: settings, and a statement under a name that others use too. */
const noise = (perseus: TestPerseus) =>
  Effect.gen(function* () {
    const client = yield* perseus.connect("green")
    const round = Effect.promise(async () => {
      await client.query("SET application_name = 'noise'; SET TimeZone = 'Europe/Berlin'")
      await client.query({ name: "s0", text: "SELECT pg_sleep(0.001), name FROM home" })
    })
    yield* Effect.forkScoped(Effect.forever(round))
  })

export class Targets extends Context.Service<
  Targets,
  {
    readonly perseus: TestPerseus
    readonly direct: Target
    readonly pooled: Target
    /** What the driver says directly and pooled; afterwards the pool is whole. */
    readonly both: <A>(
      play: (target: Target) => Effect.Effect<A>
    ) => Effect.Effect<{ readonly directly: A; readonly pooled: A }>
  }
>()("test/Targets") {
  static readonly layer = Layer.effect(
    Targets,
    Effect.gen(function* () {
      const perseus = yield* startPerseus({
        tenants: [SCHEMA, "green"],
        config: { PoolSettings: { MaxOpen: CONNECTIONS, MaxIdle: CONNECTIONS } }
      })
      const { role, rolePassword, user, password } = perseus.tenant(SCHEMA)
      yield* perseus.destination.script(`${home(SCHEMA)}; ${home("green")}`)
      const plain = yield* freshDatabase()
      yield* plain.script(`CREATE SCHEMA ${SCHEMA} AUTHORIZATION ${role}; ${home(SCHEMA)}`)
      const { host, port } = plain
      const direct = targetOf({
        name: "directly",
        host,
        port,
        user: role,
        password: rolePassword,
        database: plain.database,
        parameter: "search_path"
      })
      const pooled = targetOf({
        name: "pooled",
        host: perseus.host,
        port: perseus.port,
        user,
        password,
        database: perseus.sourceDb,
        parameter: "schema_search_path"
      })
      return Targets.of({
        perseus,
        direct,
        pooled,
        both: (play) =>
          Effect.gen(function* () {
            const directly = yield* play(direct)
            const played = yield* Effect.scoped(
              Effect.gen(function* () {
                for (let connection = 0; connection < CONNECTIONS; connection++) yield* noise(perseus)
                return yield* play(pooled)
              })
            )
            assert.isAtMost((yield* whole(perseus)).open, CONNECTIONS)
            return { directly, pooled: played }
          })
      })
    })
  )
}
