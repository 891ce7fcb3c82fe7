"""A coroutine that has begun, and waits where it is for a task to go on with it."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator


class Rest(Coroutine[Any, Any, Any]):
    """What is left of `work`, which has come to wait for `awaited`.

    A cancellation meets it where it waits. Where it waits for nothing but its turn, that is now.
    """

    __slots__ = ("_awaited", "_work")

    def __init__(self, work: Coroutine[Any, Any, Any], awaited: Any) -> None:
        self._work = work
        self._awaited = awaited

    def send(self, value: Any) -> Any:
        awaited, self._awaited = self._awaited, None
        return self._work.send(value) if awaited is None else awaited

    def throw(self, *error: Any) -> Any:
        self._awaited = None
        return self._work.throw(*error)

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, None]:
        raise TypeError("a task runs this, nobody awaits it")


def begun(work: Coroutine[Any, Any, None]) -> Rest | None:
    """Take the first step of `work` now: what is left of it for a task to do, or None.

    There is no current task in that step. What needs one asks for its turn first:
    `await asyncio.sleep(0)`, which costs nothing here.
    """
    try:
        awaited = work.send(None)
    except StopIteration:
        return None
    return Rest(work, awaited)
