"""What a request may cost: a deadline of its own, and a bounded queue for the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from cachesvc.deadline import Overdue, Within
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
        self._running = 0
        self._faults = FaultLog("database")

    @classmethod
    def of_pool(cls, service: Service) -> Bounds:
        """Everybody who has a connection, and so many more who wait for one."""
        return cls(
            places=service.database_pool_size * (1 + WAITERS_PER_CONNECTION),
            seconds=service.statement_timeout_ms / 1000 + _GRACE_SECONDS,
        )

    async def run(self, work: Coroutine[Any, Any, _T], seconds: float | None = None) -> _T:
        """The result of `work`.

        Raises Busy at once when every place is taken, and StoreUnavailable after `seconds`
        (default: a little over the statement timeout).
        """
        if self._running >= self._places:
            work.close()
            raise Busy
        self._running += 1
        try:
            result = await Within(seconds or self._seconds, work, over=self._over)
        except Overdue:
            late = StoreUnavailable()
            self._faults.failed(late.message)
            raise late from None
        except StoreUnavailable as error:
            self._faults.failed(error.message)
            raise
        self._faults.fine()
        return result

    def _over(self) -> None:
        self._running -= 1
