/** The raw clients of `driver.ts`, in a process of their own. */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { spawn } from "node:child_process"
import { once } from "node:events"
import { execPath } from "node:process"
import { fileURLToPath } from "node:url"
import { look, perTransaction } from "../Look.ts"
import type { Sample } from "../Sample.ts"
import { BenchFailed } from "../Scenario.ts"
import type { Answer, Order } from "../wire/Order.ts"
import type { Target } from "./Target.ts"

const program = fileURLToPath(new URL("../driver.ts", import.meta.url))
/** No order takes so long, unless something hangs. */
const LONGEST = "3 minutes"
const WARM_UP_MS = 1000

/** One order at a time. */
export interface Driver {
  readonly tell: (order: Order) => Effect.Effect<number, BenchFailed>
}

export const start: Effect.Effect<Driver, never, Scope.Scope> = Effect.map(
  Effect.acquireRelease(
    Effect.sync(() => {
      const child = spawn(execPath, [program], { stdio: ["ignore", "ignore", "pipe", "ipc"] })
      let words = ""
      child.stderr!.setEncoding("utf8").on("data", (text: string) => (words = (words + text).slice(-2000)))
      const ended = once(child, "close").then(([code]) => {
        throw new Error(`the driver ended with ${code}: ${words.trim()}`)
      })
      ended.catch(() => {})
      return { child, ended }
    }),
    ({ child, ended }) =>
      Effect.promise(async () => {
        child.kill("SIGKILL")
        await ended.catch(() => {})
      })
  ),
  ({ child, ended }) => ({
    tell: (order) =>
      Effect.tryPromise({
        try: async () => {
          const answered = once(child, "message")
          child.send(order)
          const [answer] = (await Promise.race([answered, ended])) as [Answer]
          if ("failure" in answer) throw new Error(answer.failure)
          return answer.value
        },
        catch: (cause) => new BenchFailed({ message: cause instanceof Error ? cause.message : String(cause) })
      }).pipe(
        Effect.timeoutOrElse({
          duration: LONGEST,
          orElse: () =>
            Effect.fail(new BenchFailed({ message: `the driver had no answer to "${order.do}" within ${LONGEST}` }))
        })
      )
  })
)

/** The clients that the driver keeps, at random, for some seconds. */
export const drive = Effect.fnUntraced(function* (
  driver: Driver,
  target: Target,
  what: Omit<Extract<Order, { do: "begin" }>, "do">,
  seconds: number
): Effect.fn.Return<Sample, BenchFailed> {
  yield* driver.tell({ do: "begin", ...what })
  yield* Effect.sleep(WARM_UP_MS)
  const before = look(target)
  const done = yield* driver.tell({ do: "count" })
  yield* Effect.sleep(seconds * 1000)
  const after = look(target)
  const transactions = (yield* driver.tell({ do: "count" })) - done
  yield* driver.tell({ do: "stop" })
  return perTransaction(before, after, transactions)
})
