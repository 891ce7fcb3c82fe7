"""Statements that go over many rows, and may take longer than any lookup may."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from cachesvc.store.sql import statement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachesvc.store.pool import Database

BATCH = 1000  # rows removed by one statement
SLOW_SECONDS = 60.0


@contextlib.asynccontextmanager
async def patient(database: Database) -> AsyncIterator[Patient]:
    """A transaction whose statements may take a minute."""
    async with database.transaction() as connection:
        await connection.execute(statement("be_patient"))
        yield Patient(connection)


class Patient:
    """A connection whose client-side deadline matches the server's."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def fetch(self, query: str, *values: object) -> Any:
        return await self._connection.fetch(query, *values, timeout=SLOW_SECONDS)

    async def fetchrow(self, query: str, *values: object) -> Any:
        return await self._connection.fetchrow(query, *values, timeout=SLOW_SECONDS)

    async def fetchval(self, query: str, *values: object) -> Any:
        return await self._connection.fetchval(query, *values, timeout=SLOW_SECONDS)


async def in_batches(database: Database, name: str, *values: object) -> None:
    """Run a statement that removes so many rows at once until it removes none."""
    removed = BATCH
    while removed:
        async with patient(database) as connection:
            removed = await connection.fetchval(statement(name), *values, BATCH)
