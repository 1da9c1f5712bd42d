/**
 * Opens a pool's connections: one attempt after the other to dial and log in, and what a failed one means for those who wait.
 *
 * Knows whether the destination answers (Reachability) and which credentials it refuses, pauses between attempts that fail,
 * and tells clients at once where waiting is in vain: a failed attempt leaves nobody to wait for nothing. Owns a group's
 * `opening` and `refusal`. Never decides for whom a connection is opened, or whether there is room (Slots); never lends.
 */
import * as Effect from "effect/Effect"
import { DestinationUnreachable, SettingRefused, type SessionFault } from "../errors.ts"
import { terminate } from "../protocol/Frontend.ts"
import { ConnectFailure, unreachable } from "./ConnectFailure.ts"
import type { Connections } from "./Connections.ts"
import type { PoolContext } from "./PoolContext.ts"
import type { Connection, CredentialGroup } from "./PoolTenant.ts"
import { Reachability, refusedAgain } from "./Reachability.ts"
import type { LoggedIn } from "./ServerConnection.ts"
import { openAndLogIn } from "./ServerLogin.ts"
import type { Tenants } from "./Tenants.ts"

export class Connector {
  readonly #context: PoolContext
  readonly #connections: Connections
  readonly #tenants: Tenants
  readonly #onOpened: (connection: Connection) => void
  readonly #reachability = new Reachability()
  #opening = 0
  #epoch = 0

  /** `onOpened` is given each connection that was opened, to be lent or closed. */
  constructor(
    context: PoolContext,
    connections: Connections,
    tenants: Tenants,
    onOpened: (connection: Connection) => void
  ) {
    this.#context = context
    this.#connections = connections
    this.#tenants = tenants
    this.#onOpened = onOpened
  }

  /** Attempts under way. */
  get opening(): number {
    return this.#opening
  }

  /** Raised when the destination comes back: it may report other parameters then. */
  get epoch(): number {
    return this.#epoch
  }

  /** Why those who have waited too long had to. */
  get fault(): DestinationUnreachable | null {
    return this.#reachability.fault
  }

  /** A destination that is down is asked by one attempt at a time, with growing pauses between. */
  mayDial(group: CredentialGroup): boolean {
    if (this.#context.closing) return false
    if (group.refusal === null && this.#reachability.fault === null) return true
    const now = this.#context.now()
    if (group.refusal !== null && (now < group.refusal.until || group.opening > 0)) return false
    return this.#reachability.mayDial(now, this.#opening)
  }

  dial(group: CredentialGroup): void {
    const { destination, fork, network, server, settings, tls } = this.#context
    const { credential, floor, generation } = group
    const startedAt = this.#context.now()
    const timeout = settings.ConnCreateTimeoutSecs
    const policy = { allowTrust: server.AllowTrust, allowClearText: server.AllowClearText }
    group.opening++
    this.#opening++
    const login = openAndLogIn(network, destination, credential, policy, tls(), floor).pipe(
      Effect.timeoutOrElse({
        duration: `${timeout} seconds`,
        orElse: () => Effect.fail(unreachable(`no login within ${timeout} s (ConnCreateTimeoutSecs)`))
      })
    )
    fork(
      Effect.uninterruptibleMask((restore) =>
        restore(login).pipe(
          Effect.onExit(() =>
            Effect.sync(() => {
              group.opening--
              this.#opening--
            })
          ),
          Effect.matchEffect({
            onSuccess: (loggedIn) => Effect.sync(() => this.#opened(group, generation, loggedIn, startedAt)),
            onFailure: (failure) =>
              this.#logFailure(failure).pipe(Effect.andThen(Effect.sync(() => this.failed(group, failure, startedAt))))
          })
        )
      )
    )
  }

  #logFailure(failure: ConnectFailure): Effect.Effect<void> {
    return Effect.logWarning(`cannot connect to ${this.#context.name}: ${failure.detail}`)
  }

  #opened(group: CredentialGroup, generation: number, login: LoggedIn, startedAt: number): void {
    if (this.#context.closing) return login.transport.end(terminate)
    const connection = this.#connections.add(login, group)
    // The server may have gone between its last word and now: it was not reached, or it would be dialled again and again.
    if (login.transport.closed) {
      this.failed(group, unreachable("the server ended the connection right behind its login"), startedAt)
      return this.#connections.lost(connection)
    }
    group.refusal = null
    if (generation !== group.generation) connection.retired = true
    this.#onOpened(connection)
  }

  /** It serves: a login alone is no proof, where every tenant switch behind it fails. True where it has just come back. */
  reached(): boolean {
    const back = this.#reachability.reached()
    if (back) this.#epoch++
    return back
  }

  /** A connection could not be had, or was of no use to the first who had it. */
  failed(group: CredentialGroup, failure: ConnectFailure, startedAt = this.#context.now()): void {
    const now = this.#context.now()
    this.#context.statistics.connectFailures++
    // Only a client in session mode has settings of its own in the startup packet.
    if (group.owner !== null && failure.error !== undefined && /^(22|42)/.test(failure.error.sqlState)) {
      return this.#refuseAll(group, SettingRefused.of(failure.error))
    }
    const fault = new DestinationUnreachable({ destination: this.#context.name, detail: failure.detail })
    if (failure.kind === "refused") group.refusal = refusedAgain(group.refusal, fault, now)
    else this.#reachability.failed(fault, startedAt, now, this.#patience)
    for (const waiting of this.#tenants.groups) this.refuseInVain(waiting, now)
    this.#tenants.dropIfUnused(group)
  }

  /**
   * The fault to answer with where no connection is there or on its way and none is to be had. A destination that was there
   * a moment ago (a restart) is waited for, ConnCreateTimeoutSecs long: only the transactions in flight fail then.
   */
  inVain(group: CredentialGroup, now = this.#context.now()): DestinationUnreachable | null {
    if (group.opening > 0) return null
    const refusal = group.refusal !== null && now < group.refusal.until ? group.refusal.fault : null
    const fault = refusal ?? this.#reachability.inVain(now, this.#opening, this.#patience)
    return fault === null || this.#hasUsable(group) ? null : fault
  }

  /** Tells those of the group who wait, where they wait in vain. */
  refuseInVain(group: CredentialGroup, now: number): void {
    const fault = this.inVain(group, now)
    if (fault !== null) this.#refuseAll(group, fault)
  }

  #refuseAll(group: CredentialGroup, fault: SessionFault): void {
    for (const waiter of group.queue.takeOlderThan(Number.POSITIVE_INFINITY)) waiter.client.onRefused(fault)
    this.#tenants.dropIfUnused(group)
  }

  get #patience(): number {
    return this.#context.settings.ConnCreateTimeoutSecs * 1000
  }

  /** A connection that will serve again. */
  #hasUsable(group: CredentialGroup): boolean {
    if (group.open === 0) return false
    for (const connection of this.#connections.all) {
      if (connection.group === group && !connection.retired && connection.state !== "closing") return true
    }
    return false
  }
}
