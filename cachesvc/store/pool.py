"""Connections to Postgres, with the settings that the right plans need."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import asyncpg
import numpy as np
from pgvector import HalfVector

from cachesvc.errors import StoreUnavailable, StoreUnsure
from cachesvc.store.leases import Hold, Leases
from cachesvc.store.patience import SLOW_SECONDS
from cachesvc.store.pooler import Connector
from cachesvc.store.sql import statement
from cachesvc.store.together import Together

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from numpy.typing import NDArray

_CONNECT_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
_GRACE_SECONDS = 0.25  # the server's own timeout comes first where the server still answers
_MAX_WAIT_SECONDS = 5.0
# So that an operator seldom waits for a sweep, for what splits leaves and for what reads cells.
HOUSEKEEPERS = 4

# Passed when connecting, so that nothing can undo them; behind PgBouncer, which refuses them, every
# transaction begins with them.
SETTINGS = {
    "jit": "off",
    "synchronous_commit": "on",
    # Every statement is written so that one plan is right at any size: a key has its unique index,
    # a search counts for itself how many leaves its cell has. Planning costs more than looking up.
    "plan_cache_mode": "force_generic_plan",
    # What an empty table's plan would do, and what a walk through the HNSW index competes with.
    "enable_seqscan": "off",
    "enable_sort": "off",
    # What is joined is few rows with one each, by their keys, however many the planner expects.
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # HNSW filters after it walks: where another cell's leaves lie in the way, it goes on.
    "hnsw.iterative_scan": "strict_order",
    # Over 4,203 leaves 400 found all that comparing them does, in 1.2 ms; 100 a little less in 0.5.
    "hnsw.ef_search": "400",
    # Bounds the walk where nothing near is left to find.
    "hnsw.max_scan_tuples": "20000",
}
# A plan made while the tables were small is forgotten soon.
_PLAN_SECONDS = 30


class Database:
    """Pools of connections, which come back by themselves when the database does.

    `keyed` serves statements that look up by key; `searching` those that take longer, so that no
    lookup by key waits for them; `housekeeping` what may take a minute, so that no lookup does;
    `beating` nothing but beats, which wait for nobody.
    """

    def __init__(
        self,
        keyed: Leases,
        searching: Leases,
        housekeeping: Leases,
        beating: Leases,
        connector: Connector,
    ) -> None:
        self._keyed = keyed
        self._searching = searching
        self._housekeeping = housekeeping
        self._beating = beating
        self._connector = connector
        # Lookups by key that have to wait for a connection.
        self.lookups = Together(keyed, self._ask)

    async def row(self, query: str, *values: object) -> Any:
        found = await self._fetch(self._keyed, query, values)
        return found[0] if found else None

    async def rows(self, query: str, *values: object) -> list[Any]:
        return await self._fetch(self._keyed, query, values)

    async def search(self, query: str, *values: object) -> list[Any]:
        return await self._fetch(self._searching, query, values)

    async def beat(self, channel: str, payload: str) -> None:
        """Notify a channel, where everything that is written here goes."""
        await self._fetch(self._beating, statement("beat"), (channel, payload))

    async def write(self, query: str, values: Sequence[tuple[object, ...]]) -> None:
        """Run a statement with each of the values: all of them or none.

        Raises StoreUnsure when it may be either, for the database went away while it committed.
        """
        committing = False
        try:
            async with Hold(self._keyed) as connection, self._transaction(connection):
                for row in values:
                    await connection.fetch(query, *row)
                committing = True
        except StoreUnavailable as exc:
            if committing:
                raise StoreUnsure from exc
            raise

    async def _fetch(self, leases: Leases, query: str, values: tuple[object, ...]) -> list[Any]:
        async with Hold(leases) as connection:
            return await self._ask(connection, query, values)

    async def _ask(self, connection: Any, query: str, values: tuple[object, ...]) -> list[Any]:
        found: list[Any]
        if not self._connector.pooled:
            found = await connection.fetch(query, *values)
        else:
            async with self._connector.transaction(connection):
                found = await connection.fetch(query, *values)
        return found

    def _transaction(self, connection: Any) -> AbstractAsyncContextManager[Any]:
        own: AbstractAsyncContextManager[Any] = connection.transaction()
        return self._connector.transaction(connection) if self._connector.pooled else own

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """A transaction on a connection of one's own, from among those for housekeeping."""
        async with Hold(self._housekeeping) as connection, self._transaction(connection):
            yield connection

    def connection(self) -> AbstractAsyncContextManager[Any]:
        """A connection of one's own, from among those for housekeeping."""
        return Hold(self._housekeeping)

    async def close(self) -> None:
        """Close politely; a frozen server is left behind after 2 s."""
        pools = (self._keyed, self._searching, self._housekeeping, self._beating)
        await asyncio.gather(*map(_close, pools))


async def connect(
    url: str,
    *,
    size: int = 8,
    statement_timeout_ms: int = 1000,
    application_name: str = "cachesvc",
    pooled: bool = False,
) -> Database:
    """At most `size` connections (at least 2) for lookups and puts, and 4 for housekeeping.

    One more is made where something beats.

    They are made when needed: the database may be away.

    `pooled`: there is a pooler of transactions in between, also if it does not show by itself.

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
    connector = Connector(settings, pooled=pooled)
    wait = min(seconds, _MAX_WAIT_SECONDS)

    async def leases(size: int, turn_seconds: float) -> Leases:
        return Leases(await _pool(url, size, seconds, connector), size, turn_seconds, wait)

    return Database(
        await leases(keyed, wait),
        await leases(searching, wait),
        # Nobody waits for housekeeping longer than he wants: callers have deadlines of their own.
        await leases(HOUSEKEEPERS, SLOW_SECONDS),
        await leases(1, wait),
        connector,
    )


async def _pool(url: str, size: int, seconds: float, connector: Connector) -> Any:
    return await asyncpg.create_pool(
        url,
        # No floor: asyncpg would log a traceback a second while the database is away.
        min_size=0,
        max_size=size,
        connect=connector,
        init=_prepare,
        reset=_reset,
        timeout=_CONNECT_SECONDS,
        command_timeout=seconds + _GRACE_SECONDS,
        max_cached_statement_lifetime=_PLAN_SECONDS,
    )


async def _close(leases: Leases) -> None:
    try:
        await asyncio.wait_for(leases.close(), _CLOSE_SECONDS)
    except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        leases.pool.terminate()


async def _prepare(connection: Any) -> None:
    """Send and receive vectors in binary: text costs 100 times as much."""
    schema = await connection.fetchval(statement("vector_schema"))
    if schema is None:
        raise StoreUnavailable("the database has no pgvector: run cachesvc migrate")
    await connection.set_type_codec(
        "halfvec",
        schema=schema,
        encoder=HalfVector.to_binary,
        decoder=_halves,
        format="binary",
    )
    # The driver asks for the types of arrays where it first meets them: not in the hour of need.
    await connection.fetchval(statement("array_types"), [], [])


def _halves(data: bytes) -> NDArray[np.float16]:
    """A vector as pgvector sends it: how many, two unused bytes, and big-endian halves."""
    return np.frombuffer(data, dtype=">f2", offset=4)


async def _reset(_connection: Any) -> None:
    """Instead of asyncpg's, which costs a round trip and undoes our settings."""
