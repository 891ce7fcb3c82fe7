"""Waiting for work, but only so long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cachesvc.begun import Rest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

_T = TypeVar("_T")
_abandoned: set[asyncio.Task[Any]] = set()


class Overdue(Exception):
    """The work was not done in time. What is left of it is cancelled, and not waited for."""


class Within(Generic[_T]):
    """`await Within(seconds, work)`: the result of `work`, or Overdue after `seconds`.

    The deadline is detached: what hangs may hang in its cancellation, too. A cancellation of who
    waits here passes into `work`, and is waited for till the deadline. `over` is called once, when
    the work has really ended.

    No task of its own, which would be half of the price of a lookup by key: the work is done by
    the task that waits, and the deadline cancels what it waits for.
    """

    __slots__ = ("_awaited", "_over", "_overdue", "_rest", "_seconds", "_work")

    def __init__(
        self,
        seconds: float,
        work: Coroutine[Any, Any, _T],
        over: Callable[[], None] = lambda: None,
    ) -> None:
        self._seconds = seconds
        self._work = work
        self._over = over
        self._awaited: Any = None
        self._rest: asyncio.Task[Any] | None = None
        self._overdue = False

    def __await__(self) -> Generator[Any, Any, _T]:
        timer = asyncio.get_running_loop().call_later(self._seconds, self._end)
        try:
            if asyncio.current_task() is None:
                yield  # drivers and timeouts want one (begun.py)
            return (yield from self._done())
        finally:
            timer.cancel()
            if self._rest is None:
                self._work.close()
                self._over()

    def _done(self) -> Generator[Any, Any, _T]:
        step, argument = self._work.send, None
        while True:
            try:
                self._awaited = step(argument)
            except StopIteration as done:
                result: _T = done.value
                return result
            if self._overdue:
                raise self._late()
            try:
                argument = yield self._awaited
                step = self._work.send
            except BaseException as error:
                if self._overdue and isinstance(error, asyncio.CancelledError):
                    raise self._late() from None
                step, argument = self._work.throw, error

    def _end(self) -> None:
        self._overdue = True
        if self._awaited is not None:
            self._awaited.cancel()

    def _late(self) -> BaseException:
        """What becomes of the waiting; the work goes on to its end in a task of its own."""
        self._rest = asyncio.get_running_loop().create_task(Rest(self._work, self._awaited))
        self._rest.cancel()
        # asyncio keeps weak references only, and reports errors that nobody retrieved.
        _abandoned.add(self._rest)
        self._rest.add_done_callback(self._ended)
        task = asyncio.current_task()
        return asyncio.CancelledError() if task is not None and task.cancelling() else Overdue()

    def _ended(self, rest: asyncio.Task[Any]) -> None:
        _abandoned.discard(rest)
        if not rest.cancelled():
            rest.exception()
        self._over()
