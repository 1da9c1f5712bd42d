/**
 * `npm run bench`: measures Perseus beside pgbouncer, a bare relay and PostgreSQL itself, on this machine, in turns.
 *
 * Everything it starts listens on loopback and ends with it. `bench/README.md` says what the numbers mean.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import { argv } from "node:process"
import { PasswordHash } from "../src/tenant/PasswordHash.ts"
import { slowdowns } from "./Comparison.ts"
import * as Prerequisites from "./Prerequisites.ts"
import * as Report from "./Report.ts"
import { measure } from "./Rounds.ts"
import { BenchFailed, type Scenario } from "./Scenario.ts"
import { growth } from "./scenarios/growth.ts"
import { idle } from "./scenarios/idle.ts"
import { login, storm } from "./scenarios/login.ts"
import { noisy } from "./scenarios/noisy.ts"
import { rtt } from "./scenarios/rtt.ts"
import { select } from "./scenarios/select.ts"
import { tenants } from "./scenarios/tenants.ts"
import { tls } from "./scenarios/tls.ts"
import { wide } from "./scenarios/wide.ts"
import { write } from "./scenarios/write.ts"
import * as Pgbouncer from "./stage/Pgbouncer.ts"
import * as Stage from "./stage/Stage.ts"

const scenarios: ReadonlyArray<Scenario> = [select, write, tenants, noisy, login, storm, wide, idle, tls, rtt, growth]

const bench = Command.make(
  "bench",
  {
    names: Argument.String("scenario").pipe(
      Argument.withDescription(
        `Which to run, all where none is named: ${scenarios.map(({ name }) => name).join(", ")}`
      ),
      Argument.variadic()
    ),
    rounds: Flag.Int("rounds").pipe(Flag.withDescription("How often each target is measured"), Flag.withDefault(5)),
    seconds: Flag.Int("seconds").pipe(Flag.withDescription("Length of one measurement"), Flag.withDefault(5)),
    repeats: Flag.Int("repeats").pipe(
      Flag.withDescription("How often a round is taken again because something else used the machine"),
      Flag.withDefault(3)
    ),
    only: Flag.String("only").pipe(
      Flag.withDescription("Cases whose variant and clients match this pattern, such as 'simple.*64'"),
      Flag.optional
    ),
    out: Flag.String("out").pipe(
      Flag.withDescription("Write the results to this file, as JSON, and a chart beside it"),
      Flag.optional
    )
  },
  Effect.fnUntraced(function* ({ names, rounds, seconds, repeats, only, out }) {
    const unknown = names.filter((name) => !scenarios.some((scenario) => scenario.name === name))
    if (unknown.length > 0) return yield* new BenchFailed({ message: `there is no scenario ${unknown.join(", ")}` })
    const wanted = scenarios.filter(({ name }) => names.length === 0 || names.includes(name))
    const pattern = new RegExp(Option.getOrElse(only, () => ""))
    const tell = (line: string) => Console.log(`  ${line}`)
    yield* Prerequisites.check
    const stage = yield* Stage.build(tell)
    const installed = yield* Pgbouncer.find
    yield* Console.log(Report.heading(stage, installed, { rounds, seconds }))
    const results: Array<Report.Result> = []
    for (const scenario of wanted) {
      yield* Console.log(`\n${scenario.name}: ${scenario.title}`)
      yield* Effect.scoped(
        Effect.gen(function* () {
          const cases = yield* scenario.cases(stage, { seconds })
          for (const measured of cases) {
            if (!pattern.test(`${measured.variant} ${measured.clients}`)) continue
            const result = Report.resultOf(
              scenario,
              yield* Effect.scoped(measure(measured, { rounds, repeats }, tell)),
              installed?.isReference === false ? "pgbouncer" : null
            )
            results.push(result)
            yield* Console.log(Report.tableOf(result))
          }
        })
      )
    }
    // Before they are written, for that may be where the committed ones are.
    const committed = yield* Report.committed
    yield* Console.log(Report.comparison(committed === null ? null : slowdowns(results, committed)))
    if (Option.isSome(out)) yield* Report.write(out.value, results)
  }, Effect.scoped)
)

Command.runWith(bench, { version: "" })(argv.slice(2)).pipe(
  Effect.tapError((failure) => Console.error(`bench: ${failure.message}`)),
  Effect.provide([NodeServices.layer, PasswordHash.layer()]),
  NodeRuntime.runMain({ disableErrorReporting: true })
)
