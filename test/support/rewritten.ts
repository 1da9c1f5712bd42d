import { Outgoing } from "../../src/session/Outgoing.ts"

/** What `write` says that the server is to have in place of a client's message. */
export const rewritten = (write: (out: Outgoing) => void): Buffer => {
  out.begin()
  out.replace(nothing, 0, 0)
  write(out)
  return Buffer.from(out.finish(nothing, 0).bytes)
}

const out = new Outgoing()
const nothing = Buffer.alloc(0)
