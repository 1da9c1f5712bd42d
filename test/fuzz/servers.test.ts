import { assert, describe, it } from "@effect/vitest"
import { authenticationCleartextPassword, authenticationOk, parameterStatus } from "../../src/protocol/Backend.ts"
import { cString, frame, int16, int32 } from "../../src/protocol/Encoder.ts"
import { Backend, Frontend } from "../../src/protocol/Frame.ts"
import { sync } from "../../src/protocol/Frontend.ts"
import { query } from "../support/rawClient.ts"
import { serverTurns, turnsOf } from "./captures.ts"
import { seedsOf, TIMEOUT, underSeed, watch } from "./fuzz.ts"
import { Mutator } from "./Mutator.ts"
import { loginPassword, Stage, startupOf, type Evil } from "./Stage.ts"

/** To one server at one moment: whoever fails again and again is tried again later. */
const MAX_CONNECTIONS = 10

/** Servers of one service. */
const SERVERS = 12

watch()

const recorded = turnsOf("asPooler")
  .filter(({ from }) => from === "server")
  .map(({ bytes }) => bytes)
const loggedIn = recorded[1]!
const row = recorded[3]!
const failure = recorded[4]!

const complete = (tag: string): Buffer =>
  Buffer.concat([
    frame(Backend.parseComplete),
    frame(Backend.bindComplete),
    frame(Backend.commandComplete, cString(tag))
  ])
const ready = frame(Backend.readyForQuery, Buffer.from("I"))
/** As recorded, but of a client without settings of its own. */
const switched = Buffer.concat([
  complete("RESET"),
  ready,
  complete("DISCARD ALL"),
  parameterStatus("search_path", '"x"'),
  complete("SET"),
  ready
])

/** What a real server answers to the pooler's login and tenant switch, and then to three questions. */
const honest = [authenticationCleartextPassword, loggedIn, switched, row, failure, complete("SELECT 1")]

/** Says one part for each time that it is spoken to, one of them changed, and now and then more than it was asked. */
const evil = (random: Mutator, now: () => number): Evil => {
  const plan: Array<Buffer> = honest.map((turn) => Buffer.from(turn))
  const at = random.below(plan.length)
  plan[at] = random.mutate(plan[at]!, serverTurns)
  const talksTooMuch = random.chance(0.15)
  const hangsUp = random.chance(0.1)
  let connections = 0
  let moment = 0
  return (transport) => {
    if (moment !== now()) connections = 0
    moment = now()
    if (++connections > MAX_CONNECTIONS) throw new Error("dialled again and again")
    let turn = 0
    const speak = () => {
      const said = plan[turn++] ?? row
      for (const piece of random.pieces(Buffer.from(said))) transport.write(Buffer.from(piece))
    }
    transport.handler = {
      onData: () => {
        speak()
        if (talksTooMuch && turn > at) speak()
        if (hangsUp && turn > at) transport.destroy()
      },
      onDrain: () => {},
      onClose: () => {}
    }
  }
}

const questions = [
  query("SELECT 1"),
  query("SELECT 2; SELECT 3"),
  Buffer.concat([
    frame(Frontend.parse, cString("s"), cString("SELECT 4"), int16(0)),
    frame(Frontend.bind, cString(""), cString("s"), int16(0), int16(0), int16(0)),
    frame(Frontend.execute, cString(""), int32(0)),
    sync
  ]),
  Buffer.concat([query("COPY t FROM STDIN"), frame(Frontend.copyData, Buffer.from("1\n")), frame(Frontend.copyDone)])
]

describe("a server that answers anything", () => {
  it("harms nobody but its own clients, and no connection to it is lost count of", TIMEOUT, () => {
    let greeted = 0
    let answered = 0
    for (const seed of seedsOf(700)) {
      underSeed(seed, () => {
        const random = new Mutator(seed)
        const hosts = Array.from({ length: SERVERS }, (_, index) => `evil${index}`)
        const now = () => stage.world.now
        const stage: Stage = new Stage(seed, Object.fromEntries(hosts.map((host) => [host, evil(random, now)])))
        const clients = hosts.flatMap((host) => {
          const peers = random.chance(0.3) ? [stage.dial(), stage.dial()] : [stage.dial()]
          for (const peer of peers) {
            peer.send(startupOf(host), loginPassword)
            if (random.chance(0.8)) stage.settle()
            for (let asked = random.below(4); asked >= 0; asked--) {
              peer.send(random.pick(questions))
              if (random.chance(0.8)) stage.settle()
            }
          }
          if (random.chance(0.2)) stage.checkWitness()
          return peers
        })
        stage.settle()
        if (random.chance(0.5)) stage.pass(1 + random.below(4))
        for (const peer of clients) {
          const heard = peer.heard()
          if (heard.includes(authenticationOk)) greeted++
          if (heard.includes("three")) answered++
          if (random.chance(0.7)) peer.transport.destroy()
          else peer.transport.end()
        }
        stage.checkWhole()
        stage.end()
        assert.deepStrictEqual(stage.violations, [])
      })
    }
    if (process.env["PERSEUS_SEED"] !== undefined) return
    assert.isAbove(greeted, 700, "clients that were let in at all")
    assert.isAbove(answered, 700, "clients that heard a row")
  })
})
