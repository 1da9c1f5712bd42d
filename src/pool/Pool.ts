/**
 * The server connections of one destination, and who has them.
 *
 * Lends a connection for one transaction, with the tenant's path and the client's settings on it; opens and closes
 * connections within the limits; lets clients wait in a fair order. Taking an idle connection that fits and giving it back
 * are plain calls without any Effect; dialling and cancels are Effects in the pool's scope.
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
import type { LimitSettings, PoolSettings, ServerSettings } from "../config/PerseusConfig.ts"
import { AcquireTimedOut, DestinationUnreachable, SettingRefused, ShuttingDown, type SessionFault } from "../errors.ts"
import type { Network } from "../net/Network.ts"
import { emptyQuery, terminate } from "../protocol/Frontend.ts"
import { SqlState } from "../protocol/SqlState.ts"
import * as CancelRequest from "./CancelRequest.ts"
import { ConnectFailure } from "./ConnectFailure.ts"
import * as Greeting from "./Greeting.ts"
import * as Inspection from "./Inspection.ts"
import type { Connection, CredentialGroup, PoolClient, PoolTenant } from "./PoolTenant.ts"
import { PoolStatistics, type PoolSnapshot } from "./PoolStatistics.ts"
import { Reachability, refusedAgain } from "./Reachability.ts"
import {
  differences,
  needSwitch,
  forgetAll,
  noSettings,
  restore,
  switchTo,
  type ClientSettings,
  type Conversation
} from "./Reset.ts"
import { ServerConnection, type ConversationEnd, type LoggedIn } from "./ServerConnection.ts"
import { openAndLogIn, type Target } from "./ServerLogin.ts"
import { Tenants, type TenantPlacement, type TenantRules } from "./Tenants.ts"
import { QUANTUM, type Waiter } from "./WaitQueue.ts"

/**
 * A connection is not closed to make room for another user's before it has lived this long: opening one costs PostgreSQL
 * about 3 ms, so churn between users stays under a tenth.
 */
const HANDOVER_MIN_AGE_MS = 50

/** How often a question between two transactions is asked at most, where it is cancelled each time. */
const QUESTION_MAX_ATTEMPTS = 10

const checkConversation: Conversation = { bytes: emptyQuery, readyForQueries: 1, commands: [0] }

export interface Destination extends Target {
  /** As the row spells it: the metrics' `dest_host`. */
  readonly label: string
}

export interface PoolLimits {
  readonly pool: PoolSettings
  readonly limits: LimitSettings
  readonly server: ServerSettings
}

export class Pool {
  readonly destination: Destination
  readonly statistics = new PoolStatistics()
  readonly #network: Network["Service"]
  readonly #tls: () => TlsToServers
  readonly #clock: Clock.Clock
  readonly #fork: (effect: Effect.Effect<void>) => void
  #settings: PoolSettings
  #limits: LimitSettings
  #server: ServerSettings
  /** What those connections have that are not retired. */
  #tlsInForce: TlsToServers
  readonly #connections = new Set<Connection>()
  readonly #tenants = new Tenants((group) => this.#starved.delete(group))
  #pinnedCount = 0
  /** Of the connections. */
  #idleCount = 0
  /** Clients for whom a connection is being prepared; null inside: the client has gone meanwhile. */
  readonly #preparations = new Map<PoolClient, { client: PoolClient | null }>()
  /** Groups that would open a connection if there were room. */
  readonly #starved = new Set<CredentialGroup>()
  #opening = 0
  /** Of the connections. */
  #closingCount = 0
  /** Requests under way, on connections of their own. */
  #cancelsInFlight = 0
  readonly #reachability = new Reachability()
  /** Raised when the destination comes back: it may report other parameters then. */
  #epoch = 0
  #closing = false
  /** When the last sweep was. */
  #sweptAt = 0
  /** Called when nothing is open any more. */
  #onEmpty: (() => void) | null = null

  private constructor(
    destination: Destination,
    limits: PoolLimits,
    network: Network["Service"],
    tls: () => TlsToServers,
    clock: Clock.Clock,
    fork: (effect: Effect.Effect<void>) => void
  ) {
    this.destination = destination
    this.#settings = limits.pool
    this.#limits = limits.limits
    this.#server = limits.server
    this.#network = network
    this.#tls = tls
    this.#tlsInForce = tls()
    this.#clock = clock
    this.#fork = fork
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
      const pool = new Pool(destination, limits, network, tls, clock, (effect) => void run(effect))
      yield* Effect.addFinalizer(() => pool.#shutDown())
      return pool
    })
  }

  get name(): string {
    return `${this.destination.label}/${this.destination.database}`
  }

  /** Prepared statements that a connection may have; 0: they are not followed. */
  get maxPreparedStatements(): number {
    return this.#settings.MaxPreparedStatements
  }

  /** A client that needs one connection keeps it. */
  get pins(): boolean {
    return this.#settings.Pinning === "auto"
  }

  get pinningNotice(): boolean {
    return this.#settings.PinningNotice
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
    return { mode: this.#settings.Mode, extraSchemas: this.#settings.ExtraSchemas }
  }

  /** ExtraSchemas have changed: connections with the old path are set anew before they are lent. */
  #setPaths(): void {
    this.#tenants.setPaths(this.#rules)
    for (const connection of this.#connections) if (connection.group.owner === null) connection.stateKnown = false
  }

  /** A row's secret changed: connections with the old one finish what they are at and are closed. */
  retire({ credential: { fingerprint } }: CredentialGroup): void {
    for (const connection of this.#connections) {
      if (connection.group.credential.fingerprint === fingerprint) connection.retired = true
    }
    for (const group of this.#tenants.groups) {
      if (group.credential.fingerprint !== fingerprint) continue
      group.generation++
      group.refusal = null
      for (const connection of group.idle) this.#close(connection)
    }
  }

  // ---- a lease

  /** An idle connection that fits as it is, or null: then `wait`. No Effect, no write; the whole cost of a lease. */
  take(client: PoolClient): Connection | null {
    const tenant = client.tenant
    const connection = lastOf(tenant.idle)
    if (
      connection === null ||
      tenant.group.queue.length > 0 ||
      !this.#mayLease(tenant) ||
      this.#needs(connection, tenant, client.settings) !== null
    ) {
      return null
    }
    this.#removeIdle(connection)
    this.#lend(connection, client)
    return connection
  }

  /**
   * Queues the client until it is granted or refused, which may be before this returns; a fault where waiting is in vain.
   */
  wait(client: PoolClient): SessionFault | null {
    if (this.#closing) return new ShuttingDown()
    const now = this.#now()
    const group = client.tenant.group
    const fault = this.#inVain(group, now)
    if (fault !== null) return fault
    group.queue.enter(client.tenant.lane, client.waiter, now)
    this.#serve(group)
    return null
  }

  /** The client does not want it any more: it leaves the queue, and what is being prepared for it goes to another. */
  leave(client: PoolClient): void {
    client.tenant.group.queue.leave(client.waiter)
    const preparation = this.#preparations.get(client)
    if (preparation === undefined) return
    preparation.client = null
    this.#preparations.delete(client)
  }

  /** The lease is over: nothing unanswered, no transaction. */
  give(connection: Connection): void {
    connection.lessee = null
    this.#unhold(connection)
    if (this.#settings.TenantSwitch === "always" && connection.group.owner === null) connection.stateKnown = false
    if (connection.cancelsInFlight > 0) connection.state = "cancelling"
    else this.#settle(connection)
  }

  /** The lease is over and the connection's state in doubt: it is closed. `stopQuery`: and what it runs is cancelled. */
  discard(connection: Connection, stopQuery: boolean): void {
    connection.lessee = null
    this.#unhold(connection)
    this.statistics.discarded++
    connection.stopQuery = stopQuery
    if (stopQuery) this.cancel(connection)
    this.#close(connection)
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
    const questions = { ...asked, path: client.tenant.path }
    let answer: Inspection.Answer
    const ask = () => {
      answer = new Inspection.Answer(questions, connection.group.credential.user)
      return Inspection.inspection(questions, answer.read)
    }
    this.statistics.inspections++
    this.#askBetween(connection, client, ask, (fine) => done(fine ? answer.findings : null))
  }

  /** Sets path and settings again on a connection that its client keeps. As `inspect`. */
  restore(connection: Connection, client: PoolClient, done: (fine: boolean) => void): void {
    const { path } = client.tenant
    const { settings } = client
    this.#askBetween(
      connection,
      client,
      () => restore(path, settings),
      (fine) => {
        if (fine) connection.settings = settings
        done(fine)
      }
    )
  }

  #askBetween(
    connection: Connection,
    client: PoolClient,
    ask: () => Conversation,
    done: (fine: boolean) => void,
    attempt = 1
  ): void {
    const again = (next: number) => {
      if (connection.state === "leased") this.#askBetween(connection, client, ask, done, next)
    }
    // A late cancel would hit the question.
    if (connection.cancelsInFlight > 0) return void connection.onCancelsEnded.push(() => again(attempt))
    connection.lessee = null
    const asking = { ...ask(), onNotification: (body: Buffer) => client.onNotification(body) }
    connection.converse(asking, this.#now() + this.#settings.SchemaExecTimeoutSecs * 1000, (end) => {
      // On a busy machine even a SHOW can take longer than the session's own `statement_timeout = 1`; nothing of it was done.
      if (wasCancelled(end) && attempt < QUESTION_MAX_ATTEMPTS) return again(attempt + 1)
      const fine = end._tag === "Done"
      if (fine) connection.lessee = client
      else if (end._tag !== "Lost") {
        this.#unhold(connection)
        this.#close(connection)
      }
      done(fine)
    })
  }

  /** The connection stays with its client between transactions. False where no more may. */
  pin(connection: Connection): boolean {
    if (connection.pinned) return true
    const { MaxPinned, MaxOpen } = this.#settings
    const limit = MaxPinned >= 0 ? MaxPinned : MaxOpen > 0 ? Math.floor(MaxOpen / 2) : Number.POSITIVE_INFINITY
    if (this.#pinnedCount >= limit) return false
    this.#pinnedCount++
    connection.pinned = true
    return true
  }

  /**
   * Asks the server to cancel what this connection runs. One request at a time: more would only outlive the query. The
   * connection is lent to nobody before the request has ended, or a late one would hit another's query.
   */
  cancel(connection: Connection, done: () => void = () => {}): void {
    if (connection.processId === 0) return done()
    connection.onCancelsEnded.push(done)
    if (connection.cancelsInFlight > 0) return
    connection.cancelsInFlight++
    this.#cancelsInFlight++
    this.statistics.cancelsForwarded++
    const timeout = this.#limits.CancelTimeoutSecs
    this.#fork(
      CancelRequest.send(
        this.#network,
        {
          host: this.destination.host,
          port: this.destination.port,
          processId: connection.processId,
          secretKey: connection.secretKey
        },
        this.#tls()
      ).pipe(
        Effect.timeoutOrElse({ duration: `${timeout} seconds`, orElse: () => Effect.succeed(false) }),
        Effect.catch(() => Effect.succeed(true)),
        Effect.onExit((exit) => Effect.sync(() => this.#cancelEnded(connection, exit._tag === "Success" && exit.value)))
      )
    )
  }

  /** `certain`: the server has ended the request, so no signal of it can come any more. */
  #cancelEnded(connection: Connection, certain: boolean): void {
    connection.cancelsInFlight--
    this.#cancelsInFlight--
    this.#tellIfEmpty()
    if (!certain) connection.retired = true
    for (const then of connection.onCancelsEnded.splice(0)) then()
    if (connection.state === "cancelling") this.#settle(connection)
  }

  #lend(connection: Connection, client: PoolClient): void {
    connection.state = "leased"
    connection.holder = client.tenant
    connection.lessee = client
    connection.turns++
    client.tenant.usage.leased++
    this.statistics.leases++
  }

  #unhold(connection: Connection): void {
    if (connection.pinned) {
      connection.pinned = false
      this.#pinnedCount--
    }
    if (connection.holder === null) return
    connection.holder.usage.leased--
    connection.holder = null
  }

  readonly #mayBeServed = ({ owner }: PoolTenant["lane"]) => this.#mayLease(owner)

  #mayLease(tenant: PoolTenant): boolean {
    const limit = this.#limits.MaxServersPerTenant
    return limit <= 0 || tenant.usage.leased < limit
  }

  /** What has to be said to the server before this client may have the connection; null: nothing. */
  #needs(connection: Connection, tenant: PoolTenant, settings: ClientSettings): Conversation | null {
    const isOwn = tenant.mode === "session"
    if (!isOwn && (connection.tenant !== tenant || !connection.stateKnown)) return switchFor(tenant, settings)
    if (!isOwn && connection.settings.key !== settings.key) {
      const { settings: before } = connection
      return needSwitch(before, settings) ? switchFor(tenant, settings) : differences(before, settings)
    }
    const checkAfter = this.#limits.ServerCheckDelaySecs * 1000
    // Most were idle for less than a sweep's period: no need to look at the clock.
    if (checkAfter <= 0 || connection.idleSince >= this.#sweptAt) return null
    return this.#now() - connection.idleSince >= checkAfter ? checkConversation : null
  }

  // ---- whose turn

  /** Serves as many of the group's waiters as there are idle connections, and opens more for the rest. */
  #serve(group: CredentialGroup): void {
    while (group.queue.length > 0) {
      const tenant = this.#nextTenant(group)
      if (tenant === null) return
      const connection = this.#idleFor(tenant)
      if (connection === null) break
      this.#removeIdle(connection)
      this.#beginVisit(connection, tenant)
      this.#grant(connection, group.queue.take(tenant.lane)!, this.#now())
    }
    this.#ensureOpening(group)
  }

  #nextTenant(group: CredentialGroup): PoolTenant | null {
    return group.queue.peek(this.#mayBeServed)?.owner ?? null
  }

  #beginVisit(connection: Connection, tenant: PoolTenant): void {
    connection.turns = 0
    tenant.group.queue.endTurn(tenant.lane)
  }

  /** Its own with its path still set; else the one that was idle longest, if it may be switched. */
  #idleFor(tenant: PoolTenant): Connection | null {
    const own = lastOf(tenant.idle)
    if (own !== null) return own
    for (const connection of tenant.group.idle) {
      if (this.#maySwitch(connection, tenant)) return connection
    }
    return null
  }

  /** A connection has become free: to the next in turn, to the idle ones, or closed. */
  #settle(connection: Connection): void {
    const now = this.#now()
    if (this.#mustClose(connection, now)) return this.#close(connection)
    if (connection.mustReset) {
      // What DISCARD ALL leaves must not meet another tenant there.
      return this.#settings.TenantSwitch === "reconnect" ? this.#close(connection) : this.#reset(connection, now)
    }
    const { group } = connection
    if (this.#visitLasts(connection, group)) {
      return this.#grant(connection, group.queue.take(connection.tenant!.lane)!, now)
    }
    if (connection.turns >= QUANTUM && connection.tenant?.group === group) group.queue.endTurn(connection.tenant.lane)
    if (this.#handOverSlot(connection, group, now)) return this.#close(connection)
    const tenant = this.#nextTenant(group)
    if (tenant === null) return this.#makeIdle(connection, now)
    if (!this.#maySwitch(connection, tenant)) return this.#close(connection)
    this.#beginVisit(connection, tenant)
    this.#grant(connection, group.queue.take(tenant.lane)!, now)
  }

  /** Now, and not when it is next lent: what its last client held is in others' way. */
  #reset(connection: Connection, now: number): void {
    connection.state = "resetting"
    connection.converse(forgetAll, now + this.#settings.SchemaExecTimeoutSecs * 1000, (end) => {
      if (end._tag === "Lost") return
      if (end._tag !== "Done") return this.#close(connection)
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

  /** The connection's tenant has clients waiting and its quantum is not used up. */
  #visitLasts(connection: Connection, group: CredentialGroup): boolean {
    const tenant = connection.tenant
    return (
      tenant !== null &&
      tenant.group === group &&
      tenant.lane.first !== null &&
      connection.turns < QUANTUM &&
      this.#mayLease(tenant)
    )
  }

  #maySwitch(connection: Connection, tenant: PoolTenant): boolean {
    return connection.tenant === tenant || connection.tenant === null || this.#settings.TenantSwitch !== "reconnect"
  }

  /** True where another user's clients have waited longer than all of this one's and there is no room for them. */
  #handOverSlot(connection: Connection, group: CredentialGroup, now: number): boolean {
    if (this.#starved.size === 0 || now - connection.openedAt < HANDOVER_MIN_AGE_MS) return false
    const own = group.queue.oldest() ?? Number.POSITIVE_INFINITY
    for (const starved of this.#starved) {
      if (starved === group || starved.queue.length <= starved.opening) continue
      if ((starved.queue.oldest() ?? own) < own) return true
    }
    return false
  }

  #grant(connection: Connection, waiter: Waiter<PoolTenant, PoolClient>, now: number): void {
    const client = waiter.client
    const conversation = this.#needs(connection, client.tenant, client.settings)
    if (conversation === null) {
      this.statistics.waited(now - waiter.since)
      this.#lend(connection, client)
      return client.onGranted(connection)
    }
    this.#prepare(connection, client, conversation, now)
  }

  /** The client's first frame follows only when success was read: behind a failed switch it would run in another's schema. */
  #prepare(connection: Connection, client: PoolClient, conversation: Conversation, now: number): void {
    const { tenant, settings, waiter } = client
    const { path } = tenant
    const full = conversation.forgets === true
    if (full) this.statistics.tenantSwitches++
    else if (conversation === checkConversation) this.statistics.checks++
    else this.statistics.settingChanges++
    const since = waiter.since
    connection.state = "preparing"
    connection.holder = tenant
    const preparation: { client: PoolClient | null } = { client }
    this.#preparations.set(client, preparation)
    tenant.usage.leased++
    // Its last session may end before the answer comes; the tenant is still ours then.
    tenant.references++
    connection.converse(conversation, now + this.#settings.SchemaExecTimeoutSecs * 1000, (end) => {
      if (preparation.client !== null) this.#preparations.delete(client)
      this.#unhold(connection)
      if (end._tag === "Done") {
        if (full) {
          connection.forgetSession()
          this.#tenants.assign(connection, tenant)
        }
        connection.settings = settings
        connection.stateKnown = tenant.path === path
      }
      this.#prepared(connection, preparation.client, conversation, end, since)
      this.release(tenant)
    })
  }

  /** `client` is null where it has gone meanwhile. */
  #prepared(
    connection: Connection,
    client: PoolClient | null,
    { settingsFrom }: Conversation,
    end: ConversationEnd,
    since: number
  ): void {
    const isNew = connection.tenant === null
    let detail: string
    switch (end._tag) {
      case "Done":
        this.#reached()
        if (client === null) return this.#settle(connection)
        this.statistics.waited(this.#now() - since)
        this.#lend(connection, client)
        return client.onGranted(connection)
      case "Refused":
        this.#close(connection)
        // The client's own settings, which a connection may refuse for what others did there (temp_buffers); or its path, on a
        // connection that nobody had before it.
        if (isNew || (settingsFrom !== undefined && end.completed >= settingsFrom && client?.mayBeRefused === true)) {
          return client?.onRefused(SettingRefused.of(end.error))
        }
        detail = `${end.error.sqlState} ${end.error.message}`
        break
      case "TimedOut":
        this.#closeByForce(connection)
        detail = "a tenant switch took longer than SchemaExecTimeoutSecs"
        break
      case "Lost":
        detail = end.reason
    }
    if (isNew) this.#connectFailed(connection.group, new ConnectFailure({ kind: "unreachable", detail }))
    if (client === null) return
    // It was the first thing that this connection was asked: another would do no better, unless the server restarts.
    if (isNew && end._tag === "TimedOut") client.onRefused(this.#unreachable(detail))
    // Nothing of the client's was sent, so it does not notice: another connection, at the head of the queue.
    else this.#waitAgain(client, since)
  }

  #waitAgain(client: PoolClient, since: number): void {
    const { group, lane } = client.tenant
    const fault = this.#closing ? new ShuttingDown() : this.#inVain(group, this.#now())
    if (fault !== null) return client.onRefused(fault)
    group.queue.enterFirst(lane, client.waiter)
    client.waiter.since = since
    this.#serve(group)
  }

  // ---- idle connections

  #makeIdle(connection: Connection, now: number): void {
    const group = connection.group
    connection.state = "idle"
    connection.idleSince = now
    group.idle.add(connection)
    this.#idleCount++
    if (connection.tenant !== null) connection.tenant.idle.push(connection)
    this.#closeSurplus()
  }

  #removeIdle(connection: Connection): void {
    if (connection.group.idle.delete(connection)) this.#idleCount--
    const idle = connection.tenant?.idle
    if (idle === undefined) return
    const at = idle.lastIndexOf(connection)
    if (at !== -1) idle.splice(at, 1)
  }

  /** No more than MaxIdle are kept; those idle longest go first, for the last used are likely to fit again. */
  #closeSurplus(): void {
    for (let surplus = this.#idleCount - this.#settings.MaxIdle; surplus > 0; surplus--) {
      const longest = this.#longestIdle(() => true)
      if (longest === null) return
      this.statistics.maxIdleClosed++
      this.#close(longest)
    }
  }

  #longestIdle(suits: (group: CredentialGroup) => boolean): Connection | null {
    let longest: Connection | null = null
    for (const group of this.#tenants.groups) {
      if (!suits(group)) continue
      for (const connection of group.idle) {
        if (longest === null || connection.idleSince < longest.idleSince) longest = connection
        break
      }
    }
    return longest
  }

  // ---- opening

  #ensureOpening(group: CredentialGroup): void {
    while (this.#waitingFor(group) > group.opening && this.#mayDial(group)) {
      if (this.#hasRoom()) {
        // Behind all others, should it starve again.
        this.#starved.delete(group)
        this.#open(group)
        continue
      }
      // A slot is free when its connection is really closed; then the starved are looked at again.
      this.#starved.add(group)
      const onTheirWay = group.opening + this.#connections.size - this.#liveCount()
      if (this.#waitingFor(group) <= onTheirWay || this.#idleCount === 0) return
      const victim = this.#longestIdle((other) => other !== group || this.#settings.TenantSwitch === "reconnect")
      if (victim === null) return
      this.#close(victim)
    }
    this.#starved.delete(group)
  }

  /** Those whom a new connection would help. */
  #waitingFor(group: CredentialGroup): number {
    return group.queue.length > 0 && this.#nextTenant(group) !== null ? group.queue.length : 0
  }

  #hasRoom(): boolean {
    return this.#settings.MaxOpen <= 0 || this.#connections.size + this.#opening < this.#settings.MaxOpen
  }

  /** A destination that is down is asked by one attempt at a time, with growing pauses between. */
  #mayDial(group: CredentialGroup): boolean {
    if (this.#closing) return false
    if (group.refusal === null && this.#reachability.fault === null) return true
    const now = this.#now()
    if (group.refusal !== null && (now < group.refusal.until || group.opening > 0)) return false
    return this.#reachability.mayDial(now, this.#opening)
  }

  #open(group: CredentialGroup): void {
    const generation = group.generation
    const startedAt = this.#now()
    const timeout = this.#settings.ConnCreateTimeoutSecs
    const policy = { allowTrust: this.#server.AllowTrust, allowClearText: this.#server.AllowClearText }
    group.opening++
    this.#opening++
    const { credential, floor } = group
    const login = openAndLogIn(this.#network, this.destination, credential, policy, this.#tls(), floor).pipe(
      Effect.timeoutOrElse({
        duration: `${timeout} seconds`,
        orElse: () =>
          Effect.fail(
            new ConnectFailure({ kind: "unreachable", detail: `no login within ${timeout} s (ConnCreateTimeoutSecs)` })
          )
      })
    )
    this.#fork(
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
              this.#logFailure(failure).pipe(
                Effect.andThen(Effect.sync(() => this.#connectFailed(group, failure, startedAt)))
              )
          })
        )
      )
    )
  }

  #logFailure(failure: ConnectFailure): Effect.Effect<void> {
    return Effect.logWarning(`cannot connect to ${this.name}: ${failure.detail}`)
  }

  #opened(group: CredentialGroup, generation: number, login: LoggedIn, startedAt: number): void {
    if (this.#closing) return login.transport.end(terminate)
    const connection: Connection = new ServerConnection(login, group, this.#now(), (lost) => this.#lost(lost))
    this.#connections.add(connection)
    group.open++
    this.statistics.opened++
    // The server may have gone between its last word and now: it was not reached, or it would be dialled again and again.
    if (login.transport.closed) {
      const detail = "the server ended the connection right behind its login"
      this.#connectFailed(group, new ConnectFailure({ kind: "unreachable", detail }), startedAt)
      return this.#lost(connection)
    }
    group.refusal = null
    if (generation !== group.generation) connection.retired = true
    // In session mode nobody else could use it.
    if (group.owner?.references === 0) return this.#close(connection)
    this.#putOnFloor(connection)
    if (group.owner !== null) this.#reached()
    this.#settle(connection)
    this.#ensureOpening(group)
  }

  /** It serves: a login alone is no proof, where every tenant switch behind it fails. */
  #reached(): void {
    if (!this.#reachability.reached()) return
    this.#epoch++
    for (const group of this.#tenants.groups) this.#ensureOpening(group)
  }

  #connectFailed(group: CredentialGroup, failure: ConnectFailure, startedAt = this.#now()): void {
    const now = this.#now()
    this.statistics.connectFailures++
    // Only a client in session mode has settings of its own in the startup packet.
    if (group.owner !== null && failure.error !== undefined && /^(22|42)/.test(failure.error.sqlState)) {
      return this.#refuseAll(group, SettingRefused.of(failure.error))
    }
    const fault = this.#unreachable(failure.detail)
    if (failure.kind === "refused") group.refusal = refusedAgain(group.refusal, fault, now)
    else this.#reachability.failed(fault, startedAt, now, this.#settings.ConnCreateTimeoutSecs * 1000)
    for (const waiting of this.#tenants.groups) this.#refuseInVain(waiting, now)
    this.#tenants.dropIfUnused(group)
  }

  /**
   * The fault to answer with where no connection is there or on its way and none is to be had. A destination that was there
   * a moment ago (a restart) is waited for, ConnCreateTimeoutSecs long: only the transactions in flight fail then.
   */
  #inVain(group: CredentialGroup, now: number): DestinationUnreachable | null {
    if (group.opening > 0) return null
    const refusal = group.refusal !== null && now < group.refusal.until ? group.refusal.fault : null
    const patience = this.#settings.ConnCreateTimeoutSecs * 1000
    const fault = refusal ?? this.#reachability.inVain(now, this.#opening, patience)
    return fault === null || this.#hasUsable(group) ? null : fault
  }

  /** A connection that will serve again. */
  #hasUsable(group: CredentialGroup): boolean {
    if (group.open === 0) return false
    for (const connection of this.#connections) {
      if (connection.group === group && !connection.retired && connection.state !== "closing") return true
    }
    return false
  }

  #refuseInVain(group: CredentialGroup, now: number): void {
    const fault = this.#inVain(group, now)
    if (fault !== null) this.#refuseAll(group, fault)
  }

  #refuseAll(group: CredentialGroup, fault: SessionFault): void {
    for (const waiter of group.queue.takeOlderThan(Number.POSITIVE_INFINITY)) waiter.client.onRefused(fault)
    this.#tenants.dropIfUnused(group)
  }

  #unreachable(detail: string): DestinationUnreachable {
    return new DestinationUnreachable({ destination: this.name, detail })
  }

  // ---- closing

  #mustClose(connection: Connection, now: number): boolean {
    if (this.#closing || connection.retired) return true
    if (this.#settings.MaxOpen > 0 && this.#liveCount() > this.#settings.MaxOpen) return true
    if (!this.#expired(connection.openedAt, this.#settings.MaxLifetimeSecs, now)) return false
    this.statistics.maxLifetimeClosed++
    return true
  }

  #liveCount(): number {
    return this.#connections.size - this.#closingCount
  }

  #expired(since: number, seconds: number, now: number): boolean {
    return seconds > 0 && now - since >= seconds * 1000
  }

  /** In good order: Terminate, then the end; by force when that takes longer than ConnCloseTimeoutSecs. */
  #close(connection: Connection): void {
    if (connection.state === "closing") return
    if (connection.state === "idle") this.#removeIdle(connection)
    connection.state = "closing"
    this.#closingCount++
    connection.deadline = this.#now() + this.#settings.ConnCloseTimeoutSecs * 1000
    connection.transport.end(terminate)
  }

  #closeByForce(connection: Connection): void {
    if (connection.state !== "closing") this.#closingCount++
    connection.state = "closing"
    connection.transport.destroy()
    this.#forget(connection)
  }

  /** The connection has ended by itself, or as we asked. Its lessee hears of it from the connection. */
  #lost(connection: Connection): void {
    if (connection.state === "idle") this.#removeIdle(connection)
    this.#unhold(connection)
    if (connection.state !== "closing") this.#closingCount++
    connection.state = "closing"
    this.#forget(connection)
  }

  #forget(connection: Connection): void {
    if (!this.#connections.delete(connection)) return
    this.#closingCount--
    const group = connection.group
    group.open--
    this.#tenants.assign(connection, null)
    // A copy: who finds no room is put back, and would be met again.
    for (const starved of Array.from(this.#starved)) this.#ensureOpening(starved)
    this.#serve(group)
    this.#tenants.dropIfUnused(group)
    this.#tellIfEmpty()
  }

  /** A query that a client left running is not stopped by the end of its connection: its cancel has to arrive, too. */
  get #isEmpty(): boolean {
    return this.#connections.size === 0 && this.#cancelsInFlight === 0
  }

  #tellIfEmpty(): void {
    if (this.#isEmpty) this.#onEmpty?.()
  }

  // ---- the passing of time

  /** Called every so often: what is overdue is ended, those who could be served are. */
  sweep(): void {
    const now = this.#now()
    this.#sweptAt = now
    this.#followTls()
    for (const connection of this.#connections) {
      if (connection.deadline <= now) {
        if (connection.state === "closing") this.#closeByForce(connection)
        else connection.giveUpConversation()
      } else if (connection.state === "closing") {
        // A cancel between two queries of one pipeline is in vain, and the second would run on with nobody there.
        if (connection.stopQuery) this.cancel(connection)
      } else if (connection.state === "idle") this.#closeIfOverdue(connection, now)
    }
    const limit = now - this.#limits.AcquireTimeoutSecs * 1000
    for (const group of this.#tenants.groups) {
      if (group.queue.length === 0) continue
      const waiting = group.queue.length
      for (const waiter of group.queue.takeOlderThan(limit)) {
        this.statistics.acquireTimeouts++
        waiter.client.onRefused(
          this.#reachability.fault ??
            new AcquireTimedOut({ destination: this.name, seconds: this.#limits.AcquireTimeoutSecs, waiting })
        )
      }
      this.#refuseInVain(group, now)
      this.#serve(group)
    }
  }

  #closeIfOverdue(connection: Connection, now: number): void {
    if (this.#expired(connection.openedAt, this.#settings.MaxLifetimeSecs, now)) this.statistics.maxLifetimeClosed++
    else if (this.#expired(connection.idleSince, this.#settings.MaxIdletimeSecs, now))
      this.statistics.maxIdleTimeClosed++
    else return
    this.#close(connection)
  }

  /** New settings act at once: what is idle beyond them is closed now, the rest as it comes back. */
  configure(limits: PoolLimits): void {
    const extraSchemas = this.#settings.ExtraSchemas.join("\0")
    if (limits.pool.TenantSwitch !== this.#settings.TenantSwitch) this.#retireAll()
    this.#settings = limits.pool
    this.#limits = limits.limits
    this.#server = limits.server
    if (this.#settings.ExtraSchemas.join("\0") !== extraSchemas) this.#setPaths()
    while (this.#settings.MaxOpen > 0 && this.#liveCount() > this.#settings.MaxOpen) {
      const longest = this.#longestIdle(() => true)
      if (longest === null) break
      this.#close(longest)
    }
    this.#closeSurplus()
    for (const group of this.#tenants.groups) if (group.queue.length > 0) this.#serve(group)
  }

  /** It is another only where settings or certificates are: nobody is to go on in clear where that is refused by now. */
  #followTls(): void {
    const tls = this.#tls()
    if (tls === this.#tlsInForce) return
    this.#tlsInForce = tls
    this.#retireAll()
  }

  /** Connections that were made under another rule, or that several tenants have had, serve none of them under the new one. */
  #retireAll(): void {
    for (const group of this.#tenants.groups) this.retire(group)
  }

  // ---- what others ask

  /**
   * The ParameterStatus messages with which a client of this tenant and these settings is greeted: what the destination
   * reports once they hold there. Asked once, then remembered. Fails with the server's own words where it refuses a setting.
   */
  greeting(tenant: PoolTenant, settings: ClientSettings): Effect.Effect<Buffer, SessionFault> {
    return Effect.suspend(() => {
      const known = Greeting.remembered(tenant, settings, this.#epoch)
      if (known !== null) {
        const fault = this.#inVain(tenant.group, this.#now())
        return fault === null ? Effect.succeed(known) : Effect.fail(fault)
      }
      return Effect.tap(Greeting.ask(this, tenant, settings), (bytes) =>
        Effect.sync(() => Greeting.remember(tenant, settings, this.#epoch, bytes))
      )
    })
  }

  snapshot(): PoolSnapshot {
    let waiting = 0
    let idle = 0
    let closing = 0
    for (const group of this.#tenants.groups) waiting += group.queue.length
    for (const connection of this.#connections) {
      if (connection.state === "idle") idle++
      else if (connection.state === "closing") closing++
      else if (connection.state === "preparing") waiting++
    }
    return {
      destHost: this.destination.label,
      destDb: this.destination.database,
      maxOpen: Math.max(0, this.#settings.MaxOpen),
      open: this.#connections.size,
      idle,
      inUse: this.#connections.size - idle - closing,
      closing,
      pinned: this.#pinnedCount,
      opening: this.#opening,
      waiting,
      statistics: this.statistics
    }
  }

  #now(): number {
    return this.#clock.currentTimeMillisUnsafe()
  }

  #shutDown(): Effect.Effect<void> {
    return Effect.suspend(() => {
      this.#closing = true
      for (const group of this.#tenants.groups) {
        for (const waiter of group.queue.takeOlderThan(Number.POSITIVE_INFINITY)) {
          waiter.client.onRefused(new ShuttingDown())
        }
      }
      for (const connection of this.#connections) this.#close(connection)
      if (this.#isEmpty) return Effect.void
      return Effect.callback<void>((resume) => {
        this.#onEmpty = () => resume(Effect.void)
      }).pipe(
        Effect.timeoutOrElse({
          duration: `${this.#settings.ConnCloseTimeoutSecs} seconds`,
          orElse: () =>
            Effect.sync(() => {
              for (const connection of this.#connections) this.#closeByForce(connection)
            })
        }),
        Effect.interruptible
      )
    })
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

const wasCancelled = (end: ConversationEnd): boolean =>
  end._tag === "Refused" && end.error.sqlState === SqlState.queryCanceled

/** Of an empty array `[-1]` would be looked up as the name "-1", 0.3 µs. */
const lastOf = <A>(of: ReadonlyArray<A>): A | null => (of.length > 0 ? of[of.length - 1]! : null)
