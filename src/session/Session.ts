/**
 * One client connection, from accept to close: a fiber that logs the client in, sleeps while the relay moves bytes, and gives
 * back all it holds whichever way it ends.
 *
 * Everything that can go wrong is a typed `SessionFault`; here it becomes the client's ErrorResponse and the log's line. The
 * fiber owns the transport; the relay borrows it, and its finalizer returns the lease.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import type { LiveConfig } from "../config/LiveConfig.ts"
import type { LimitSettings } from "../config/PerseusConfig.ts"
import type { LiveTls } from "../config/LiveTls.ts"
import {
  ProtocolViolation,
  ShuttingDown,
  TlsRequired,
  TooManyClients,
  type SessionFault,
  type TlsHandshakeFailed
} from "../errors.ts"
import { ByteReader, type ReadFailure } from "../net/ByteReader.ts"
import type { Transport } from "../net/Transport.ts"
import type { Hold } from "../pool/Inspection.ts"
import type { Place, Pools } from "../pool/Pools.ts"
import {
  authenticationOk,
  backendKeyData,
  errorResponse,
  negotiateProtocolVersion,
  readyForQueryIdle
} from "../protocol/Backend.ts"
import type { Authenticator, Identity } from "../tenant/Authenticator.ts"
import { LiveSession, type LiveSessions } from "./LiveSessions.ts"
import { promptFor } from "./LoginPrompt.ts"
import { negotiate, type LoginRequest } from "./Negotiation.ts"
import { Relay, type RelayOptions } from "./Relay.ts"

const PROTOCOL_3 = 0x00030000
const LAST_WORDS_TIMEOUT = "2 seconds"

/** What a session needs of the house. */
export interface House {
  readonly config: LiveConfig["Service"]
  readonly tls: LiveTls["Service"]
  readonly authenticator: Authenticator["Service"]
  readonly pools: Pools["Service"]
  readonly live: LiveSessions
  readonly limits: () => LimitSettings
  /** Writes down that this client keeps its server connection from now on, and why. */
  readonly onPinned: (client: Transport, holds: ReadonlyArray<Hold>) => void
  /** Looks at the session's row again: it may have changed while the client logged in, when nobody could be told. */
  readonly recheck: (session: LiveSession) => void
}

/**
 * Ends when the client has gone or was told why it must go, with what it was told. Never fails.
 *
 * A session sleeps most of its life. Its fiber's stack is flat then: the frames of the login are gone, and there is one that
 * gives back (each operator around it is 100 to 300 bytes of every idle client; `suspend`: what an operator is made of lives
 * as long as its frame).
 */
export const serve = (house: House, reader: ByteReader, transport: Transport): Effect.Effect<SessionFault | null> =>
  Effect.suspend(() => {
    house.live.open(transport)
    const login: Login = { placeScope: Scope.makeUnsafe(), cutShortBy: null }
    return Effect.onExit(
      Effect.suspend(() =>
        Effect.flatMap(admit(house, reader, transport, login), (client) =>
          client === null ? untold : relay(house, reader, transport, client)
        )
      ),
      (exit) => leave(house, transport, login, exit)
    )
  })

const untold = Effect.succeed<SessionFault | null>(null)

interface Login {
  /** Holds the place that it comes to. */
  readonly placeScope: Scope.Closeable
  /** Why it could not go on, though it had not failed. */
  cutShortBy: SessionFault | ReadFailure | null
}

/** Null where there is nobody to serve: it has been told why, has left, or came for a cancel, which is done. */
const admit = (
  house: House,
  reader: ByteReader,
  transport: Transport,
  login: Login
): Effect.Effect<LoggedInClient | null> =>
  Effect.withFiber((fiber) => {
    const { live, limits } = house
    let isOver = false
    let end = () => {}
    // A race of the login with what may end it would be the plainer way: two more fibers, 5 µs each.
    const cutShort = (failure: SessionFault | ReadFailure) => {
      if (isOver) return
      login.cutShortBy ??= failure
      fiber.interruptUnsafe()
    }
    return Effect.suspend(() => {
      const since = fiber.getRef(Clock.Clock).currentTimeMillisUnsafe()
      end = live.beginLogin({ seconds: limits().ClientLoginTimeoutSecs, since, cutShort })
      reader.watch(cutShort)
      return logIn(house, reader, transport, login.placeScope)
    }).pipe(
      Effect.ensuring(
        Effect.sync(() => {
          isOver = true
          end()
          reader.watch(null)
        })
      ),
      Effect.catch((failure) => Effect.as(reportFailed(house, transport, failure), null)),
      Effect.annotateLogs({ remote: transport.remote })
    )
  })

/** Its client is told why it is not let in, and the log. */
const reportFailed = (
  { live }: House,
  transport: Transport,
  failure: SessionFault | TlsHandshakeFailed | ReadFailure
): Effect.Effect<void> => {
  live.countLogin(outcomeOf(failure))
  if (failure._tag === "TlsHandshakeFailed") return Effect.logInfo(failure.message)
  const fault = faultOf(failure)
  return fault === null ? Effect.logDebug("the client left during its login") : tell(live, transport, fault)
}

/** Gives back all that the session holds, whichever way it ended: the place of its login, or where it is now. */
const leave = (
  house: House,
  transport: Transport,
  { cutShortBy, placeScope }: Login,
  exit: Exit.Exit<SessionFault | null>
): Effect.Effect<void> => {
  const { live } = house
  const session = live.find(transport)
  const fault = Exit.isSuccess(exit) ? exit.value : null
  const hasLeft = fault === null && session?.relay.clientHasLeft === true
  const wasCutShort = cutShortBy !== null && Exit.isFailure(exit)
  const farewell = wasCutShort
    ? reportFailed(house, transport, cutShortBy)
    : fault === null
      ? null
      : tell(live, transport, fault)
  // It is an interrupted fiber's, in which nothing that may be interrupted is waited for.
  const ending = hasLeft ? closeAtOnce(transport) : wasCutShort ? lastWords(transport) : close(transport)
  const tenant = session?.identity.placement.tenantKey
  return (farewell === null ? Effect.void : Effect.annotateLogs(farewell, { remote: transport.remote, tenant })).pipe(
    Effect.ensuring(Scope.close(session?.placeScope ?? placeScope, Exit.void)),
    Effect.ensuring(ending),
    Effect.ensuring(Effect.sync(() => live.close(transport)))
  )
}

/**
 * The client has said goodbye, or gone: as by PostgreSQL, it is not waited for. It sends nothing more, which a reset would answer
 * that takes with it what is still under way.
 */
const closeAtOnce = (transport: Transport): Effect.Effect<void> =>
  Effect.suspend(() => (transport.flushed ? destroy(transport) : close(transport)))

/** Lets the last words out. A client that does not take them is cut off, and so is one whose session is interrupted. */
const close = (transport: Transport): Effect.Effect<void> =>
  Effect.ensuring(Effect.interruptible(lastWords(transport)), destroy(transport))

const lastWords = (transport: Transport): Effect.Effect<void> =>
  Effect.suspend(() => {
    if (transport.closed) return destroy(transport)
    return Effect.callback<void>((resume) => {
      transport.handler = { onData: () => {}, onDrain: () => {}, onClose: () => resume(Effect.void) }
      transport.end()
    }).pipe(Effect.timeoutOption(LAST_WORDS_TIMEOUT), Effect.ensuring(destroy(transport)))
  }).pipe(Effect.asVoid)

const destroy = (transport: Transport): Effect.Effect<void> => Effect.sync(() => transport.destroy())

interface LoggedInClient {
  readonly request: LoginRequest
  readonly identity: Identity
  readonly place: Place
  readonly placeScope: Scope.Closeable
  readonly parameters: Buffer
  /** What `rowChanges` was before the row was looked up. */
  readonly rowChanges: number
}

/** Null where the connection was for a cancel, which is done. Its place is held by the scope. */
const logIn = Effect.fnUntraced(function* (
  house: House,
  reader: ByteReader,
  transport: Transport,
  placeScope: Scope.Closeable
): Effect.fn.Return<LoggedInClient | null, SessionFault | TlsHandshakeFailed | ReadFailure> {
  const request = yield* negotiate(reader, transport, house.tls.toClients())
  if (request._tag === "Cancel") {
    yield* house.live.cancel(request.processId, request.secretKey)
    return null
  }
  if (house.live.draining) return yield* new ShuttingDown()
  const { LimitSettings, LoginSettings } = house.config.current()
  if (LoginSettings.RequireTLS && transport.tls === null) return yield* new TlsRequired()
  const { MaxClients } = LimitSettings
  if (MaxClients > 0 && house.live.count > MaxClients) {
    return yield* new TooManyClients({ scope: "this pooler", limit: MaxClients })
  }
  if (request.askedMinor > request.minor || request.unknownProtocolOptions.length > 0) {
    transport.write(negotiateProtocolVersion(PROTOCOL_3 + request.minor, request.unknownProtocolOptions))
  }
  const { rowChanges } = house.live
  const { key, user } = request
  const claim = { key, user, remote: transport.remote }
  const identity = yield* house.authenticator.login(claim, promptFor(reader, transport))
  const full = tenantIsFull(house, identity)
  if (full !== null) return yield* full
  const place = yield* Scope.provide(house.pools.place(identity.placement, request.settings), placeScope)
  const parameters = yield* place.pool.greeting(place.tenant, request.settings)
  return { request, identity, place, placeScope, parameters, rowChanges }
})

const tenantIsFull = (house: House, { placement }: Identity): TooManyClients | null => {
  const { MaxClientsPerTenant: limit } = house.config.current().LimitSettings
  return limit > 0 && house.live.countOf(placement.tenantKey) >= limit
    ? new TooManyClients({ scope: "this tenant", limit })
    : null
}

/** Greets, then sleeps until the session is over, with what there is to tell the client. */
const relay = (
  house: House,
  reader: ByteReader,
  transport: Transport,
  client: LoggedInClient
): Effect.Effect<SessionFault | null> =>
  Effect.callback<SessionFault | null>((resume) => {
    // Again: others of its tenant may have come in while it waited for its greeting.
    const full = tenantIsFull(house, client.identity)
    if (full !== null) {
      house.live.countLogin(outcomeOf(full))
      return resume(Effect.succeed(full))
    }
    return disposal(begin(house, reader, transport, client, endBy(resume)))
  })

// Functions of their own: what lives as long as the session must not close over what it was begun with.
const disposal = (pump: Relay): Effect.Effect<void> => Effect.sync(() => pump.dispose())
const endBy =
  (resume: (ending: Effect.Effect<SessionFault | null>) => void): RelayOptions["onEnd"] =>
  (fault) =>
    resume(Effect.succeed(fault))

const begin = (
  house: House,
  reader: ByteReader,
  transport: Transport,
  { request, identity, place, placeScope, parameters, rowChanges }: LoggedInClient,
  onEnd: RelayOptions["onEnd"]
): Relay => {
  const { live, limits, onPinned } = house
  const { counters, allowance } = live
  const { settings } = request
  const pump = new Relay({ client: transport, ...place, settings, limits, counters, allowance, onPinned, onEnd })
  const session = new LiveSession(pump, identity, place, placeScope)
  const key = live.logIn(transport, session, request.minor)
  live.countLogin("ok")
  transport.write(
    Buffer.concat([authenticationOk, parameters, backendKeyData(key.processId, key.secretKey), readyForQueryIdle])
  )
  pump.start(reader.takeRest())
  if (live.draining) pump.endAtBorder(new ShuttingDown())
  if (live.rowChanges !== rowChanges) house.recheck(session)
  return pump
}

/** The last words to the client, and the log's line. */
const tell = (live: LiveSessions, transport: Transport, fault: SessionFault): Effect.Effect<void> =>
  Effect.suspend(() => {
    live.counters.countError(fault.sqlState)
    transport.end(
      errorResponse({
        severity: "FATAL",
        sqlState: fault.sqlState,
        message: fault.clientMessage,
        hint: fault.hint
      })
    )
    return Effect.logWithLevel(fault.logLevel)(fault.message)
  })

/** Null where nobody is there any more to be told. */
const faultOf = (failure: SessionFault | ReadFailure): SessionFault | null => {
  switch (failure._tag) {
    case "PeerGone":
      return null
    case "BadLength":
      return new ProtocolViolation({ detail: "impossible message length" })
    default:
      return failure
  }
}

const outcomeOf = (failure: SessionFault | TlsHandshakeFailed | ReadFailure): string =>
  failure._tag === "LoginRefused" ? failure.why : failure._tag
