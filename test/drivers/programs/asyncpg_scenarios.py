"""asyncpg: a protocol implementation of its own, in binary, that prepares and caches all statements by name."""

import asyncio
import datetime
import decimal
import io

import asyncpg

from scenarios import *

LOGIN = {"host": HOST, "port": PORT, "user": USER, "password": PASSWORD, "database": DATABASE}


async def connect(**settings):
    """The schema comes as search_path, which PostgreSQL knows too."""
    return await asyncpg.connect(**LOGIN, ssl=False, server_settings={"search_path": SCHEMA, **settings})


async def column(connection, sql):
    return [row[0] for row in await connection.fetch(sql)]


async def error_of(work):
    try:
        await work
    except asyncpg.PostgresError as error:
        return error.sqlstate
    return None


async def connect_scenario():
    connection = await connect()
    schema, home = await connection.fetchrow("SELECT current_schema(), name FROM home")
    return {"schema": schema, "home": home}


async def connect_otherwise():
    """As a startup parameter of the pooler's own, which PostgreSQL does not know."""
    connection = await asyncpg.connect(**LOGIN, ssl=False, server_settings={SCHEMA_PARAMETER: SCHEMA})
    return await connection.fetchval("SELECT current_schema()")


async def reconnect():
    seen = []
    for _ in range(5):
        connection = await connect()
        seen.append(await connection.fetchval("SELECT current_schema()"))
        await connection.close()
    return seen


async def settings():
    """A pool resets a connection that comes back (RESET ALL); what it started with stays."""
    given = {"search_path": SCHEMA, "application_name": "drivers", "TimeZone": "Asia/Tokyo", "DateStyle": "ISO, DMY"}
    seen = []
    async with asyncpg.create_pool(**LOGIN, ssl=False, min_size=1, max_size=1, server_settings=given) as pool:
        for _ in range(3):
            async with pool.acquire() as connection:
                seen.append(dict(zip(SETTING_NAMES, await connection.fetchrow(SETTINGS))))
                await connection.execute("SET application_name = 'changed'; SET TimeZone = 'Europe/Berlin'")
    return seen


async def types():
    connection = await connect()
    at = datetime.datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=datetime.timezone.utc)
    sent = (9223372036854775807, decimal.Decimal(NUMERIC), at, BYTES, [1, None, 3], TEXTS, json.dumps(JSON), None, UNICODE)
    sql = "SELECT $1::int8, $2::numeric, $3::timestamptz, $4::bytea, $5::int[], $6::text[], $7::jsonb, $8::text, $9::text"
    int8, numeric, timestamptz, bytea, ints, texts, document, nothing, text = await connection.fetchrow(sql, *sent)
    return {
        "int8": str(int8),
        "numeric": str(numeric),
        "timestamptz": instant(timestamptz),
        "bytea": bytea.hex(),
        "ints": ints,
        "texts": texts,
        "json": json.loads(document),
        "nothing": nothing,
        "text": text,
    }


async def own_types():
    connection = await connect()
    await connection.execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
    return list(await connection.fetchrow("SELECT 'happy'::mood, ARRAY['sad', 'happy']::mood[]"))


async def errors():
    connection = await connect()
    await connection.execute("CREATE TABLE errors (id int PRIMARY KEY); INSERT INTO errors VALUES (1)")
    seen = {
        "syntax": await error_of(connection.fetch("SELEC 1")),
        "division": await error_of(connection.fetch("SELECT 1 / 0")),
        "table": await error_of(connection.fetch("SELECT * FROM nowhere")),
    }
    try:
        await connection.execute("INSERT INTO errors VALUES ($1)", 1)
    except asyncpg.PostgresError as error:
        seen["unique"] = error.sqlstate
        seen["constraint"] = error.constraint_name
    return seen


class Undo(Exception):
    pass


async def transactions():
    connection = await connect()
    await connection.execute("CREATE TABLE transactions (id int)")
    ids = "SELECT id FROM transactions ORDER BY id"
    insert = "INSERT INTO transactions VALUES ($1)"
    async with connection.transaction():
        await connection.execute(insert, 1)
    committed = await column(connection, ids)
    with contextlib.suppress(Undo):
        async with connection.transaction():
            await connection.execute(insert, 2)
            raise Undo
    rolled_back = await column(connection, ids)
    async with connection.transaction():
        await connection.execute(insert, 3)
        with contextlib.suppress(Undo):
            async with connection.transaction():
                await connection.execute(insert, 4)
                raise Undo
        await connection.execute(insert, 5)
    return {"committed": committed, "rolledBack": rolled_back, "savepoint": await column(connection, ids)}


async def failed_transaction():
    connection = await connect()
    await connection.execute("CREATE TABLE failures (id int PRIMARY KEY)")
    transaction = connection.transaction()
    await transaction.start()
    insert = "INSERT INTO failures VALUES ($1)"
    await connection.execute(insert, 1)
    error = await error_of(connection.execute(insert, 1))
    within = await error_of(connection.fetch("SELECT 1"))
    await transaction.rollback()
    await connection.execute(insert, 7)
    return {"error": error, "within": within, "after": await column(connection, "SELECT id FROM failures")}


async def statements():
    async def work(client):
        connection = await connect()
        total = 0
        for turn in range(ROUNDS):
            total += await connection.fetchval(statement(client, turn % 3, "$1::int"), turn)
        await connection.close()
        return total

    return await asyncio.gather(*(work(client) for client in range(CLIENTS)))


async def few_statements_kept():
    async def work(client):
        connection = await asyncpg.connect(
            **LOGIN, ssl=False, server_settings={"search_path": SCHEMA}, statement_cache_size=2
        )
        total = 0
        for turn in range(ROUNDS):
            total += await connection.fetchval(statement(client, turn % 3, "$1::int"), turn)
        await connection.close()
        return total

    return await asyncio.gather(*(work(client) for client in range(CLIENTS)))


async def pool():
    settings = {"search_path": SCHEMA}
    async with asyncpg.create_pool(**LOGIN, ssl=False, min_size=1, max_size=3, server_settings=settings) as pool:

        async def work(client):
            total = 0
            for turn in range(ROUNDS):
                total += await pool.fetchval(statement(client, turn % 3, "$1::int"), turn)
            return total

        return await asyncio.gather(*(work(client) for client in range(CLIENTS)))


async def cursor():
    connection = await connect()
    async with connection.transaction():
        portions = await connection.cursor("SELECT generate_series(1, 1000)")
        seen = [row[0] for row in await portions.fetch(100)]
        between = await connection.fetchval("SELECT 10")
        while rows := await portions.fetch(100):
            seen += [row[0] for row in rows]
    return {"rows": len(seen), "sum": sum(seen), "between": between}


async def batch():
    connection = await connect()
    await connection.execute("CREATE TABLE batch (id int PRIMARY KEY)")
    insert = "INSERT INTO batch VALUES ($1)"
    await connection.executemany(insert, [(id,) for id in range(1, 501)])
    rows, total = await connection.fetchrow("SELECT count(*), sum(id) FROM batch")
    error = await error_of(connection.executemany(insert, [(501,), (1,), (502,)]))
    left = await connection.fetchval("SELECT count(*) FROM batch")
    return {"rows": rows, "sum": total, "error": error, "left": left}


async def copy():
    connection = await connect()
    await connection.execute("CREATE TABLE copied (id int, name text)")
    count = "SELECT count(*) FROM copied"
    await connection.copy_records_to_table("copied", records=[(id, f"r{id}") for id in range(1, 1001)])
    rows = await connection.fetchval(count)
    out = io.BytesIO()
    await connection.copy_from_query("SELECT * FROM copied WHERE id < 4 ORDER BY id", output=out)
    wrong = io.BytesIO(b"x\ty\n" * 50_000)

    async def broken_source():
        yield b"2001\tx\n"
        raise Undo

    async def abandon():
        """asyncpg raises what broke its source, and hides what the server said of it."""
        try:
            await connection.copy_to_table("copied", source=broken_source())
        except Undo:
            return "57014"

    broken = "SELECT 1 / (500 - i) FROM generate_series(1, 1000) i"
    return {
        "rows": rows,
        "out": out.getvalue().decode().splitlines(),
        "refused": await error_of(connection.copy_to_table("copied", source=wrong)),
        "abandoned": await abandon(),
        "brokenOff": await error_of(connection.copy_from_query(broken, output=io.BytesIO())),
        "left": await connection.fetchval(count),
    }


async def given_up():
    connection, other = await connect(), await connect()
    sleep = "SELECT pg_sleep(20) /* asyncpg */"
    running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = $1"
    sleeper = asyncio.create_task(connection.fetch(sleep))
    while await other.fetchval(running, sleep) == 0:
        pass
    sleeper.cancel()
    await asyncio.wait([sleeper])
    after = await connection.fetchval("SELECT 1")
    return {"gaveUp": sleeper.cancelled(), "after": after, "running": await other.fetchval(running, sleep)}


async def large():
    connection = await connect()
    return {
        "sent": await connection.fetchval("SELECT md5($1::text)", LARGE),
        "received": digest(await connection.fetchval("SELECT repeat('0123456789', 524288)")),
    }


async def many_rows():
    rows = await column(await connect(), "SELECT generate_series(1, 100000)")
    return {"rows": len(rows), "sum": sum(rows)}


async def several_statements():
    connection = await connect()
    count = "SELECT count(*) FROM several"
    await connection.execute("CREATE TABLE several (id int)")
    await connection.execute("INSERT INTO several VALUES (1); INSERT INTO several VALUES (2)")
    rows = await connection.fetchval(count)
    error = await error_of(connection.execute("INSERT INTO several VALUES (3); SELECT 1 / 0"))
    return {"rows": rows, "error": error, "left": await connection.fetchval(count)}


async def empty_query():
    connection = await connect()
    for empty in ["", " ; "]:
        await connection.fetch(empty)
    return await connection.fetchval("SELECT 1")


async def notices():
    connection = await connect()
    seen = []
    connection.add_log_listener(lambda _, notice: seen.append(notice.message))
    await connection.execute("DO $$ BEGIN RAISE NOTICE 'first'; RAISE NOTICE 'second'; END $$")
    await connection.close()
    return seen


async def main():
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
        "pool": pool,
        "cursor": cursor,
        "batch": batch,
        "copy": copy,
        "given up": given_up,
        "large": large,
        "many rows": many_rows,
        "several statements": several_statements,
        "empty query": empty_query,
        "notices": notices,
    }.items():
        with told(scenario):
            say(scenario, await play())


asyncio.run(main())
