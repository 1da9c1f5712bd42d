/**
 * The places under MaxOpen: for which group of tenants a connection is opened, and which connection makes room for it.
 *
 * A connection is opened only for somebody who waits and whom it would help. Where there is no room, an idle one of another
 * group is closed, or the group starves until a place is free. Owns who starves. Whether the destination may be dialled, and
 * the dialling, are the Connector's; whom a connection serves is the Pool's.
 */
import type { Connections } from "./Connections.ts"
import type { Connector } from "./Connector.ts"
import type { PoolContext } from "./PoolContext.ts"
import type { Connection, CredentialGroup } from "./PoolTenant.ts"

/**
 * A connection is not closed to make room for another user's before it has lived this long: opening one costs PostgreSQL
 * about 3 ms, so churn between users stays under a tenth.
 */
const HANDOVER_MIN_AGE_MS = 50

export class Slots {
  readonly #context: PoolContext
  readonly #connections: Connections
  readonly #connector: Connector
  readonly #waitingFor: (group: CredentialGroup) => number
  /** Groups that would open a connection if there were room. */
  readonly #starved = new Set<CredentialGroup>()

  /** `waitingFor`: how many of a group wait whom a new connection would help. */
  constructor(
    context: PoolContext,
    connections: Connections,
    connector: Connector,
    waitingFor: (group: CredentialGroup) => number
  ) {
    this.#context = context
    this.#connections = connections
    this.#connector = connector
    this.#waitingFor = waitingFor
  }

  /** As many connections are on their way as there are clients who wait for one, or as there is room for. */
  ensureOpening(group: CredentialGroup): void {
    // For one more who waits in a full pool nothing is different: that is each transaction of a busy one.
    if (this.#connections.idle === 0 && this.#starved.has(group) && !this.#hasRoom()) return
    while (this.#waitingFor(group) > group.opening && this.#connector.mayDial(group)) {
      if (this.#hasRoom()) {
        // Behind all others, should it starve again.
        this.#starved.delete(group)
        this.#connector.dial(group)
        continue
      }
      // A slot is free when its connection is really closed; then the starved are looked at again.
      this.#starved.add(group)
      const onTheirWay = group.opening + this.#connections.closing
      if (this.#waitingFor(group) <= onTheirWay || this.#connections.idle === 0) return
      const { TenantSwitch } = this.#context.settings
      const victim = this.#connections.longestIdle((other) => other !== group || TenantSwitch === "reconnect")
      if (victim === null) return
      this.#connections.close(victim)
    }
    this.#starved.delete(group)
  }

  /** A connection has ended. */
  freed(): void {
    // A copy: who finds no room is put back, and would be met again.
    for (const starved of Array.from(this.#starved)) this.ensureOpening(starved)
  }

  /** True where another user's clients have waited longer than all of this one's and there is no room for them. */
  mustHandOver(connection: Connection): boolean {
    if (this.#starved.size === 0 || this.#context.now() - connection.openedAt < HANDOVER_MIN_AGE_MS) return false
    const { group } = connection
    const own = group.queue.oldest() ?? Number.POSITIVE_INFINITY
    for (const starved of this.#starved) {
      if (starved === group || starved.queue.length <= starved.opening) continue
      if ((starved.queue.oldest() ?? own) < own) return true
    }
    return false
  }

  /** The group is no more. */
  forget(group: CredentialGroup): void {
    this.#starved.delete(group)
  }

  #hasRoom(): boolean {
    const { MaxOpen } = this.#context.settings
    return MaxOpen <= 0 || this.#connections.all.size + this.#connector.opening < MaxOpen
  }
}
