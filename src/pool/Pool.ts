/**
 * The server connections of one destination, and who has them.
 *
 * Lends a connection for one transaction, with the tenant's path and the client's settings on it; lets clients wait in a fair
 * order. Taking an idle connection that fits and giving it back are plain calls without any Effect; dialling and cancels are
 * Effects in the pool's scope.
 *
 * Owns the queues and the leases: who waits, whose turn it is, who is lent what. All else is its parts'. They share one
 * context, tell the pool by callbacks what has happened, and call none of their number but those named before them: `Tenants`
 * (who has a place), `Quota` (how much each may hold), `Connections` (their accounts and their end), `Visits` (how long one stays
 * with a tenant), `Retirement` (which are of an old rule), `Connector` (dialling, and the pauses between), `Slots` (for whom a
 * connection is opened), `Preparations` (what is said before a lease), `LeaseQuestions` (what is asked during one), `Cancels`,
 * `Eviction` (which are too many or too old), `Greeting` (what a login is greeted with).
 *
 * It never looks at what a client sends. Its laws, which the simulation checks after every run: a connection is idle, lent,
 * being prepared, waiting for a cancel's end, or closing, and counted once; every client that waits is granted or refused;
 * nothing that a tenant said goes to a connection before that connection has confirmed the tenant's path.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as FiberSet from "effect/FiberSet"
import type * as Scope from "effect/Scope"
import type { TlsToServers } from "../config/LiveTls.ts"
import { AcquireTimedOut, DestinationUnreachable, SettingRefused, ShuttingDown, type SessionFault } from "../errors.ts"
import type { Network } from "../net/Network.ts"
import { Cancels } from "./Cancels.ts"
import { unreachable } from "./ConnectFailure.ts"
import { Connections } from "./Connections.ts"
import { Connector } from "./Connector.ts"
import { Eviction } from "./Eviction.ts"
import * as Greeting from "./Greeting.ts"
import type * as Inspection from "./Inspection.ts"
import { LeaseQuestions } from "./LeaseQuestions.ts"
import { PoolContext, type Destination, type PoolLimits } from "./PoolContext.ts"
import type { PoolSnapshot } from "./PoolStatistics.ts"
import type { Connection, CredentialGroup, PoolClient, PoolTenant } from "./PoolTenant.ts"
import { Preparations, type Preparation } from "./Preparations.ts"
import { Quota } from "./Quota.ts"
import { forgetAll, noSettings, type ClientSettings } from "./Reset.ts"
import { Retirement } from "./Retirement.ts"
import type { ConversationEnd } from "./ServerConnection.ts"
import { Slots } from "./Slots.ts"
import { Tenants, type TenantPlacement, type TenantRules } from "./Tenants.ts"
import { Visits } from "./Visits.ts"
import { QUANTUM } from "./WaitQueue.ts"

export class Pool {
  readonly #context: PoolContext
  readonly #tenants: Tenants
  readonly #quota: Quota
  readonly #connections: Connections
  readonly #retirement: Retirement
  readonly #connector: Connector
  readonly #slots: Slots
  readonly #preparations: Preparations
  readonly #questions: LeaseQuestions
  readonly #cancels: Cancels
  readonly #eviction: Eviction
  readonly #visits: Visits
  /** Called when nothing is open any more. */
  #onEmpty: (() => void) | null = null
  /** Until then nothing here is overdue, unless somebody wants something; 0: it is not at rest. */
  #restsUntil = 0

  private constructor(context: PoolContext) {
    this.#context = context
    this.#quota = new Quota(context)
    this.#tenants = new Tenants((group) => this.#slots.forget(group))
    this.#connections = new Connections(context, this.#tenants, (connection) => this.#gone(connection))
    this.#retirement = new Retirement(context, this.#tenants, this.#connections)
    this.#connector = new Connector(context, this.#connections, this.#tenants, (connection) => this.#opened(connection))
    this.#slots = new Slots(context, this.#connections, this.#connector, (group) => this.#waitingFor(group))
    this.#preparations = new Preparations(context, this.#tenants, (preparation, end) =>
      this.#prepared(preparation, end)
    )
    this.#questions = new LeaseQuestions(context, (connection) => this.#giveUp(connection))
    this.#cancels = new Cancels(context, (connection) => this.#cancelEnded(connection))
    this.#eviction = new Eviction(context, this.#connections, this.#cancels)
    this.#visits = new Visits(context, this.#connections, () => this.#serveAll())
  }

  /** Lives as long as the scope; its end refuses all who wait and closes every connection, in order and then by force. */
  static make(
    destination: Destination,
    limits: PoolLimits,
    network: Network["Service"],
    tls: () => TlsToServers
  ): Effect.Effect<Pool, never, Scope.Scope> {
    return Effect.gen(function* () {
      const clock = yield* Clock.Clock
      const fibers = yield* FiberSet.make<void>()
      const run = yield* FiberSet.runtime(fibers)()
      const context = new PoolContext(destination, limits, network, tls, clock, (effect) => void run(effect))
      const pool = new Pool(context)
      yield* Effect.addFinalizer(() => pool.#shutDown())
      return pool
    })
  }

  get destination(): Destination {
    return this.#context.destination
  }

  get name(): string {
    return this.#context.name
  }

  /** Prepared statements that a connection may have; 0: they are not followed. */
  get maxPreparedStatements(): number {
    return this.#context.settings.MaxPreparedStatements
  }

  /** A client that needs one connection keeps it. */
  get pins(): boolean {
    return this.#context.settings.Pinning === "auto"
  }

  get pinningNotice(): boolean {
    return this.#context.settings.PinningNotice
  }

  // ---- tenants

  /**
   * The tenant's place in this pool, for clients with these settings. Give it back with `release`. Where its secret is another
   * than it was, connections with the old one are of an old generation: they finish what they are at, and are closed.
   */
  retain(placement: TenantPlacement, settings: ClientSettings): PoolTenant {
    const { tenant, outdated } = this.#tenants.retain(placement, this.#rules, settings)
    if (outdated !== null) this.retire(outdated)
    return tenant
  }

  release(tenant: PoolTenant): void {
    this.#tenants.release(tenant)
  }

  get #rules(): TenantRules {
    return { mode: this.#context.settings.Mode, extraSchemas: this.#context.settings.ExtraSchemas }
  }

  /** ExtraSchemas have changed: connections with the old path are set anew before they are lent. */
  #setPaths(): void {
    this.#tenants.setPaths(this.#rules)
    for (const connection of this.#connections.all) if (connection.group.owner === null) connection.stateKnown = false
  }

  /** A row's secret changed: connections with the old one finish what they are at and are closed. */
  retire(group: CredentialGroup): void {
    this.#wake()
    this.#retirement.retire(group)
  }

  // ---- a lease

  /** An idle connection that fits as it is, or null: then `wait`. No Effect, no write; the whole cost of a lease. */
  take(client: PoolClient): Connection | null {
    this.#wake()
    const tenant = client.tenant
    const connection = lastOf(tenant.idle)
    if (
      connection === null ||
      tenant.group.queue.length > 0 ||
      !this.#quota.allows(tenant) ||
      this.#preparations.needs(connection, tenant, client.settings) !== null
    ) {
      return null
    }
    this.#connections.removeIdle(connection)
    this.#lend(connection, client)
    return connection
  }

  /**
   * Queues the client until it is granted or refused, which may be before this returns; a fault where waiting is in vain.
   */
  wait(client: PoolClient): SessionFault | null {
    if (this.#context.closing) return new ShuttingDown()
    this.#wake()
    const now = this.#context.now()
    const { tenant, waiter } = client
    const { group, lane } = tenant
    const fault = this.#connector.inVain(group, now)
    if (fault !== null) return fault
    const kept = this.#keptFor(tenant)
    if (lane.first === null) this.#visits.returned(tenant, kept)
    group.queue.enter(lane, waiter, now)
    if (kept !== null && this.#quota.allows(tenant)) {
      this.#connections.removeIdle(kept)
      this.#grantNext(kept, tenant)
    } else if (group.idle.longest === null) this.#slots.ensureOpening(group)
    else this.#serve(group)
    return null
  }

  /** The client does not want it any more: it leaves the queue, and what is being prepared for it goes to another. */
  leave(client: PoolClient): void {
    client.tenant.group.queue.leave(client.waiter)
    this.#preparations.leave(client)
  }

  /** The lease is over: nothing unanswered, no transaction. */
  give(connection: Connection): void {
    connection.lessee = null
    this.#quota.release(connection)
    if (this.#context.settings.TenantSwitch === "always" && connection.group.owner === null)
      connection.stateKnown = false
    if (connection.cancelsInFlight > 0) connection.state = "cancelling"
    else this.#settle(connection)
  }

  /** The lease is over and the connection's state in doubt: it is closed. `stopQuery`: and what it runs is cancelled. */
  discard(connection: Connection, stopQuery: boolean): void {
    connection.lessee = null
    this.#quota.release(connection)
    this.#context.statistics.discarded++
    connection.stopQuery = stopQuery
    if (stopQuery) this.#cancels.send(connection)
    this.#connections.close(connection)
    // Its tenant may have been waiting for a lease of its own to end.
    this.#serve(connection.group)
  }

  /**
   * Asks the server what the lease has left on its connection. The lease goes on; the client hears nothing of the server until
   * it is told, once: null where the connection is gone, which the pool knows then.
   */
  inspect(
    connection: Connection,
    client: PoolClient,
    asked: Omit<Inspection.Questions, "path">,
    done: (findings: Inspection.Findings | null) => void
  ): void {
    this.#questions.inspect(connection, client, asked, done)
  }

  /** Sets path and settings again on a connection that its client keeps. As `inspect`. */
  restore(connection: Connection, client: PoolClient, done: (fine: boolean) => void): void {
    this.#questions.restore(connection, client, done)
  }

  /** Its server does not answer as it should while it is lent. */
  #giveUp(connection: Connection): void {
    this.#quota.release(connection)
    this.#connections.close(connection)
  }

  /** The connection stays with its client between transactions. False where no more may. */
  pin(connection: Connection): boolean {
    const isPinned = this.#quota.pin(connection)
    // It does not count any more against what its tenant may have.
    if (isPinned) this.#serve(connection.group)
    return isPinned
  }

  /**
   * Asks the server to cancel what this connection runs. The connection is lent to nobody before the request has ended, or a
   * late one would hit another's query.
   */
  cancel(connection: Connection, done?: () => void): void {
    this.#cancels.send(connection, done)
  }

  #cancelEnded(connection: Connection): void {
    if (connection.state === "cancelling") this.#settle(connection)
    this.#tellIfEmpty()
  }

  #lend(connection: Connection, client: PoolClient): void {
    connection.state = "leased"
    connection.lessee = client
    connection.turns++
    this.#quota.hold(connection, client.tenant)
    this.#context.statistics.leases++
  }

  readonly #mayBeServed = ({ owner }: PoolTenant["lane"]) => this.#quota.allows(owner)

  // ---- whose turn

  /** Serves as many of the group's waiters as there are idle connections, and opens more for the rest. */
  #serve(group: CredentialGroup): void {
    while (group.queue.length > 0) {
      const tenant = this.#nextTenant(group)
      if (tenant === null) return
      const connection = this.#idleFor(tenant)
      if (connection === null) break
      this.#connections.removeIdle(connection)
      this.#receive(connection, tenant)
    }
    this.#slots.ensureOpening(group)
  }

  #serveAll(): void {
    for (const group of this.#tenants.groups) if (group.queue.length > 0) this.#serve(group)
    this.#eviction.closeAboveMaxIdle()
  }

  #nextTenant(group: CredentialGroup): PoolTenant | null {
    return group.queue.peek(this.#mayBeServed)?.owner ?? null
  }

  /** Those whom a new connection would help. */
  #waitingFor(group: CredentialGroup): number {
    return group.queue.length > 0 && this.#nextTenant(group) !== null ? group.queue.length : 0
  }

  #keptFor({ idle }: PoolTenant): Connection | null {
    const own = lastOf(idle)
    return own !== null && this.#visits.isKept(own) ? own : null
  }

  /** Its own with its path still set; else the one that was idle longest, if it may be switched. */
  #idleFor(tenant: PoolTenant): Connection | null {
    const own = lastOf(tenant.idle)
    if (own !== null) return own
    let connection = tenant.group.idle.longest
    while (connection !== null && (!this.#maySwitch(connection, tenant) || this.#visits.isKept(connection))) {
      connection = connection.shorterIdle
    }
    return connection
  }

  /** A connection has become free: to the next in turn, to the idle ones, or closed. */
  #settle(connection: Connection): void {
    this.#connections.heardOf(connection)
    if (this.#eviction.isDue(connection)) return this.#connections.close(connection)
    if (connection.mustReset) {
      // What DISCARD ALL leaves must not meet another tenant there.
      return this.#context.settings.TenantSwitch === "reconnect"
        ? this.#connections.close(connection)
        : this.#reset(connection)
    }
    const { group } = connection
    const guest = this.#mayGoOn(connection)
    if (guest !== null && guest.lane.first !== null) return this.#grantNext(connection, guest)
    if (guest === null && connection.tenant?.group === group) group.queue.endTurn(connection.tenant.lane)
    if (this.#slots.mustHandOver(connection)) return this.#connections.close(connection)
    const tenant = this.#nextTenant(group)
    if (tenant === null) {
      this.#connections.makeIdle(connection)
      return this.#eviction.closeAboveMaxIdle()
    }
    if (!this.#maySwitch(connection, tenant)) return this.#connections.close(connection)
    if (guest !== null && guest !== tenant && this.#visits.keeps(connection, guest)) {
      return this.#connections.makeIdle(connection)
    }
    this.#receive(connection, tenant)
    // What is idle while others wait is kept: its time may be over.
    if (group.idle.longest !== null) this.#serve(group)
  }

  /** Now, and not when it is next lent: what its last client held is in others' way. */
  #reset(connection: Connection): void {
    connection.state = "resetting"
    connection.converse(forgetAll, this.#context.now() + this.#context.settings.SchemaExecTimeoutSecs * 1000, (end) => {
      if (end._tag === "Lost") return
      if (end._tag !== "Done") return this.#connections.close(connection)
      connection.mustReset = false
      this.#putOnFloor(connection)
      this.#settle(connection)
    })
  }

  /** Nothing is on the connection but what it was opened with. */
  #putOnFloor(connection: Connection): void {
    const { owner } = connection.group
    connection.forgetSession()
    connection.settings = noSettings
    connection.stateKnown = owner !== null
    this.#tenants.assign(connection, owner)
  }

  /** The connection's tenant, if its visit may go on. */
  #mayGoOn(connection: Connection): PoolTenant | null {
    const { group, tenant, turns } = connection
    if (tenant === null || tenant.group !== group || !this.#quota.allows(tenant)) return null
    if (turns < QUANTUM) return tenant
    return this.#visits.mayBeLong(connection) && !this.#slots.mustHandOver(connection) ? tenant : null
  }

  #maySwitch(connection: Connection, tenant: PoolTenant): boolean {
    return (
      connection.tenant === tenant || connection.tenant === null || this.#context.settings.TenantSwitch !== "reconnect"
    )
  }

  /** The tenant's visit begins. */
  #receive(connection: Connection, tenant: PoolTenant): void {
    this.#visits.begin(connection, tenant, this.#context.now())
    this.#grantNext(connection, tenant)
  }

  /** To the first of the tenant's waiters. */
  #grantNext(connection: Connection, tenant: PoolTenant): void {
    const { client, since } = tenant.group.queue.take(tenant.lane)!
    const now = this.#context.now()
    const conversation = this.#preparations.needs(connection, client.tenant, client.settings)
    if (conversation === null) {
      this.#context.statistics.waited(now - since)
      this.#lend(connection, client)
      return client.onGranted(connection)
    }
    this.#quota.hold(connection, client.tenant)
    this.#preparations.begin(connection, client, conversation, now)
  }

  #prepared({ begunAt, client, connection, conversation, since }: Preparation, end: ConversationEnd): void {
    this.#quota.release(connection)
    const isNew = connection.tenant === null
    const { settingsFrom } = conversation
    let detail: string
    switch (end._tag) {
      case "Done":
        if (conversation.forgets === true) this.#visits.switched(this.#context.preciseNow() - begunAt)
        this.#reached()
        if (client === null) return this.#settle(connection)
        this.#context.statistics.waited(this.#context.now() - since)
        this.#lend(connection, client)
        return client.onGranted(connection)
      case "Refused":
        this.#connections.close(connection)
        // The client's own settings, which a connection may refuse for what others did there (temp_buffers); or its path, on a
        // connection that nobody had before it.
        if (isNew || (settingsFrom !== undefined && end.completed >= settingsFrom && client?.mayBeRefused === true)) {
          return client?.onRefused(SettingRefused.of(end.error))
        }
        detail = `${end.error.sqlState} ${end.error.message}`
        break
      case "TimedOut":
        this.#connections.closeByForce(connection)
        detail = "a tenant switch took longer than SchemaExecTimeoutSecs"
        break
      case "Lost":
        detail = end.reason
    }
    if (isNew) this.#connector.failed(connection.group, unreachable(detail))
    if (client === null) return
    // It was the first thing that this connection was asked: another would do no better, unless the server restarts.
    if (isNew && end._tag === "TimedOut") {
      client.onRefused(new DestinationUnreachable({ destination: this.#context.name, detail }))
    }
    // Nothing of the client's was sent, so it does not notice: another connection, at the head of the queue.
    else this.#waitAgain(client, since)
  }

  #waitAgain(client: PoolClient, since: number): void {
    const { group, lane } = client.tenant
    const fault = this.#context.closing ? new ShuttingDown() : this.#connector.inVain(group)
    if (fault !== null) return client.onRefused(fault)
    group.queue.enterFirst(lane, client.waiter)
    client.waiter.since = since
    this.#serve(group)
  }

  // ---- opened and ended

  #opened(connection: Connection): void {
    // It will be due at a time that a rest knows nothing of, which may have begun where the one it was opened for has left.
    this.#wake()
    const { group } = connection
    // In session mode nobody else could use it.
    if (group.owner?.references === 0) return this.#connections.close(connection)
    this.#putOnFloor(connection)
    if (group.owner !== null) this.#reached()
    this.#settle(connection)
    this.#slots.ensureOpening(group)
  }

  #reached(): void {
    if (!this.#connector.reached()) return
    for (const group of this.#tenants.groups) this.#slots.ensureOpening(group)
  }

  #gone(connection: Connection): void {
    const group = connection.group
    this.#quota.release(connection)
    this.#tenants.assign(connection, null)
    this.#slots.freed()
    this.#serve(group)
    this.#tenants.dropIfUnused(group)
    this.#tellIfEmpty()
  }

  /** A query that a client left running is not stopped by the end of its connection: its cancel has to arrive, too. */
  get #isEmpty(): boolean {
    return this.#connections.all.size === 0 && this.#cancels.inFlight === 0
  }

  #tellIfEmpty(): void {
    if (this.#isEmpty) this.#onEmpty?.()
  }

  // ---- the passing of time

  /**
   * Whether to sweep it. Of ten thousand pools most are at rest, and to look at each one's connections ten times a second took 14 %
   * of the CPU of 18,000 transactions a second.
   */
  isDue(now: number): boolean {
    return now >= this.#restsUntil
  }

  #wake(): void {
    if (this.#restsUntil === 0) return
    this.#restsUntil = 0
    this.#context.sweptAt = this.#context.now()
    this.#quota.sweep(this.#context.sweptAt)
  }

  #isAtRest(): boolean {
    const { all, idle } = this.#connections
    if (idle < all.size || this.#connector.opening > 0 || this.#cancels.inFlight > 0) return false
    for (const group of this.#tenants.groups) if (group.queue.length > 0) return false
    return true
  }

  /** Called every so often with the clock's milliseconds: what is overdue is ended, those who could be served are. */
  sweep(now: number): void {
    this.#context.sweptAt = now
    this.#retirement.followTls()
    this.#quota.sweep(now)
    this.#eviction.sweep(now)
    // A copy: who has taken too long loses its connection, and its place goes to another.
    for (const connection of Array.from(this.#connections.all)) connection.lessee?.onSweep(now)
    const limit = now - this.#context.limits.AcquireTimeoutSecs * 1000
    for (const group of this.#tenants.groups) {
      if (group.queue.length === 0) continue
      const waiting = group.queue.length
      for (const { client } of group.queue.takeOlderThan(limit)) {
        this.#context.statistics.acquireTimeouts++
        client.onRefused(
          this.#connector.fault ??
            new AcquireTimedOut({
              destination: this.#context.name,
              seconds: this.#context.limits.AcquireTimeoutSecs,
              waiting,
              tenantHolds: this.#quota.allows(client.tenant) ? null : client.tenant.usage.leased
            })
        )
      }
      this.#connector.refuseInVain(group, now)
      this.#serve(group)
    }
    this.#restsUntil = this.#isAtRest() ? this.#eviction.nextDue() : 0
  }

  /** New settings act at once: what is idle beyond them is closed now, the rest as it comes back. */
  configure(limits: PoolLimits): void {
    this.#wake()
    const extraSchemas = this.#context.settings.ExtraSchemas.join("\0")
    if (limits.pool.TenantSwitch !== this.#context.settings.TenantSwitch) this.#retirement.retireAll()
    this.#context.settings = limits.pool
    this.#context.limits = limits.limits
    this.#context.server = limits.server
    this.#quota.reckon()
    if (this.#context.settings.ExtraSchemas.join("\0") !== extraSchemas) this.#setPaths()
    this.#eviction.closeAboveMaxOpen()
    this.#serveAll()
  }

  // ---- what others ask

  /**
   * The ParameterStatus messages with which a client of this tenant and these settings is greeted: what the destination
   * reports once they hold there. Asked once, then remembered. Fails with the server's own words where it refuses a setting.
   */
  greeting(tenant: PoolTenant, settings: ClientSettings): Effect.Effect<Buffer, SessionFault> {
    return Greeting.greeting(this, this.#connector, tenant, settings)
  }

  snapshot(): PoolSnapshot {
    const { size: open } = this.#connections.all
    const { closing, idle } = this.#connections
    let waiting = 0
    for (const group of this.#tenants.groups) waiting += group.queue.length
    for (const { state } of this.#connections.all) if (state === "preparing") waiting++
    return {
      destHost: this.destination.label,
      destDb: this.destination.database,
      maxOpen: Math.max(0, this.#context.settings.MaxOpen),
      open,
      idle,
      inUse: open - idle - closing,
      closing,
      pinned: this.#quota.pinned,
      opening: this.#connector.opening,
      waiting,
      statistics: this.#context.statistics
    }
  }

  #shutDown(): Effect.Effect<void> {
    return Effect.suspend(() => {
      this.#context.closing = true
      for (const group of this.#tenants.groups) {
        for (const waiter of group.queue.takeOlderThan(Number.POSITIVE_INFINITY)) {
          waiter.client.onRefused(new ShuttingDown())
        }
      }
      for (const connection of this.#connections.all) this.#connections.close(connection)
      if (this.#isEmpty) return Effect.void
      return Effect.callback<void>((resume) => {
        this.#onEmpty = () => resume(Effect.void)
      }).pipe(
        Effect.timeoutOrElse({
          duration: `${this.#context.settings.ConnCloseTimeoutSecs} seconds`,
          orElse: () =>
            Effect.sync(() => {
              for (const connection of this.#connections.all) this.#connections.closeByForce(connection)
            })
        }),
        Effect.interruptible
      )
    })
  }
}

/** Of an empty array `[-1]` would be looked up as the name "-1", 0.3 µs. */
const lastOf = <A>(of: ReadonlyArray<A>): A | null => (of.length > 0 ? of[of.length - 1]! : null)
