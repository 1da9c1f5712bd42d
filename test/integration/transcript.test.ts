import { assert, layer } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { SharedPerseus, type TestPerseus } from "../support/perseus.ts"
import {
  bind,
  closePortal,
  closeStatement,
  copyData,
  copyDone,
  copyFail,
  describePortal,
  describeStatement,
  execute,
  fieldsOf,
  flush,
  functionCall,
  message,
  parse,
  query,
  RawClient,
  rowsOf,
  sync,
  text,
  type Message
} from "../support/rawClient.ts"

/** What is sent in one write, and how many ReadyForQuery end it; or a message's letter where none does. */
type Step = readonly [bytes: ReadonlyArray<Buffer>, until?: number | string]

/** PostgreSQL's int4pl(integer, integer). */
const INT4PL = 177

/** By extended messages, with a Sync before there is any data. */
const copyEarly = (sql: string): ReadonlyArray<Buffer> => [parse("", sql), bind("", ""), execute(), sync]

const scripts: ReadonlyArray<readonly [what: string, steps: ReadonlyArray<Step>]> = [
  ["a query", [[[query("SELECT 1 AS one, NULL AS nothing, 'text' AS t")]]]],
  ["an empty query", [[[query("")]], [[query(" ; ; ")]]]],
  ["several statements in one query", [[[query("SELECT 1; SELECT 2 WHERE false; SELECT 3")]]]],
  ["an error between statements of one query", [[[query("SELECT 1; SELECT 1/0; SELECT 3")]], [[query("SELECT 4")]]]],
  ["a syntax error", [[[query("SELEC 1")]], [[query("SELECT 1")]]]],
  ["a notice", [[[query("DO $$ BEGIN RAISE NOTICE 'hello %', 'there'; END $$")]]]],
  [
    "a transaction",
    [[[query("BEGIN")]], [[query("INSERT INTO t VALUES (1)")]], [[query("SELECT * FROM t")]], [[query("ROLLBACK")]]]
  ],
  [
    "a transaction that fails",
    [[[query("BEGIN")]], [[query("SELECT 1/0")]], [[query("SELECT 1")]], [[query("COMMIT")]], [[query("SELECT 2")]]]
  ],
  [
    "queries pipelined in one write",
    [[[query("SELECT 1"), query("SELECT 2"), query("SELECT x"), query("SELECT 4")], 4]]
  ],
  [
    "an unnamed statement",
    [[[parse("", "SELECT $1::int + 1"), bind("", "", "41"), describePortal(""), execute(), sync]]]
  ],
  [
    "a named statement, used again",
    [
      [[parse("s1", "SELECT $1::int + 1"), describeStatement("s1"), sync]],
      [[bind("", "s1", "1"), execute(), sync]],
      [[bind("", "s1", "2"), describePortal(""), execute(), sync]],
      [[closeStatement("s1"), sync]],
      [[bind("", "s1", "3"), execute(), sync]]
    ]
  ],
  [
    "several batches in one write",
    [
      [
        [
          parse("b1", "SELECT $1::int"),
          bind("", "b1", "1"),
          execute(),
          sync,
          bind("", "b1", "2"),
          execute(),
          sync,
          closeStatement("b1"),
          sync
        ],
        3
      ]
    ]
  ],
  [
    "an error that skips to Sync, with a batch behind it",
    [
      [
        [
          parse("", "SELECT 1/$1::int"),
          bind("", "", "0"),
          execute(),
          parse("skipped", "SELECT 1"),
          bind("", "skipped"),
          execute(),
          sync,
          parse("", "SELECT 5"),
          bind("", ""),
          execute(),
          sync,
          bind("", "skipped"),
          execute(),
          sync
        ],
        3
      ],
      [[parse("skipped", "SELECT 6"), bind("", "skipped"), execute(), sync]],
      [[closeStatement("skipped"), sync]]
    ]
  ],
  [
    "an error that is known before the rest of its batch is sent",
    [
      [[parse("", "SELECT 1/$1::int"), bind("", "", "0"), execute(), flush], "E"],
      [[parse("late", "SELECT 1"), bind("", "late"), execute(), sync]],
      [[bind("", "late"), execute(), sync]],
      [[parse("late", "SELECT 2"), bind("", "late"), execute(), sync]],
      [[closeStatement("late"), sync]]
    ]
  ],
  [
    "a statement whose table is only made behind its first Parse",
    [
      [[parse("early", "SELECT count(*) FROM later"), describeStatement("early"), sync]],
      [[parse("", "SELECT 1"), parse("early", "SELECT * FROM later"), bind("", "early"), execute(), sync]],
      [[query("CREATE TABLE later (id int)")]],
      [[bind("", "early"), execute(), sync]],
      [[parse("early", "SELECT count(*) FROM later"), bind("", "early"), execute(), sync]],
      [[closeStatement("early"), closeStatement("early"), describeStatement("early"), sync]],
      [[query("DROP TABLE later")]]
    ]
  ],
  [
    "an error by Parse, in mid-batch",
    [
      [[parse("e1", "SELECT 1"), parse("e2", "SELEC"), bind("", "e1"), execute(), sync]],
      [[bind("", "e1"), execute(), sync]]
    ]
  ],
  [
    "Parse of a name that is taken",
    [
      [[parse("twice", "SELECT 1"), sync]],
      [[parse("twice", "SELECT 2"), sync]],
      [[bind("", "twice"), execute(), sync]],
      [[parse("twice2", "SELECT 1"), parse("twice2", "SELECT 1"), sync]],
      [[closeStatement("twice"), parse("twice", "SELECT 3"), bind("", "twice"), execute(), sync]]
    ]
  ],
  [
    "a Parse that fails between statements that are used in turn, in one write",
    [
      [
        [
          parse("t1", "SELECT 'one'"),
          parse("t2", "SELECT 'two'"),
          bind("", "t1"),
          execute(),
          bind("", "t2"),
          execute(),
          sync,
          bind("", "t1"),
          execute(),
          parse("t3", "SELEC"),
          bind("", "t2"),
          execute(),
          sync,
          bind("", "t2"),
          execute(),
          bind("", "t3"),
          sync,
          bind("", "t1"),
          execute(),
          describeStatement("t2"),
          sync
        ],
        4
      ],
      [
        [bind("", "t1"), execute(), bind("", "t2"), execute(), parse("t3", "SELECT 3"), bind("", "t3"), execute(), sync]
      ],
      [[closeStatement("t1"), closeStatement("t2"), closeStatement("t3"), sync]]
    ]
  ],
  [
    "names that are unknown",
    [
      [[describeStatement("nobody"), sync]],
      [[describePortal("nobody"), sync]],
      [[bind("", "nobody"), sync]],
      [[execute("nobody"), sync]],
      [[closeStatement("nobody"), closePortal("nobody"), sync]]
    ]
  ],
  [
    "PREPARE, EXECUTE and DEALLOCATE within a transaction",
    [
      [[query("BEGIN")]],
      [[query("PREPARE mine(int) AS SELECT $1 + 1")]],
      [[query("EXECUTE mine(1)")]],
      [[query("DEALLOCATE mine")]],
      [[query("EXECUTE mine(1)")]],
      [[query("ROLLBACK")]]
    ]
  ],
  [
    "DEALLOCATE ALL, which takes the protocol's statements too",
    [
      [[parse("d1", "SELECT 1"), sync]],
      [[query("DEALLOCATE ALL")]],
      [[bind("", "d1"), execute(), sync]],
      [[parse("d1", "SELECT 2"), bind("", "d1"), execute(), sync]],
      [[closeStatement("d1"), sync]]
    ]
  ],
  [
    "a portal with a row limit",
    [
      [[parse("", "SELECT generate_series(1, 5)"), bind("", ""), execute("", 2), execute("", 2), execute("", 2), sync]],
      [[query("BEGIN")]],
      [[parse("", "SELECT generate_series(1, 5)"), bind("p", ""), execute("p", 3), sync]],
      [[execute("p", 3), closePortal("p"), sync]],
      [[query("COMMIT")]]
    ]
  ],
  [
    "Flush without Sync",
    [
      [[parse("", "SELECT 1"), flush], "1"],
      [[bind("", ""), describePortal(""), flush], "T"],
      [[execute(), flush], "C"],
      [[sync]]
    ]
  ],
  ["a function call", [[[functionCall(INT4PL, "40", "2")]], [[functionCall(INT4PL, "x", "2")]], [[functionCall(0)]]]],
  ["copy out", [[[query("COPY (SELECT i, 'r' || i FROM generate_series(1, 3) i) TO STDOUT")]]]],
  ["copy out that fails in the middle", [[[query("COPY (SELECT 1/(2 - i) FROM generate_series(1, 3) i) TO STDOUT")]]]],
  [
    "copy in",
    [
      [[query("COPY t FROM STDIN")], "G"],
      [[copyData("1\n2"), copyData("\n3\n"), copyDone]],
      [[query("DELETE FROM t RETURNING id")]]
    ]
  ],
  [
    "copy in, all in one write",
    [[[query("COPY t FROM STDIN"), copyData("7\n"), copyDone]], [[query("DELETE FROM t RETURNING id")]]]
  ],
  [
    "copy in that the client fails",
    [
      [[query("COPY t FROM STDIN")], "G"],
      [[copyData("1\n"), copyFail("changed my mind")]],
      [[query("SELECT * FROM t")]]
    ]
  ],
  [
    "copy in that the server fails, with data behind it",
    [
      [[query("COPY t FROM STDIN")], "G"],
      [[copyData("not a number\n"), copyData("2\n"), copyData("3\n"), copyDone]],
      [[query("SELECT * FROM t")]]
    ]
  ],
  [
    "copy in by extended messages",
    [
      [[parse("", "COPY t FROM STDIN"), bind("", ""), execute(), flush], "G"],
      [[copyData("5\n"), copyDone, sync]],
      [[query("DELETE FROM t RETURNING id")]]
    ]
  ],
  [
    "copy in by extended messages that the server fails",
    [
      [[parse("", "COPY t FROM STDIN"), bind("", ""), execute(), flush], "G"],
      [[copyData("x\n"), copyData("6\n"), copyDone, sync]],
      [[query("SELECT * FROM t")]]
    ]
  ],
  [
    "copy in with a Sync in its data, which is none",
    [
      [[parse("", "COPY t FROM STDIN"), bind("", ""), execute(), sync], "G"],
      [[copyData("5\n"), copyDone, sync]],
      [[query("DELETE FROM t RETURNING id")]]
    ]
  ],
  [
    "copy in with an early Sync, that fails at its start: both Syncs are answered",
    [
      [[...copyEarly("COPY nowhere FROM STDIN"), copyData("5\n"), copyDone, sync], 2],
      [[...copyEarly("COPY nowhere FROM STDIN")]],
      [[copyData("5\n"), copyDone, sync]],
      [[query("SELECT 1")]]
    ]
  ],
  [
    "copy in with an early Sync, all in one write",
    [[[...copyEarly("COPY t FROM STDIN"), copyData("5\n"), copyDone, sync]], [[query("DELETE FROM t RETURNING id")]]]
  ],
  [
    "copy in with an early Sync, that the server fails midway: one Sync is answered",
    [
      [[...copyEarly("COPY t FROM STDIN"), copyData("5\n"), copyData("x\n"), copyData("6\n"), copyDone, sync]],
      [[...copyEarly("COPY t FROM STDIN")], "G"],
      [[copyData("5\nx\n")], "E"],
      [[copyData("6\n"), copyDone, sync]],
      [[query("SELECT * FROM t")]]
    ]
  ],
  [
    "copy in with an early Sync, that the client fails: one Sync is answered",
    [
      [[...copyEarly("COPY t FROM STDIN"), copyData("5\n"), copyFail("no"), sync]],
      [[...copyEarly("COPY t FROM STDIN")], "G"],
      [[copyData("5\n"), copyFail("no"), sync]],
      [[query("SELECT * FROM t")]]
    ]
  ],
  [
    "copy in with an early Sync, that fails, and queries behind it in the same write",
    [
      [
        [
          ...copyEarly("COPY t FROM STDIN"),
          copyData("x\n"),
          copyDone,
          sync,
          query("SELECT 1"),
          ...copyEarly("COPY nowhere FROM STDIN"),
          copyData("5\n"),
          copyDone,
          sync,
          query("SELECT 2")
        ],
        5
      ]
    ]
  ],
  [
    "copy in and out by named statements, again and again",
    [
      [[parse("in", "COPY t FROM STDIN"), parse("out", "COPY t TO STDOUT"), sync]],
      [[bind("", "in"), execute(), flush], "G"],
      [[copyData("8\n"), copyDone, sync]],
      [[bind("", "out"), execute(), bind("", "out"), execute(), sync]],
      [[bind("", "in"), execute(), flush], "G"],
      [[copyData("x\n"), copyDone, sync]],
      [[bind("", "out"), execute(), sync]],
      [[closeStatement("in"), closeStatement("out"), sync]]
    ]
  ],
  [
    "copy in behind other statements of one query",
    [[[query("SELECT 1; COPY t FROM STDIN; SELECT 2")], "G"], [[copyData("9\n"), copyDone]], [[query("DELETE FROM t")]]]
  ],
  ["Sync alone, several times", [[[sync]], [[sync, sync, sync], 3]]],
  ["Flush alone", [[[flush, sync]]]],
  ["copy messages out of season", [[[copyData("x"), copyDone, copyFail("x"), query("SELECT 1")]]]],
  [
    "a batch that begins with Close",
    [[[closeStatement(""), closePortal(""), parse("", "SELECT 1"), bind("", ""), execute(), sync]]]
  ],
  [
    "a batch that begins with Describe",
    [[[query("SELECT 1")]], [[describeStatement(""), sync]], [[describePortal(""), parse("", "SELECT 1"), sync]]]
  ],
  ["a batch that begins with Execute", [[[execute(), parse("", "SELECT 1"), sync]]]],
  ["a batch that begins with Bind", [[[query("SELECT 1")]], [[bind("", ""), sync]]]],
  ["a Query within a batch", [[[parse("", "SELECT 1"), bind("", ""), query("SELECT 2")]], [[sync]]]],
  ["a Query behind an error in a batch", [[[parse("", "SELEC"), query("SELECT 2"), sync]]]],
  [
    "an implicit transaction of several Executes",
    [
      [
        [
          parse("", "INSERT INTO t VALUES (1)"),
          bind("", ""),
          execute(),
          parse("", "SELECT 1/0"),
          bind("", ""),
          execute(),
          sync
        ]
      ],
      [[query("SELECT count(*) FROM t")]]
    ]
  ],
  [
    "SET and RESET that are reported",
    [
      [[query("BEGIN; SET application_name = 'me'; SET TimeZone = 'Asia/Tokyo'")]],
      [[query("RESET application_name; RESET TimeZone; COMMIT")]]
    ]
  ],
  [
    "a malformed Bind",
    [[[parse("", "SELECT 1"), message("B", text(""), text(""), Buffer.of(0, 9)), sync]], [[query("SELECT 1")]]]
  ],
  ["a malformed Parse", [[[message("P", Buffer.from("no terminator")), sync]], [[query("SELECT 1")]]]],
  ["a malformed Query", [[[message("Q", Buffer.from("SELECT 1"))]], [[query("SELECT 1")]]]],
  ["a malformed Describe", [[[message("D", Buffer.from("X"), text("")), sync]], [[query("SELECT 1")]]]],
  ["a malformed Close", [[[message("C", Buffer.from("X"), text("")), sync]], [[query("SELECT 1")]]]],
  [
    "an error and a notice of 3 MB",
    [
      [[query("DO $$ BEGIN RAISE NOTICE '%', repeat('n', 3 << 20); END $$")]],
      [[query("DO $$ BEGIN RAISE '%', repeat('e', 3 << 20) USING DETAIL = repeat('d', 3 << 20); END $$")]],
      [[query("SELECT 1")]]
    ]
  ],
  [
    "an error and a notice of 3 MB, by extended messages, and a batch behind them",
    [
      [
        [
          parse("", "DO $$ BEGIN RAISE NOTICE '%', repeat('n', 3 << 20); RAISE '%', repeat('e', 3 << 20); END $$"),
          bind("", ""),
          execute(),
          sync,
          parse("", "SELECT 1"),
          bind("", ""),
          execute(),
          sync
        ],
        2
      ]
    ]
  ],
  ["a row of 1 MB", [[[query("SELECT repeat('x', 1048576)")]]]],
  ["a Bind of 1 MB", [[[parse("", "SELECT length($1::text)"), bind("", "", "y".repeat(1 << 20)), execute(), sync]]]]
]

const isLong = (value: unknown): value is string => typeof value === "string" && value.length > 1000

/** Types and bodies, with what no two servers' sessions have in common left out. */
const shape = (answers: ReadonlyArray<Message>): ReadonlyArray<string> =>
  answers.map((answer) => {
    if (answer.type === "E" || answer.type === "N") {
      const { S, V, C, M, P, p, q, D, H } = fieldsOf(answer)
      // The statements of a client have other names on the server.
      const fields = { S, V, C, M: M?.replace(/(?<=prepared statement ")[^"]+/, "*"), P, p, q, D, H }
      return `${answer.type} ${JSON.stringify(fields, (_, value) => (isLong(value) ? `${value.length} characters` : value))}`
    }
    // Table oids differ from schema to schema.
    const body = answer.type === "T" ? withoutOids(answer.body) : answer.body.toString("latin1")
    return `${answer.type} ${body.length > 200 ? `${body.length} bytes` : body}`
  })

/** A RowDescription's names and types. */
const withoutOids = (body: Buffer): string => {
  const fields: Array<string> = []
  let at = 2
  for (let rest = body.readInt16BE(0); rest > 0; rest--) {
    const end = body.indexOf(0, at)
    fields.push(`${body.toString("utf8", at, end)}:${body.toString("hex", end + 7, end + 19)}`)
    at = end + 19
  }
  return fields.join(",")
}

const play = (client: RawClient, steps: ReadonlyArray<Step>) =>
  Effect.forEach(steps, ([bytes, until = 1]) =>
    Effect.suspend(() => {
      client.send(...bytes)
      return typeof until === "number" ? client.ready(until) : client.take(({ type }) => type === until)
    })
  ).pipe(Effect.map((answers) => shape(answers.flat())))

const direct = ({ destination, tenant }: TestPerseus) =>
  Effect.gen(function* () {
    const client = yield* RawClient.connect(destination)
    const { user, database, password } = destination
    yield* client.logIn({ user, database, options: `-c search_path=plain` }, Redacted.value(password))
    yield* client.query(`SET SESSION AUTHORIZATION ${tenant("red").role}`)
    return client
  })

/** With room for one statement each is closed for the next, in whatever batch that is. */
for (const MaxPreparedStatements of [200, 1]) {
  const config = { PoolSettings: { MaxOpen: 2, MaxIdle: 2, MaxPreparedStatements } }
  layer(SharedPerseus.with({ tenants: ["red", "plain"], config }), { excludeTestServices: true })(
    `the same bytes get the same answers as from PostgreSQL itself, where a connection keeps ${MaxPreparedStatements} statements:`,
    (it) => {
      for (const [what, steps] of scripts) {
        it.effect(what, () =>
          Effect.gen(function* () {
            const perseus = yield* SharedPerseus
            const pooled = yield* perseus.login("red")
            const plain = yield* direct(perseus)
            for (const client of [pooled, plain]) {
              yield* client.query("CREATE TABLE IF NOT EXISTS t (id int); TRUNCATE t")
            }
            assert.deepStrictEqual(yield* play(pooled, steps), yield* play(plain, steps))
            // Whatever it was, the next client finds a connection as it should be.
            const next = yield* perseus.login("red")
            assert.deepStrictEqual(rowsOf(yield* next.query("SHOW search_path")), ["red"])
          })
        )
      }
    }
  )
}
