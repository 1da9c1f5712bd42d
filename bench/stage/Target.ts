/** Where a load goes: PostgreSQL itself, or a pooler in front of it. */
export interface Target {
  readonly name: string
  readonly host: string
  readonly port: number
  /** The pooler's process; null for PostgreSQL itself. */
  readonly pid: number | null
  /** PostgreSQL's first process, and its port. */
  readonly serverPid: number
  readonly serverPort: number
  readonly login: (tenant: string) => Login
}

/** One that is a process of its own. */
export interface Pooler extends Target {
  readonly pid: number
}

/** How a client of one tenant logs in. */
export interface Login {
  readonly user: string
  readonly password: string
  readonly database: string
  /** As `PGOPTIONS`. */
  readonly options?: string
  readonly tls?: boolean
}
