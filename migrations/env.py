"""Alembic's entry: one transaction, one migrator at a time.

The URL comes from the caller (`config.attributes["url"]`) and is read by asyncpg itself, so that
whatever the service can connect to can be migrated, query parameters included.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
from alembic import context
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

if TYPE_CHECKING:
    from sqlalchemy import Connection

LOCK_KEY = 0x6361636865737663  # "cachesvc"
# A migrator waits this long for another one, and for whoever holds a table; its own work may take
# as long as it takes, whatever the role's settings say.
_PATIENCE = "SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = 0"


async def _connect() -> Any:
    return await asyncpg.connect(context.config.attributes["url"])


# Names that no other session has: a pooler of transactions lends out sessions that had others.
_CONNECTING = {
    "async_creator_fn": _connect,
    "prepared_statement_name_func": lambda: f"cachesvc_{uuid4().hex}",
}


async def _run() -> None:
    engine = create_async_engine(
        "postgresql+asyncpg://", connect_args=_CONNECTING, poolclass=NullPool
    )
    async with engine.connect() as connection:
        await connection.run_sync(_migrate)
        await connection.commit()
    await engine.dispose()


def _migrate(connection: Connection) -> None:
    context.configure(connection=connection, transaction_per_migration=False)
    with context.begin_transaction():
        for setting in _PATIENCE.split(";"):
            connection.execute(text(setting))
        # Without it, of several that start at once all but one fail on pg_type's unique index.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        context.run_migrations()


asyncio.run(_run())
