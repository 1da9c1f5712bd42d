"""psycopg 2: libpq, parameters written into the statement by the client."""

import threading

import psycopg2
import psycopg2.extras
import psycopg2.pool
from io import StringIO

from scenarios import *


def connect(**more):
    """The schema comes from PGOPTIONS."""
    connection = psycopg2.connect(**more)
    connection.autocommit = True
    return connection


def value(cursor, sql, parameters=None):
    cursor.execute(sql, parameters)
    return cursor.fetchone()[0]


def column(cursor, sql):
    cursor.execute(sql)
    return [row[0] for row in cursor.fetchall()]


def error_of(act, *arguments):
    try:
        act(*arguments)
    except psycopg2.Error as error:
        return error.pgcode
    return None


def connect_scenario():
    with connect().cursor() as cursor:
        cursor.execute("SELECT current_schema(), name FROM home")
        schema, home = cursor.fetchone()
        return {"schema": schema, "home": home}


def connect_otherwise():
    url = f"postgresql:///?options=-c%20{SCHEMA_PARAMETER}%3D{SCHEMA}"
    with connect(dsn=url).cursor() as cursor:
        return value(cursor, "SELECT current_schema()")


def reconnect():
    seen = []
    for _ in range(5):
        connection = connect()
        seen.append(value(connection.cursor(), "SELECT current_schema()"))
        connection.close()
    return seen


def settings():
    options = f"-c {SCHEMA_PARAMETER}={SCHEMA} -c TimeZone=Asia/Tokyo -c DateStyle=ISO,DMY"
    cursor = connect(application_name="drivers", options=options).cursor()
    seen = []
    for _ in range(3):
        cursor.execute(SETTINGS)
        seen.append(dict(zip(SETTING_NAMES, cursor.fetchone())))
    return seen


def types():
    cursor = connect(options=f"-c {SCHEMA_PARAMETER}={SCHEMA} -c TimeZone=UTC").cursor()
    cursor.execute(
        "SELECT %s::int8, %s::numeric, %s::timestamptz, %s::bytea, %s::int[], %s::text[], %s::jsonb, %s::text, %s::text",
        (
            9223372036854775807,
            NUMERIC,
            "2026-02-03T04:05:06.789Z",
            BYTES,
            [1, None, 3],
            TEXTS,
            psycopg2.extras.Json(JSON),
            None,
            UNICODE,
        ),
    )
    int8, numeric, timestamptz, bytea, ints, texts, document, nothing, text = cursor.fetchone()
    return {
        "int8": str(int8),
        "numeric": str(numeric),
        "timestamptz": instant(timestamptz),
        "bytea": bytes(bytea).hex(),
        "ints": ints,
        "texts": texts,
        "json": document,
        "nothing": nothing,
        "text": text,
    }


def errors():
    cursor = connect().cursor()
    cursor.execute("CREATE TABLE errors (id int PRIMARY KEY); INSERT INTO errors VALUES (1)")
    seen = {
        "syntax": error_of(cursor.execute, "SELEC 1"),
        "division": error_of(cursor.execute, "SELECT 1 / 0"),
        "table": error_of(cursor.execute, "SELECT * FROM nowhere"),
    }
    try:
        cursor.execute("INSERT INTO errors VALUES (1)")
    except psycopg2.Error as error:
        seen["unique"] = error.pgcode
        seen["constraint"] = error.diag.constraint_name
    return seen


def transactions():
    connection = connect()
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE transactions (id int)")
    ids = "SELECT id FROM transactions ORDER BY id"
    connection.autocommit = False
    cursor.execute("INSERT INTO transactions VALUES (1)")
    connection.commit()
    committed = column(cursor, ids)
    cursor.execute("INSERT INTO transactions VALUES (2)")
    connection.rollback()
    rolled_back = column(cursor, ids)
    cursor.execute("INSERT INTO transactions VALUES (3)")
    cursor.execute("SAVEPOINT here")
    cursor.execute("INSERT INTO transactions VALUES (4)")
    cursor.execute("ROLLBACK TO here")
    cursor.execute("INSERT INTO transactions VALUES (5)")
    connection.commit()
    return {"committed": committed, "rolledBack": rolled_back, "savepoint": column(cursor, ids)}


def failed_transaction():
    connection = connect()
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE failures (id int PRIMARY KEY)")
    connection.autocommit = False
    cursor.execute("INSERT INTO failures VALUES (1)")
    error = error_of(cursor.execute, "INSERT INTO failures VALUES (1)")
    within = error_of(cursor.execute, "SELECT 1")
    connection.rollback()
    cursor.execute("INSERT INTO failures VALUES (7)")
    connection.commit()
    return {"error": error, "within": within, "after": column(cursor, "SELECT id FROM failures")}


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
        cursor = connect().cursor()
        return sum(value(cursor, statement(client, turn % 3, "%s"), (turn,)) for turn in range(ROUNDS))

    return sums_of(work)


def pool():
    pool = psycopg2.pool.ThreadedConnectionPool(1, CLIENTS)

    def work(client):
        total = 0
        for turn in range(ROUNDS):
            connection = pool.getconn()
            total += value(connection.cursor(), statement(client, turn % 3, "%s"), (turn,))
            connection.commit()
            pool.putconn(connection)
        return total

    sums = sums_of(work)
    pool.closeall()
    return sums


def cursor_scenario():
    connection = connect()
    connection.autocommit = False
    portions = connection.cursor(name="portions")
    portions.itersize = 100
    portions.execute("SELECT generate_series(1, 1000)")
    seen = [row[0] for row in portions.fetchmany(100)]
    between = value(connection.cursor(), "SELECT 10")
    seen += [row[0] for row in portions]
    connection.commit()
    return {"rows": len(seen), "sum": sum(seen), "between": between}


def batch():
    connection = connect()
    cursor = connection.cursor()
    cursor.execute("CREATE TABLE batch (id int PRIMARY KEY)")
    connection.autocommit = False
    insert = "INSERT INTO batch VALUES (%s)"
    psycopg2.extras.execute_batch(cursor, insert, [(id,) for id in range(1, 501)], page_size=100)
    connection.commit()
    cursor.execute("SELECT count(*), sum(id) FROM batch")
    rows, total = cursor.fetchone()
    error = error_of(psycopg2.extras.execute_values, cursor, "INSERT INTO batch VALUES %s", [(501,), (1,), (502,)])
    connection.rollback()
    return {"rows": rows, "sum": int(total), "error": error, "left": value(cursor, "SELECT count(*) FROM batch")}


class Abandoned:
    """A source that breaks in the middle."""

    def __init__(self):
        self.reads = 0

    def read(self, size):
        self.reads += 1
        if self.reads > 1:
            raise ValueError("no more of this")
        return "2001\tx\n"


def copy():
    cursor = connect().cursor()
    cursor.execute("CREATE TABLE copied (id int, name text)")
    cursor.copy_expert("COPY copied FROM STDIN", StringIO("".join(f"{id}\tr{id}\n" for id in range(1, 1001))))
    rows = value(cursor, "SELECT count(*) FROM copied")
    out = StringIO()
    cursor.copy_expert("COPY (SELECT * FROM copied WHERE id < 4 ORDER BY id) TO STDOUT", out)
    wrong = StringIO("x\ty\n" * 50_000)
    return {
        "rows": rows,
        "out": out.getvalue().splitlines(),
        "refused": error_of(cursor.copy_expert, "COPY copied FROM STDIN", wrong),
        "abandoned": error_of(cursor.copy_expert, "COPY copied FROM STDIN", Abandoned()),
        "brokenOff": error_of(
            cursor.copy_expert, "COPY (SELECT 1 / (500 - i) FROM generate_series(1, 1000) i) TO STDOUT", StringIO()
        ),
        "left": value(cursor, "SELECT count(*) FROM copied"),
    }


def cancel():
    connection, other = connect(), connect()
    seen = []
    sleeper = threading.Thread(
        target=lambda: seen.append(error_of(connection.cursor().execute, "SELECT pg_sleep(20) /* psycopg2 */"))
    )
    sleeper.start()
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(20) /* psycopg2 */'"
    while value(other.cursor(), running) == 0:
        pass
    connection.cancel()
    sleeper.join()
    return {"error": seen[0], "after": value(connection.cursor(), "SELECT 1")}


def large():
    cursor = connect().cursor()
    return {
        "sent": value(cursor, "SELECT md5(%s)", (LARGE,)),
        "received": digest(value(cursor, "SELECT repeat('0123456789', 524288)")),
    }


def many_rows():
    rows = column(connect().cursor(), "SELECT generate_series(1, 100000)")
    return {"rows": len(rows), "sum": sum(rows)}


def several_statements():
    cursor = connect().cursor()
    count = "SELECT count(*) FROM several"
    cursor.execute("CREATE TABLE several (id int)")
    rows = value(cursor, f"INSERT INTO several VALUES (1); INSERT INTO several VALUES (2); {count}")
    error = error_of(cursor.execute, "INSERT INTO several VALUES (3); SELECT 1 / 0")
    return {"rows": rows, "error": error, "left": value(cursor, count)}


def empty_query():
    cursor = connect().cursor()
    # What came of them is an error of psycopg's own.
    for empty in ["", " ; "]:
        error_of(cursor.execute, empty)
    return value(cursor, "SELECT 1")


def notices():
    connection = connect()
    connection.cursor().execute("DO $$ BEGIN RAISE NOTICE 'first'; RAISE NOTICE 'second'; END $$")
    return [notice.split(":")[1].strip() for notice in connection.notices]


for scenario, play in {
    "connect": connect_scenario,
    "connect otherwise": connect_otherwise,
    "reconnect": reconnect,
    "settings": settings,
    "types": types,
    "errors": errors,
    "transactions": transactions,
    "failed transaction": failed_transaction,
    "statements": statements,
    "pool": pool,
    "cursor": cursor_scenario,
    "batch": batch,
    "copy": copy,
    "cancel": cancel,
    "large": large,
    "many rows": many_rows,
    "several statements": several_statements,
    "empty query": empty_query,
    "notices": notices,
}.items():
    with told(scenario):
        say(scenario, play())
