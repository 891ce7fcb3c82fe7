"""What is kept in memory is a hit, as long as it would be one, and takes the room it is told."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import tracemalloc
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from msgspec import structs

from cachesvc.core.model import Answer
from cachesvc.store.hot import HotStore
from cachesvc.store.notices import Notices
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import exact, near, nearest, new, save, unit
from tests.store.hearing import hearing, until_trusted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MOST_BYTES = 1_000_000


@pytest_asyncio.fixture
async def hot(stores: Stores) -> AsyncIterator[HotStore]:
    await save(stores, 3600)
    notices = Notices(stores.url, stores.database)
    store = HotStore(stores.entries, notices, most_bytes=MOST_BYTES, ttl_seconds=60)
    async with hearing(store):
        yield store


async def test_no_copy_answers_under_a_policy_that_is_known_to_have_changed(
    hot: HotStore, stores: Stores
) -> None:
    await hot.policy(TENANT, POLICY)
    await hot.put(new("a", vector=unit(1)))
    await hot.find_exact(exact("a"))
    # Nobody is told, as where the notification is late.
    await stores.database.row("UPDATE policies SET revision = revision + 1 RETURNING id")
    row = await hot.policy(TENANT, POLICY)
    assert row is not None
    assert (await hot.find_exact(exact("a"))).revision == row.revision


async def test_what_is_nearly_a_hit_is_asked_for_again(hot: HotStore) -> None:
    await hot.put(new("a", vector=unit(1)))
    seen = (await hot.find_nearest(nearest(near(unit(1), 0.95)))).candidates[0].similarity
    assert seen is not None
    before = hot.hits["semantic"]
    for served_from in (seen + 0.001, seen + 0.001, seen, seen):
        asked = structs.replace(nearest(near(unit(1), 0.95)), served_from=served_from)
        await hot.find_nearest(asked)
    assert hot.hits["semantic"] - before == 1


async def test_what_has_expired_in_memory_hides_nothing_that_lives(stores: Stores) -> None:
    ahead = [0.0]
    await save(stores, 3600)
    loop = asyncio.get_running_loop()

    def clock() -> float:
        return loop.time() + ahead[0]

    notices = Notices(stores.url, stores.database, clock=clock)
    hot = HotStore(stores.entries, notices, most_bytes=MOST_BYTES, ttl_seconds=1000, clock=clock)
    async with hearing(hot):
        await hot.put(dataclasses.replace(new("a", vector=unit(1)), ttl_seconds=100))
        first = (await hot.find_exact(exact("a"))).candidates[0].entry_id
        await hot.find_nearest(nearest(unit(1)))
        # Its time is over, it was removed, and another replica has put a new one: nobody tells.
        ahead[0] = 101.0
        await stores.database.row("DELETE FROM entries RETURNING id")
        await stores.entries.put(new("a", vector=unit(1)))
        await until_trusted(hot)
        for found in (await hot.find_exact(exact("a")), await hot.find_nearest(nearest(unit(1)))):
            assert found.candidates[0].entry_id != first


@pytest.mark.parametrize(
    "payload", ["", "{", "7", "[]", "[1]", '["a"]', '["a", "b", 7]', '["a", "b", [[]]]', "\\u0000"]
)
async def test_whatever_cannot_be_understood_may_mean_anything(hot: HotStore, payload: str) -> None:
    await hot.put(new("a"))
    await hot.find_exact(exact("a"))
    before = hot.hits["exact"]
    await hot.find_exact(exact("a"))
    assert hot.hits["exact"] == before + 1
    hot.heard(payload)
    await hot.find_exact(exact("a"))
    assert hot.hits["exact"] == before + 1


@pytest.mark.parametrize("body", [b"x", b"x" * 20_000], ids=["short answers", "long answers"])
async def test_memory_is_bounded_in_bytes_by_what_copies_really_take(
    hot: HotStore, body: bytes
) -> None:
    await hot.put(dataclasses.replace(new("a"), answer=Answer(body, None)))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        peak = 0
        for number in range(3000):
            # An exact key answers in every space: 3,000 copies of their own.
            await hot.find_exact(structs.replace(exact("a"), space=f"{number:0200}"))
            if number % 10 == 0:
                peak = max(peak, tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    assert hot.weight <= MOST_BYTES
    assert hot.number > 10
    assert peak < 1.5 * MOST_BYTES


async def test_many_candidates_weigh_more_than_one(hot: HotStore) -> None:
    for number in range(32):
        await hot.put(new(f"{number}", vector=near(unit(1), 0.9 + number / 1000)))
    weights = []
    for top_k in (1, 32):
        before = hot.weight
        await hot.find_nearest(nearest(unit(1), top_k=top_k))
        weights.append(hot.weight - before)
    assert weights[1] > weights[0] + 31 * 400


async def test_a_copy_that_is_larger_than_all_room_is_not_kept(hot: HotStore) -> None:
    await hot.put(dataclasses.replace(new("a"), answer=Answer(b"x" * (MOST_BYTES + 1), None)))
    for _ in range(3):
        assert (await hot.find_exact(exact("a"))).candidates
    assert hot.hits["exact"] == 0
    assert hot.weight == 0


async def test_changes_of_others_leave_copies_alone(hot: HotStore) -> None:
    await hot.put(new("a"))
    await hot.find_exact(exact("a"))
    for change in ([TENANT, "other"], ["other", POLICY], [TENANT, POLICY, ["no such entry"]]):
        hot.heard(json.dumps(change))
    await hot.find_exact(exact("a"))
    assert hot.hits["exact"] == 1
