/**
 * The keys by which a client may cancel its own query, and nobody else's.
 *
 * The process id is ours, never PostgreSQL's: positive (drivers have refused to cancel with a negative one), 24 bits that count
 * sessions and above them 7 bits that are reserved for the number of the process that gave it, 0 today. The secret is from the
 * system's CSPRNG. A key that matches nothing has no effect and no answer.
 */
import { randomBytes, timingSafeEqual } from "node:crypto"

/** bits 0-23: session; bits 24-30: process; bit 31: 0 */
const SESSION_BITS = 24
const SESSION_MASK = (1 << SESSION_BITS) - 1

/** What an older client can carry, and what PostgreSQL gives from protocol 3.2 on. */
const secretLength = (minor: number): number => (minor >= 2 ? 32 : 4)

export interface CancelKey {
  readonly processId: number
  readonly secretKey: Buffer
}

export class Cancellation<Target> {
  readonly #byProcessId = new Map<number, { readonly secretKey: Buffer; readonly target: Target }>()
  readonly #process: number
  #last = 0

  constructor(process = 0) {
    this.#process = process << SESSION_BITS
  }

  /** `minor`: of the protocol that the client speaks. */
  issue(target: Target, minor: number): CancelKey {
    // Never 0, and never one that is in use: the counter comes round after 16 million sessions.
    do this.#last = (this.#last + 1) & SESSION_MASK
    while (this.#last === 0 || this.#byProcessId.has(this.#process | this.#last))
    const key = { processId: this.#process | this.#last, secretKey: randomBytes(secretLength(minor)) }
    this.#byProcessId.set(key.processId, { secretKey: key.secretKey, target })
    return key
  }

  revoke(key: CancelKey): void {
    this.#byProcessId.delete(key.processId)
  }

  /** Whose key this is; null for a guess. */
  find(processId: number, secretKey: Buffer): Target | null {
    const found = this.#byProcessId.get(processId)
    if (found === undefined || found.secretKey.length !== secretKey.length) return null
    return timingSafeEqual(found.secretKey, secretKey) ? found.target : null
  }
}
