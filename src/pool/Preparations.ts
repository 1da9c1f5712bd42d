/**
 * What a connection is told before a client that waits may have it: another tenant's path, other settings, or a check whether
 * it still answers.
 *
 * Owns who is being prepared for, and sets what the connection carries once the server has confirmed it: nothing of a client's
 * goes to a connection before. Its client may leave meanwhile; the preparation goes on, for another. Whom the connection
 * serves behind it, and what becomes of it where it failed, `onEnd` decides.
 */
import { emptyQuery } from "../protocol/Frontend.ts"
import type { PoolContext } from "./PoolContext.ts"
import type { Connection, PoolClient, PoolTenant } from "./PoolTenant.ts"
import { differences, needSwitch, switchTo, type ClientSettings, type Conversation } from "./Reset.ts"
import type { ConversationEnd } from "./ServerConnection.ts"
import type { Tenants } from "./Tenants.ts"

const checkConversation: Conversation = { bytes: emptyQuery, readyForQueries: 1, commands: [0] }

export interface Preparation {
  readonly connection: Connection
  /** Null where it has gone meanwhile. */
  client: PoolClient | null
  readonly conversation: Conversation
  /** When the client began to wait. */
  readonly since: number
  /** Precisely. */
  readonly begunAt: number
}

export class Preparations {
  readonly #context: PoolContext
  readonly #tenants: Tenants
  readonly #onEnd: (preparation: Preparation, end: ConversationEnd) => void
  readonly #running = new Map<PoolClient, Preparation>()

  constructor(context: PoolContext, tenants: Tenants, onEnd: (preparation: Preparation, end: ConversationEnd) => void) {
    this.#context = context
    this.#tenants = tenants
    this.#onEnd = onEnd
  }

  /** What has to be said to the server before this client may have the connection; null: nothing. */
  needs(connection: Connection, tenant: PoolTenant, settings: ClientSettings): Conversation | null {
    const isOwn = tenant.mode === "session"
    if (!isOwn && (connection.tenant !== tenant || !connection.stateKnown)) return switchFor(tenant, settings)
    if (!isOwn && connection.settings.key !== settings.key) {
      const { settings: before } = connection
      return needSwitch(before, settings) ? switchFor(tenant, settings) : differences(before, settings)
    }
    const checkAfter = this.#context.limits.ServerCheckDelaySecs * 1000
    return checkAfter > 0 && this.#context.sweptAt - connection.idleSince >= checkAfter ? checkConversation : null
  }

  /** The client's first frame follows only when success was read: behind a failed switch it would run in another's schema. */
  begin(connection: Connection, client: PoolClient, conversation: Conversation, now: number): void {
    const { settings: poolSettings, statistics } = this.#context
    const { tenant, settings, waiter } = client
    const { path } = tenant
    const full = conversation.forgets === true
    if (full) statistics.tenantSwitches++
    else if (conversation === checkConversation) statistics.checks++
    else statistics.settingChanges++
    connection.state = "preparing"
    const preparation: Preparation = {
      connection,
      client,
      conversation,
      since: waiter.since,
      begunAt: this.#context.preciseNow()
    }
    this.#running.set(client, preparation)
    // Its last session may end before the answer comes; the tenant is still ours then.
    tenant.references++
    connection.converse(conversation, now + poolSettings.SchemaExecTimeoutSecs * 1000, (end) => {
      if (preparation.client !== null) this.#running.delete(client)
      if (end._tag === "Done") {
        if (full) {
          connection.forgetSession()
          this.#tenants.assign(connection, tenant)
        }
        connection.settings = settings
        connection.stateKnown = tenant.path === path
      }
      this.#onEnd(preparation, end)
      this.#tenants.release(tenant)
    })
  }

  /** The client does not want it any more. */
  leave(client: PoolClient): void {
    const preparation = this.#running.get(client)
    if (preparation === undefined) return
    preparation.client = null
    this.#running.delete(client)
  }
}

const switchFor = (tenant: PoolTenant, settings: ClientSettings): Conversation => {
  const { path, switching } = tenant
  if (switching !== null && switching.path === path && switching.settings === settings.key)
    return switching.conversation
  const conversation = switchTo(path, settings)
  tenant.switching = { path, settings: settings.key, conversation }
  return conversation
}
