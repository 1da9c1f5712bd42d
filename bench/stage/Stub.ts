/** The PostgreSQL in appearance of `stub.ts`, in a process of its own. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { execPath } from "node:process"
import { fileURLToPath } from "node:url"
import type { BenchFailed } from "../Scenario.ts"
import * as Child from "./Child.ts"

const program = fileURLToPath(new URL("../stub.ts", import.meta.url))

/** The port at which it listens, on 127.0.0.1. */
export const start: Effect.Effect<number, BenchFailed, Scope.Scope> = Effect.gen(function* () {
  const port = yield* Child.freePort
  yield* Child.start({ command: execPath, args: [program, `${port}`], port })
  return port
})
