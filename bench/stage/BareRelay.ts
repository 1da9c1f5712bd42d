/** The bare relay of `relay.ts`, in a process of its own. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { execPath } from "node:process"
import { fileURLToPath } from "node:url"
import type { BenchFailed } from "../Scenario.ts"
import * as Child from "./Child.ts"
import { DATABASE, PASSWORD, ROLE, USER, type Stage } from "./Stage.ts"
import type { Pooler } from "./Target.ts"

const program = fileURLToPath(new URL("../relay.ts", import.meta.url))

export const start = (stage: Stage, poolSize: number): Effect.Effect<Pooler, BenchFailed, Scope.Scope> =>
  Effect.gen(function* () {
    const port = yield* Child.freePort
    const args = [program, port, stage.direct.port, poolSize, ROLE, DATABASE].map(String)
    const { pid } = yield* Child.start({ command: execPath, args, port })
    return {
      name: "relay",
      host: "127.0.0.1",
      port,
      pid,
      serverPid: stage.direct.serverPid,
      serverPort: stage.direct.port,
      login: () => ({ user: USER, password: PASSWORD, database: DATABASE })
    }
  })
