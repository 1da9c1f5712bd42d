/**
 * Who is connected now: by transport, by tenant, by cancel key; and what all sessions together have counted.
 *
 * Plain records in the event loop. It cuts logins short; into sessions behind their login it reaches only through their relays
 * (end at the transaction's border, cancel), and never waits.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { LoginTimedOut, ShuttingDown } from "../errors.ts"
import type { Transport } from "../net/Transport.ts"
import type { Place } from "../pool/Pools.ts"
import type { AuthRow } from "../tenant/AuthRepo.ts"
import type { Identity } from "../tenant/Authenticator.ts"
import { Cancellation, type CancelKey } from "./Cancellation.ts"
import type { Relay } from "./Relay.ts"
import { HeldAllowance } from "./HeldBytes.ts"
import { SessionCounters } from "./SessionCounters.ts"

/** A session behind its login. What its row says, and where that puts it, may change while it lives. */
export class LiveSession {
  readonly relay: Relay
  identity: Identity
  place: Place
  /** Holds the place; ends when the session is served elsewhere, or with the session. */
  placeScope: Scope.Closeable

  constructor(relay: Relay, identity: Identity, place: Place, placeScope: Scope.Closeable) {
    this.relay = relay
    this.identity = identity
    this.place = place
    this.placeScope = placeScope
  }
}

/** One that is under way. */
export interface Login {
  /** How long it may take. */
  readonly seconds: number
  /** Milliseconds of the clock when it began. */
  readonly since: number
  readonly cutShort: (fault: LoginTimedOut | ShuttingDown) => void
}

export class LiveSessions {
  readonly counters = new SessionCounters()
  readonly allowance = new HeldAllowance()
  readonly logins = new Map<string, number>()
  cancelsWithoutEffect = 0
  /** Rows that have changed so far. */
  rowChanges = 0
  /** Nobody new is let in, and who is there leaves at its transaction's border. */
  draining = false
  readonly #sessions = new Map<Transport, { readonly session: LiveSession; readonly key: CancelKey } | null>()
  readonly #loggingIn = new Set<Login>()
  readonly #byTenant = new Map<string, Set<LiveSession>>()
  readonly #cancellation = new Cancellation<Relay>()

  open(transport: Transport): void {
    this.#sessions.set(transport, null)
  }

  /** `minor`: of the protocol that its client speaks. */
  logIn(transport: Transport, session: LiveSession, minor: number): CancelKey {
    const key = this.#cancellation.issue(session.relay, minor)
    this.#sessions.set(transport, { session, key })
    const { tenantKey } = session.identity.placement
    const ofTenant = this.#byTenant.get(tenantKey)
    if (ofTenant === undefined) this.#byTenant.set(tenantKey, new Set([session]))
    else ofTenant.add(session)
    return key
  }

  close(transport: Transport): void {
    const entry = this.#sessions.get(transport)
    this.#sessions.delete(transport)
    if (entry === null || entry === undefined) return
    this.#cancellation.revoke(entry.key)
    const { tenantKey } = entry.session.identity.placement
    const ofTenant = this.#byTenant.get(tenantKey)
    ofTenant?.delete(entry.session)
    if (ofTenant?.size === 0) this.#byTenant.delete(tenantKey)
  }

  /** Logins that may still be cut short. */
  get loginsUnderWay(): number {
    return this.#loggingIn.size
  }

  /** Connections, those that still log in included. */
  get count(): number {
    return this.#sessions.size
  }

  /** Undefined before its login is done. */
  find(transport: Transport): LiveSession | undefined {
    return this.#sessions.get(transport)?.session
  }

  countOf(tenantKey: string): number {
    return this.#byTenant.get(tenantKey)?.size ?? 0
  }

  /** By what the tenants that have sessions now live, one row of each. */
  rows(): ReadonlyArray<AuthRow> {
    return Array.from(this.#byTenant.values(), ([anyone]) => anyone!.identity.row)
  }

  ofTenant(tenantKey: string): ReadonlySet<LiveSession> {
    return this.#byTenant.get(tenantKey) ?? new Set()
  }

  /** A guess, or the key of a session that is over, does nothing and says nothing. Ends when the cancel is over. */
  cancel(processId: number, secretKey: Buffer): Effect.Effect<void> {
    return Effect.callback<void>((resume) => {
      const relay = this.#cancellation.find(processId, secretKey)
      const done = () => resume(Effect.void)
      if (relay !== null) return void relay.cancel(done)
      this.cancelsWithoutEffect++
      done()
    })
  }

  /** Until what is returned is called, the login is cut short when its time is over or the draining begins. */
  beginLogin(login: Login): () => void {
    this.#loggingIn.add(login)
    return () => void this.#loggingIn.delete(login)
  }

  /** Every session ends: at once where it is idle or still logs in, else when its transaction is over. */
  drain(): void {
    this.draining = true
    const fault = new ShuttingDown()
    for (const login of Array.from(this.#loggingIn)) login.cutShort(fault)
    for (const entry of this.#sessions.values()) entry?.session.relay.endAtBorder(fault)
  }

  /** Logins that take too long end. Of those behind it only who holds a connection has a deadline, and the pools sweep these. */
  sweep(now: number): void {
    for (const { seconds, since, cutShort } of Array.from(this.#loggingIn)) {
      if (now - since >= seconds * 1000) cutShort(new LoginTimedOut({ seconds }))
    }
  }

  countLogin(outcome: string): void {
    this.logins.set(outcome, (this.logins.get(outcome) ?? 0) + 1)
  }

  /** Clients by what they are at. */
  states(): { readonly login: number; readonly idle: number; readonly waiting: number; readonly active: number } {
    const states = { login: 0, idle: 0, waiting: 0, active: 0 }
    for (const entry of this.#sessions.values()) {
      const state = entry === null ? "login" : entry.session.relay.state
      if (state !== "ended") states[state]++
    }
    return states
  }
}
