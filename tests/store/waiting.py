"""A bounded wait for what has no event."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.postgres import Stores


async def until(done: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `done()`; the test fails when that takes more than about five seconds."""
    for _ in range(1000):
        if await done():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it never came to that")


async def waits_for_a_lock(stores: Stores) -> bool:
    """Whether any statement on this test's database waits for a lock."""
    (row,) = await stores.database.search(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    return bool(row["count"])
