/**
 * When a login is answered: a refusal never at once, and whoever has failed too often later and later, then not at all for a
 * while.
 *
 * Failures are counted by address (IPv6 by its /64, which is what one customer is given) and by tenant, known or not. A
 * tenant's count alone would be a weapon: whoever guesses wrong passwords would lock the tenant's own clients out. So an
 * address that has logged in to a tenant before is counted apart, by itself and for that tenant: neither of the two counts
 * hits it, and its own hits nobody else.
 *
 * No answer tells more than that there is a block: while there is one, right and wrong are refused alike. Its memory is
 * bounded (what is unused for longest is forgotten), and keeps digests in place of what clients named.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import { createHash } from "node:crypto"
import { isIPv6 } from "node:net"
import type { LoginSettings } from "../config/PerseusConfig.ts"
import { LoginBlocked, type LoginRefused } from "../errors.ts"

const MAX_COUNTED = 10_000
const MAX_PROVEN = 50_000
/** Logins that are being delayed. More are refused: each is a connection that is held open. */
export const MAX_DELAYED = 1000

/** From the proof's arrival to a refusal, at least: longer than a derivation takes on a machine that is not overloaded. */
export const REFUSAL_DELAY_MS = 250

const FIRST_DELAY_MS = 250
export const MAX_DELAY_MS = 5000
/** A name in the log may be a client's invention. */
const MAX_LOGGED_NAME = 160

/** What a count is of; as metrics name it. */
export type Culprit = "address" | "tenant"

export interface ThrottleCounts {
  readonly delayed: Readonly<Record<Culprit, number>>
  readonly blocked: Readonly<Record<Culprit, number>>
}

/** One login, and the counts that it may be in. */
export interface LoginAttempt {
  readonly address: Count
  readonly tenant: Count
  /** This address, for this tenant. */
  readonly both: Count
}

interface Count {
  readonly culprit: Culprit
  readonly key: string
  /** For the log. */
  readonly name: string
}

interface Failures {
  count: number
  /** The count begins anew then. */
  until: number
  blockedUntil: number
}

export class LoginThrottle {
  readonly #settings: () => LoginSettings
  readonly #failures = new Recent<Failures>(MAX_COUNTED)
  /** Addresses for tenants to which they have logged in. */
  readonly #proven = new Recent<true>(MAX_PROVEN)
  readonly #counts = { delayed: { address: 0, tenant: 0 }, blocked: { address: 0, tenant: 0 } }
  #delayed = 0

  constructor(settings: () => LoginSettings) {
    this.#settings = settings
  }

  get counts(): ThrottleCounts {
    return this.#counts
  }

  /** `remote`: "host:port". `tenant`: one name for each. */
  attempt(remote: string, tenant: string): LoginAttempt {
    const address = networkOf(remote)
    const [forAddress, forTenant] = [`address ${address}`, `tenant ${tenant.slice(0, MAX_LOGGED_NAME)}`]
    return {
      address: { culprit: "address", key: digest(address), name: forAddress },
      tenant: { culprit: "tenant", key: digest(tenant), name: forTenant },
      both: { culprit: "address", key: digest(address, tenant), name: `${forAddress} for ${forTenant}` }
    }
  }

  /**
   * Before anything is looked up: fails where the address alone is reason enough. One that has logged in before is asked for
   * its proof first, for a password that is known to be right is let in whatever happens around it.
   */
  admit(attempt: LoginAttempt): Effect.Effect<void, LoginBlocked> {
    return Effect.suspend(() => (this.#isProven(attempt) ? Effect.void : this.#refuseIfBlocked([attempt.address])))
  }

  /**
   * The proof has come, and `judgement` finds out whether it is right, and fails where it is not. What is right and what is wrong
   * see the same block and delay, and what is wrong counts before its client can leave; but nothing counts in a block, where
   * nothing is learnt. An interrupted judgement is no failure: clients of a busy machine give up, too.
   */
  judge(
    attempt: LoginAttempt,
    judgement: Effect.Effect<void, LoginRefused>
  ): Effect.Effect<void, LoginRefused | LoginBlocked> {
    return Effect.gen({ self: this }, function* () {
      yield* this.#refuseIfBlocked(this.#countsFor(attempt))
      const since = yield* Clock.currentTimeMillis
      const verdict = yield* Effect.result(judgement)
      // Again: others may have failed meanwhile, as many as there are connections.
      yield* this.#refuseIfBlocked(this.#countsFor(attempt))
      const delay = yield* this.#delay(this.#countsFor(attempt))
      if (Result.isFailure(verdict)) {
        yield* this.#failed(attempt)
        yield* sleepUntil(since + REFUSAL_DELAY_MS)
      }
      yield* delay
      yield* Effect.fromResult(verdict)
      this.welcome(attempt)
    })
  }

  /** The proof has come, and is wrong where the right one would be let in whatever happens: it counts in a block, too. */
  refuse(attempt: LoginAttempt, refusal: LoginRefused): Effect.Effect<void, LoginRefused | LoginBlocked> {
    return this.judge(attempt, Effect.fail(refusal)).pipe(
      Effect.tapErrorTag("LoginBlocked", () => this.#failed(attempt))
    )
  }

  /** Is let in. */
  welcome(attempt: LoginAttempt): void {
    this.#proven.put(attempt.both.key, true)
  }

  #failed(attempt: LoginAttempt): Effect.Effect<void> {
    return Effect.flatMap(Clock.currentTimeMillis, (now) =>
      Effect.forEach(this.#countsFor(attempt), (count) => this.#count(count, now), { discard: true })
    )
  }

  #countsFor(attempt: LoginAttempt): ReadonlyArray<Count> {
    return this.#isProven(attempt) ? [attempt.both] : [attempt.address, attempt.tenant]
  }

  #isProven({ both }: LoginAttempt): boolean {
    return this.#proven.get(both.key) !== undefined
  }

  #refuseIfBlocked(counts: ReadonlyArray<Count>): Effect.Effect<void, LoginBlocked> {
    return Effect.flatMap(Clock.currentTimeMillis, (now) => {
      if (this.#settings().FailuresBeforeBlock === 0) return Effect.void
      for (const count of counts) {
        const blockedUntil = this.#failures.get(count.key)?.blockedUntil ?? 0
        if (blockedUntil > now) return this.#refuse(count, blockedUntil - now)
      }
      return Effect.void
    })
  }

  #refuse({ culprit }: Count, millis: number): Effect.Effect<never, LoginBlocked> {
    this.#counts.blocked[culprit]++
    const scope = culprit === "address" ? "from this address" : "to this tenant"
    return Effect.fail(new LoginBlocked({ scope, seconds: Math.ceil(millis / 1000) }))
  }

  /** The delay, to be slept through, or a failure where too many sleep. */
  #delay(counts: ReadonlyArray<Count>): Effect.Effect<Effect.Effect<void>, LoginBlocked> {
    return Effect.flatMap(Clock.currentTimeMillis, (now) => {
      const [longest] = counts
        .map((count) => ({ count, millis: this.#delayOf(count, now) }))
        .toSorted((one, other) => other.millis - one.millis)
      if (longest === undefined || longest.millis === 0) return Effect.succeed(Effect.void)
      if (this.#delayed >= MAX_DELAYED) return this.#refuse(longest.count, longest.millis)
      this.#counts.delayed[longest.count.culprit]++
      return Effect.succeed(
        Effect.acquireUseRelease(
          Effect.sync(() => this.#delayed++),
          () => Effect.sleep(longest.millis),
          () => Effect.sync(() => this.#delayed--)
        )
      )
    })
  }

  #delayOf(count: Count, now: number): number {
    const { FailuresBeforeDelay } = this.#settings()
    const failures = this.#failures.get(count.key)
    if (FailuresBeforeDelay === 0 || failures === undefined || failures.until <= now) return 0
    const over = failures.count - FailuresBeforeDelay
    return over < 0 ? 0 : Math.min(FIRST_DELAY_MS * 2 ** over, MAX_DELAY_MS)
  }

  #count({ key, name }: Count, now: number): Effect.Effect<void> {
    const { FailuresBeforeBlock, FailureWindowSecs, BlockSecs } = this.#settings()
    const known = this.#failures.get(key)
    if (known !== undefined && known.blockedUntil > now) return Effect.void
    const failures =
      known !== undefined && known.until > now
        ? known
        : { count: 0, until: now + FailureWindowSecs * 1000, blockedUntil: 0 }
    failures.count++
    this.#failures.put(key, failures)
    if (FailuresBeforeBlock === 0 || failures.count < FailuresBeforeBlock) return Effect.void
    failures.blockedUntil = now + BlockSecs * 1000
    failures.until = failures.blockedUntil
    return Effect.logWarning(`${name} is blocked for ${BlockSecs} s: ${failures.count} logins failed`)
  }
}

/** A bounded map: what was not asked for or put for longest goes first. */
class Recent<Value> {
  readonly #values = new Map<string, Value>()
  readonly #limit: number

  constructor(limit: number) {
    this.#limit = limit
  }

  get(key: string): Value | undefined {
    const value = this.#values.get(key)
    if (value !== undefined) this.put(key, value)
    return value
  }

  put(key: string, value: Value): void {
    this.#values.delete(key)
    this.#values.set(key, value)
    if (this.#values.size <= this.#limit) return
    for (const oldest of this.#values.keys()) {
      this.#values.delete(oldest)
      return
    }
  }
}

const sleepUntil = (moment: number): Effect.Effect<void> =>
  Effect.flatMap(Clock.currentTimeMillis, (now) => Effect.sleep(Math.max(0, moment - now)))

/** A short key, however long the names are. */
const digest = (...names: ReadonlyArray<string>): string => {
  const key = JSON.stringify(names)
  return key.length <= MAX_KEY_LENGTH ? key : createHash("sha256").update(key).digest("base64")
}

const MAX_KEY_LENGTH = 64

/** The address without its port, and of an IPv6 address the first four groups. */
export const networkOf = (remote: string): string => {
  const host = remote.replace(/:\d*$/, "").replace(/^\[(.*)\]$/, "$1")
  const address = host.replace(/%.*$/, "").replace(/^::ffff:(?=\d+\.)/i, "")
  if (!address.includes(":") || !isIPv6(address)) return address
  const [head = "", tail] = address.toLowerCase().split("::")
  const groups = head === "" ? [] : head.split(":")
  const behind = tail === undefined || tail === "" ? 0 : tail.split(":").length
  if (tail !== undefined) groups.push(...Array<string>(Math.max(0, 8 - groups.length - behind)).fill("0"))
  if (tail !== undefined && tail !== "") groups.push(...tail.split(":"))
  return `${groups
    .slice(0, 4)
    .map((group) => Number.parseInt(group, 16).toString(16))
    .join(":")}::/64`
}
