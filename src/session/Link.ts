/**
 * The two ends between which a session's bytes move, its client and the server connection that is lent to it (a link, as
 * pgbouncer calls such a pair), and their back-pressure: who does not take what it is sent stops the other.
 *
 * All parts of the relay go by it; the Relay alone says what is leased. It looks at no byte and keeps none, and neither takes
 * nor gives back a connection.
 */
import type { Transport } from "../net/Transport.ts"
import type { Pool } from "../pool/Pool.ts"
import type { Connection, PoolTenant } from "../pool/PoolTenant.ts"
import type { Lease } from "./Translator.ts"

/** How bytes go on: a chunk lies where the next read writes, and is lent; what was copied or made here is given. */
export type Pass = (to: Transport, bytes: Buffer) => boolean
export const lend: Pass = (to, bytes) => to.writeLent(bytes)
export const give: Pass = (to, bytes) => to.write(bytes)

/** Mostly all of it goes on, and a view costs 60 ns. */
export const viewOf = (chunk: Buffer, from: number, to: number): Buffer =>
  from === 0 && to === chunk.length ? chunk : chunk.subarray(from, to)

export class Link implements Lease {
  readonly client: Transport
  pool: Pool
  tenant: PoolTenant
  /** Leased. */
  server: Connection | null = null
  passesNames = false
  refusesHolds = false
  /** Between two transactions of a client that keeps its connection. */
  resting = false
  ended = false
  /** The client's end of the stream is gone, or it has said goodbye with nothing leased. */
  clientGone = false
  /** The client does not take what it is sent. */
  clientStalled = false
  #clientPaused = false
  #serverPaused = false

  constructor(client: Transport, pool: Pool, tenant: PoolTenant) {
    this.client = client
    this.pool = pool
    this.tenant = tenant
  }

  /** Of the lease; there is one while a message is translated. */
  get connection(): Connection {
    return this.server!
  }

  /** When a lease begins, and between the transactions of one that goes on: settings may have changed. */
  readRules(): void {
    const isOwn = this.tenant.mode === "session"
    this.passesNames = isOwn || this.pool.maxPreparedStatements === 0
    this.refusesHolds = !isOwn && !this.pool.pins
  }

  /** Also beyond the transaction: no other connection has what is left there. */
  get keepsServer(): boolean {
    return this.tenant.mode === "session" || this.server?.pinned === true
  }

  /** The client hears nothing of the connection any more. Where it is stalled, it must not leave a paused server to the next. */
  unlink(connection: Connection): void {
    this.server = null
    if (!this.#serverPaused) return
    this.#serverPaused = false
    connection.transport.resume()
  }

  toClient(bytes: Buffer, pass: Pass = give): void {
    if (pass(this.client, bytes) || this.clientGone) return
    this.clientStalled = true
    if (this.server !== null && !this.#serverPaused) {
      this.#serverPaused = true
      this.server.transport.pause()
    } else if (this.server === null) this.pauseClient()
  }

  /** The client has taken what it was sent, or never will. */
  unstall(): void {
    this.clientStalled = false
    if (!this.#serverPaused) return
    this.#serverPaused = false
    this.server?.transport.resume()
  }

  /** Whether the server took it all at once. */
  toServer(bytes: Buffer, pass: Pass): boolean {
    if (bytes.length === 0) return true
    const taken = pass(this.server!.transport, bytes)
    if (!taken) this.pauseClient()
    return taken
  }

  pauseClient(): void {
    if (this.#clientPaused || this.ended) return
    this.#clientPaused = true
    this.client.pause()
  }

  resumeClient(): void {
    if (!this.#clientPaused) return
    this.#clientPaused = false
    this.client.resume()
  }
}
