"""psycopg 3: libpq, parameters by the protocol, every statement prepared at once, pipelines."""

import datetime
import decimal
import logging
import threading

import psycopg
from psycopg.types.enum import EnumInfo, register_enum
from psycopg.types.json import Jsonb

from scenarios import *

# A pipeline warns of what it ignores behind an error, if that happens to be there already.
logging.getLogger("psycopg").setLevel(logging.ERROR)


def connect(conninfo="", **more):
    """The schema comes from PGOPTIONS."""
    connection = psycopg.connect(conninfo, autocommit=True, **more)
    connection.prepare_threshold = 0
    return connection


def value(connection, sql, parameters=None):
    return connection.execute(sql, parameters).fetchone()[0]


def column(connection, sql):
    return [row[0] for row in connection.execute(sql)]


def error_of(act, *arguments):
    try:
        act(*arguments)
    except psycopg.Error as error:
        return error.sqlstate
    return None


def connect_scenario():
    schema, home = connect().execute("SELECT current_schema(), name FROM home").fetchone()
    return {"schema": schema, "home": home}


def connect_otherwise():
    return value(connect(f"postgresql:///?options=-c%20{SCHEMA_PARAMETER}%3D{SCHEMA}"), "SELECT current_schema()")


def reconnect():
    seen = []
    for _ in range(5):
        with connect() as connection:
            seen.append(value(connection, "SELECT current_schema()"))
    return seen


def settings():
    options = f"-c {SCHEMA_PARAMETER}={SCHEMA} -c TimeZone=Asia/Tokyo -c DateStyle=ISO,DMY"
    connection = connect(application_name="drivers", options=options)
    return [dict(zip(SETTING_NAMES, connection.execute(SETTINGS).fetchone())) for _ in range(3)]


def types():
    connection = connect(options=f"-c {SCHEMA_PARAMETER}={SCHEMA} -c TimeZone=UTC")
    at = datetime.datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=datetime.timezone.utc)
    sent = (9223372036854775807, decimal.Decimal(NUMERIC), at, BYTES, [1, None, 3], TEXTS, Jsonb(JSON), None, UNICODE)
    sql = "SELECT %s::int8, %s::numeric, %s::timestamptz, %s::bytea, %s::int[], %s::text[], %s::jsonb, %s::text, %s::text"
    seen = []
    for binary in [False, True]:
        row = connection.cursor(binary=binary).execute(sql, sent).fetchone()
        int8, numeric, timestamptz, bytea, ints, texts, document, nothing, text = row
        seen.append(
            {
                "int8": str(int8),
                "numeric": str(numeric),
                "timestamptz": instant(timestamptz),
                "bytea": bytea.hex(),
                "ints": ints,
                "texts": texts,
                "json": document,
                "nothing": nothing,
                "text": text,
            }
        )
    in_text, in_binary = seen
    return in_text if in_text == in_binary else seen


def own_types():
    connection = connect()
    connection.execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
    register_enum(EnumInfo.fetch(connection, "mood"), connection)
    row = connection.execute("SELECT 'happy'::mood, ARRAY['sad', 'happy']::mood[]").fetchone()
    return [row[0].name, [mood.name for mood in row[1]]]


def errors():
    connection = connect()
    connection.execute("CREATE TABLE errors (id int PRIMARY KEY)")
    connection.execute("INSERT INTO errors VALUES (1)")
    seen = {
        "syntax": error_of(connection.execute, "SELEC 1"),
        "division": error_of(connection.execute, "SELECT 1 / 0"),
        "table": error_of(connection.execute, "SELECT * FROM nowhere"),
    }
    try:
        connection.execute("INSERT INTO errors VALUES (1)")
    except psycopg.Error as error:
        seen["unique"] = error.sqlstate
        seen["constraint"] = error.diag.constraint_name
    return seen


class Undo(Exception):
    pass


def transactions():
    connection = connect()
    connection.execute("CREATE TABLE transactions (id int)")
    ids = "SELECT id FROM transactions ORDER BY id"
    insert = "INSERT INTO transactions VALUES (%s)"
    with connection.transaction():
        connection.execute(insert, (1,))
    committed = column(connection, ids)
    with contextlib.suppress(Undo), connection.transaction():
        connection.execute(insert, (2,))
        raise Undo
    rolled_back = column(connection, ids)
    with connection.transaction():
        connection.execute(insert, (3,))
        with contextlib.suppress(Undo), connection.transaction():
            connection.execute(insert, (4,))
            raise Undo
        connection.execute(insert, (5,))
    return {"committed": committed, "rolledBack": rolled_back, "savepoint": column(connection, ids)}


def failed_transaction():
    connection = connect()
    connection.execute("CREATE TABLE failures (id int PRIMARY KEY)")
    connection.autocommit = False
    connection.execute("INSERT INTO failures VALUES (1)")
    error = error_of(connection.execute, "INSERT INTO failures VALUES (1)")
    within = error_of(connection.execute, "SELECT 1")
    connection.rollback()
    connection.execute("INSERT INTO failures VALUES (7)")
    connection.commit()
    return {"error": error, "within": within, "after": column(connection, "SELECT id FROM failures")}


def sums_of(work):
    """Each client in a thread of its own."""
    sums = [None] * CLIENTS

    def play(client):
        sums[client] = work(client)

    threads = [threading.Thread(target=play, args=(client,)) for client in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sums


def statements():
    def work(client):
        with connect() as connection:
            return sum(value(connection, statement(client, turn % 3, "%s::int"), (turn,)) for turn in range(ROUNDS))

    return sums_of(work)


def few_statements_kept():
    """psycopg closes what is too much by DEALLOCATE, in SQL."""

    def work(client):
        with connect() as connection:
            connection.prepared_max = 2
            return sum(value(connection, statement(client, turn % 3, "%s::int"), (turn,)) for turn in range(ROUNDS))

    return sums_of(work)


def cursor():
    with connect() as connection, connection.transaction():
        portions = connection.cursor(name="portions")
        portions.itersize = 100
        portions.execute("SELECT generate_series(1, 1000)")
        seen = [row[0] for row in portions.fetchmany(100)]
        between = value(connection, "SELECT 10")
        seen += [row[0] for row in portions]
    return {"rows": len(seen), "sum": sum(seen), "between": between}


def batch():
    connection = connect()
    connection.execute("CREATE TABLE batch (id int PRIMARY KEY)")

    def insert(ids):
        with connection.transaction():
            connection.cursor().executemany("INSERT INTO batch VALUES (%s)", [(id,) for id in ids])

    insert(range(1, 501))
    rows, total = connection.execute("SELECT count(*), sum(id) FROM batch").fetchone()
    error = error_of(insert, [501, 1, 502])
    return {"rows": rows, "sum": int(total), "error": error, "left": value(connection, "SELECT count(*) FROM batch")}


def copy():
    connection = connect()
    connection.execute("CREATE TABLE copied (id int, name text)")
    copy_in = "COPY copied FROM STDIN"

    def write(rows, then=None):
        with connection.cursor().copy(copy_in) as copy:
            for row in rows:
                copy.write_row(row)
            if then is not None:
                raise then

    def read(sql):
        with connection.cursor().copy(sql) as copy:
            return b"".join(copy).decode().splitlines()

    write((id, f"r{id}") for id in range(1, 1001))
    count = "SELECT count(*) FROM copied"
    rows = value(connection, count)
    out = read("COPY (SELECT * FROM copied WHERE id < 4 ORDER BY id) TO STDOUT")
    refused = error_of(write, [("x", "y")] * 50_000)
    abandoned = error_of(write, [(2001, "x")], Undo())
    broken_off = error_of(read, "COPY (SELECT 1 / (500 - i) FROM generate_series(1, 1000) i) TO STDOUT")
    return {
        "rows": rows,
        "out": out,
        "refused": refused,
        "abandoned": abandoned,
        "brokenOff": broken_off,
        "left": value(connection, count),
    }


def pipeline():
    connection = connect()
    connection.execute("CREATE TABLE piped (id int)")
    with connection.pipeline():
        results = [cursor.fetchone()[0] for cursor in [connection.execute(f"SELECT {id}") for id in [1, 2, 3]]]
    failing = []
    # What is behind the error is told of once more at the end.
    with contextlib.suppress(psycopg.errors.PipelineAborted), connection.pipeline() as pipeline:
        failing.append(value(connection, "SELECT 1"))

        def fail():
            """psycopg raises the error wherever it happens to be when it comes."""
            connection.execute("SELECT 1 / 0")
            connection.execute("INSERT INTO piped VALUES (3)")
            pipeline.sync()

        failing.append(error_of(fail))
    failing.append("skipped" if value(connection, "SELECT count(*) FROM piped") == 0 else "done")
    return {"results": results, "failing": failing, "after": value(connection, "SELECT 5")}


def cancel():
    connection, other = connect(), connect()
    sleep = "SELECT pg_sleep(20) /* psycopg */"
    seen = []
    sleeper = threading.Thread(target=lambda: seen.append(error_of(connection.execute, sleep)))
    sleeper.start()
    while value(other, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = %s", (sleep,)) == 0:
        pass
    connection.cancel()
    sleeper.join()
    return {"error": seen[0], "after": value(connection, "SELECT 1")}


def large():
    connection = connect()
    return {
        "sent": value(connection, "SELECT md5(%s)", (LARGE,)),
        "received": digest(value(connection, "SELECT repeat('0123456789', 524288)")),
    }


def many_rows():
    rows = column(connect(), "SELECT generate_series(1, 100000)")
    return {"rows": len(rows), "sum": sum(rows)}


def several_statements():
    connection = connect()
    count = "SELECT count(*) FROM several"
    connection.execute("CREATE TABLE several (id int)")
    connection.prepare_threshold = None
    connection.execute("INSERT INTO several VALUES (1); INSERT INTO several VALUES (2)")
    rows = value(connection, count)
    error = error_of(connection.execute, "INSERT INTO several VALUES (3); SELECT 1 / 0")
    return {"rows": rows, "error": error, "left": value(connection, count)}


def empty_query():
    connection = connect()
    for empty in ["", " ; "]:
        connection.execute(empty)
    return value(connection, "SELECT 1")


def notices():
    connection = connect()
    seen = []
    connection.add_notice_handler(lambda notice: seen.append(notice.message_primary))
    connection.execute("DO $$ BEGIN RAISE NOTICE 'first'; RAISE NOTICE 'second'; END $$")
    return seen


for scenario, play in {
    "connect": connect_scenario,
    "connect otherwise": connect_otherwise,
    "reconnect": reconnect,
    "settings": settings,
    "types": types,
    "own types": own_types,
    "errors": errors,
    "transactions": transactions,
    "failed transaction": failed_transaction,
    "statements": statements,
    "few statements kept": few_statements_kept,
    "cursor": cursor,
    "batch": batch,
    "copy": copy,
    "pipeline": pipeline,
    "cancel": cancel,
    "large": large,
    "many rows": many_rows,
    "several statements": several_statements,
    "empty query": empty_query,
    "notices": notices,
}.items():
    with told(scenario):
        say(scenario, play())
