"""Waiting for one task, but only so long."""

from __future__ import annotations

import asyncio
from typing import Any


async def ended_within(task: asyncio.Task[Any], seconds: float) -> bool:
    """True once `task` has ended, False after `seconds`; it is not cancelled.

    What asyncio.wait() does for one task, at a third of its price.
    """
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    timer = asyncio.get_running_loop().call_later(seconds, _settle, ended)

    def settle(_: asyncio.Task[Any]) -> None:
        _settle(ended)

    task.add_done_callback(settle)
    try:
        await ended
    finally:
        timer.cancel()
        task.remove_done_callback(settle)
    return task.done()


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
