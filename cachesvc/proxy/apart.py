"""Work that would hold up the event loop, done apart from it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    _T = TypeVar("_T")

# What takes longer than about a millisecond on the event loop goes to a thread.
INLINE_BYTES = 64 * 1024


async def offloaded(size: int, work: Callable[[], _T]) -> _T:
    """The result of pure `work` over `size` bytes, without holding up the event loop."""
    return work() if size <= INLINE_BYTES else await asyncio.to_thread(work)


class Apart:
    """So many pieces of work at once and no more, however many wait.

    A parsed body takes some 25 times the memory of its bytes. Work that nobody waits for any more
    is not begun; what has begun keeps its thread to its end.
    """

    def __init__(self, at_once: int = 2) -> None:
        self._threads = ThreadPoolExecutor(at_once, thread_name_prefix="judge")

    async def run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
