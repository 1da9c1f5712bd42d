/** `select` with TLS to the client; to the server there is none. One certificate for both poolers, made on the spot. */
import * as Effect from "effect/Effect"
import { authority, pemFiles, signedBy } from "../../test/support/certificates.ts"
import { drive, type Protocol } from "../Pgbench.ts"
import { OURS, type Case, type Scenario } from "../Scenario.ts"
import * as PerseusDaemon from "../stage/PerseusDaemon.ts"
import * as Pgbouncer from "../stage/Pgbouncer.ts"
import type { Target } from "../stage/Target.ts"

const POOL_SIZE = 20

export const tls: Scenario = {
  name: "tls",
  title: `pgbench -S with TLS to the client, one tenant, a pool of ${POOL_SIZE}`,
  cases: Effect.fnUntraced(function* (stage, { seconds }) {
    const { cert, key } = signedBy(authority(), "localhost", "127.0.0.1")
    const write = yield* pemFiles
    const files = { cert: yield* write("server.crt", cert), key: yield* write("server.key", key) }
    const perseus = yield* PerseusDaemon.start(stage, POOL_SIZE, {
      TLSSettings: { ClientMode: "require", ClientCertFile: files.cert, ClientKeyFile: files.key }
    })
    const pgbouncer = yield* Pgbouncer.startWhereInstalled(stage, {
      poolSize: POOL_SIZE,
      entries: "one",
      tls: { cert, key }
    })
    const run = (target: Target, protocol: Protocol, clients: number) =>
      drive(target, [{ login: target.login("t1"), clients, protocol, script: { builtin: "select-only" } }], seconds)
    const caseOf = (protocol: Protocol, clients: number): Case => ({
      variant: protocol,
      clients,
      runs: {
        [OURS]: run(perseus, protocol, clients),
        ...(pgbouncer !== null && { pgbouncer: run(pgbouncer, protocol, clients) })
      }
    })
    return (["simple", "extended"] as const).flatMap((protocol) => [8, 64].map((clients) => caseOf(protocol, clients)))
  })
}
