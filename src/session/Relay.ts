/**
 * The relay of one logged-in session: takes a server connection when the client asks for something, has bytes moved both ways,
 * and gives the connection back at the transaction's border.
 *
 * It decides whose the connection is and when a lease begins and ends; it looks at no byte. What comes from each side is for
 * ClientStream and ServerStream, or ParkedClient where nothing is leased; all of them go by one Link. Plain callbacks; the
 * session's fiber sleeps in one `Effect.callback` and wakes only when the session ends. The relay owns the client's transport
 * from the greeting on, and the leased connection between `take` and `give`; whoever ends the session calls `dispose`, which
 * gives back or closes what is held, whatever state it is in.
 */
import type { LimitSettings } from "../config/PerseusConfig.ts"
import {
  CancelledWhileWaiting,
  FeatureNotSupported,
  ServerConnectionLost,
  TooManyPinned,
  type SessionFault
} from "../errors.ts"
import type { Transport, TransportHandler } from "../net/Transport.ts"
import type { Pool } from "../pool/Pool.ts"
import type { Connection, PoolClient, PoolTenant } from "../pool/PoolTenant.ts"
import { MAX_SETTING_LENGTH, type Findings, type Hold } from "../pool/Inspection.ts"
import { clientSettings, type ClientSettings } from "../pool/Reset.ts"
import { Waiter } from "../pool/WaitQueue.ts"
import { noticeResponse } from "../protocol/Backend.ts"
import { Backend } from "../protocol/Frame.ts"
import { frame } from "../protocol/Encoder.ts"
import { terminate } from "../protocol/Frontend.ts"
import { SqlState } from "../protocol/SqlState.ts"
import { ClientStream } from "./ClientStream.ts"
import { Expectations } from "./Expectations.ts"
import { HeldBytes, type HeldAllowance } from "./HeldBytes.ts"
import { give, lend, Link, type Pass } from "./Link.ts"
import { ParameterReports } from "./ParameterReports.ts"
import { ParkedClient } from "./ParkedClient.ts"
import { PreparedStatements } from "./PreparedStatements.ts"
import { ServerStream } from "./ServerStream.ts"
import type { SessionCounters } from "./SessionCounters.ts"
import { Traces } from "./Traces.ts"
import { TransactionTimeouts } from "./TransactionTimeouts.ts"
import { Translator } from "./Translator.ts"

export interface RelayOptions {
  readonly client: Transport
  readonly pool: Pool
  readonly tenant: PoolTenant
  readonly settings: ClientSettings
  readonly limits: () => LimitSettings
  readonly counters: SessionCounters
  readonly allowance: HeldAllowance
  /** The connection stays with this client from now on, until it undoes what these are. */
  readonly onPinned: (client: Transport, holds: ReadonlyArray<Hold>) => void
  /** Called once: null when the client has left, a fault when the session cannot go on. */
  readonly onEnd: (fault: SessionFault | null) => void
}

export type RelayState = "idle" | "waiting" | "active" | "ended"

export class Relay implements TransportHandler, PoolClient {
  settings: ClientSettings
  readonly mayBeRefused = false
  readonly waiter: Waiter<PoolTenant, PoolClient> = new Waiter<PoolTenant, PoolClient>(this)
  readonly #link: Link
  readonly #counters: SessionCounters
  readonly #onPinned: RelayOptions["onPinned"]
  readonly #onEnd: (fault: SessionFault | null) => void
  /** Bytes of the client that were not forwarded. */
  readonly #held: HeldBytes
  readonly #expectations = new Expectations()
  readonly #traces = new Traces()
  readonly #statements: PreparedStatements
  readonly #reports: ParameterReports
  readonly #timeouts: TransactionTimeouts
  readonly #fromServer: ServerStream
  readonly #fromClient: ClientStream
  readonly #parkedClient: ParkedClient
  /** What it asked for when it logged in: RESET and DISCARD return to this. */
  readonly #startup: ClientSettings

  /** The server is asked what the lease has left; the client is not heard meanwhile. */
  #inspecting = false
  #waiting = false
  /** To be said at the transaction's border. */
  #endAtBorder: SessionFault | null = null
  /** Where the session goes at its next lease: its row has changed. */
  #next: { readonly pool: Pool; readonly tenant: PoolTenant; readonly onMoved: () => void } | null = null

  constructor(options: RelayOptions) {
    this.settings = this.#startup = options.settings
    this.#counters = options.counters
    this.#onPinned = options.onPinned
    this.#onEnd = options.onEnd
    const link = (this.#link = new Link(options.client, options.pool, options.tenant))
    const held = (this.#held = new HeldBytes(options.allowance))
    const expectations = this.#expectations
    const traces = this.#traces
    const statements = (this.#statements = new PreparedStatements(traces, link))
    const reports = (this.#reports = new ParameterReports(link))
    const timeouts = (this.#timeouts = new TransactionTimeouts(options.limits))
    const { counters } = options
    const fromServer = new ServerStream({ link, expectations, statements, traces, reports, timeouts, counters })
    const translator = new Translator({ expectations, statements, traces, server: fromServer })
    this.#fromServer = fromServer
    this.#fromClient = new ClientStream({ link, held, expectations, timeouts, translator })
    this.#parkedClient = new ParkedClient(link, held, statements)
  }

  get tenant(): PoolTenant {
    return this.#link.tenant
  }

  /** It has said goodbye, or its end of the stream is gone. */
  get clientHasLeft(): boolean {
    return this.#link.clientGone || this.#fromClient.terminating
  }

  get state(): RelayState {
    if (this.#link.ended) return "ended"
    if (this.#link.server !== null) return this.#link.resting ? "idle" : "active"
    if (this.#inspecting) return "active"
    return this.#waiting ? "waiting" : "idle"
  }

  /** Takes over the transport; `rest` is what the client had sent behind its password. */
  start(rest: Buffer): void {
    this.#link.client.handler = this
    if (this.#link.client.closed) this.#end(null)
    else if (rest.length > 0) this.onData(rest)
  }

  // ---- from the client

  onData(chunk: Buffer): void {
    if (this.#link.ended || this.#fromClient.terminating) return
    if (this.#link.server !== null) {
      if (this.#held.length === 0) return this.#forward(chunk, lend)
      this.#held.append(chunk)
      return this.#forwardHeld()
    }
    if (this.#isParked() && this.#parkedClient.wantsLeaseFor(chunk)) return this.#leaseFor(chunk)
    this.#held.append(chunk)
    if (this.#waiting || this.#inspecting) this.#readOnWithin(chunk.length)
    else this.#advance()
  }

  /** The usual chunk: a request, and nothing was held before it. */
  #leaseFor(chunk: Buffer): void {
    const connection = this.#link.pool.take(this)
    if (connection !== null) {
      this.#attach(connection)
      return this.#forward(chunk, lend)
    }
    this.#held.append(chunk)
    const fault = this.#wait()
    if (fault === null) return
    this.#refuse(fault)
    this.#advance()
  }

  #forwardHeld(): void {
    if (this.#held.ready) this.#forward(this.#held.take(), give)
  }

  #forward(chunk: Buffer, pass: Pass): void {
    const fault = this.#fromClient.forward(chunk, pass)
    if (fault !== null) return this.#end(fault)
    const answered = this.#fromServer.giveMadeUpAnswers()
    if (this.#fromClient.terminating && !this.#expectations.serverBusy) this.#end(null)
    else if (answered && this.#link.server !== null && this.#atBorder()) this.#onBorder()
  }

  /** A client that waits is read for as long as may be, for its leaving comes behind all that it has sent. */
  #readOnWithin(bytes: number): void {
    if (!this.#held.claim(bytes)) this.#link.pauseClient()
  }

  #stopWaiting(): void {
    this.#waiting = false
    this.#held.giveBackClaim()
  }

  onDrain(): void {
    this.#link.unstall()
    if (this.#link.resting) return this.#hearOn()
    if (this.#link.server !== null || this.#waiting || this.#inspecting) return
    this.#link.resumeClient()
    this.#advance()
  }

  onClose(): void {
    this.#link.clientGone = true
    // After Terminate the client is right to go; what it asked before runs to its end, as it would without a pooler.
    const waits = this.#waiting || this.#inspecting
    const mayFinish = waits
      ? this.#held.endsWith(terminate)
      : this.#fromClient.terminating && this.#expectations.serverBusy
    if (!mayFinish) return this.#end(null)
    this.#link.unstall()
    if (this.#link.server !== null) this.#sayGoodbye(this.#link.server)
  }

  /** The server finishes what was asked and goes, whatever we think that it still owes. */
  #sayGoodbye(connection: Connection): void {
    this.#expectations.inDoubt = true
    connection.transport.write(terminate)
  }

  /** What it left behind is forwarded: it was whole and ended in a goodbye, or it never will be. */
  #goneWhileWaiting(): void {
    if (!this.#fromClient.terminating) this.#end(null)
    else if (this.#link.server !== null) this.#sayGoodbye(this.#link.server)
  }

  /** Without a lease: what needs no server is answered, and one is taken for the first message that does. */
  #advance(): void {
    while (this.#isParked()) {
      const wish = this.#parkedClient.advance()
      if (wish === "nothing") return
      if (wish === "leave") return this.#saysGoodbye()
      if (wish !== "lease") return this.#end(wish)
      const fault = this.#acquire()
      if (fault !== null) this.#refuse(fault)
    }
  }

  /** Without a lease, as most do: it is owed nothing. */
  #saysGoodbye(): void {
    this.#link.clientGone = true
    this.#end(null)
  }

  /** Nothing is leased, waited for or asked. */
  #isParked(): boolean {
    return !this.#link.ended && this.#link.server === null && !this.#waiting && !this.#inspecting
  }

  /** Leased now or to be granted later; a fault where neither. */
  #acquire(): SessionFault | null {
    const connection = this.#link.pool.take(this)
    if (connection !== null) {
      this.onGranted(connection)
      return null
    }
    return this.#wait()
  }

  #wait(): SessionFault | null {
    this.#waiting = true
    const fault = this.#link.pool.wait(this)
    if (fault !== null) this.#stopWaiting()
    else if (this.#waiting) this.#readOnWithin(this.#held.length)
    return fault
  }

  #refuse(fault: SessionFault): void {
    if (this.#held.length === 0) return
    if (fault.severity === "FATAL") return this.#end(fault)
    this.#counters.countError(fault.sqlState)
    this.#parkedClient.refuse(fault)
  }

  // ---- the lease

  onGranted(connection: Connection): void {
    this.#stopWaiting()
    this.#attach(connection)
    this.#forwardHeld()
    if (this.#link.clientGone) return this.#goneWhileWaiting()
    if (!this.#link.clientStalled) this.#link.resumeClient()
  }

  #attach(connection: Connection): void {
    this.#link.server = connection
    this.#link.readRules()
    this.#timeouts.restartBusy()
    this.#timeouts.restartIdle()
    this.#fromServer.beginLease(connection)
    this.#held.needs(0)
    this.#statements.beginLease()
    this.#reports.correct(connection)
  }

  onRefused(fault: SessionFault): void {
    this.#stopWaiting()
    if (this.#link.ended) return
    this.#refuse(fault)
    this.#goOn()
  }

  /** Nothing is leased and nothing waited for: the client is heard again. */
  #goOn(): void {
    if (!this.#link.clientStalled) this.#link.resumeClient()
    this.#advance()
    if (this.#link.clientGone && this.#isParked()) this.#end(null)
  }

  onServerLost(reason: string): void {
    this.#link.server = null
    this.#end(this.#fromServer.saidFatal ? null : this.#lost(reason))
  }

  #lost(detail: string): ServerConnectionLost {
    return new ServerConnectionLost({ destination: this.#link.pool.name, detail })
  }

  /** Nothing is owed or half sent, and no transaction is open: the next one may use the connection. */
  #atBorder(): boolean {
    return this.#expectations.settled && !this.#fromClient.midMessage && this.#fromServer.atBorder
  }

  /**
   * The transaction is over: the connection goes back, unless the client keeps it; and what cannot be known from what went by
   * is asked of the server first.
   */
  #onBorder(): void {
    const connection = this.#link.server!
    this.#counters.transactions++
    this.#statements.endLease()
    const traces = this.#traces
    if (this.#isLeaving()) return this.#release()
    // What a client keeps there is not taken from it unnoticed: a count that may be off matters to the next one, and to our
    // own questions.
    if (this.#inDoubt()) return this.#onDoubtfulBorder(connection)
    if (this.#link.tenant.mode === "session") return this.#rest()
    const holds = traces.holds && this.#link.pool.pins
    if (traces.settings || holds) return this.#inspect(connection, traces.settings, holds)
    if (connection.pinned) this.#rest()
    else this.#release()
  }

  /** Nothing can be asked: the answer might belong to another question. What may be there is taken to be there. */
  #onDoubtfulBorder(connection: Connection): void {
    if (this.#link.keepsServer) return this.#rest()
    if (this.#fromServer.saidFatal || !this.#traces.any || !this.#link.pool.pins) return this.#release()
    const holds = ["something unknown, behind a COPY that failed"] as const
    if (!this.#link.pool.pin(connection)) return this.#end(new TooManyPinned({ holds }))
    this.#tellPinned(holds)
    this.#rest()
  }

  /** The connection is not to be lent again. */
  #inDoubt(): boolean {
    return this.#expectations.inDoubt || this.#fromServer.saidFatal
  }

  #isLeaving(): boolean {
    return this.#fromClient.terminating || this.#link.clientGone || this.#endAtBorder !== null
  }

  /** The client keeps its connection, and is heard on. */
  #rest(): void {
    this.#link.resting = true
    this.#link.readRules()
    this.#traces.clear()
    // Ours may have taken its place.
    this.#statements.beginLease()
    this.#fromServer.hearPending(this.#link.server!)
    if (!this.#link.clientStalled) this.#hearOn()
  }

  #hearOn(): void {
    this.#link.resumeClient()
    this.#forwardHeld()
  }

  #inspect(connection: Connection, settings: boolean, holds: boolean): void {
    const questions = { settings, holds, customNames: this.#traces.customNames }
    this.#hush(connection)
    this.#link.pool.inspect(connection, this, questions, (findings) => {
      if (this.#isBack(connection, findings !== null)) this.#onFindings(connection, findings!, holds)
    })
  }

  /** The pool speaks with the server meanwhile. */
  #hush(connection: Connection): void {
    this.#link.unlink(connection)
    this.#inspecting = true
  }

  /** The client may go on with its connection. */
  #isBack(connection: Connection, fine: boolean): boolean {
    this.#inspecting = false
    this.#stopWaiting()
    if (fine && !this.#link.ended) {
      this.#link.server = connection
      this.#reports.correct(connection)
      return true
    }
    if (fine) this.#giveBack(connection, true)
    else this.#end(this.#lost("it did not say what the transaction had left behind"))
    return false
  }

  #onFindings(connection: Connection, { settings, holds, unsettled }: Findings, askedForHolds: boolean): void {
    if (settings !== null) {
      if (sizeOf(settings) > MAX_SETTING_LENGTH) return this.#end(tooLargeSettings)
      this.settings = clientSettings([...this.#startup.list, ...settings])
    }
    const keeps = askedForHolds ? holds.length > 0 : connection.pinned
    // Whoever cannot keep it now, because it leaves or too many do, must not leave it to the next.
    if (askedForHolds) this.#traces.holds = keeps
    if (this.#link.clientGone) return this.#restore(connection)
    if (!keeps || this.#isLeaving()) return this.#release()
    const before = connection.pinned
    if (!this.#link.pool.pin(connection)) return this.#end(new TooManyPinned({ holds }))
    if (!before) this.#tellPinned(holds)
    if (this.#traces.settings || unsettled) this.#restore(connection)
    else this.#rest()
  }

  #tellPinned(holds: ReadonlyArray<Hold>): void {
    this.#counters.countPinned(holds)
    this.#onPinned(this.#link.client, holds)
    if (!this.#link.pool.pinningNotice) return
    const message = `this session keeps its server connection: ${holds.join(", ")}`
    this.#link.toClient(noticeResponse({ severity: "NOTICE", sqlState: SqlState.successfulCompletion, message }))
  }

  /** A client that keeps its connection may have changed its path there: in the next transaction it is the tenant's again. */
  #restore(connection: Connection): void {
    this.#hush(connection)
    this.#link.pool.restore(connection, this, (fine) => {
      if (!this.#isBack(connection, fine)) return
      if (this.#link.clientGone) {
        // It has said goodbye, behind something that it still wants done.
        this.#forwardHeld()
        this.#goneWhileWaiting()
      } else if (this.#isLeaving()) this.#release()
      else this.#rest()
    })
  }

  onNotification(body: Buffer): void {
    this.#link.toClient(frame(Backend.notificationResponse, body))
  }

  #release(): void {
    const connection = this.#link.server!
    this.#link.unlink(connection)
    this.#link.resting = false
    if (this.#inDoubt()) {
      this.#expectations.clear()
      this.#traces.clear()
      this.#link.pool.discard(connection, false)
    } else this.#giveBack(connection, this.#mustReset(connection))
    if (this.#fromClient.terminating || this.#link.clientGone) return this.#end(null)
    if (this.#endAtBorder !== null) return this.#end(this.#endAtBorder)
    this.#move()
    // It stays unread until it has caught up.
    if (this.#link.clientStalled) return this.#link.pauseClient()
    this.#link.resumeClient()
    // The beginning of a message that came while another's lease lasted.
    this.#advance()
  }

  /** What a client may leave beside settings must be gone before anybody else has the connection. */
  #mustReset(connection: Connection): boolean {
    return connection.pinned || this.#link.tenant.mode === "session" || this.#traces.holds
  }

  #giveBack(connection: Connection, reset: boolean): void {
    if (this.#traces.any) connection.stateKnown = false
    this.#traces.clear()
    if (reset) connection.mustReset = true
    this.#link.pool.give(connection)
  }

  // ---- from the server

  onServerData(chunk: Buffer): void {
    const fault = this.#fromServer.read(chunk)
    if (fault !== null) return this.#end(fault)
    if (this.#link.server !== null && !this.#link.resting && this.#atBorder()) this.#onBorder()
    else if (this.#fromClient.terminating && !this.#expectations.serverBusy) this.#end(null)
  }

  onServerDrain(): void {
    this.#link.resumeClient()
    this.#forwardHeld()
  }

  // ---- from elsewhere in the house

  /**
   * A CancelRequest with this session's key. Nothing happens where nothing runs. `done` is called when no signal of it can come
   * any more: PostgreSQL's clients wait for that before they ask for anything else, or it would be cancelled in its place.
   */
  cancel(done: () => void): void {
    const { server, pool } = this.#link
    if (server !== null && !this.#expectations.settled) return pool.cancel(server, done)
    if (this.#waiting) {
      pool.leave(this)
      this.onRefused(new CancelledWhileWaiting())
    }
    done()
  }

  /** Ends the session with these words once it holds nothing: now, or when its transaction is over. */
  endAtBorder(fault: SessionFault): void {
    if (this.#inspecting || (this.#link.server !== null && !this.#link.resting)) this.#endAtBorder = fault
    else this.#end(fault)
  }

  /** The session is served elsewhere, or as somebody else, from its next lease on: its row says so. Told when it has left, or ended. */
  moveTo(pool: Pool, tenant: PoolTenant, onMoved: () => void): void {
    if (this.#link.ended) return onMoved()
    const before = this.#next
    this.#next = {
      pool,
      tenant,
      onMoved: () => {
        before?.onMoved()
        onMoved()
      }
    }
    if (this.#link.server !== null || this.#inspecting) return
    // Where it waits now, what it waits for may never come.
    if (this.#waiting) this.#link.pool.leave(this)
    this.#stopWaiting()
    this.#move()
    this.#goOn()
  }

  #move(): void {
    const next = this.#next
    if (next === null) return
    this.#link.pool = next.pool
    this.#link.tenant = next.tenant
    this.#next = null
    next.onMoved()
  }

  /** Ends what has gone on for too long. */
  onSweep(now: number): void {
    if (this.#link.server === null || this.#link.resting) return
    const fault = this.#timeouts.sweep(now, this.#fromClient.serverBusy)
    if (fault !== null) this.#end(fault)
  }

  #end(fault: SessionFault | null): void {
    if (this.#link.ended) return
    // In the middle of a server's message no words of ours can be told from its body: the client sees the end alone.
    if (this.#fromServer.midMessage) this.#link.client.destroy()
    this.dispose()
    this.#onEnd(fault)
  }

  /** Gives back or closes what is held. The guarantee of release: safe at any moment, any number of times. */
  dispose(): void {
    if (this.#link.ended) return
    this.#link.ended = true
    if (this.#waiting) {
      this.#stopWaiting()
      this.#link.pool.leave(this)
    }
    this.#held.clear()
    this.#letGo()
    this.#next?.onMoved()
  }

  #letGo(): void {
    const connection = this.#link.server
    if (connection === null) return
    this.#link.unlink(connection)
    if (this.#atBorder() && !this.#inDoubt()) return this.#giveBack(connection, this.#mustReset(connection))
    this.#link.pool.discard(connection, !this.#expectations.settled && this.#expectations.serverBusy)
  }
}

const sizeOf = (settings: ReadonlyArray<readonly [string, string]>): number =>
  settings.reduce((size, [name, value]) => size + name.length + value.length, 0)

const tooLargeSettings = new FeatureNotSupported({
  feature: `more than ${MAX_SETTING_LENGTH / 1024} kB of settings in a session that shares its connections`,
  advice: "Use SET LOCAL or set_config(…, true), or session mode for this tenant."
})
