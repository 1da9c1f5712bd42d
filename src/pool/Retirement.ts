/**
 * Which connections were made under a rule that does not hold any more: another secret, another TLS, another kind of tenant
 * switch. They finish what they are at and are not lent again.
 *
 * Closes the idle ones at once; of those in use it only says so (`retired`), and whoever has them closes them when they come
 * back. Owns a group's `generation`: a login that began in an earlier one is retired as soon as it is there.
 */
import type { TlsToServers } from "../config/LiveTls.ts"
import type { Connections } from "./Connections.ts"
import type { PoolContext } from "./PoolContext.ts"
import type { Connection, CredentialGroup } from "./PoolTenant.ts"
import type { Tenants } from "./Tenants.ts"

export class Retirement {
  readonly #context: PoolContext
  readonly #tenants: Tenants
  readonly #connections: Connections
  /** What those connections have that are not retired. */
  #tlsInForce: TlsToServers

  constructor(context: PoolContext, tenants: Tenants, connections: Connections) {
    this.#context = context
    this.#tenants = tenants
    this.#connections = connections
    this.#tlsInForce = context.tls()
  }

  /** Those of this credential, in all groups that have it. */
  retire({ credential: { fingerprint } }: CredentialGroup): void {
    for (const connection of this.#connections.all) {
      if (connection.group.credential.fingerprint === fingerprint) connection.retired = true
    }
    for (const group of this.#tenants.groups) {
      if (group.credential.fingerprint !== fingerprint) continue
      group.generation++
      group.refusal = null
      let idle: Connection | null
      while ((idle = group.idle.longest) !== null) this.#connections.close(idle)
    }
  }

  /** Connections that were made under another rule, or that several tenants have had, serve none of them under the new one. */
  retireAll(): void {
    for (const group of this.#tenants.groups) this.retire(group)
  }

  /** It is another only where settings or certificates are: nobody is to go on in clear where that is refused by now. */
  followTls(): void {
    const tls = this.#context.tls()
    if (tls === this.#tlsInForce) return
    this.#tlsInForce = tls
    this.retireAll()
  }
}
