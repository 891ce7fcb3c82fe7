"""Notices that run, and what they have heard."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cachesvc.store.notices import Notices, since_boot
from cachesvc.store.pool import connect
from tests.store.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Listening:
    """What is written to one URL, heard through another."""

    def __init__(self, notices: Notices) -> None:
        self.heard: list[str | None] = []
        self.notices = notices
        self._task = asyncio.create_task(notices.run(self.heard.append))

    async def holds(self) -> bool:
        return self.notices.holds

    async def lost(self) -> bool:
        return not self.notices.holds

    async def proved_since(self, moment: float) -> None:
        """Wait for a proof of everything that was committed by then."""

        async def proved() -> bool:
            return self.notices._proved >= moment

        await until(proved)

    async def never_holds(self, seconds: float) -> None:
        """Look, for so long, that it is never trusted."""
        deadline = since_boot() + seconds
        while since_boot() < deadline:
            assert not self.notices.holds
            await asyncio.sleep(0.005)

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@asynccontextmanager
async def listening_to(
    url: str, *, written: str, statement_timeout_ms: int = 1000
) -> AsyncIterator[Listening]:
    """Listen to `url` for what a pool on `written` writes."""
    database = await connect(written, size=2, statement_timeout_ms=statement_timeout_ms)
    listening = Listening(Notices(url, database))
    try:
        yield listening
    finally:
        await listening.end()
        await database.close()
