"""Connections of a pool, handed from one statement straight to the next.

asyncpg's own acquire and release cost two tasks and a timer, half of what a lookup by key costs in
this process. So a connection that was used without fault is given to whoever waits longest, or kept
here until somebody comes. The pool is asked only for new ones: it makes them, and mends or ends
those that had a fault.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any

import asyncpg

from cachesvc.deadline import Overdue, Within
from cachesvc.errors import StoreUnavailable
from cachesvc.store.faults import FOREIGN, as_ours, foreign_errors_as_ours

if TYPE_CHECKING:
    from types import TracebackType

_USES = 1000  # then the pool sees a connection again, and may replace it
SERVED = object()
"""What a waiter is given, by identity, who needs no place any more."""
_NEXT = object()


class Leases:
    """A pool of at most `size` connections, and those of them that nobody uses now.

    First come, first served. Each of the `size` places is free, or somebody's, or lies idle with
    its connection; nobody waits while one is free or idle. A place that is given up goes straight
    to whoever waits longest, so that no newcomer finds it in between.
    """

    def __init__(self, pool: Any, size: int, turn_seconds: float, new_seconds: float) -> None:
        self.pool = pool
        self._free = size
        self._turn_seconds = turn_seconds
        self._new_seconds = new_seconds
        self._idle: list[Any] = []
        # Each gets a place with its connection, or with None when it is to ask the pool for one.
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._uses = 0
        self._closing = False

    @property
    def available(self) -> bool:
        """Whether whoever comes now need not wait for his turn."""
        return bool(self._idle or self._free)

    async def take(self, place: Any = _NEXT, *, first: bool = False) -> Any:
        """Waits `turn_seconds` at most for its turn, then `new_seconds` for a new connection.

        `place` is what `turn` has given, where one has waited already; `first` is as in `turn`.
        """
        if place is not _NEXT:
            connection = place
        elif self._idle:
            connection = self._idle.pop()
        elif self._free:
            self._free -= 1
            connection = None
        else:
            connection = await self.turn(asyncio.get_running_loop().create_future(), first=first)
        if connection is not None and _open(connection):
            return connection
        made: list[Any] = []

        def over() -> None:
            if not made:
                self._pass_on(None)

        try:
            return await Within(self._new_seconds, self._new(connection, made), over=over)
        except Overdue:
            raise TimeoutError from None

    async def _new(self, worn: Any, made: list[Any]) -> Any:
        """A connection in the place of `worn`, or of None; `made` tells that there is one."""
        if worn is not None:
            await self.pool.release(worn, timeout=self._new_seconds)
        made.append(await self.pool.acquire())
        return made[0]

    async def turn(self, waiter: asyncio.Future[Any], *, first: bool = False) -> Any:
        """A place, to be taken: its connection, or None; or SERVED, where somebody gave it that.

        `first` of all who wait goes who had his turn before. Raises TimeoutError after
        `turn_seconds`.
        """
        if first:
            self._waiting.appendleft(waiter)
        else:
            self._waiting.append(waiter)
        # asyncio.timeout() takes a good part of what a lookup by key does.
        timer = asyncio.get_running_loop().call_later(self._turn_seconds, _too_late, waiter)
        try:
            return await waiter
        except BaseException:
            # What it was given in the very moment it gave up is the next one's.
            given = waiter.done() and not waiter.cancelled() and waiter.exception() is None
            if given and waiter.result() is not SERVED:
                self._pass_on(waiter.result())
            raise
        finally:
            timer.cancel()

    def keep(self, connection: Any) -> bool:
        """Pass on a connection that had no fault; False where the pool is to have it."""
        self._uses += 1
        if self._closing or self._uses % _USES == 0:
            return False
        self._pass_on(connection)
        return True

    async def give_back(self, connection: Any) -> None:
        """Let the pool have a connection: to mend it, to end it, or to close."""
        try:
            await self.pool.release(connection, timeout=self._new_seconds)
        finally:
            self._pass_on(None)

    async def close(self) -> None:
        """Give everything back to the pool and close it; waits for what is in use."""
        self._closing = True
        while self._idle:
            await self.give_back(self._idle.pop())
        await self.pool.close()

    def _pass_on(self, connection: Any) -> None:
        """Give a place up: with its connection, or with None."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        if connection is None:
            self._free += 1
        else:
            self._idle.append(connection)


def _too_late(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError())


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

    __slots__ = ("_connection", "_first", "_leases", "_place")

    def __init__(self, leases: Leases, place: Any = _NEXT, *, first: bool = False) -> None:
        """`place` and `first` are as in `Leases.take`."""
        self._leases = leases
        self._place = place
        self._first = first

    async def __aenter__(self) -> Any:
        try:
            self._connection = await self._leases.take(self._place, first=self._first)
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
        if isinstance(error, asyncpg.ReadOnlySQLTransactionError):
            # A primary that is none any more: the next connection finds the new one.
            self._connection.terminate()
        farewell = isinstance(error, asyncpg.InternalClientError)
        if farewell:
            # The server's farewell came while the connection was idle, its end has not yet.
            self._connection.terminate()
        cancelled = _cancellation(error)
        if cancelled is not None:
            # It is not lost in what its clean-up meets.
            with contextlib.suppress(*FOREIGN):
                await self._leases.give_back(self._connection)
            raise cancelled
        with foreign_errors_as_ours():
            await self._leases.give_back(self._connection)
        if farewell:
            raise StoreUnavailable("the database closed the connection") from error
        if isinstance(error, FOREIGN):
            raise as_ours(error) from error


def _cancellation(error: BaseException | None) -> asyncio.CancelledError | None:
    """The cancellation that an error is; or that it came in the place of, say of a rollback."""
    if error is not None and not isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        error = error.__context__ if task is not None and task.cancelling() else None
    return error if isinstance(error, asyncio.CancelledError) else None
