"""Connections of a pool, handed from one statement straight to the next.

asyncpg's own acquire and release cost two tasks and a timer, half of what a lookup by key costs in
this process. So a connection that was used without fault is kept here, and the pool is asked only
when none is: it makes new ones, lets callers wait, and mends or ends those that had a fault.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg

from cachesvc.errors import StoreUnavailable
from cachesvc.store.faults import FOREIGN, as_ours, foreign_errors_as_ours

if TYPE_CHECKING:
    from types import TracebackType

_USES = 1000  # then the pool sees a connection again, and may replace it


class Leases:
    """A pool, and those of its connections that nobody uses now."""

    def __init__(self, pool: Any, wait_seconds: float) -> None:
        self.pool = pool
        self._wait_seconds = wait_seconds
        self._idle: list[Any] = []
        self._asking = 0  # callers that are at the pool
        self._uses = 0
        self._closing = False

    async def take(self) -> Any:
        """Waits no longer than a statement may run."""
        while self._idle:
            connection = self._idle.pop()
            if _open(connection):
                return connection
            await self.pool.release(connection)
        self._asking += 1
        try:
            return await self.pool.acquire(timeout=self._wait_seconds)
        finally:
            self._asking -= 1

    def keep(self, connection: Any) -> bool:
        """Keep a connection that had no fault; False where the pool is to have it."""
        self._uses += 1
        kept = not self._asking and not self._closing and self._uses % _USES != 0
        if kept:
            self._idle.append(connection)
        return kept

    async def close(self) -> None:
        """Give everything back to the pool and close it; waits for what is in use."""
        self._closing = True
        while self._idle:
            await self.pool.release(self._idle.pop())
        await self.pool.close()


def _open(connection: Any) -> bool:
    """The pool takes a connection back by itself when it was closed while nobody used it."""
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:
        return False


class Hold:
    """`async with`: a connection of one's own.

    Raises StoreUnavailable or StoreRefused for whatever goes wrong while it is held.
    """

    __slots__ = ("_connection", "_leases")

    def __init__(self, leases: Leases) -> None:
        self._leases = leases

    async def __aenter__(self) -> Any:
        try:
            self._connection = await self._leases.take()
        except FOREIGN as exc:
            raise as_ours(exc) from exc
        return self._connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and self._leases.keep(self._connection):
            return
        farewell = isinstance(error, asyncpg.InternalClientError)
        if farewell:
            # The server's farewell came while the connection was idle, its end has not yet.
            self._connection.terminate()
        with foreign_errors_as_ours():
            await self._leases.pool.release(self._connection)
        if farewell:
            raise StoreUnavailable("the database closed the connection") from error
        if isinstance(error, FOREIGN):
            raise as_ours(error) from error
