/**
 * The server connections of one pool: which there are, which of them lie idle, and how they end.
 *
 * Keeps the accounts: each connection is counted once, from its login until it has really ended, which `onGone` is told once.
 * Owns the states "idle" and "closing"; while a connection is neither, whoever has it says what it is at. Never decides which
 * connection is to be opened, lent or closed.
 */
import { terminate } from "../protocol/Frontend.ts"
import { SWEEP_PERIOD_MS, type PoolContext } from "./PoolContext.ts"
import type { Connection, CredentialGroup } from "./PoolTenant.ts"
import { ServerConnection, type LoggedIn } from "./ServerConnection.ts"
import type { Tenants } from "./Tenants.ts"

export class Connections {
  readonly #context: PoolContext
  readonly #tenants: Tenants
  readonly #onGone: (connection: Connection) => void
  readonly #all = new Set<Connection>()
  /** Of all. */
  #idle = 0
  /** Of all. */
  #closing = 0
  /** Counts those that became idle: which of two was idle longer is finer than the sweep's time. */
  #becameIdle = 0

  constructor(context: PoolContext, tenants: Tenants, onGone: (connection: Connection) => void) {
    this.#context = context
    this.#tenants = tenants
    this.#onGone = onGone
  }

  get all(): ReadonlySet<Connection> {
    return this.#all
  }

  get idle(): number {
    return this.#idle
  }

  get closing(): number {
    return this.#closing
  }

  /** Those that are not closing. */
  get live(): number {
    return this.#all.size - this.#closing
  }

  add(login: LoggedIn, group: CredentialGroup): Connection {
    const connection: Connection = new ServerConnection(login, group, this.#context.now(), this.lost)
    this.#all.add(connection)
    group.open++
    this.#context.statistics.opened++
    return connection
  }

  /**
   * Its server has just answered. That is so also where it goes on to the next client without having been idle: a busy one would
   * be checked before each lease else. By the next sweep's time, for nothing is to end before it must.
   */
  heardOf(connection: Connection): void {
    connection.idleSince = this.#context.sweptAt + SWEEP_PERIOD_MS
  }

  makeIdle(connection: Connection): void {
    const group = connection.group
    connection.state = "idle"
    connection.idleTurn = ++this.#becameIdle
    group.idle.add(connection)
    this.#idle++
    if (connection.tenant !== null) connection.tenant.idle.push(connection)
  }

  /** It is idle; what it is from now on is the caller's to say. */
  removeIdle(connection: Connection): void {
    connection.group.idle.remove(connection)
    connection.keptUntil = 0
    this.#idle--
    const idle = connection.tenant?.idle
    if (idle === undefined || idle.length === 0) return
    // Mostly the last used is taken, and a splice makes an array of what it takes out.
    if (idle[idle.length - 1] === connection) return void idle.pop()
    const at = idle.lastIndexOf(connection)
    if (at !== -1) idle.splice(at, 1)
  }

  /** Of those that are not kept for somebody. */
  longestIdle(suits: (group: CredentialGroup) => boolean = () => true): Connection | null {
    let longest: Connection | null = null
    for (const group of this.#tenants.groups) {
      let connection = group.idle.longest
      while (connection !== null && connection.keptUntil !== 0) connection = connection.shorterIdle
      if (connection === null || !suits(group)) continue
      if (longest === null || connection.idleTurn < longest.idleTurn) longest = connection
    }
    return longest
  }

  /** In good order: Terminate, then the end; by force when that takes longer than ConnCloseTimeoutSecs. */
  close(connection: Connection): void {
    if (connection.state === "closing") return
    if (connection.state === "idle") this.removeIdle(connection)
    connection.state = "closing"
    this.#closing++
    connection.deadline = this.#context.now() + this.#context.settings.ConnCloseTimeoutSecs * 1000
    connection.transport.end(terminate)
  }

  closeByForce(connection: Connection): void {
    if (connection.state === "idle") this.removeIdle(connection)
    if (connection.state !== "closing") this.#closing++
    connection.state = "closing"
    connection.transport.destroy()
    this.#forget(connection)
  }

  /** The connection has ended by itself, or as we asked. Its lessee hears of it from the connection. */
  readonly lost = (connection: Connection): void => {
    if (connection.state === "idle") this.removeIdle(connection)
    if (connection.state !== "closing") this.#closing++
    connection.state = "closing"
    this.#forget(connection)
  }

  #forget(connection: Connection): void {
    if (!this.#all.delete(connection)) return
    this.#closing--
    connection.group.open--
    this.#onGone(connection)
  }
}
