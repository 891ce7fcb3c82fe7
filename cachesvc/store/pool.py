"""Connections to Postgres, with the settings that the right plans need."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import asyncpg
from pgvector import HalfVector

from cachesvc.errors import StoreUnavailable
from cachesvc.store.faults import one_line
from cachesvc.store.leases import Hold, Leases
from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

log = logging.getLogger("cachesvc.store")

_CONNECT_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_GRACE_SECONDS = 0.25  # the server's own timeout comes first where the server still answers
_MAX_WAIT_SECONDS = 5.0
_BAD_URL = "service.database_url: is not the URL of a PostgreSQL database"

# Passed when connecting, so that nothing can undo them; behind PgBouncer, which refuses them, they
# belong on the role.
SETTINGS = {
    "jit": "off",
    "synchronous_commit": "on",
    # Every statement is written so that one plan is right at any size: a key has its unique index,
    # a search counts for itself how large its partition is. Planning costs more than looking up.
    "plan_cache_mode": "force_generic_plan",
    # What an empty table's plan would do, and what a walk through the HNSW index competes with.
    "enable_seqscan": "off",
    "enable_sort": "off",
    # HNSW filters after it walks: where what is dead or another's lies in the way, it goes on.
    "hnsw.iterative_scan": "strict_order",
    "hnsw.ef_search": "100",
    # Bounds the walk where nothing near is left to find.
    "hnsw.max_scan_tuples": "20000",
}
# A plan made while the tables were small is forgotten soon.
_PLAN_SECONDS = 30


class Database:
    """Two pools of connections, which come back by themselves when the database does.

    `keyed` serves statements that look up by key; `searching` those that take longer, so that no
    lookup by key waits for them.
    """

    def __init__(self, keyed: Leases, searching: Leases) -> None:
        self._keyed = keyed
        self._searching = searching

    async def row(self, query: str, *values: object) -> Any:
        async with Hold(self._keyed) as connection:
            return await connection.fetchrow(query, *values)

    async def rows(self, query: str, *values: object) -> list[Any]:
        async with Hold(self._keyed) as connection:
            found: list[Any] = await connection.fetch(query, *values)
        return found

    async def search(self, query: str, *values: object) -> list[Any]:
        async with Hold(self._searching) as connection:
            found: list[Any] = await connection.fetch(query, *values)
        return found

    def connection(self) -> AbstractAsyncContextManager[Any]:
        """A connection of one's own, from among those for what takes longer."""
        return Hold(self._searching)

    async def close(self) -> None:
        """Close politely; a frozen server is left behind after 2 s."""
        await asyncio.gather(_close(self._keyed), _close(self._searching))


async def connect(
    url: str,
    *,
    size: int = 8,
    statement_timeout_ms: int = 1000,
    application_name: str = "cachesvc",
) -> Database:
    """At most `size` connections (at least 2), made when needed: the database may be away.

    A URL that cannot be read shows when the first one is made.
    """
    searching = max(1, size // 2)
    keyed = max(1, size - searching)
    seconds = statement_timeout_ms / 1000
    settings = {
        **SETTINGS,
        "application_name": application_name,
        "statement_timeout": str(statement_timeout_ms),
        "lock_timeout": str(statement_timeout_ms),
        "idle_in_transaction_session_timeout": str(statement_timeout_ms * 10),
    }
    keyed_pool = await _pool(url, keyed, seconds, settings)
    searching_pool = await _pool(url, searching, seconds, settings)
    wait = min(seconds, _MAX_WAIT_SECONDS)
    return Database(Leases(keyed_pool, wait), Leases(searching_pool, wait))


async def _pool(url: str, size: int, seconds: float, settings: dict[str, str]) -> Any:
    return await asyncpg.create_pool(
        url,
        # No floor: asyncpg would log a traceback a second while the database is away.
        min_size=0,
        max_size=size,
        connect=_Connector(),
        init=_prepare,
        reset=_reset,
        timeout=_CONNECT_SECONDS,
        command_timeout=seconds + _GRACE_SECONDS,
        server_settings=settings,
        max_cached_statement_lifetime=_PLAN_SECONDS,
    )


async def _close(leases: Leases) -> None:
    try:
        await asyncio.wait_for(leases.close(), _CLOSE_SECONDS)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        leases.pool.terminate()


class _Connector:
    """Connects with our settings, or without them through a pooler that refuses them."""

    def __init__(self) -> None:
        self._refused = False

    async def __call__(self, url: str, *, server_settings: dict[str, str], **options: Any) -> Any:
        try:
            if not self._refused:
                return await asyncpg.connect(url, server_settings=server_settings, **options)
        except ValueError as exc:
            raise StoreUnavailable(_BAD_URL) from exc
        except asyncpg.ProtocolViolationError as exc:
            if "startup parameter" not in str(exc):
                raise
            self._refused = True
            log.warning(
                "the database refuses a connection's settings (%s): set on its role: %s",
                one_line(exc),
                ", ".join(f"{name}={value}" for name, value in server_settings.items()),
            )
        return await asyncpg.connect(url, **options)


async def _prepare(connection: Any) -> None:
    """Send and receive vectors in binary: text costs 100 times as much."""
    schema = await connection.fetchval(statement("vector_schema"))
    if schema is None:
        raise StoreUnavailable("the database has no pgvector: run cachesvc migrate")
    await connection.set_type_codec(
        "halfvec",
        schema=schema,
        encoder=HalfVector.to_binary,
        decoder=HalfVector.from_binary,
        format="binary",
    )


async def _reset(_connection: Any) -> None:
    """Instead of asyncpg's, which costs a round trip and undoes our settings."""
