"""Names the tenant on every connection: asyncpg has no parameter for it that the environment could give."""
import os

from asyncpg import connect_utils

schema = os.environ.get("ASYNCPG_SEARCH_PATH")

if schema is not None:
    connect_addr = connect_utils._connect_addr

    async def _connect_addr(*, params, **others):
        settings = {"search_path": schema, **(params.server_settings or {})}
        return await connect_addr(params=params._replace(server_settings=settings), **others)

    connect_utils._connect_addr = _connect_addr
