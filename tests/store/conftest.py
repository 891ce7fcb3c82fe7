"""What the tests of the store have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from tests.store.cells_in_memory import Hot
from tests.store.entries import save
from tests.store.hearing import hearing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.postgres import Stores


@pytest_asyncio.fixture
async def hot(stores: Stores) -> AsyncIterator[Hot]:
    """A hot tier that hears what changes; files with a smaller one have their own `hot`."""
    await save(stores, 3600)
    hot = Hot(stores)
    async with hearing(hot.store):
        yield hot
