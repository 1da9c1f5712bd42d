/**
 * One application's connection in the simulation: does what its dice say, and checks all that it hears.
 *
 * It keeps its own account of what it is owed. What it may not see: a row that does not carry its own tenant's mark, an answer
 * to another's question, silence after something that must be answered.
 */
import type { Transport } from "../../src/net/Transport.ts"
import { frame, cString, int16, int32 } from "../../src/protocol/Encoder.ts"
import { FrameCollector, Frontend, TransactionStatus, type Frame } from "../../src/protocol/Frame.ts"
import { decodeError } from "../../src/protocol/Backend.ts"
import { cancelRequest, passwordMessage, query, startupMessage, sync } from "../../src/protocol/Frontend.ts"
import type { World } from "./World.ts"

export interface SimulatedTenant {
  /** Stands for it in what its clients ask. */
  readonly mark: string
  readonly schema: string
  readonly destUser: string
  readonly password: string
  /** Its row's `pool_mode`. */
  readonly mode: "transaction" | "session"
}

/** What work_mem is where nobody has set it. */
const USUAL_WORK_MEM = "4MB"

/** What may be told in a world like this. */
const known = /^(57014|22012|53300|57P01|08001|08P01|25P02|25P03|25001|42P05|26000|28P01|55P02|08006|53100)$/

export class SimulatedClient {
  readonly tenant: SimulatedTenant
  readonly id: number
  readonly violations: Array<string> = []
  #transport: Transport | null = null
  #frames = new FrameCollector(1024 * 1024)
  #state: "new" | "startup" | "ready" | "over" = "new"
  #key: { readonly processId: number; readonly secretKey: Buffer } | null = null
  #owed = 0
  #inTransaction = false
  #batchOpen = false
  /** It changed its session's state: until that is answered, what it asked next would run in the same lease. */
  #awaitsAnswer = false
  /** What it must see; null: a change of it failed, so it may be either. */
  #workMem: string | null = USUAL_WORK_MEM
  /** What it will be when the change that was asked for is answered. */
  #workMemAsked: string | null = null
  #actions: number
  /** It has ended the connection itself, or broken it off: no answer is owed any more. */
  left = false
  answered = 0
  errors = 0
  #statementNames = 0
  /** Cancels that it sent with its own key: each may end one statement of its own, and nobody else's. */
  #cancelsSent = 0
  cancelled = 0

  constructor(id: number, tenant: SimulatedTenant, actions: number) {
    this.id = id
    this.tenant = tenant
    this.#actions = actions
  }

  get over(): boolean {
    return this.#state === "over"
  }

  /** It could do something now. */
  get mayAct(): boolean {
    return this.#state === "new" || this.#state === "ready" || (this.#state === "startup" && this.#transport !== null)
  }

  /** Answers that must still come. */
  get owed(): number {
    return this.left || this.#state !== "ready" ? 0 : this.#owed
  }

  get key() {
    return this.#key
  }

  act(world: World, dial: () => Transport): void {
    if (this.#state === "new") return this.#connect(dial())
    if (this.#state === "startup") {
      if (world.chance(0.02)) this.vanish()
      return
    }
    if (this.#state !== "ready") return
    if (this.#awaitsAnswer && this.#owed > 0) return this.cancel(world, dial)
    if (this.#actions-- <= 0) return this.leave()
    this.#ask(world, dial)
  }

  #connect(transport: Transport): void {
    this.#state = "startup"
    this.#transport = transport
    transport.handler = {
      onData: (chunk) => this.#hear(chunk),
      onDrain: () => {},
      onClose: () => {
        this.#state = "over"
      }
    }
    transport.write(
      startupMessage([
        ["user", "mm"],
        ["database", "shop"],
        ["schema_search_path", this.tenant.schema],
        ...(this.id % 3 === 0 ? [["application_name", `client ${this.id}`] as const] : [])
      ])
    )
  }

  /** Its mark in every statement: the server's log shows under which path it ran. */
  #marked(sql: string): string {
    return `/* ${this.tenant.mark} ${this.id} */ ${sql}`
  }

  #send(bytes: Buffer): void {
    this.#transport!.write(bytes)
  }

  #simple(sql: string): Buffer {
    this.#owed++
    return query(this.#marked(sql))
  }

  #batch(sql: string, name: string, closed: boolean): Buffer {
    if (closed) this.#owed++
    this.#batchOpen = !closed
    return Buffer.concat([
      frame(Frontend.parse, cString(name), cString(this.#marked(sql)), int16(0)),
      frame(Frontend.bind, cString(""), cString(name), int16(0), int16(0), int16(0)),
      frame(Frontend.describe, Buffer.of(0x50), cString("")),
      frame(Frontend.execute, cString(""), int32(0)),
      closed ? sync : Buffer.alloc(0)
    ])
  }

  #ask(world: World, dial: () => Transport): void {
    if (this.#owed > 0 && world.chance(0.15)) return this.cancel(world, dial)
    if (this.#batchOpen) {
      if (world.chance(0.1)) return this.vanish()
      this.#batchOpen = false
      this.#owed++
      return this.#send(sync)
    }
    switch (world.below(24)) {
      case 0:
      case 1:
      case 2:
      case 3:
        return this.#send(this.#simple("SELECT whoami"))
      case 4:
      case 5:
        return this.#send(this.#batch("SELECT whoami", "", true))
      case 6:
        return this.#send(this.#batch("SELECT whoami", `s${this.#statementNames++}`, true))
      case 7:
        this.#inTransaction = true
        return this.#send(this.#simple("BEGIN"))
      case 8:
        return this.#send(this.#simple(world.chance(0.5) ? "COMMIT" : "ROLLBACK"))
      case 9:
        return this.#send(
          Buffer.concat([this.#simple("SELECT whoami"), this.#simple("SELECT error"), this.#simple("SELECT whoami")])
        )
      case 10:
        return this.#send(this.#simple(`SELECT pg_sleep(${world.below(4)})`))
      case 11:
        return this.#send(this.#batch("SELECT error", "", true))
      case 12:
        return this.#send(this.#batch("SELECT whoami", "", false))
      case 13:
      case 14: {
        if (this.#inTransaction || this.#owed > 0) return
        this.#awaitsAnswer = true
        const change = world.pick([
          "SET work_mem",
          "RESET ALL",
          "DISCARD ALL",
          "LISTEN news",
          "UNLISTEN *",
          "SET search_path"
        ])
        switch (change) {
          case "SET work_mem":
            // Nobody else has this value.
            this.#workMemAsked = `${100 + this.id}MB`
            return this.#send(this.#simple(`SET work_mem = '${this.#workMemAsked}'`))
          case "SET search_path":
            // In session mode it would hold from then on, as it should.
            return this.#send(this.#simple(this.tenant.mode === "session" ? "SELECT 1" : "SET search_path = 'public'"))
          case "RESET ALL":
          case "DISCARD ALL":
            this.#workMemAsked = USUAL_WORK_MEM
        }
        return this.#send(this.#simple(change))
      }
      case 21:
      case 22:
        return this.#send(this.#simple("SHOW work_mem"))
      case 15:
        this.#owed++
        return this.#send(sync)
      case 16:
        return this.cancel(world, dial)
      case 17:
        return world.chance(0.3) ? this.vanish() : this.#send(this.#simple("SELECT rows(20, 100)"))
      case 18:
        if (!world.chance(0.3)) return
        this.#send(Buffer.concat([this.#simple("SELECT whoami"), frame(Frontend.terminate)]))
        this.left = true
        return
      case 19: {
        // Half of a message now; what is left of it never comes, or comes at once.
        const whole = this.#simple("SELECT whoami")
        const cut = 1 + world.below(whole.length - 1)
        this.#send(whole.subarray(0, cut))
        if (world.chance(0.5)) return this.vanish()
        return this.#send(whole.subarray(cut))
      }
      case 20:
        return this.#send(
          Buffer.concat([
            this.#batch("SELECT whoami", "", true),
            this.#batch("SELECT error", "", true),
            this.#simple("SELECT whoami")
          ])
        )
      default:
        return this.#inTransaction ? this.#send(this.#simple("COMMIT")) : undefined
    }
  }

  /** By its own key, or by one that is wrong. */
  cancel(world: World, dial: () => Transport): void {
    if (this.#key === null) return
    const transport = dial()
    const own = world.chance(0.8)
    if (own) this.#cancelsSent++
    transport.write(cancelRequest(this.#key.processId, own ? this.#key.secretKey : Buffer.from([1, 2, 3, 4])))
    if (world.chance(0.3)) transport.destroy()
  }

  /** In good order. */
  leave(): void {
    this.left = true
    if (this.#transport === null) {
      this.#state = "over"
      return
    }
    this.#send(frame(Frontend.terminate))
    this.#transport.end()
    this.#state = "over"
  }

  /** As a machine that lost its power. */
  vanish(): void {
    this.left = true
    this.#transport?.destroy()
    this.#state = "over"
  }

  #hear(chunk: Buffer): void {
    const frames = this.#frames.push(chunk)
    if (frames === null) {
      this.violations.push(`client ${this.id} was sent an impossible length`)
      return this.vanish()
    }
    for (const heard of frames) this.#hearFrame(heard)
  }

  #hearFrame({ type, body }: Frame): void {
    switch (String.fromCharCode(type)) {
      case "R":
        if (body.readInt32BE(0) === 3) this.#send(passwordMessage(this.tenant.password))
        return
      case "K":
        this.#key = { processId: body.readInt32BE(0), secretKey: Buffer.from(body.subarray(4)) }
        return
      case "Z":
        if (body[0] === TransactionStatus.idle && this.#owed <= 1) this.#inTransaction = false
        if (this.#state === "startup") this.#state = "ready"
        else if (this.#state === "ready") {
          this.answered++
          this.#awaitsAnswer = false
          if (this.#workMemAsked !== null) this.#workMem = this.#workMemAsked
          this.#workMemAsked = null
          if (--this.#owed < 0) this.violations.push(`client ${this.id} was answered more than it asked`)
        }
        return
      case "E":
        this.errors++
        this.#hearError(body)
        return
      case "D":
        return this.#hearRow(body)
    }
  }

  #hearError(body: Buffer): void {
    const { severity, sqlState, message } = decodeError(body)
    if (this.#workMemAsked !== null) this.#workMem = null
    this.#workMemAsked = null
    if (!known.test(sqlState)) this.violations.push(`client ${this.id} was told ${sqlState} ${message}`)
    if (severity === "ERROR" && sqlState === "57014" && ++this.cancelled > this.#cancelsSent) {
      this.violations.push(`client ${this.id} was cancelled by somebody else`)
    }
  }

  #hearValue(value: string): void {
    if (!/^\d+MB$/.test(value) || this.#workMem === null || value === this.#workMem) return
    this.violations.push(`client ${this.id} has work_mem ${value}, not ${this.#workMem}`)
  }

  #hearRow(body: Buffer): void {
    const columns = body.readInt16BE(0)
    if (columns === 1) return this.#hearValue(body.toString("utf8", 6))
    if (columns !== 3) return
    const values: Array<string> = []
    let at = 2
    for (let column = 0; column < columns; column++) {
      const length = body.readInt32BE(at)
      values.push(body.toString("utf8", at + 4, at + 4 + length))
      at += 4 + length
    }
    // What it changed itself is never seen again: its changes are made where the lease ends with them.
    const [path, user] = values as [string, string]
    const own = path === this.tenant.schema || path === `"${this.tenant.schema.replaceAll('"', '""')}"`
    if (!own) {
      this.violations.push(`client ${this.id} of ${this.tenant.schema} saw path ${path}`)
    }
    if (user !== this.tenant.destUser) this.violations.push(`client ${this.id} ran as ${user}`)
  }
}
