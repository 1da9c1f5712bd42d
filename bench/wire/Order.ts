/**
 * What the bench tells `driver.ts`, and what it hears back: one order at a time, one number for each.
 */
import type { Login } from "../stage/Target.ts"
import type { Address } from "./Wire.ts"

/** So many clients that log in alike. */
export interface Group {
  readonly login: Login
  readonly count: number
}

export type Order =
  /** Logs clients in and keeps them. Answers how many there are. */
  | { readonly do: "open"; readonly at: Address; readonly groups: ReadonlyArray<Group> }
  /** Ends those that are kept. Answers how many. */
  | { readonly do: "close" }
  /** All clients at once, each to log in, to ask one thing and to leave. Answers the seconds until the last has its answer. */
  | { readonly do: "storm"; readonly at: Address; readonly groups: ReadonlyArray<Group>; readonly sql: string }
  /** Each client that is kept prepares so many statements, the same as all others, and runs each once. Answers how many. */
  | { readonly do: "prepare"; readonly statements: number }
  /**
   * Clients that are kept, chosen at random, ask for one thing each, so many at a time, until `stop`. One statement, or any of
   * those that were prepared.
   */
  | { readonly do: "begin"; readonly sql?: string; readonly statements?: number; readonly inFlight: number }
  /** Answers how many transactions are done since `begin`. */
  | { readonly do: "count" }
  | { readonly do: "stop" }
  /** A result, or COPY TO STDOUT, read to its end. Answers bytes a second. */
  | { readonly do: "read"; readonly at: Address; readonly login: Login; readonly sql: string }
  /** COPY FROM STDIN of rows of so many bytes. Answers bytes a second. */
  | {
      readonly do: "write"
      readonly at: Address
      readonly login: Login
      readonly sql: string
      readonly rowBytes: number
      readonly rows: number
    }
  /** Proves a password so many times, for another tenant each time, as Perseus would. Answers the seconds. */
  | { readonly do: "derive"; readonly hash: string; readonly password: string; readonly times: number }

export type Answer = { readonly value: number } | { readonly failure: string }
