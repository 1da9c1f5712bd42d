/**
 * node-postgres for the demo: what plays the application, and what looks at PostgreSQL past the pooler.
 *
 * It is a development dependency, loaded when the demo runs; a production install does not have it, and needs it for
 * nothing else.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Client, ClientConfig } from "pg"
import { DemoFailed } from "./DemoFailed.ts"

export type Row = Readonly<Record<string, unknown>>

/** One connection. */
export interface Connection {
  /** With parameters, by the extended protocol. */
  readonly query: (sql: string, parameters?: ReadonlyArray<unknown>) => Effect.Effect<ReadonlyArray<Row>, DemoFailed>
}

export interface Driver {
  /** Connects; the connection ends with the scope. */
  readonly connect: (config: ClientConfig) => Effect.Effect<Connection, DemoFailed, Scope.Scope>
}

const failed = (what: string) => (cause: unknown) =>
  new DemoFailed({ message: `${what}: ${cause instanceof Error ? cause.message : String(cause)}` })

export const load: Effect.Effect<Driver, DemoFailed> = Effect.tryPromise({
  try: () => import("pg"),
  catch: () =>
    new DemoFailed({
      message: 'the npm package pg is not installed. It is a development dependency: run "npm ci" without --omit=dev'
    })
}).pipe(
  Effect.map((pg) => ({
    connect: (config) =>
      Effect.map(
        Effect.acquireRelease(open(new pg.default.Client(config)), (client) => Effect.ignore(close(client))),
        connection
      )
  }))
)

const open = (client: Client): Effect.Effect<Client, DemoFailed> => {
  // Without a listener, a server that goes away would end the process. The next query says so as well.
  client.on("error", () => {})
  return Effect.as(Effect.tryPromise({ try: () => client.connect(), catch: failed("connecting") }), client)
}

const close = (client: Client) => Effect.tryPromise(() => client.end())

const connection = (client: Client): Connection => ({
  query: (sql, parameters) =>
    Effect.map(
      Effect.tryPromise({ try: () => client.query(sql, parameters?.slice()), catch: failed(sql) }),
      (result) => result.rows
    )
})
