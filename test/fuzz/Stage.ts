/**
 * The whole service in memory for streams that nobody should send: a tenant on a well-behaved server, any number of tenants on
 * servers that answer whatever the test says, and a witness who must be served all the while.
 *
 * Time and chance are the World's: a run is decided by its seed. What must hold at the end is `violations`.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Result from "effect/Result"
import * as Scope from "effect/Scope"
import { decode } from "../../src/config/Decode.ts"
import { LiveConfig } from "../../src/config/LiveConfig.ts"
import type { Transport } from "../../src/net/Transport.ts"
import { Perseus } from "../../src/Perseus.ts"
import { cString, frame, int16, int32 } from "../../src/protocol/Encoder.ts"
import { Frontend } from "../../src/protocol/Frame.ts"
import { passwordMessage, query, startupMessage, sync } from "../../src/protocol/Frontend.ts"
import * as MemoryAuthRepo from "../../src/testing/MemoryAuthRepo.ts"
import * as MemoryKms from "../../src/testing/MemoryKms.ts"
import * as MemoryNetwork from "../../src/testing/MemoryNetwork.ts"
import * as MemoryPasswordHash from "../../src/testing/MemoryPasswordHash.ts"
import * as MemoryPostgres from "../../src/testing/MemoryPostgres.ts"
import { World } from "../simulation/World.ts"

const PASSWORD = "password"
const DATABASE = "shop"
const PORT = 5432
/** More than one client's stream can make happen. */
const STEP_LIMIT = 300_000

export const startupOf = (schema: string): Buffer =>
  startupMessage([
    ["user", "mm"],
    ["database", DATABASE],
    ["schema_search_path", schema]
  ])
export const loginPassword: Buffer = passwordMessage(PASSWORD)

/** A server's side of one connection, handed to the test. */
export type Evil = (transport: Transport) => void

const configuration = Result.getOrThrow(
  decode({
    ListenAddress: "127.0.0.1:5433",
    AuthDBSettings: { AuthDBDSN: "postgres://unused@unused/unused", AuthQueryTimeoutSecs: 2 },
    AWSSettings: { Region: "us-east-1", KMSKeyARN: "arn" },
    PoolSettings: {
      MaxIdle: 2,
      MaxOpen: 2,
      ConnCreateTimeoutSecs: 2,
      ConnCloseTimeoutSecs: 1,
      SchemaExecTimeoutSecs: 2
    },
    TLSSettings: { ServerMode: "disable" },
    LimitSettings: {
      AcquireTimeoutSecs: 9,
      IdleInTransactionTimeoutSecs: 1,
      QueryTimeoutSecs: 2,
      CancelTimeoutSecs: 1,
      ClientLoginTimeoutSecs: 5,
      ShutdownTimeoutSecs: 2,
      ServerCheckDelaySecs: 0
    }
  })
)

/** A client that keeps what it hears, and does nothing else. */
export class Peer {
  readonly transport: Transport
  #heard: Array<Buffer> = []
  closed = false

  constructor(transport: Transport) {
    this.transport = transport
    transport.handler = {
      onData: (chunk) => void this.#heard.push(Buffer.from(chunk)),
      onDrain: () => {},
      onClose: () => {
        this.closed = true
      }
    }
  }

  send(...pieces: ReadonlyArray<Uint8Array>): void {
    for (const piece of pieces) this.transport.write(Buffer.from(piece))
  }

  /** What has come since it was last asked. */
  heard(): Buffer {
    const heard = Buffer.concat(this.#heard)
    this.#heard = []
    return heard
  }
}

export class Stage {
  readonly world: World
  readonly violations: Array<string> = []
  readonly #scope = Effect.runSync(Scope.make())
  readonly #network: MemoryNetwork.MemoryNetwork
  readonly #service: Perseus["Service"]
  readonly #witness: Peer

  /** `evil`: by host name; the tenant of each has the host's name for its schema. */
  constructor(seed: number, evil: Readonly<Record<string, Evil>> = {}) {
    this.world = new World(seed)
    this.#network = MemoryNetwork.make({ schedule: this.world.schedule })
    const postgres = this.#run(MemoryPostgres.make({ users: { app: "secret" } }))
    postgres.attach(this.#network, "honest", PORT)
    const kms = MemoryKms.make()
    const repo = this.#run(MemoryAuthRepo.make())
    const setTenant = (schema: string, host: string) =>
      repo.set({
        sourceDb: DATABASE,
        sourceSchema: schema,
        sourceUser: "mm",
        sourcePassHashed: MemoryPasswordHash.stored(PASSWORD),
        destHost: host,
        destDb: DATABASE,
        destUser: "app",
        destPassEnc: kms.encrypt("secret")
      })
    for (const schema of ["red", "witness"]) setTenant(schema, "honest")
    for (const [host, onConnection] of Object.entries(evil)) {
      setTenant(host, host)
      this.#network.serve(host, PORT, onConnection)
    }
    const service = Perseus.layerNoDeps.pipe(
      Layer.provide([
        LiveConfig.layerOf(configuration),
        this.#network.layer,
        repo.layer,
        kms.layer,
        MemoryPasswordHash.layer
      ])
    )
    this.#service = Effect.runSync(Effect.provide(Perseus, this.#run(Layer.build(service))))
    this.#witness = this.dial()
    this.#witness.send(startupOf("witness"), loginPassword)
    this.settle()
    this.#witness.heard()
  }

  #run<A>(effect: Effect.Effect<A, unknown, Scope.Scope>): A {
    const fiber = Effect.runFork(this.world.provide(Scope.provide(effect, this.#scope)))
    this.settle()
    const exit = fiber.pollUnsafe()
    if (exit === undefined || Exit.isFailure(exit)) throw new Error(`the stage cannot be set: ${String(exit)}`)
    return exit.value
  }

  dial(): Peer {
    return new Peer(this.#network.dial())
  }

  /** All that can happen without time passing; a loop that never ends is found here. */
  settle(): void {
    this.world.settle(STEP_LIMIT)
  }

  pass(seconds: number): void {
    for (let second = 0; second < seconds; second++) this.world.pass(1000)
  }

  /** The witness asks, and must have the answer within a few seconds: its own path, and once. */
  checkWitness(): void {
    const batch = [
      frame(Frontend.parse, cString("mine"), cString("SELECT whoami"), int16(0)),
      frame(Frontend.bind, cString(""), cString("mine"), int16(0), int16(0), int16(0)),
      frame(Frontend.execute, cString(""), int32(0)),
      frame(Frontend.close, Buffer.of(0x53), cString("mine")),
      sync
    ]
    this.#witness.send(Buffer.concat(batch), query("SELECT whoami"))
    this.settle()
    let heard = this.#witness.heard()
    // Another may hold both connections until its time is over.
    for (let second = 0; second < 10 && readyIn(heard) < 2; second++) {
      this.world.pass(1000)
      heard = Buffer.concat([heard, this.#witness.heard()])
    }
    const text = heard.toString("latin1")
    if (readyIn(heard) !== 2 || text.split("witness").length !== 3) {
      this.violations.push(`the witness was told ${JSON.stringify(text)}`)
    }
  }

  /** When all but the witness have gone: nothing is held, nothing waits, and what is open is known. */
  checkWhole(): void {
    this.pass(8)
    this.checkWitness()
    let known = 0
    for (const { open, idle, inUse, closing, opening, waiting, destHost } of this.#service.pools()) {
      known += open
      if (open !== idle || inUse + closing + opening + waiting > 0) {
        this.violations.push(`${destHost}: ${JSON.stringify({ open, idle, inUse, closing, opening, waiting })}`)
      }
    }
    const { connected, connecting, accepted } = this.#network.openTransports()
    if (connected !== known || connecting > 0) {
      this.violations.push(`${connected} connections are open and ${connecting} on their way, the pools know ${known}`)
    }
    if (this.#service.live.count !== 1 || accepted !== 1) {
      this.violations.push(
        `${this.#service.live.count} sessions on ${accepted} connections are left, not the witness alone`
      )
    }
  }

  end(): void {
    this.#witness.transport.destroy()
    Effect.runFork(this.world.provide(Scope.close(this.#scope, Exit.void)))
    this.pass(5)
    const { accepted, connected, connecting } = this.#network.openTransports()
    if (accepted + connected + connecting > 0) this.violations.push("something is open behind the service's end")
  }
}

const ready = Buffer.from("Z\0\0\0\x05I", "latin1")

const readyIn = (heard: Buffer): number => {
  let count = 0
  for (let at = heard.indexOf(ready); at !== -1; at = heard.indexOf(ready, at + ready.length)) count++
  return count
}
