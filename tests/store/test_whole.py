"""What memory finds in a cell is what the database finds there."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import pytest
from msgspec import structs

from cachesvc.store import leaves
from cachesvc.store.base import Selection
from cachesvc.store.leaves import tend
from tests.postgres import TENANT, Stores
from tests.store import cells
from tests.store.cells_in_memory import Hot, put
from tests.store.entries import near, nearest, new, save, unit

if TYPE_CHECKING:
    from cachesvc.core.model import Candidate


async def fill_and_split(hot: Hot, stores: Stores) -> None:
    """So much beside what is asked for that the cell has leaves."""
    for number in range(100, 230):
        await hot.store.put(new(f"far {number}", vector=unit(number)))
    await cells.split(stores, hot.counted)
    assert len(await cells.kept(stores)) > 1


def told(candidates: list[Candidate] | tuple[Candidate, ...]) -> list[tuple[object, ...]]:
    return [(one.entry_id, one.similarity, one.created_at, one.expires_at) for one in candidates]


@pytest.mark.parametrize("number", [1, 3, 40, 100])
async def test_memory_finds_what_the_database_finds(hot: Hot, number: int) -> None:
    dice = np.random.default_rng(number)
    topics = [unit(seed) for seed in range(8)]
    for each in range(number):
        # Some are equal, and some nearly; of equal ones the newest comes first.
        cosine = (1.0, 1.0, 0.97, 0.9)[each % 4]
        vector = near(topics[int(dice.integers(8))], cosine, each % 5)
        entry = new(f"{each}", vector=vector, ttl_seconds=int(dice.integers(60, 600)))
        await hot.store.put(entry)
    whole = await hot.counted.whole_cell(nearest(unit(0)), 1000)
    assert whole is not None
    for each in range(60):
        vector = near(topics[each % 8], float(dice.uniform(0.5, 1.0)), 100 + each)
        query = nearest(vector, top_k=int(dice.integers(1, 9)))
        found = await hot.counted.find_nearest(query)
        seen = [one.similarity for one in found.candidates]
        if len(set(seen)) == len(seen):
            assert told(whole.nearest(query)) == told(found.candidates)
        else:
            assert [one.similarity for one in whole.nearest(query)] == seen
            assert whole.nearest(query)[0].entry_id == found.candidates[0].entry_id
        all_of_it = whole.nearest(query)
        near_enough = whole.nearest(structs.replace(query, served_from=0.9))
        assert near_enough == [one for one in all_of_it if (one.similarity or 0) >= 0.9]


async def test_of_many_equal_ones_the_newest_is_served(hot: Hot) -> None:
    for number in range(90):
        last = await put(hot, 1, f"{number}")
    whole = await hot.counted.whole_cell(nearest(unit(1)), 1000)
    assert whole is not None
    for seed in range(20):
        query = nearest(near(unit(1), 0.95, seed))
        assert whole.nearest(query)[0].entry_id == last


async def test_of_a_cell_that_is_being_split_nothing_is_lacking(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    await save(stores, 3600)
    monkeypatch.setattr(leaves, "_MOVED", 7)
    entries = cells.store(stores)
    ids = await cells.fill(entries, range(4 * cells.BOUNDS.cell))
    asked, steps = nearest(unit(1, cells.D)), 0
    while entries.growing.crowded() is not None:
        whole = await entries.whole_cell(asked, len(ids))
        assert whole is not None
        found = [UUID(bytes=whole.ids[at : at + 16]) for at in range(0, len(whole.ids), 16)]
        assert sorted(found) == sorted(ids)
        assert await entries.whole_cell(asked, len(ids) - 1) is None
        await tend(stores.database, entries.growing)
        steps += 1
    assert len(await cells.kept(stores)) > 4
    assert steps > 20


async def test_of_more_equal_ones_than_can_be_told_apart_the_database_has_the_word(
    hot: Hot,
) -> None:
    for number in range(300):
        last = await put(hot, 1, f"{number}")
    whole = await hot.counted.whole_cell(nearest(unit(1)), 1000)
    assert whole is not None
    assert whole.nearest(hot.wording(1)) == []
    await hot.warm(1)
    searches = hot.counted.searches
    assert await hot.best(1) == last
    assert hot.counted.searches == searches + 1


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_here_memory_serves_what_the_database_would(
    hot: Hot, stores: Stores, seed: int, split: bool
) -> None:
    """Puts, replacements and removals at random, and wordings near to all of it between them."""
    dice = random.Random(seed)
    if split:
        await fill_and_split(hot, stores)
    vectors = [
        near(unit(topic), 0.97, topic * 10 + each) for topic in range(3) for each in range(4)
    ]
    ids: list[UUID] = []
    for _ in range(40):
        vector = dice.choice(vectors)
        if ids and dice.random() < 0.25:
            selection = Selection(TENANT, entry_id=ids.pop(dice.randrange(len(ids))))
            await stores.admin.purge(selection, dry_run=False)
            await hot.store.settled()
        else:
            name = f"{dice.randrange(12)}" if dice.random() < 0.5 else f"{dice.random()}"
            stored = await hot.store.put(new(name, vector=near(vector, 0.99, dice.randrange(99))))
            assert stored.entry_id
            ids.append(stored.entry_id)
        for _ in range(24):
            asked = nearest(near(dice.choice(vectors), 0.98, dice.randrange(10**6)))
            query = structs.replace(asked, served_from=0.93)
            served = (await hot.store.find_nearest(query)).candidates[:1]
            wanted = (await stores.entries.find_nearest(query)).candidates[:1]
            assert told(served) == told(wanted)
    assert hot.store.cells.reads["kept"] > 1
    assert hot.store.hits["semantic"] > 50
