"""A hot tier that hears what changes, as the service has it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests.store.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachesvc.store.hot import HotStore


@asynccontextmanager
async def hearing(store: HotStore) -> AsyncIterator[None]:
    """Its copies are trusted from the beginning on."""
    listening = asyncio.create_task(store.notices.run(store.heard))
    try:
        await until_trusted(store)
        yield
    finally:
        listening.cancel()
        await asyncio.wait([listening])
        await store.close()


async def until_trusted(store: HotStore) -> None:
    async def trusted() -> bool:
        return store.notices.holds

    await until(trusted)
