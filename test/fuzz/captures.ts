/**
 * What real clients and a real server said, as `capture.ts` has recorded it.
 */
import { readFileSync } from "node:fs"
import { HEADER_LENGTH, lengthAt } from "../../src/protocol/Frame.ts"

type Side = "client" | "server"

const recorded: Readonly<Record<string, ReadonlyArray<readonly [Side, string]>>> = JSON.parse(
  readFileSync(new URL("captures.json", import.meta.url), "utf8")
)

export interface Turn {
  readonly from: Side
  readonly bytes: Buffer
}

export type Session = "asPooler" | "extended" | "copies" | "nodePostgres" | "postgresJs"

export const sessions: ReadonlyArray<Session> = ["asPooler", "extended", "copies", "nodePostgres", "postgresJs"]

/** One session, from the startup packet on. */
export const turnsOf = (session: Session): ReadonlyArray<Turn> =>
  recorded[session]!.map(([from, base64]) => ({ from, bytes: Buffer.from(base64, "base64") }))

export const startupPackets: ReadonlyArray<Buffer> = sessions.map((session) => turnsOf(session)[0]!.bytes)

/** All that one side said, behind the startup packet. */
const saidBy = (side: Side): ReadonlyArray<Buffer> =>
  sessions.flatMap((session) =>
    turnsOf(session)
      .slice(1)
      .flatMap(({ from, bytes }) => (from === side ? [bytes] : []))
  )

export const clientTurns = saidBy("client")
export const serverTurns = saidBy("server")

/** Bodies of the messages with one of these letters. */
const bodies = (turns: ReadonlyArray<Buffer>, letters: string): ReadonlyArray<Buffer> => {
  const found = new Map<string, Buffer>()
  for (const turn of turns) {
    for (let at = 0; at < turn.length;) {
      const next = at + 1 + lengthAt(turn, at + 1)
      const body = turn.subarray(at + HEADER_LENGTH, next)
      if (letters.includes(String.fromCharCode(turn[at]!))) found.set(body.toString("base64"), body)
      at = next
    }
  }
  if (found.size === 0) throw new Error(`nobody has sent ${letters}`)
  return Array.from(found.values())
}

export const bodiesFromClients = (letters: string): ReadonlyArray<Buffer> => bodies(clientTurns, letters)
export const bodiesFromServers = (letters: string): ReadonlyArray<Buffer> => bodies(serverTurns, letters)
