"""A store whose cells are split early, and what tests ask of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cachesvc.core.cells import cell_of
from cachesvc.service.leaves import tend_leaves
from cachesvc.store.growing import Bounds, GrowingLeaves
from cachesvc.store.leaves import tend
from cachesvc.store.postgres import PostgresStore
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import PLACE, near, nearest, new, unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

D = 16
BOUNDS = Bounds(cell=60, leaf=15)
MORE = 400
CELL = cell_of(TENANT, POLICY, PLACE.scope, "", D, b"")


def bounds(_dimensions: int) -> Bounds:
    return BOUNDS


def store(stores: Stores, growing: GrowingLeaves | None = None) -> PostgresStore:
    """One that scans few rows only."""
    return PostgresStore(stores.database, growing=growing or GrowingLeaves(bounds))


async def fill(entries: PostgresStore, numbers: range) -> list[UUID]:
    """Puts, in order; their ids."""
    ids = []
    for number in numbers:
        id = (await entries.put(new(str(number), vector=unit(number, D)))).entry_id
        assert id is not None
        ids.append(id)
    return ids


async def split(stores: Stores, entries: PostgresStore) -> None:
    """Whatever is to be split is."""
    for _ in range(1000):
        if entries.growing.crowded() is None:
            return
        await tend(stores.database, entries.growing)
    raise AssertionError("there is no end to it")


async def sizes(stores: Stores) -> list[int]:
    """How many entries each leaf holds that holds any."""
    rows = await stores.database.rows("SELECT count(*) FROM entries GROUP BY leaf")
    return sorted(row[0] for row in rows)


async def kept(stores: Stores) -> list[bytes]:
    """The leaves there are, with rows or without."""
    return [row["leaf"] for row in await stores.database.rows("SELECT leaf FROM leaves")]


async def later(stores: Stores) -> None:
    """No put or move is under way any more that began before now."""
    await stores.database.row(
        "UPDATE leaves SET opened_at = opened_at - interval '20 minutes', "
        "closed_at = closed_at - interval '20 minutes'"
    )


async def found(entries: PostgresStore, number: int) -> UUID | None:
    """Whatever is nearest to what the `number`th asks."""
    asked = nearest(near(unit(number, D), 0.97, number), served_from=0.9)
    candidates = (await entries.find_nearest(asked)).candidates
    return candidates[0].entry_id if candidates else None


async def share(entries: PostgresStore, ids: list[UUID]) -> float:
    again = [await found(entries, number) == id for number, id in enumerate(ids)]
    return sum(again) / len(again)


@asynccontextmanager
async def tending(stores: Stores, growing: GrowingLeaves, **often: float) -> AsyncIterator[None]:
    """The service's own work on leaves goes on meanwhile."""
    work = asyncio.create_task(tend_leaves(stores.database, growing, every=0.01, **often))
    try:
        yield
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
