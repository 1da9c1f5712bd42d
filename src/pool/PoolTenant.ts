/**
 * A tenant as its pool knows it: the path, who waits, what is lent and what lies idle with its path set. And the group of all
 * tenants that are logged in as the same `dest_user`, who share connections. In session mode tenant and group are those of
 * one tenant's clients with the same settings: a connection of theirs is opened with these, and serves nobody else.
 *
 * Plain records: the Pool and its parts alone change them, each field the one that owns it.
 */
import type { SessionFault } from "../errors.ts"
import type { Credential } from "./Credential.ts"
import { IdleList } from "./IdleList.ts"
import type { Refusal } from "./Reachability.ts"
import { safeFloor, type ClientSettings, type Conversation, type Floor } from "./Reset.ts"
import type { Lessee, ServerConnection } from "./ServerConnection.ts"
import { Lane, WaitQueue, type Waiter } from "./WaitQueue.ts"

export type Connection = ServerConnection<PoolTenant, CredentialGroup>

/** Somebody who wants a connection for a transaction. Called in the event loop; must not throw. */
export interface PoolClient extends Lessee {
  readonly tenant: PoolTenant
  readonly settings: ClientSettings
  readonly waiter: Waiter<PoolTenant, PoolClient>
  /** Its settings are new: the server's refusal of one is an answer. Else another connection is tried first. */
  readonly mayBeRefused: boolean
  /** It is leased to you, with your path and settings. */
  onGranted(connection: Connection): void
  /** The body of a NotificationResponse that came while the pool spoke with your connection's server. */
  onNotification(body: Buffer): void
  /** You do not wait any more. */
  onRefused(fault: SessionFault): void
}

export class CredentialGroup {
  /** Under which the pool keeps it. */
  readonly key: string
  readonly credential: Credential
  readonly floor: Floor
  /** Its only tenant, where that is in session mode: its connections carry this tenant's path from their login on. */
  owner: PoolTenant | null = null
  readonly queue = new WaitQueue<PoolTenant, PoolClient>()
  readonly idle = new IdleList<Connection>()
  /** Logged in and not closed yet. */
  open = 0
  /** On their way. */
  opening = 0
  /** Raised when its secret changed: what was begun before is not lent. */
  generation = 0
  /** After a login that only an operator can mend: its words, and until when it is not tried again. */
  refusal: Refusal | null = null
  tenants = 0

  constructor(key: string, credential: Credential, floor: Floor = safeFloor) {
    this.key = key
    this.credential = credential
    this.floor = floor
  }
}

/** For how long a client keeps the connection that it is lent. */
export type Mode = "transaction" | "session" | "statement"

/** Connections that one tenant of `perseus_auth` holds now, in whatever mode. */
export class Usage {
  readonly tenantKey: string
  leased = 0
  /** Of those, pinned or in session mode. */
  bound = 0
  /** In which it was lent one last, as `Quota` counts them. */
  period = 0
  /** PoolTenants that count here. */
  references = 0

  constructor(tenantKey: string) {
    this.tenantKey = tenantKey
  }
}

export const RETURNS_MOST = 3

export const NEVER_LEFT = Number.NEGATIVE_INFINITY

export class PoolTenant {
  readonly key: string
  readonly usage: Usage
  readonly mode: Mode
  readonly schema: string
  /** The schema, and those that are added behind it. */
  path: ReadonlyArray<string>
  /** The ciphertext of its password. */
  readonly secret: string
  readonly group: CredentialGroup
  /** Its clients that wait. */
  readonly lane: Lane<PoolTenant, PoolClient> = new Lane<PoolTenant, PoolClient>(this)
  /** Idle connections with this tenant's path, the last used at the end. */
  readonly idle: Array<Connection> = []
  /** Sessions and connections that refer to it. */
  references = 0
  /** How often lately its clients were back in time for another transaction: 0 to RETURNS_MOST. */
  returns = RETURNS_MOST - 1
  /** When its last visit ended with nobody waiting and no connection kept for it, by `PoolContext.preciseNow`. */
  leftAt = NEVER_LEFT
  /** The switch to this path and these settings: made once, for a tenant's clients mostly have the same. */
  switching: {
    readonly path: ReadonlyArray<string>
    readonly settings: string
    readonly conversation: Conversation
  } | null = null
  /** ParameterStatus messages for a login with these settings, by their key. */
  readonly greetings = new Map<string, { readonly bytes: Buffer; readonly epoch: number }>()

  constructor(
    key: string,
    usage: Usage,
    mode: Mode,
    schema: string,
    path: ReadonlyArray<string>,
    secret: string,
    group: CredentialGroup
  ) {
    this.key = key
    this.usage = usage
    this.mode = mode
    this.schema = schema
    this.path = path
    this.secret = secret
    this.group = group
  }
}
