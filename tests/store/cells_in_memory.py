"""A hot tier that is asked in wordings which are new each time, over a store that counts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from msgspec import structs

from cachesvc.store.growing import Bounds, GrowingLeaves
from cachesvc.store.hot import HotStore
from cachesvc.store.notices import Notices, since_boot
from cachesvc.store.postgres import PostgresStore
from tests.store.entries import near, nearest, new, unit
from tests.store.waiting import until

if TYPE_CHECKING:
    from uuid import UUID

    from cachesvc.core.model import Answer
    from cachesvc.store.base import Found, NearestQuery, Place
    from cachesvc.store.whole import WholeCell
    from tests.postgres import Stores

SEARCHES, TTL = 16, 60


class Counted(PostgresStore):
    """The real store; counts what it is asked, and holds back what it read of a cell."""

    def __init__(self, stores: Stores) -> None:
        super().__init__(stores.database, growing=GrowingLeaves(lambda _: Bounds(100, 50)))
        self.searches = self.reads = self.answers = 0
        self.read, self.let_go = asyncio.Event(), asyncio.Event()
        self.let_go.set()
        self.fault: Exception | None = None

    async def find_nearest(self, query: NearestQuery) -> Found:
        self.searches += 1
        return await super().find_nearest(query)

    async def whole_cell(self, query: NearestQuery, most_rows: int) -> WholeCell | None:
        self.reads += 1
        if self.fault is not None:
            raise self.fault
        whole = await super().whole_cell(query, most_rows)
        self.read.set()
        await self.let_go.wait()
        return whole

    async def answer(self, place: Place, entry_id: UUID) -> Answer | None:
        self.answers += 1
        return await super().answer(place, entry_id)


class Hot:
    """A hot tier over the counted store."""

    def __init__(self, stores: Stores, most_bytes: int = 10**7) -> None:
        self.counted = Counted(stores)
        self.later = 0.0  # than it is, in seconds
        self.store = HotStore(
            self.counted,
            Notices(stores.url, stores.database),
            most_bytes=most_bytes,
            ttl_seconds=TTL,
            clock=lambda: since_boot() + self.later,
        )
        self._wordings = 0

    def wording(self, seed: int, cosine: float = 0.95, **fields: Any) -> NearestQuery:
        """A new one each time, of what was put with `unit(seed)`."""
        self._wordings += 1
        asked = nearest(near(unit(seed), cosine, self._wordings))
        asked_for: NearestQuery = structs.replace(asked, served_from=0.9, **fields)
        return asked_for

    async def best(self, seed: int, cosine: float = 0.95, **fields: Any) -> UUID:
        """The id of what is served."""
        found = await self.store.find_nearest(self.wording(seed, cosine, **fields))
        return found.candidates[0].entry_id

    async def warm(self, seed: int, **fields: Any) -> None:
        """Ask until the cell has been read."""
        reads = self.counted.reads
        await self.ask_until_read(seed, **fields)
        assert self.counted.reads == reads + 1

    async def ask_until_read(self, seed: int, **fields: Any) -> None:
        """Ask so often that the cell is to be read; wait for what comes of it."""
        ended = self.ended
        for _ in range(SEARCHES + 1):
            await self.best(seed, **fields)
        await self.until_read(ended)

    async def until_read(self, ended: int) -> None:
        """Wait until more readings have ended than so many."""

        async def read() -> bool:
            return self.ended > ended

        await until(read)

    @property
    def ended(self) -> int:
        """How many readings have come to an end."""
        return sum(self.store.cells.reads.values())


async def put(hot: Hot, seed: int, name: str | None = None) -> UUID:
    stored = await hot.store.put(new(name or f"entry {seed}", vector=unit(seed)))
    assert stored.entry_id
    return stored.entry_id
