/**
 * What was looked up a moment ago, so that a burst of logins is one query: values by key, each for a short time.
 *
 * Concurrent askers for a key share a look-up, whatever the times are; the look-up ends with its last asker. What is
 * absent is remembered for a second at most, so that a new tenant can log in at once; a failure never is. A key that is
 * invalidated while it is being looked up is looked up anew by the next asker, and the old answer is not kept.
 *
 * It knows nothing of databases, and it has no fiber of its own.
 */
import * as Cache from "effect/Cache"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"

/** Keys are compared by value (`Equal`), plain objects too. */
export interface RowCache<Key, A, E> {
  readonly get: (key: Key) => Effect.Effect<Option.Option<A>, E>
  readonly invalidate: (key: Key) => Effect.Effect<void>
  readonly invalidateAll: Effect.Effect<void>
}

const maxAbsentTtl = Duration.seconds(1)

export const make = <Key, A, E>(options: {
  readonly lookup: (key: Key) => Effect.Effect<Option.Option<A>, E>
  /** How long a value is given out again; zero for not at all. */
  readonly timeToLive: Duration.Duration
  /** Entries; the one unused for longest goes first. */
  readonly capacity: number
}): Effect.Effect<RowCache<Key, A, E>> =>
  Effect.map(
    Cache.makeWith<Key, Option.Option<A>, E>(options.lookup, {
      capacity: options.capacity,
      timeToLive: (exit) => {
        if (Exit.isFailure(exit)) return Duration.zero
        return Option.isSome(exit.value) ? options.timeToLive : Duration.min(options.timeToLive, maxAbsentTtl)
      }
    }),
    (cache) => ({
      get: (key) => Cache.get(cache, key),
      invalidate: (key) => Cache.invalidate(cache, key),
      invalidateAll: Cache.invalidateAll(cache)
    })
  )
