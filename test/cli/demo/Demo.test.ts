/**
 * The demo's stage, without the load: that it finds ports, judges what it is told, and leaves nothing in the next one's way.
 * `.ci/run` runs the whole of it.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import { once } from "node:events"
import { createServer, type Server } from "node:net"
import { verdict } from "../../../src/cli/demo/Demo.ts"
import { DemoFailed } from "../../../src/cli/demo/DemoFailed.ts"
import * as Driver from "../../../src/cli/demo/Driver.ts"
import * as Load from "../../../src/cli/demo/Load.ts"
import * as Screen from "../../../src/cli/demo/Screen.ts"
import * as Stage from "../../../src/cli/demo/Stage.ts"
import { run } from "../commandLine.ts"

/** Somebody listens there, whether it is this or was somebody else before. */
const taken = (port: number) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const server: Server = createServer()
      await Promise.race([once(server.listen(port, "127.0.0.1"), "listening"), once(server, "error")]).catch(() => {})
      return server
    }),
    (server) => Effect.sync(() => server.close())
  )

const build = Effect.flatMap(Driver.load, (driver) =>
  Effect.map(
    Stage.build(driver, () => Effect.void),
    (stage) => ({ ...stage, driver })
  )
)

/** Each tenant its own rows. */
const servesAll = Effect.fnUntraced(function* ({ driver, perseus }: Effect.Success<typeof build>) {
  const { host, port } = perseus.address
  const login = { database: Stage.DATABASE, user: Stage.CLIENT_USER, password: Stage.CLIENT_PASSWORD }
  for (const [tenant, names] of Object.entries(Stage.TENANTS)) {
    const client = yield* driver.connect({ host, port, ...login, options: `-c schema_search_path=${tenant}` })
    const rows = yield* client.query("SELECT name FROM item")
    assert.sameMembers(
      rows.map(({ name }) => name),
      [...names]
    )
  }
})

/** What it says is not looked at here. */
const screen = Screen.make({ write: () => undefined, isTerminal: false })

/** That of a load in which nothing went wrong. */
const goodCounts = (): Load.Counts => ({ ...Load.noCounts(), clients: 1, transactions: 1, rowsChecked: 1 })

describe("the demo's stage", () => {
  it.live(
    "is built on other ports than those that are taken",
    () =>
      Effect.gen(function* () {
        yield* taken(5433)
        yield* taken(9090)
        const stage = yield* build
        assert.notStrictEqual(stage.perseus.address.port, 5433)
        assert.notStrictEqual(stage.perseus.httpAddress?.port, 9090)
        yield* servesAll(stage)
      }).pipe(Effect.provide(Logger.layer([]))),
    60_000
  )

  it.live(
    "is built again right after it was left",
    () =>
      Effect.replicateEffect(Effect.scoped(Effect.flatMap(build, servesAll)), 2, { discard: true }).pipe(
        Effect.provide(Logger.layer([]))
      ),
    60_000
  )

  it.live(
    "passes a verdict on what its clients have counted and PostgreSQL has",
    () =>
      Effect.gen(function* () {
        const stage = yield* build
        const judge = (counts: Load.Counts) => verdict(stage, counts, screen)
        yield* judge(goodCounts())
        const wrong: Readonly<Record<string, Load.Counts>> = {
          "no transaction": { ...goodCounts(), transactions: 0 },
          "a row of another's": { ...goodCounts(), wrongRows: 1 },
          "a row that is not there": { ...goodCounts(), visits: new Map([["acme", 1]]) }
        }
        for (const [what, counts] of Object.entries(wrong)) {
          assert.instanceOf(yield* Effect.flip(judge(counts)), DemoFailed, what)
        }
        yield* stage.direct.query("INSERT INTO acme.visit VALUES ('acme')")
        yield* judge({ ...goodCounts(), visits: new Map([["acme", 1]]) })
        assert.instanceOf(yield* Effect.flip(judge(goodCounts())), DemoFailed, "a row that nobody wrote")
        yield* stage.direct.query("UPDATE acme.visit SET owner = 'globex'")
        const strayed = { ...goodCounts(), visits: new Map([["acme", 1]]) }
        assert.instanceOf(yield* Effect.flip(judge(strayed)), DemoFailed, "a row that another wrote")
      }).pipe(Effect.provide(Logger.layer([]))),
    60_000
  )
})

describe("a demo that fails", () => {
  it.live("says why in a line, and ends with 1", () =>
    Effect.gen(function* () {
      const outcome = yield* run(["demo"], { demo: () => Effect.fail(new DemoFailed({ message: "it saw ghosts" })) })
      assert.deepStrictEqual(outcome, { stdout: "", stderr: "perseus: it saw ghosts\n", exitCode: 1 })
    })
  )
})
