/** The delaying relay of `delay.ts` before PostgreSQL, in a process of its own. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { execPath } from "node:process"
import { fileURLToPath } from "node:url"
import type { BenchFailed } from "../Scenario.ts"
import * as Child from "./Child.ts"
import type { Stage } from "./Stage.ts"
import type { Target } from "./Target.ts"

const program = fileURLToPath(new URL("../delay.ts", import.meta.url))

/** PostgreSQL, farther away by so many milliseconds a round trip. */
export const start = (stage: Stage, millis: number): Effect.Effect<Target, BenchFailed, Scope.Scope> =>
  Effect.gen(function* () {
    const port = yield* Child.freePort
    yield* Child.start({ command: execPath, args: [program, port, stage.direct.port, millis].map(String), port })
    return { ...stage.direct, name: `direct, ${millis} ms away`, port }
  })
