import { assert, describe, it } from "@effect/vitest"
import { terminate } from "../../src/protocol/Frontend.ts"
import { cancelRequest, gssEncRequest, query, sslRequest } from "../support/rawClient.ts"
import { clientTurns } from "./captures.ts"
import { seedsOf, TIMEOUT, underSeed, watch } from "./fuzz.ts"
import { Mutator } from "./Mutator.ts"
import { loginPassword, type Peer, Stage, startupOf } from "./Stage.ts"

/** Streams on one service, one after the other or several at a time. */
const CLIENTS = 20

watch()

/** What drivers send once they are logged in, in turns. */
const asked = [
  ...clientTurns.filter((turn) => !turn.toString("latin1").startsWith("p")),
  query("BEGIN"),
  query("SELECT whoami"),
  query("SELECT error; SELECT whoami"),
  query("SET search_path = 'elsewhere'"),
  query("COMMIT"),
  terminate
].map((turn) => Buffer.from(turn))

const opening = [
  startupOf("red"),
  startupOf("witness"),
  sslRequest,
  gssEncRequest,
  cancelRequest({ processId: 1, secretKey: Buffer.alloc(4) })
]

/** Startup packet, password and questions, of which one part is changed. */
const streamOf = (random: Mutator): ReadonlyArray<Buffer> => {
  const questions = Array.from({ length: 1 + random.below(4) }, () => Buffer.from(random.pick(asked)))
  const parts = [Buffer.from(random.chance(0.9) ? startupOf("red") : random.pick(opening)), loginPassword, ...questions]
  const at = random.chance(0.25) ? random.below(2) : 2 + random.below(questions.length)
  parts[at] = random.mutate(Buffer.from(parts[at]!), at < 2 ? opening : asked)
  return parts
}

describe("a client that sends anything", () => {
  it("harms nobody, holds nothing and leaves nothing", TIMEOUT, () => {
    let answered = 0
    for (const seed of seedsOf(700)) {
      underSeed(seed, () => {
        const random = new Mutator(seed)
        const stage = new Stage(seed)
        const silent: Array<Peer> = []
        for (let client = 0; client < CLIENTS; client++) {
          const peer = stage.dial()
          for (const part of streamOf(random)) {
            peer.send(...random.pieces(part))
            if (random.chance(0.7)) stage.settle()
          }
          stage.settle()
          if (random.chance(0.05)) stage.pass(1 + random.below(3))
          if (peer.heard().includes("SELECT")) answered++
          if (random.chance(0.6)) peer.transport.destroy()
          else if (random.chance(0.8)) peer.transport.end()
          else silent.push(peer)
          if (random.chance(0.2)) stage.checkWitness()
        }
        for (const peer of silent) peer.transport.destroy()
        stage.checkWhole()
        stage.end()
        assert.deepStrictEqual(stage.violations, [])
      })
    }
    if (process.env["PERSEUS_SEED"] === undefined) assert.isAbove(answered, 700, "streams that got to a server at all")
  })
})
