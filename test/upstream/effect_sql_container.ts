/** In the place of a container with a PostgreSQL of its own: the next empty database of `UPSTREAM_DATABASES`. */
import { mkdirSync } from "node:fs"

const { UPSTREAM_DATABASES = "", PGHOST = "", PGPORT = "", PGUSER = "", PGPASSWORD = "" } = process.env

/** Files run in processes of their own: whoever makes the directory has the database. */
const claim = (name: string): boolean => {
  try {
    mkdirSync(`taken-${name}`)
    return true
  } catch {
    return false
  }
}

export class PostgreSqlContainer {
  start() {
    const database = UPSTREAM_DATABASES.split(" ").find(claim)
    if (database === undefined) throw new Error("no database is left")
    return Promise.resolve({
      getConnectionUri: () => `postgres://${PGUSER}:${PGPASSWORD}@${PGHOST}:${PGPORT}/${database}`,
      getHost: () => PGHOST,
      getMappedPort: () => Number(PGPORT),
      getUsername: () => PGUSER,
      getPassword: () => PGPASSWORD,
      getDatabase: () => database,
      stop: () => Promise.resolve()
    })
  }
}
