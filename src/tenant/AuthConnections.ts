/**
 * The connections that look-ups share, kept as pgx keeps its pool: looked through every `pool_health_check_period`, an old
 * one closed and one that nothing used for long, `pool_min_conns` of them held open. (One of these that could not be opened is
 * opened when look-ups need it.)
 *
 * A connection belongs to the pool; it is lent for one statement. What failed on it, or was interrupted, ends it: the next
 * statement finds no answer that is not its own.
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Pool from "effect/Pool"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import type { SqlError } from "effect/sql/SqlError"
import type { AuthDsn } from "./AuthDsn.ts"

/** What is needed of a connection. */
export type Connection = Pick<PgConnection.PgConnection, "query">

export interface AuthConnections {
  /** Runs one statement on a connection of its own; `parameters` go as text. */
  readonly query: (sql: string, parameters: ReadonlyArray<string>) => Effect.Effect<PgConnection.Result, SqlError>
}

/** Opens `pool_min_conns` in the background. All close with the scope. */
export const make = Effect.fnUntraced(function* (
  open: Effect.Effect<Connection, SqlError, Scope.Scope>,
  settings: AuthDsn["pool"]
): Effect.fn.Return<AuthConnections, never, Scope.Scope> {
  const pool = yield* Pool.makeWithStrategy({
    acquire: open,
    min: settings.minConnections,
    max: settings.maxConnections,
    strategy: healthCheck(settings)
  })
  return {
    query: (sql, parameters) =>
      Pool.use(pool, (connection) =>
        Effect.onExit(connection.query(sql, parameters, false), (exit) =>
          Exit.isSuccess(exit) ? Effect.void : Pool.invalidate(pool, connection)
        )
      ).pipe(
        // A restart of the server or a firewall ends connections that are idle, and only the next statement finds that.
        // Statements here look up, so asking again does no harm; each time there is one such connection less.
        Effect.retry({ times: settings.maxConnections, while: isLost })
      )
  }
})

/** The connection ended before the answer came: without a word, or with 57P01 (admin_shutdown) and its like. */
const isLost = ({ reason }: SqlError): boolean => {
  const { cause } = reason
  const hasEnded =
    typeof cause === "object" && cause !== null && "code" in cause && String(cause.code).startsWith("57P")
  return reason.operation !== "connect" && (reason._tag === "ConnectionError" || hasEnded)
}

const healthCheck = (settings: AuthDsn["pool"]): Pool.Strategy<Connection, SqlError> => {
  const lifetime = Duration.toMillis(settings.maxConnectionLifetime)
  const jitter = Duration.toMillis(settings.maxConnectionLifetimeJitter)
  const idleTime = Duration.toMillis(settings.maxConnectionIdleTime)
  const ends = new WeakMap<Pool.PoolItem<Connection, SqlError>, number>()

  const closeOverdue = (pool: Pool.Pool<Connection, SqlError>) =>
    Effect.gen(function* () {
      const now = yield* Clock.currentTimeMillis
      // A copy: what is opened meanwhile was not there to be looked at.
      const opened = Array.from(pool.state.items).filter(({ exit }) => Exit.isSuccess(exit))
      let left = opened.length
      for (const item of opened) {
        if (item.refCount > 0 || !Exit.isSuccess(item.exit)) continue
        const isOld = now >= (ends.get(item) ?? Infinity)
        const isSpare = left > settings.minConnections && now - item.idleSince >= idleTime
        // The pool opens another where fewer than its least are left.
        if (!isOld && !isSpare) continue
        left--
        yield* Pool.invalidate(pool, item.exit.value)
      }
    })

  return {
    // Each has a jitter of its own: they would else all end in the same second, after a start or a failover.
    onAcquire: (item) =>
      Effect.gen(function* () {
        const fraction = yield* Random.next
        ends.set(item, (yield* Clock.currentTimeMillis) + lifetime + jitter * fraction)
      }),
    run: (pool) => Effect.forever(Effect.delay(closeOverdue(pool), settings.healthCheckPeriod)),
    reclaim: () => Effect.undefined
  }
}
