/**
 * `tenant add`, `list` and `remove`: the rows of `perseus_auth`.
 *
 * Each changes or reads the table in one statement, over `AuthDBSettings.AuthDBDSN`. Values go as parameters only; the
 * table is the `perseus_auth` that the connection's search_path finds. No hash and no ciphertext is ever read back.
 */
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import type { PerseusConfig } from "../../config/PerseusConfig.ts"
import * as Address from "../../net/Address.ts"
import * as Kms from "../../tenant/KmsDecrypt.ts"
import * as SchemaName from "../../tenant/SchemaName.ts"
import * as Ask from "./Ask.ts"
import * as AuthTable from "./AuthTable.ts"
import { clientSecret, scramFlag } from "./clientSecret.ts"
import { CommandFailed, fromError } from "./CommandFailed.ts"
import { loadConfig } from "./shared.ts"
import { listing, type Listing, sharedRoles } from "./tenantListing.ts"

// ---- flags -------------------------------------------------------------------------------------------------------

const required = (name: string, metavar: string, description: string) =>
  Flag.String(name).pipe(Flag.withMetavar(metavar), Flag.withDescription(description))

const password = (name: string, whose: string) =>
  Flag.Redacted(name).pipe(
    Flag.withMetavar("<password>"),
    Flag.withDescription(`${whose}; visible in the process list. Without it: asked for, or a line of stdin`),
    Flag.optional
  )

const keyFlags = {
  sourceDb: required("source-db", "<name>", "The database that clients name"),
  sourceSchema: required("source-schema", "<name>", "The schema that clients name in schema_search_path")
}

const switchedOn = (name: string, description: string) =>
  Flag.Boolean(name).pipe(Flag.withDescription(description), Flag.withDefault(false), Flag.withoutNegation)

const named = ({ sourceDb, sourceSchema }: AuthTable.Key) => `schema ${sourceSchema} of database ${sourceDb}`

// ---- add ---------------------------------------------------------------------------------------------------------

const add = Command.make(
  "add",
  {
    ...keyFlags,
    sourceUser: required("source-user", "<name>", "The user that clients name"),
    destHost: required("dest-host", "<host[:port]>", "The PostgreSQL server"),
    destDb: required("dest-db", "<name>", "The database on that server"),
    destUser: required("dest-user", "<name>", "The role to log in as on that server"),
    sourcePassword: password("source-password", "The password that clients send"),
    destPassword: password("dest-password", "The password of the role on that server"),
    scram: scramFlag,
    replace: switchedOn("replace", "Overwrite the tenant's row if there is one")
  },
  Effect.fnUntraced(function* ({ destPassword, replace, scram, sourcePassword, ...names }) {
    yield* checkNames(names)
    const config = yield* loadConfig
    const table = yield* AuthTable.open(config)
    yield* checkLengths(yield* table.maxLengths, names)
    // Asked before the passwords are, for the sake of who types them; the INSERT has the last word.
    if (!replace && (yield* table.exists(names))) return yield* existsAlready(names)

    const [clientPassword, rolePassword] = yield* Ask.secrets([
      { given: sourcePassword, what: `password for clients as ${names.sourceUser}`, isNew: true },
      { given: destPassword, what: `password of ${names.destUser} on ${names.destHost}`, isNew: false }
    ])
    const row = {
      ...names,
      sourcePassHashed: yield* clientSecret(clientPassword, scram),
      destPassEnc: yield* Effect.mapError(Kms.encrypt(Kms.settingsFrom(config.AWSSettings), rolePassword), fromError)
    }
    const outcome = yield* table.put(row, replace)
    if (outcome === "exists") return yield* existsAlready(names)
    yield* Console.log(`${outcome}: ${named(names)}\n\nClients connect with\n  ${clientDsn(config, names)}`)
    yield* noteSharedRole(yield* table.list, names)
  }, Effect.scoped)
).pipe(
  Command.withDescription(
    "Add a tenant: hash the clients' password, encrypt the role's password with KMS, and insert the row. The two " +
      "passwords are asked for in that order, or read as two lines from a pipe. Perseus serves the tenant at once."
  ),
  Command.withShortDescription("Add a tenant"),
  Command.withExamples([
    {
      command:
        "perseus tenant add --source-db app --source-schema acme --source-user app " +
        "--dest-host db1.internal:5432 --dest-db app --dest-user acme",
      description: "Type both passwords unseen"
    }
  ])
)

type Names = Omit<AuthTable.Row, "sourcePassHashed" | "destPassEnc">

/** The flag of each name, which is also the column's but for its dashes. */
const flagOf = {
  sourceDb: "source-db",
  sourceSchema: "source-schema",
  sourceUser: "source-user",
  destHost: "dest-host",
  destDb: "dest-db",
  destUser: "dest-user"
} as const satisfies Record<keyof Names, string>

const flags = Object.entries(flagOf) as ReadonlyArray<readonly [keyof Names, string]>

const checkNames = (names: Names): Effect.Effect<void, CommandFailed> => {
  const refuse = (flag: string, why: string) => Effect.fail(new CommandFailed({ message: `--${flag}: ${why}` }))
  const blank = flags.find(([key]) => names[key] === "")
  if (blank !== undefined) return refuse(blank[1], "it is empty")
  const schema = SchemaName.check(names.sourceSchema)
  if (schema !== null) return refuse(flagOf.sourceSchema, schema)
  const host = Address.parseDestHost(names.destHost)
  return Result.isFailure(host) ? refuse(flagOf.destHost, host.failure) : Effect.void
}

/** PostgreSQL would refuse it as well, but without saying which column it means. */
const checkLengths = (maxLengths: ReadonlyMap<string, number>, names: Names): Effect.Effect<void, CommandFailed> => {
  for (const [key, flag] of flags) {
    const column = flag.replace("-", "_")
    const most = maxLengths.get(column) ?? Infinity
    const { length } = Array.from(names[key])
    if (length > most) {
      const message =
        `--${flag}: it has ${length} characters, and the column holds ${most}; ` +
        `ALTER TABLE perseus_auth ALTER COLUMN ${column} TYPE character varying(1024) makes room`
      return Effect.fail(new CommandFailed({ message }))
    }
  }
  return Effect.void
}

const existsAlready = (key: AuthTable.Key) =>
  new CommandFailed({ message: `${named(key)} exists already; --replace overwrites it` })

/** The host is unknown where Perseus listens on all addresses. */
const clientDsn = ({ ListenAddress }: PerseusConfig, { sourceDb, sourceSchema, sourceUser }: Names): string => {
  const listen = Result.getOrUndefined(Address.parseListenAddress(ListenAddress))
  const address = Address.formatAddress({ host: listen?.host ?? "PERSEUS_HOST", port: listen?.port ?? 5433 })
  const [user, database, schema] = [sourceUser, sourceDb, sourceSchema].map(encodeURIComponent)
  return `postgres://${user}:PASSWORD@${address}/${database}?sslmode=disable&schema_search_path=${schema}`
}

const noteSharedRole = (rows: ReadonlyArray<AuthTable.ListedRow>, names: Names) => {
  const shared = sharedRoles(rows).find(
    (role) => role.destHost === names.destHost && role.destDb === names.destDb && role.destUser === names.destUser
  )
  return shared === undefined
    ? Effect.void
    : Console.error(
        `note: ${shared.tenants} tenants log in to ${shared.destHost}/${shared.destDb} as ${shared.destUser}; ` +
          "inside PostgreSQL nothing keeps them apart"
      )
}

// ---- list --------------------------------------------------------------------------------------------------------

const list = Command.make(
  "list",
  { json: switchedOn("json", "Print JSON") },
  Effect.fnUntraced(function* ({ json }) {
    const table = yield* AuthTable.open(yield* loadConfig)
    const format: Listing = json ? "json" : "text"
    yield* Console.log(listing(yield* table.list, format))
  }, Effect.scoped)
).pipe(
  Command.withDescription(
    "List the tenants, without secrets; with what keeps a row's clients out, and which tenants share a role."
  ),
  Command.withShortDescription("List the tenants")
)

// ---- remove ------------------------------------------------------------------------------------------------------

const remove = Command.make(
  "remove",
  { ...keyFlags, yes: switchedOn("yes", "Do not ask") },
  Effect.fnUntraced(function* ({ yes, ...key }) {
    const table = yield* AuthTable.open(yield* loadConfig)
    if (!(yield* table.exists(key))) return yield* unknown(key)
    const isMeant =
      yes ||
      (yield* Ask.confirm(
        `Remove ${named(key)}? Its clients are disconnected.`,
        "nobody can be asked whether this is meant: say --yes"
      ))
    if (!isMeant) return yield* new CommandFailed({ message: "nothing was removed" })
    if (!(yield* table.remove(key))) return yield* unknown(key)
    yield* Console.log(`removed: ${named(key)}`)
  }, Effect.scoped)
).pipe(
  Command.withDescription(
    "Remove a tenant's row. Its clients are disconnected at their transaction's border; its data are not touched."
  ),
  Command.withShortDescription("Remove a tenant")
)

const unknown = (key: AuthTable.Key) => new CommandFailed({ message: `there is no ${named(key)}` })

export const tenant = Command.make("tenant").pipe(
  Command.withDescription("Add, list and remove tenants: the rows of perseus_auth in the auth database."),
  Command.withShortDescription("Add, list and remove tenants"),
  Command.withSubcommands([add, list, remove])
)
