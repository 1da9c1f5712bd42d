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

/** Taken by the page: a call for random bytes takes 3 µs, however few. Each byte is given out once, and wiped here. */
class Secrets {
  #page = Buffer.alloc(0)
  #at = 0

  take(length: number): Buffer {
    if (this.#at + length > this.#page.length) {
      this.#page = randomBytes(PAGE_LENGTH)
      this.#at = 0
    }
    const secret = Buffer.from(this.#page.subarray(this.#at, this.#at + length))
    this.#page.fill(0, this.#at, this.#at + length)
    this.#at += length
    return secret
  }
}

const PAGE_LENGTH = 4096

export class Cancellation<Target> {
  readonly #byProcessId = new Map<number, { readonly secretKey: Buffer; readonly target: Target }>()
  readonly #process: number
  readonly #secrets = new Secrets()
  #last = 0

  constructor(process = 0) {
    this.#process = process << SESSION_BITS
  }

  /** `minor`: of the protocol that the client speaks. */
  issue(target: Target, minor: number): CancelKey {
    // Never 0, and never one that is in use: the counter comes round after 16 million sessions.
    do this.#last = (this.#last + 1) & SESSION_MASK
    while (this.#last === 0 || this.#byProcessId.has(this.#process | this.#last))
    const key = { processId: this.#process | this.#last, secretKey: this.#secrets.take(secretLength(minor)) }
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
