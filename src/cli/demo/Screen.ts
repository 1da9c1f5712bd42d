/**
 * What the demo shows: lines that stay, and at a terminal one block that is drawn again in its place. Elsewhere, such as in
 * a log of CI, the block is one line a few times.
 *
 * It writes and never reads; what is shown is handed in.
 */
import * as Effect from "effect/Effect"

/** Where it goes, and what that is. */
export interface Output {
  readonly write: (text: string) => unknown
  readonly isTerminal: boolean
}

/** The load at one moment; the rates are since the moment before. */
export interface Moment {
  readonly second: number
  readonly clients: number
  readonly waiting: number
  /** As PostgreSQL counts them. */
  readonly serverConnections: number
  readonly transactions: number
  readonly transactionsPerSecond: number
  readonly tenantSwitches: number
  readonly tenantSwitchesPerSecond: number
  readonly rowsChecked: number
  readonly wrongRows: number
}

export interface Screen {
  readonly line: (text: string) => Effect.Effect<void>
  /** In place of the moment before, at a terminal; each `EVERY_SECONDS` otherwise. */
  readonly moment: (moment: Moment) => Effect.Effect<void>
}

/** Of the lines where nothing can be drawn again. */
const EVERY_SECONDS = 2

export const make = ({ write, isTerminal }: Output): Screen => {
  let drawnLines = 0
  return {
    line: (text) =>
      Effect.sync(() => {
        drawnLines = 0
        write(`${text}\n`)
      }),
    moment: (moment) =>
      Effect.sync(() => {
        if (!isTerminal) {
          if (moment.second % EVERY_SECONDS === 0) write(`${asLine(moment)}\n`)
          return
        }
        const lines = asTable(moment)
        // Up to the block's first line, and clear from there on.
        write(`${drawnLines === 0 ? "" : `\u001b[${drawnLines}A\u001b[J`}${lines.join("\n")}\n`)
        drawnLines = lines.length
      })
  }
}

/** 12345 as "12,345", the same everywhere. */
export const number = (value: number): string => Math.round(value).toLocaleString("en-US")

export const asTable = (moment: Moment): ReadonlyArray<string> =>
  (
    [
      ["clients", moment.clients, ""],
      ["waiting for a turn", moment.waiting, ""],
      ["server connections", moment.serverConnections, "as PostgreSQL counts them"],
      ["transactions", moment.transactions, `${number(moment.transactionsPerSecond)} per second`],
      ["tenant switches", moment.tenantSwitches, `${number(moment.tenantSwitchesPerSecond)} per second`],
      ["rows checked", moment.rowsChecked, ""],
      ["wrong rows", moment.wrongRows, ""]
    ] as const
  ).map(([name, value, note]) => `  ${name.padEnd(20)}${number(value).padStart(9)}   ${note}`.trimEnd())

export const asLine = (moment: Moment): string =>
  `  ${moment.second} s: ` +
  [
    `${number(moment.clients)} clients`,
    `${number(moment.waiting)} waiting`,
    `${number(moment.serverConnections)} server connections`,
    `${number(moment.transactionsPerSecond)} transactions/s`,
    `${number(moment.tenantSwitchesPerSecond)} tenant switches/s`,
    `${number(moment.wrongRows)} wrong rows`
  ].join(", ")
