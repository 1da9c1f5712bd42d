/**
 * What the pool asks a leased connection's server between two transactions of its client: what the lease has left there, and
 * to set path and settings again.
 *
 * The lease goes on: while the server is asked, the connection has no lessee, and has its client again once all is well. Never
 * asks while a cancel is under way. It ends no lease and closes nothing; a connection whose answer was another than it should
 * be is handed to `giveUp`.
 */
import { SqlState } from "../protocol/SqlState.ts"
import * as Inspection from "./Inspection.ts"
import type { PoolContext } from "./PoolContext.ts"
import type { Connection, PoolClient } from "./PoolTenant.ts"
import { restore, type Conversation } from "./Reset.ts"
import type { ConversationEnd } from "./ServerConnection.ts"

/** How often a question is asked at most, where it is cancelled each time. */
const QUESTION_MAX_ATTEMPTS = 10

export class LeaseQuestions {
  readonly #context: PoolContext
  readonly #giveUp: (connection: Connection) => void

  constructor(context: PoolContext, giveUp: (connection: Connection) => void) {
    this.#context = context
    this.#giveUp = giveUp
  }

  /** `done` is told once: null where the connection is gone, which the pool knows then. */
  inspect(
    connection: Connection,
    client: PoolClient,
    asked: Omit<Inspection.Questions, "path">,
    done: (findings: Inspection.Findings | null) => void
  ): void {
    const questions = { ...asked, path: client.tenant.path }
    let answer: Inspection.Answer
    const question = () => {
      answer = new Inspection.Answer(questions, connection.group.credential.user)
      return Inspection.inspection(questions, answer.read)
    }
    this.#context.statistics.inspections++
    this.#ask(connection, client, question, (fine) => done(fine ? answer.findings : null))
  }

  restore(connection: Connection, client: PoolClient, done: (fine: boolean) => void): void {
    const { path } = client.tenant
    const { settings } = client
    this.#ask(
      connection,
      client,
      () => restore(path, settings),
      (fine) => {
        if (fine) connection.settings = settings
        done(fine)
      }
    )
  }

  #ask(
    connection: Connection,
    client: PoolClient,
    question: () => Conversation,
    done: (fine: boolean) => void,
    attempt = 1
  ): void {
    const again = (next: number) => {
      if (connection.state === "leased") this.#ask(connection, client, question, done, next)
    }
    // A late cancel would hit the question.
    if (connection.cancelsInFlight > 0) return void connection.onCancelsEnded.push(() => again(attempt))
    connection.lessee = null
    const asking = { ...question(), onNotification: (body: Buffer) => client.onNotification(body) }
    const deadline = this.#context.now() + this.#context.settings.SchemaExecTimeoutSecs * 1000
    connection.converse(asking, deadline, (end) => {
      // On a busy machine even a SHOW can take longer than the session's own `statement_timeout = 1`; nothing of it was done.
      if (wasCancelled(end) && attempt < QUESTION_MAX_ATTEMPTS) return again(attempt + 1)
      const fine = end._tag === "Done"
      if (fine) connection.lessee = client
      else if (end._tag !== "Lost") this.#giveUp(connection)
      done(fine)
    })
  }
}

const wasCancelled = (end: ConversationEnd): boolean =>
  end._tag === "Refused" && end.error.sqlState === SqlState.queryCanceled
