/**
 * The configuration in force, and its reload.
 *
 * `ref` holds one `PerseusConfig` at a time, and what stands in it is what runs: a reload that fails changes nothing,
 * and a key that is only read at start keeps its old value until the restart. Reloads run one after another and never
 * fail; the log says what they did, by the keys' names and without values. No signal is listened to here: `reloadOn`
 * takes a stream of them from whoever owns the process.
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Equal from "effect/Equal"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Semaphore from "effect/Semaphore"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import type { ConfigInvalid } from "../errors.ts"
import { keepReadAtStart, type PerseusConfig, settings, valueAt } from "./PerseusConfig.ts"

/** The keys whose values differ; a `Redacted` is compared by what it hides. */
const changedKeys = (before: PerseusConfig, after: PerseusConfig): ReadonlyArray<string> =>
  settings.filter(({ path }) => !Equal.equals(valueAt(before, path), valueAt(after, path))).map(({ key }) => key)

export class LiveConfig extends Context.Service<
  LiveConfig,
  {
    /** Its `changes` give the configuration in force, then each one that a reload puts in its place. */
    readonly ref: SubscriptionRef.SubscriptionRef<PerseusConfig>
    /** What `ref` holds now, for callbacks that are no Effect. */
    readonly current: () => PerseusConfig
    /** How many reloads there were, refused ones aside. For those who read files that the configuration only names. */
    readonly reloads: SubscriptionRef.SubscriptionRef<number>
    /** Loads again and applies what can be applied; the log says what that was, or why nothing was. */
    readonly reload: Effect.Effect<void>
  }
>()("perseus/config/LiveConfig") {
  /** Fails with the first load's `ConfigInvalid`; `load` is run again by each `reload`. */
  static layer(load: Effect.Effect<PerseusConfig, ConfigInvalid>): Layer.Layer<LiveConfig, ConfigInvalid> {
    return Layer.effect(
      LiveConfig,
      Effect.gen(function* () {
        const ref = yield* SubscriptionRef.make(yield* load)
        const reloads = yield* SubscriptionRef.make(0)
        const oneAtATime = yield* Semaphore.make(1)
        const reload = load.pipe(
          Effect.flatMap((next) => apply(ref, next)),
          Effect.andThen(SubscriptionRef.update(reloads, (count) => count + 1)),
          Effect.catchTag("ConfigInvalid", refused),
          Effect.catchDefect((defect) => Effect.logError("the configuration could not be reloaded", Cause.die(defect))),
          oneAtATime.withPermits(1)
        )
        return LiveConfig.of({ ref, reloads, current: () => SubscriptionRef.getUnsafe(ref), reload })
      })
    )
  }

  /** For an embedding program or a test: `reload` goes back to `config`. */
  static layerOf(config: PerseusConfig): Layer.Layer<LiveConfig> {
    return Layer.orDie(LiveConfig.layer(Effect.succeed(config)))
  }
}

const apply = Effect.fnUntraced(function* (ref: SubscriptionRef.SubscriptionRef<PerseusConfig>, next: PerseusConfig) {
  const running = SubscriptionRef.getUnsafe(ref)
  const applied = keepReadAtStart(running, next)
  const changed = changedKeys(running, applied)
  const waiting = changedKeys(applied, next)
  // Setting an equal value would wake every subscriber for nothing.
  if (changed.length > 0) yield* SubscriptionRef.set(ref, applied)
  if (changed.length > 0) yield* Effect.logInfo(`configuration reloaded: ${changed.join(", ")}`)
  else yield* Effect.logInfo("configuration reloaded: nothing changed that applies without a restart")
  if (waiting.length > 0) yield* Effect.logWarning(`takes effect after a restart only: ${waiting.join(", ")}`)
})

const refused = ({ source, problems }: ConfigInvalid) =>
  Effect.logError("configuration not reloaded, the running one stays in force").pipe(
    Effect.annotateLogs({ source, problems })
  )

/**
 * Reloads once for a signal, and once more for however many come while a reload runs: the last reload always begins
 * after the last signal. The stream is listened to from the moment this layer is built.
 */
export const reloadOn = (signals: Stream.Stream<unknown>): Layer.Layer<never, never, LiveConfig> =>
  Layer.effectDiscard(
    Effect.gen(function* () {
      const { reload } = yield* LiveConfig
      const wanted = yield* Queue.sliding<void>(1)
      yield* Queue.take(wanted).pipe(
        Effect.andThen(reload),
        Effect.forever,
        Effect.forkScoped({ startImmediately: true })
      )
      yield* Stream.runForEach(signals, () => Queue.offer(wanted, undefined)).pipe(
        Effect.forkScoped({ startImmediately: true })
      )
    })
  )
