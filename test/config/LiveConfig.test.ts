import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Queue from "effect/Queue"
import * as References from "effect/References"
import * as Stream from "effect/Stream"
import * as SubscriptionRef from "effect/SubscriptionRef"
import { LiveConfig, reloadOn } from "../../src/config/LiveConfig.ts"
import type { PerseusConfig } from "../../src/config/PerseusConfig.ts"
import { ConfigInvalid } from "../../src/errors.ts"
import { configOf, minimal } from "./fixtures.ts"

const invalid = new ConfigInvalid({ source: "config.json", problems: ["A: bad", "B: worse"] })

const base = configOf(minimal())
const withMaxOpen = (MaxOpen: number): PerseusConfig => ({ ...base, PoolSettings: { ...base.PoolSettings, MaxOpen } })

/** Gives the results one after another, and the last one again and again. */
const loads = (...results: ReadonlyArray<Effect.Effect<PerseusConfig, ConfigInvalid>>) => {
  let next = 0
  return Effect.suspend(() => results[Math.min(next++, results.length - 1)] ?? Effect.die("no results"))
}

interface Line {
  readonly level: string
  readonly message: string
  readonly annotations: Readonly<Record<string, unknown>>
}

/** A log that a test can read. */
const recorded = () => {
  const lines: Array<Line> = []
  const logger = Logger.make(({ fiber, logLevel, message }) => {
    lines.push({
      level: logLevel,
      message: String(message),
      annotations: fiber.getRef(References.CurrentLogAnnotations)
    })
  })
  return { lines, layer: Logger.layer([logger]) }
}

/** Loads `first`, reloads to `second`; what stands in the ref then, and what was logged. */
const reloadedTo = (first: PerseusConfig, second: Effect.Effect<PerseusConfig, ConfigInvalid>) =>
  Effect.suspend(() => {
    const log = recorded()
    return LiveConfig.use((live) =>
      live.reload.pipe(
        Effect.andThen(SubscriptionRef.get(live.ref)),
        Effect.tap((config) => Effect.sync(() => assert.strictEqual(live.current(), config)))
      )
    ).pipe(
      Effect.map((config) => ({ config, lines: log.lines })),
      Effect.provide(LiveConfig.layer(loads(Effect.succeed(first), second))),
      Effect.provide(log.layer)
    )
  })

describe("LiveConfig.layer", () => {
  it.effect("fails to build when the first load fails", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(Layer.build(LiveConfig.layer(Effect.fail(invalid))))
      assert.strictEqual(error, invalid)
    })
  )

  it.effect("shows the loaded configuration through the ref and through current", () =>
    LiveConfig.use((live) =>
      Effect.gen(function* () {
        assert.strictEqual(live.current(), base)
        assert.strictEqual(yield* SubscriptionRef.get(live.ref), base)
      })
    ).pipe(Effect.provide(LiveConfig.layer(Effect.succeed(base))))
  )
})

describe("reload", () => {
  it.effect("puts everything in force that needs no restart, and logs the keys' names", () =>
    Effect.gen(function* () {
      const next = configOf({
        ...minimal(),
        PoolSettings: { ...minimal().PoolSettings, MaxOpen: 7, ConnCreateTimeoutSecs: 9 },
        OverrideSettings: { app: { MaxOpen: 8 } },
        LimitSettings: { MaxClients: 5 },
        ServerSettings: { AllowTrust: true },
        LogSettings: { Level: "DEBUG" }
      })
      const { config, lines } = yield* reloadedTo(base, Effect.succeed(next))
      assert.deepStrictEqual(config, next)
      assert.deepStrictEqual(lines, [
        {
          level: "Info",
          message:
            "configuration reloaded: PoolSettings.MaxOpen, PoolSettings.ConnCreateTimeoutSecs, OverrideSettings, " +
            "LimitSettings.MaxClients, ServerSettings.AllowTrust, LogSettings.Level",
          annotations: {}
        }
      ])
    })
  )

  it.effect("keeps what was read at start, names it in a warning, and shows no value", () =>
    Effect.gen(function* () {
      const next = configOf({
        ...minimal(),
        ListenAddress: ":1",
        MetricsAddress: ":2",
        AuthDBSettings: { AuthDBDSN: "postgres://u:hunter3@h/d", AuthQueryTimeoutSecs: 2 },
        AWSSettings: { ...minimal().AWSSettings, AccessKeyId: "id", SecretAccessKey: "hunter4" },
        PoolSettings: { ...minimal().PoolSettings, MaxOpen: 7 },
        LogSettings: { Json: true }
      })
      const { config, lines } = yield* reloadedTo(base, Effect.succeed(next))
      assert.deepStrictEqual(config, withMaxOpen(7))
      assert.strictEqual(config.AuthDBSettings, base.AuthDBSettings)
      assert.deepStrictEqual(
        lines.map(({ level, message }) => `${level} ${message}`),
        [
          "Info configuration reloaded: PoolSettings.MaxOpen",
          "Warn takes effect after a restart only: ListenAddress, MetricsAddress, AuthDBSettings.AuthDBDSN, " +
            "AWSSettings.AccessKeyId, AWSSettings.SecretAccessKey, LogSettings.Json"
        ]
      )
    })
  )

  it.effect("changes nothing when the file is bad, and logs every problem", () =>
    Effect.gen(function* () {
      const { config, lines } = yield* reloadedTo(base, Effect.fail(invalid))
      assert.strictEqual(config, base)
      assert.deepStrictEqual(lines, [
        {
          level: "Error",
          message: "configuration not reloaded, the running one stays in force",
          annotations: { source: "config.json", problems: ["A: bad", "B: worse"] }
        }
      ])
    })
  )

  it.effect("changes nothing when loading dies, and says so", () =>
    Effect.gen(function* () {
      const { config, lines } = yield* reloadedTo(base, Effect.die(new Error("a bug")))
      assert.strictEqual(config, base)
      assert.deepStrictEqual(
        lines.map(({ level }) => level),
        ["Error"]
      )
    })
  )

  it.effect("says that nothing changed, and wakes nobody, when an equal file is read", () =>
    Effect.gen(function* () {
      const { config, lines } = yield* reloadedTo(
        base,
        Effect.sync(() => configOf(minimal()))
      )
      assert.strictEqual(config, base)
      assert.deepStrictEqual(
        lines.map(({ message }) => message),
        ["configuration reloaded: nothing changed that applies without a restart"]
      )
    })
  )

  it.effect("works again after a bad file, and gives each change to those who follow the ref", () =>
    Effect.gen(function* () {
      const live = yield* LiveConfig
      const seen = yield* SubscriptionRef.changes(live.ref).pipe(
        Stream.map((config) => config.PoolSettings.MaxOpen),
        Stream.take(3),
        Stream.runCollect,
        Effect.forkChild({ startImmediately: true })
      )
      for (let i = 0; i < 4; i++) yield* live.reload
      assert.deepStrictEqual(yield* Fiber.join(seen), [0, 7, 8])
    }).pipe(
      Effect.provide(
        LiveConfig.layer(
          loads(
            Effect.succeed(base),
            Effect.succeed(withMaxOpen(7)),
            Effect.fail(invalid),
            Effect.succeed(withMaxOpen(7)),
            Effect.succeed(withMaxOpen(8))
          )
        )
      ),
      Effect.provide(recorded().layer)
    )
  )

  it.effect("runs one at a time, so that the file read last is the one in force", () =>
    Effect.gen(function* () {
      const slow = yield* Deferred.make<PerseusConfig>()
      let running = 0
      let most = 0
      const watched = (load: Effect.Effect<PerseusConfig>) =>
        Effect.suspend(() => {
          most = Math.max(most, ++running)
          return Effect.ensuring(
            load,
            Effect.sync(() => running--)
          )
        })
      const load = loads(Effect.succeed(base), watched(Deferred.await(slow)), watched(Effect.succeed(withMaxOpen(8))))
      const live = yield* Effect.provide(LiveConfig, LiveConfig.layer(load))
      const first = yield* Effect.forkChild(live.reload, { startImmediately: true })
      const second = yield* Effect.forkChild(live.reload, { startImmediately: true })
      yield* Deferred.succeed(slow, withMaxOpen(7))
      yield* Fiber.joinAll([first, second])
      assert.strictEqual(most, 1)
      assert.strictEqual(live.current().PoolSettings.MaxOpen, 8)
    }).pipe(Effect.provide(recorded().layer))
  )

  it.effect("goes back to the given configuration where one was given", () =>
    LiveConfig.use((live) =>
      Effect.gen(function* () {
        yield* SubscriptionRef.set(live.ref, withMaxOpen(9))
        assert.strictEqual(live.current().PoolSettings.MaxOpen, 9)
        yield* live.reload
        assert.deepStrictEqual(live.current(), base)
      })
    ).pipe(Effect.provide(LiveConfig.layerOf(base)), Effect.provide(recorded().layer))
  )
})

describe("reloadOn", () => {
  /** A LiveConfig whose reload says when it begins, and ends when it is told to. */
  const stepwise = Effect.gen(function* () {
    const begun = yield* Queue.unbounded<Deferred.Deferred<void>>()
    const ref = yield* SubscriptionRef.make(base)
    const reloads = yield* SubscriptionRef.make(0)
    const reload = Effect.gen(function* () {
      const mayEnd = yield* Deferred.make<void>()
      yield* Queue.offer(begun, mayEnd)
      yield* Deferred.await(mayEnd)
    })
    return { begun, layer: Layer.succeed(LiveConfig, { ref, reloads, current: () => base, reload }) }
  })

  it.effect("makes one more reload of all the signals that come while one runs", () =>
    Effect.gen(function* () {
      const { begun, layer } = yield* stepwise
      const signals = yield* Queue.unbounded<string>()
      yield* Layer.build(reloadOn(Stream.fromQueue(signals)).pipe(Layer.provide(layer)))
      yield* Queue.offer(signals, "SIGHUP")
      const first = yield* Queue.take(begun)
      for (let i = 0; i < 5; i++) {
        yield* Queue.offer(signals, "SIGHUP")
        yield* Effect.yieldNow
      }
      assert.strictEqual(yield* Queue.size(begun), 0)
      yield* Deferred.succeed(first, undefined)
      const second = yield* Queue.take(begun)
      yield* Deferred.succeed(second, undefined)
      yield* Queue.offer(signals, "SIGHUP")
      const third = yield* Queue.take(begun)
      yield* Deferred.succeed(third, undefined)
      for (let i = 0; i < 10; i++) yield* Effect.yieldNow
      assert.strictEqual(yield* Queue.size(begun), 0)
    })
  )

  it.effect("makes one reload of a burst that comes in one piece", () =>
    Effect.gen(function* () {
      const { begun, layer } = yield* stepwise
      yield* Layer.build(reloadOn(Stream.fromIterable([1, 2, 3, 4, 5])).pipe(Layer.provide(layer)))
      let reloads = 0
      yield* Queue.take(begun).pipe(
        Effect.tap(() => Effect.sync(() => reloads++)),
        Effect.flatMap((mayEnd) => Deferred.succeed(mayEnd, undefined)),
        Effect.forever,
        Effect.forkScoped
      )
      for (let i = 0; i < 20; i++) yield* Effect.yieldNow
      assert.strictEqual(reloads, 1)
    })
  )

  it.effect("listens from the moment that its layer is built until its scope closes", () =>
    Effect.gen(function* () {
      const { layer } = yield* stepwise
      let listening = 0
      const signals = Stream.callback<void>(() =>
        Effect.acquireRelease(
          Effect.sync(() => listening++),
          () => Effect.sync(() => listening--)
        )
      )
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* Layer.build(reloadOn(signals).pipe(Layer.provide(layer)))
          assert.strictEqual(listening, 1)
        })
      )
      assert.strictEqual(listening, 0)
    })
  )
})
