/**
 * The client's half of the relay: what the client sends during a lease goes to the server as it came, or translated, and what is
 * expected in answer to it is written down.
 *
 * Frame borders are found, one write a chunk. What cannot go yet (the beginning of a message that has to be whole, what is behind
 * too much that was rewritten) is held. It takes and gives back no connection and ends no session: the relay does. A chunk that
 * is to be lent is valid only during `forward`; one that is to be given is the server's transport's afterwards.
 */
import { FeatureNotSupported, ProtocolViolation, type SessionFault } from "../errors.ts"
import { Frontend, frontendLimits, HEADER_LENGTH, lengthAt } from "../protocol/Frame.ts"
import type { Expectations } from "./Expectations.ts"
import type { HeldBytes } from "./HeldBytes.ts"
import { give, lend, viewOf, type Link, type Pass } from "./Link.ts"
import { Outgoing } from "./Outgoing.ts"
import type { TransactionTimeouts } from "./TransactionTimeouts.ts"
import type { Translator } from "./Translator.ts"

/** 20 bytes of a Bind can make us send a statement of megabytes: beyond this much the rest waits until the server has taken it. */
const REWRITTEN_LIMIT = 256 * 1024

/** Of all sessions: nothing comes between its beginning and its end. */
const outgoing = new Outgoing()

/** Where the message cannot be one. */
export const violationOf = (type: number, length: number): ProtocolViolation | null => {
  const limit = frontendLimits[type]!
  if (limit !== 0 && length >= 4 && length <= limit) return null
  return new ProtocolViolation({
    detail: limit === 0 ? `message type 0x${type.toString(16)} is not expected here` : "impossible message length"
  })
}

/** What it goes by. */
export interface ClientStreamOptions {
  readonly link: Link
  readonly held: HeldBytes
  readonly expectations: Expectations
  readonly timeouts: TransactionTimeouts
  readonly translator: Translator
}

export class ClientStream {
  readonly #link: Link
  readonly #held: HeldBytes
  readonly #expectations: Expectations
  readonly #timeouts: TransactionTimeouts
  readonly #translator: Translator

  #terminating = false
  /** Bytes still to come of a message whose beginning was forwarded. */
  #rest = 0

  constructor(options: ClientStreamOptions) {
    this.#link = options.link
    this.#held = options.held
    this.#expectations = options.expectations
    this.#timeouts = options.timeouts
    this.#translator = options.translator
  }

  /** Terminate has come: what was asked before it is still answered for. */
  get terminating(): boolean {
    return this.#terminating
  }

  /** The server has had the beginning of a message, whose rest is still to come. */
  get midMessage(): boolean {
    return this.#rest > 0
  }

  /** The server is at work, and not waiting for the rest of a long message. */
  get serverBusy(): boolean {
    return this.#rest > 0 ? this.#expectations.serverBusyBeforeLast : this.#expectations.serverBusy
  }

  /** A fault ends the session. */
  forward(chunk: Buffer, pass: Pass): SessionFault | null {
    const end = chunk.length
    const wasBusy = this.serverBusy
    let at = Math.min(this.#rest, end)
    let needed = 0
    this.#rest -= at
    outgoing.begin()
    while (at < end && outgoing.added < REWRITTEN_LIMIT) {
      if (end - at < HEADER_LENGTH) break
      const type = chunk[at]!
      const length = lengthAt(chunk, at + 1)
      const violation = violationOf(type, length)
      if (violation !== null) return violation
      if (type === Frontend.terminate) {
        this.#terminating = true
        break
      }
      const next = at + 1 + length
      const translated = this.#translator.translate(this.#link, type, chunk, at, next, length, outgoing)
      if (translated === "incomplete") {
        // The names of a Bind come first: a little more may do.
        if (type !== Frontend.bind) needed = length + 1
        break
      }
      if (translated instanceof FeatureNotSupported) return translated
      at = next
    }
    if (at > 0 && this.#link.resting) {
      this.#link.resting = false
      this.#timeouts.restartIdle()
    }
    if (at > end) this.#rest = at - end
    else if (at < end && !this.#terminating) {
      this.#held.append(chunk.subarray(at))
      this.#held.needs(needed)
    }
    const { added } = outgoing
    const taken = this.#pass(chunk, Math.min(at, end), pass)
    this.#watch(wasBusy)
    // Nothing will drain where all was taken at once.
    return taken && added >= REWRITTEN_LIMIT && this.#held.ready ? this.forward(this.#held.take(), give) : null
  }

  /** What the chunk has become up to `to`. */
  #pass(chunk: Buffer, to: number, pass: Pass): boolean {
    if (!outgoing.changed) return this.#link.toServer(viewOf(chunk, 0, to), pass)
    const { bytes, lent } = outgoing.finish(chunk, to)
    return this.#link.toServer(bytes, lent ? lend : give)
  }

  #watch(wasBusy: boolean): void {
    if (this.#expectations.copyIn || this.#rest > 0) this.#timeouts.restartIdle()
    if (!wasBusy && this.serverBusy) this.#timeouts.restartBusy()
  }
}
