/**
 * What a client is greeted with: the ParameterStatus messages as the destination reports them once the tenant's path and the
 * client's own settings hold. Asked of a real connection once for each tenant and settings, then remembered.
 */
import * as Effect from "effect/Effect"
import type { SessionFault } from "../errors.ts"
import { parameterStatus } from "../protocol/Backend.ts"
import type { Connector } from "./Connector.ts"
import type { Connection, PoolClient, PoolTenant } from "./PoolTenant.ts"
import type { ClientSettings } from "./Reset.ts"
import { Waiter } from "./WaitQueue.ts"

/** Remembered for one tenant; a client that invents settings must not fill the memory. */
const GREETINGS_PER_TENANT = 32

/** What the pool lends for it. */
interface Lender {
  readonly take: (client: PoolClient) => Connection | null
  readonly wait: (client: PoolClient) => SessionFault | null
  readonly leave: (client: PoolClient) => void
  readonly give: (connection: Connection) => void
}

/** Of this epoch: the destination may report other values after it was away. */
const remembered = (tenant: PoolTenant, settings: ClientSettings, epoch: number): Buffer | null => {
  const known = tenant.greetings.get(settings.key)
  return known === undefined || known.epoch !== epoch ? null : known.bytes
}

const remember = (tenant: PoolTenant, settings: ClientSettings, epoch: number, bytes: Buffer): void => {
  if (tenant.greetings.size >= GREETINGS_PER_TENANT) tenant.greetings.clear()
  tenant.greetings.set(settings.key, { bytes, epoch })
}

/** Asked where it is not known yet. What is known is no greeting where the client could not be served behind it. */
export const greeting = (
  pool: Lender,
  connector: Connector,
  tenant: PoolTenant,
  settings: ClientSettings
): Effect.Effect<Buffer, SessionFault> =>
  Effect.suspend(() => {
    const known = remembered(tenant, settings, connector.epoch)
    if (known !== null) {
      const fault = connector.inVain(tenant.group)
      return fault === null ? Effect.succeed(known) : Effect.fail(fault)
    }
    return Effect.tap(ask(pool, tenant, settings), (bytes) =>
      Effect.sync(() => remember(tenant, settings, connector.epoch, bytes))
    )
  })

/** Waits its turn like everybody else. Fails with the server's own words where it refuses a setting. */
const ask = (pool: Lender, tenant: PoolTenant, settings: ClientSettings): Effect.Effect<Buffer, SessionFault> =>
  Effect.callback<Buffer, SessionFault>((resume) => {
    const client = new GreetingClient(tenant, settings, {
      granted: (connection) => {
        const bytes = Buffer.concat([...connection.parameters].map(([name, value]) => parameterStatus(name, value)))
        pool.give(connection)
        resume(Effect.succeed(bytes))
      },
      refused: (fault) => resume(Effect.fail(fault))
    })
    const connection = pool.take(client)
    const fault = connection === null ? pool.wait(client) : null
    if (connection !== null) client.onGranted(connection)
    if (fault !== null) client.onRefused(fault)
    return Effect.sync(() => pool.leave(client))
  })

interface Outcome {
  readonly granted: (connection: Connection) => void
  readonly refused: (fault: SessionFault) => void
}

/** Holds a connection for no longer than it takes to look. */
class GreetingClient implements PoolClient {
  readonly tenant: PoolTenant
  readonly settings: ClientSettings
  readonly mayBeRefused = true
  readonly waiter: Waiter<PoolTenant, PoolClient> = new Waiter<PoolTenant, PoolClient>(this)
  readonly #outcome: Outcome

  constructor(tenant: PoolTenant, settings: ClientSettings, outcome: Outcome) {
    this.tenant = tenant
    this.settings = settings
    this.#outcome = outcome
  }

  onGranted(connection: Connection): void {
    this.#outcome.granted(connection)
  }

  onRefused(fault: SessionFault): void {
    this.#outcome.refused(fault)
  }

  onNotification(): void {}
  onServerData(): void {}
  onServerDrain(): void {}
  onServerLost(): void {}
  onSweep(): void {}
}
