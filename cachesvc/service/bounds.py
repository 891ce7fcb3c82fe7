"""What a request may cost: a deadline of its own, and a bounded queue for the database."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from cachesvc.deadline import ended_within
from cachesvc.errors import Busy, StoreUnavailable
from cachesvc.service.faults import FaultLog

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from cachesvc.settings import Service

_T = TypeVar("_T")
WAITERS_PER_CONNECTION = 4
_GRACE_SECONDS = 0.1  # over the statement timeout: the database's own answer is the better one


class Bounds:
    """Runs what talks to the database.

    The deadline is detached: work that overruns is cancelled but not waited for, since a driver
    may take long to give up on a frozen server. It keeps its place in the queue until it is over.
    """

    def __init__(self, *, places: int, seconds: float) -> None:
        self._places = places
        self._seconds = seconds
        self._running: set[asyncio.Task[object]] = set()
        self._faults = FaultLog("database")

    @classmethod
    def of_pool(cls, service: Service) -> Bounds:
        """Everybody who has a connection, and so many more who wait for one."""
        return cls(
            places=service.database_pool_size * (1 + WAITERS_PER_CONNECTION),
            seconds=service.statement_timeout_ms / 1000 + _GRACE_SECONDS,
        )

    async def run(self, work: Coroutine[object, object, _T], seconds: float | None = None) -> _T:
        """The result of `work`.

        Raises Busy at once when every place is taken, and StoreUnavailable after `seconds`
        (default: a little over the statement timeout).
        """
        if len(self._running) >= self._places:
            work.close()
            raise Busy
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._over)
        try:
            ended = await ended_within(task, seconds or self._seconds)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if ended:
            return task.result()
        task.cancel()
        late = StoreUnavailable()
        self._faults.failed(late.message)
        raise late

    def _over(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if task.cancelled():
            return
        # Retrieved here too: nobody waits any more for what overran.
        error = task.exception()
        if error is None:
            self._faults.fine()
        elif isinstance(error, StoreUnavailable):
            self._faults.failed(error.message)
