"""Waiting for work, but only so long."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cachesvc.begun import Rest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

_T = TypeVar("_T")
_abandoned: set[asyncio.Task[Any]] = set()


def _nothing() -> None:
    pass


class Overdue(Exception):
    """The work was not done in time. What is left of it is cancelled, and not waited for."""


class Within(Generic[_T]):
    """`await Within(seconds, work)`: the result of `work`, or Overdue after `seconds`.

    The deadline is detached: what hangs may hang in its cancellation, too. The work is cancelled
    before Overdue is raised, and what it then still waits for it does in a task of its own. `late`
    is called before it is cancelled, `over` once it has really ended. A cancellation of who waits
    here passes into the work, and is waited for till the deadline.

    The work uses Within for deadlines of its own, where it can: asyncio.timeout() cancels the task
    it began in, and the work may end in another. Nor does it wait for a task slow to end.

    No task of its own, which would be half of the price of a lookup by key: the work is done by
    the task that waits, and the deadline cancels what it waits for.
    """

    __slots__ = ("_awaited", "_late", "_over", "_overdue", "_rest", "_seconds", "_work")

    def __init__(
        self,
        seconds: float,
        work: Coroutine[Any, Any, _T],
        *,
        late: Callable[[], None] = _nothing,
        over: Callable[[], None] = _nothing,
    ) -> None:
        self._seconds = seconds
        self._work = work
        self._late = late
        self._over = over
        self._awaited: Any = None
        self._rest: asyncio.Task[Any] | None = None
        self._overdue = False

    def __await__(self) -> Generator[Any, Any, _T]:
        timer = asyncio.get_running_loop().call_later(self._seconds, self._end)
        try:
            if asyncio.current_task() is None:
                yield  # drivers and timeouts want one (begun.py)
            step, argument = self._work.send, None
            while True:
                self._awaited = step(argument)
                if self._overdue:
                    yield from self._hand_on()
                    raise _overdue()
                try:
                    argument = yield self._awaited
                    step = self._work.send
                except BaseException as error:
                    if self._overdue and isinstance(error, asyncio.CancelledError):
                        yield from self._hand_on()
                        raise _overdue() from None
                    step, argument = self._work.throw, error
        except StopIteration as done:
            result: _T = done.value
            return result
        finally:
            timer.cancel()
            if self._rest is None:
                self._work.close()
                self._over()

    def _end(self) -> None:
        self._overdue = True
        self._late()
        if self._awaited is not None:
            self._awaited.cancel()

    def _hand_on(self) -> Generator[None, None, None]:
        """Have the work cancelled in a task of its own; wait until it has heard of it.

        Never in the task that waits: what a driver then begins, with a timeout that is the task's,
        may end long after that has gone on to something else.
        """
        if self._awaited is not None:
            self._awaited.cancel()  # what it has come to wait for since the deadline, too
        rest = asyncio.get_running_loop().create_task(Rest(self._work, self._awaited))
        rest.cancel()
        self._rest = rest
        # asyncio keeps weak references only, and reports errors that nobody retrieved.
        _abandoned.add(rest)
        rest.add_done_callback(self._ended)
        yield

    def _ended(self, rest: asyncio.Task[Any]) -> None:
        _abandoned.discard(rest)
        if not rest.cancelled():
            rest.exception()
        self._over()


def _overdue() -> BaseException:
    """A cancellation of who waits is not lost in the same moment's deadline."""
    task = asyncio.current_task()
    return asyncio.CancelledError() if task is not None and task.cancelling() else Overdue()
