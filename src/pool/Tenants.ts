/**
 * Who has a place in one pool: tenants by their key and mode, the groups whose connections they share, and how much each uses.
 *
 * Plain reference counting: a tenant is kept while a session, a preparation or a connection refers to it, a group while it has
 * tenants or connections. Lends, opens and closes nothing; the pool does.
 */
import type { Credential } from "./Credential.ts"
import { CredentialGroup, PoolTenant, Usage, type Connection, type Mode } from "./PoolTenant.ts"
import { safeFloor, sessionFloor, type ClientSettings, type Floor } from "./Reset.ts"

/** Whose place it is, and as whom it logs in. */
export interface TenantPlacement {
  readonly tenantKey: string
  readonly schema: string
  readonly credential: Credential
  /** What the row says of the password: the ciphertext. */
  readonly secret: string
  /** The row's own; null: the pool's. */
  readonly mode: Mode | null
}

/** What the pool's settings say of a tenant. */
export interface TenantRules {
  readonly mode: Mode
  /** Searched behind the tenant's own schema. */
  readonly extraSchemas: ReadonlyArray<string>
}

const pathOf = (schema: string, { extraSchemas }: TenantRules): ReadonlyArray<string> => [
  schema,
  ...extraSchemas.filter((extra) => extra !== schema)
]

export class Tenants {
  readonly #tenants = new Map<string, PoolTenant>()
  readonly #groups = new Map<string, CredentialGroup>()
  /** By the tenant's key as `perseus_auth` has it. */
  readonly #usages = new Map<string, Usage>()
  readonly #onGroupDropped: (group: CredentialGroup) => void

  constructor(onGroupDropped: (group: CredentialGroup) => void) {
    this.#onGroupDropped = onGroupDropped
  }

  /** A copy: groups may come and go while it is walked through. */
  get groups(): ReadonlyArray<CredentialGroup> {
    return [...this.#groups.values()]
  }

  /**
   * The tenant, for clients with these settings: one more refers to it. `outdated` is the group whose connections were opened
   * with another secret than the tenant's row has now.
   */
  retain(
    placement: TenantPlacement,
    rules: TenantRules,
    settings: ClientSettings
  ): { readonly tenant: PoolTenant; readonly outdated: CredentialGroup | null } {
    const { tenantKey, schema, credential, secret } = placement
    const mode = placement.mode ?? rules.mode
    const path = pathOf(schema, rules)
    const floor = mode === "session" ? sessionFloor(path, settings) : safeFloor
    const key = floor === safeFloor ? tenantKey : JSON.stringify([tenantKey, floor])
    const before = this.#tenants.get(key)
    if (before !== undefined && before.secret === secret && before.mode === mode) {
      before.references++
      return { tenant: before, outdated: null }
    }
    const { fingerprint } = credential
    const group = this.#group(floor === safeFloor ? fingerprint : JSON.stringify([fingerprint, key]), credential, floor)
    const tenant = new PoolTenant(key, this.#usage(tenantKey), mode, schema, path, secret, group)
    if (floor !== safeFloor) group.owner = tenant
    group.tenants++
    tenant.references++
    this.#tenants.set(key, tenant)
    return { tenant, outdated: before !== undefined && before.secret !== secret ? before.group : null }
  }

  release(tenant: PoolTenant): void {
    if (--tenant.references > 0) return
    if (this.#tenants.get(tenant.key) === tenant) this.#tenants.delete(tenant.key)
    if (--tenant.usage.references === 0) this.#usages.delete(tenant.usage.tenantKey)
    tenant.group.tenants--
    this.dropIfUnused(tenant.group)
  }

  /** Whose path the connection carries from now on. */
  assign(connection: Connection, tenant: PoolTenant | null): void {
    if (connection.tenant === tenant) return
    const before = connection.tenant
    if (tenant !== null) tenant.references++
    connection.tenant = tenant
    if (before !== null) this.release(before)
  }

  dropIfUnused(group: CredentialGroup): void {
    if (group.tenants > 0 || group.open > 0 || group.opening > 0) return
    this.#groups.delete(group.key)
    this.#onGroupDropped(group)
  }

  /** Those in session mode keep the path that their connections were opened with. */
  setPaths(rules: TenantRules): void {
    for (const tenant of this.#tenants.values()) {
      if (tenant.mode === "session") continue
      tenant.path = pathOf(tenant.schema, rules)
      tenant.greetings.clear()
    }
  }

  #usage(tenantKey: string): Usage {
    let usage = this.#usages.get(tenantKey)
    if (usage === undefined) {
      usage = new Usage(tenantKey)
      this.#usages.set(tenantKey, usage)
    }
    usage.references++
    return usage
  }

  #group(key: string, credential: Credential, floor: Floor): CredentialGroup {
    let group = this.#groups.get(key)
    if (group === undefined) {
      group = new CredentialGroup(key, credential, floor)
      this.#groups.set(key, group)
    }
    return group
  }
}
