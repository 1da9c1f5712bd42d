/**
 * Which values of settings a client was told (ParameterStatus), so that it is told again where they are others on the next
 * connection: a value of RESET's, for one, is the connection's and not the client's.
 */
import type { Connection } from "../pool/PoolTenant.ts"
import { parameterStatus } from "../protocol/Backend.ts"
import type { Link } from "./Link.ts"

export class ParameterReports {
  readonly #link: Link
  /** Since it logged in. */
  #told: Map<string, string> | null = null

  constructor(link: Link) {
    this.#link = link
  }

  /** The server reports it to the client. */
  note(name: string, value: string): void {
    this.#link.server?.parameters.set(name, value)
    this.#told ??= new Map()
    this.#told.set(name, value)
  }

  /** The client is served by this connection from now on, or again. */
  correct(connection: Connection): void {
    if (this.#told === null) return
    for (const [name, value] of this.#told) {
      const now = connection.parameters.get(name)
      if (now === undefined || now === value) continue
      this.#told.set(name, now)
      this.#link.toClient(parameterStatus(name, now))
    }
  }
}
