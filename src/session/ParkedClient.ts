/**
 * What a client sends while nothing is leased to it: what needs no server is answered here as PostgreSQL would, and the first
 * message that does is a reason to take a lease. Where none is to be had, that message is refused, with the rest of its batch.
 *
 * Deals with the held bytes from the front and forwards none; takes no lease and ends no session: the relay does.
 */
import type { ProtocolViolation, SessionFault } from "../errors.ts"
import { closeComplete, errorResponse, readyForQueryIdle } from "../protocol/Backend.ts"
import { Frontend, HEADER_LENGTH, indexOfNul, lengthAt } from "../protocol/Frame.ts"
import { violationOf } from "./ClientStream.ts"
import type { HeldBytes } from "./HeldBytes.ts"
import type { Link } from "./Link.ts"
import type { PreparedStatements } from "./PreparedStatements.ts"

/**
 * A message shorter than this is kept until it is whole before a connection is taken for it: a client that sends half of one
 * and stops holds nothing. Longer ones stream.
 */
const WHOLE_MESSAGE_LIMIT = 16 * 1024

/** What the client's held bytes come to: it has a request, it has said goodbye, or more of it has to come first. */
export type Wish = "lease" | "leave" | "nothing"

export class ParkedClient {
  readonly #link: Link
  readonly #held: HeldBytes
  readonly #statements: PreparedStatements
  /** Bytes still to come of a message that is passed over. */
  #rest = 0
  /** An extended batch was refused: all is dropped up to its Sync. */
  #droppingToSync = false

  constructor(link: Link, held: HeldBytes, statements: PreparedStatements) {
    this.#link = link
    this.#held = held
    this.#statements = statements
  }

  /** What `advance` would come to for the usual chunk, without a copy: nothing is held, and it begins with a request. */
  wantsLeaseFor(chunk: Buffer): boolean {
    if (this.#held.length > 0 || this.#link.clientStalled || this.#rest > 0 || this.#droppingToSync) return false
    return beginsRequest(chunk)
  }

  /** Answers what needs no server, up to the first message that does. A fault ends the session. */
  advance(): Wish | ProtocolViolation {
    while (this.#held.length > 0 && !this.#link.clientStalled) {
      if (this.#rest > 0) {
        const dropped = Math.min(this.#rest, this.#held.length)
        this.#rest -= dropped
        this.#held.drop(dropped)
        continue
      }
      const held = this.#held.peek()
      if (held.length < HEADER_LENGTH) return "nothing"
      const type = held[0]!
      const length = lengthAt(held, 1)
      const violation = violationOf(type, length)
      if (violation !== null) return violation
      const whole = held.length > length
      if (!whole && length < WHOLE_MESSAGE_LIMIT) return "nothing"
      if (type === Frontend.terminate) return "leave"
      if (!this.#answerAlone(type, held, length)) return "lease"
    }
    return "nothing"
  }

  /** True where the message is dealt with here, without a server. */
  #answerAlone(type: number, held: Buffer, length: number): boolean {
    switch (type) {
      case Frontend.sync:
        this.#droppingToSync = false
        this.#drop(length)
        this.#link.toClient(readyForQueryIdle)
        return true
      case Frontend.flush:
      case Frontend.copyData:
      case Frontend.copyDone:
      case Frontend.copyFail:
        // Late data of a COPY that failed: PostgreSQL drops them too.
        this.#drop(length)
        return true
      case Frontend.close:
        if (this.#droppingToSync) break
        // A malformed one is the server's to refuse.
        if (!isClose(held, length)) return false
        if (held[HEADER_LENGTH] === 0x53) this.#statements.closeWithoutLease(held.subarray(0, length + 1))
        this.#drop(length)
        this.#link.toClient(closeComplete)
        return true
    }
    if (!this.#droppingToSync) return false
    this.#drop(length)
    return true
  }

  /** Passes over the first held message, what is still to come of it included. */
  #drop(length: number): void {
    const here = Math.min(this.#held.length, length + 1)
    this.#rest = length + 1 - here
    this.#held.drop(here)
  }

  /** An ERROR answers the first held message as PostgreSQL would; what comes behind it is looked at as ever. */
  refuse({ sqlState, clientMessage, hint }: SessionFault): void {
    const held = this.#held.peek()
    const error = errorResponse({ severity: "ERROR", sqlState, message: clientMessage, hint })
    const simple = held[0] === Frontend.query || held[0] === Frontend.functionCall
    if (simple) this.#drop(lengthAt(held, 1))
    else this.#droppingToSync = true
    this.#link.toClient(simple ? Buffer.concat([error, readyForQueryIdle]) : error)
  }
}

/** A whole message that a server has to answer, short enough to be kept until it is whole. */
const beginsRequest = (chunk: Buffer): boolean => {
  if (chunk.length < HEADER_LENGTH) return false
  const length = lengthAt(chunk, 1)
  if (length < 4 || length >= WHOLE_MESSAGE_LIMIT || length >= chunk.length) return false
  switch (chunk[0]) {
    case Frontend.query:
    case Frontend.parse:
    case Frontend.bind:
    case Frontend.describe:
    case Frontend.execute:
    case Frontend.functionCall:
      return true
    default:
      return false
  }
}

/** A whole Close as chapter "Message Formats" has it. */
const isClose = (held: Buffer, length: number): boolean => {
  const kind = held[HEADER_LENGTH]
  return length >= 6 && (kind === 0x53 || kind === 0x50) && indexOfNul(held, HEADER_LENGTH + 1, length + 1) === length
}
