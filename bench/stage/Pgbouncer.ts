/**
 * pgbouncer, where it is installed: `PGBOUNCER=path`, or the one of the system. One database entry for each tenant, as somebody
 * would set it up whose tenants are schemas, or one for all of them, which have then no path of their own.
 */
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import { execFile } from "node:child_process"
import { chmod, chown, mkdtemp, readdir, writeFile } from "node:fs/promises"
import * as path from "node:path"
import { env, getuid } from "node:process"
import { promisify } from "node:util"
import type { BenchFailed } from "../Scenario.ts"
import * as Child from "./Child.ts"
import { DATABASE, PASSWORD, ROLE, tenantNames, USER, type Stage } from "./Stage.ts"
import type { Pooler } from "./Target.ts"

export interface Installed {
  readonly path: string
  /** Such as "1.25.2". */
  readonly version: string
  /** Since 1.21: named statements in transaction mode. */
  readonly prepared: boolean
  /** Since 1.25: what the bars are about. */
  readonly isReference: boolean
}

/** Null where there is none. */
export const find: Effect.Effect<Installed | null> = Effect.promise(async () => {
  const file = env["PGBOUNCER"] ?? "/usr/sbin/pgbouncer"
  const output = await promisify(execFile)(file, ["--version"]).then(
    ({ stdout }) => stdout,
    () => ""
  )
  const version = /PgBouncer ((\d+)\.(\d+)\S*)/i.exec(output)
  if (version === null) return null
  const atLeast = (minor: number) => Number(version[2]) > 1 || Number(version[3]) >= minor
  return { path: file, version: version[1]!, prepared: atLeast(21), isReference: atLeast(25) }
})

export interface Setup {
  /** Connections to PostgreSQL, for each entry. */
  readonly poolSize: number
  /** An entry for each tenant; else one for all. */
  readonly entries: "one" | "each tenant"
  /** Certificate and key, PEM; TLS is then asked of the clients. */
  readonly tls?: { readonly cert: string; readonly key: string }
}

/** Null where there is none. */
export const startWhereInstalled = (
  stage: Stage,
  setup: Setup,
  name?: string
): Effect.Effect<Pooler | null, BenchFailed, Scope.Scope> =>
  Effect.flatMap(find, (installed) =>
    installed === null ? Effect.succeed(null) : start(stage, installed, setup, name)
  )

export const start = (
  stage: Stage,
  { path: program }: Installed,
  { poolSize, entries, tls }: Setup,
  name = "pgbouncer"
): Effect.Effect<Pooler, BenchFailed, Scope.Scope> =>
  Effect.gen(function* () {
    const port = yield* Child.freePort
    const directory = yield* Effect.promise(() => mkdtemp(path.join(stage.directory, "pgbouncer-")))
    const file = (name: string) => path.join(directory, name)
    const server = `host=${stage.direct.host} port=${stage.direct.port} dbname=${DATABASE} user=${ROLE}`
    const databases =
      entries === "one"
        ? [`${DATABASE} = ${server} connect_query='SET search_path = t1'`]
        : tenantNames.map((tenant) => `${tenant} = ${server} connect_query='SET search_path = ${tenant}'`)
    const config = `[databases]
${databases.join("\n")}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = plain
auth_file = ${file("users.txt")}
pool_mode = transaction
default_pool_size = ${poolSize}
max_client_conn = 20000
listen_backlog = 4096
log_connections = 0
log_disconnections = 0
log_stats = 0
${tls === undefined ? "" : `client_tls_sslmode = require\nclient_tls_cert_file = ${file("server.crt")}\nclient_tls_key_file = ${file("server.key")}`}
`
    const isRoot = getuid?.() === 0
    yield* Effect.promise(async () => {
      await writeFile(file("pgbouncer.ini"), config)
      await writeFile(file("users.txt"), `"${USER}" "${PASSWORD}"\n`)
      if (tls !== undefined) {
        await writeFile(file("server.crt"), tls.cert)
        await writeFile(file("server.key"), tls.key, { mode: 0o600 })
      }
      // It refuses to run as root, and then as an account that must read these.
      if (!isRoot) return
      await chmod(stage.directory, 0o711)
      for (const name of ["", ...(await readdir(directory))]) await chown(file(name), NOBODY, NOBODY)
    })
    const args = ["-q", ...(isRoot ? ["-u", "nobody"] : []), file("pgbouncer.ini")]
    const { pid } = yield* Child.start({ command: program, args, port })
    return {
      name,
      host: "127.0.0.1",
      port,
      pid,
      serverPid: stage.direct.serverPid,
      serverPort: stage.direct.port,
      login: (tenant) => ({
        user: USER,
        password: PASSWORD,
        database: entries === "one" ? DATABASE : tenant,
        tls: tls !== undefined
      })
    }
  })

const NOBODY = 65_534
