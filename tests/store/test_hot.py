"""A reading that was under way when something changed is no copy of what there is now."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cachesvc.store.hot import HotStore
from cachesvc.store.notices import Notices
from cachesvc.store.postgres import PostgresStore
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import exact, near, nearest, new, save, unit
from tests.store.hearing import hearing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachesvc.store.base import ExactQuery, Found, NearestQuery


class Slow(PostgresStore):
    """The real store; what it has found it holds back until it is let go."""

    def __init__(self, stores: Stores) -> None:
        super().__init__(stores.database)
        self.queries = 0
        self.found, self.let_go = asyncio.Event(), asyncio.Event()
        self.let_go.set()

    async def find_exact(self, query: ExactQuery) -> Found:
        return await self._held_back(await super().find_exact(query))

    async def find_nearest(self, query: NearestQuery) -> Found:
        return await self._held_back(await super().find_nearest(query))

    async def _held_back(self, found: Found) -> Found:
        self.queries += 1
        self.found.set()
        await self.let_go.wait()
        return found


@pytest_asyncio.fixture
async def hot(stores: Stores) -> AsyncIterator[tuple[HotStore, Slow]]:
    await save(stores, 3600)
    slow = Slow(stores)
    store = HotStore(slow, Notices(stores.url, stores.database), most_bytes=10**6, ttl_seconds=60)
    async with hearing(store):
        yield store, slow


async def queries(store: HotStore, slow: Slow) -> int:
    """How many of two lookups by key and two by vector asked the database."""
    await store.settled()
    before = slow.queries
    for _ in range(2):
        assert (await store.find_exact(exact("a"))).candidates
        assert (await store.find_nearest(nearest(unit(1)))).candidates
    return slow.queries - before


async def test_what_was_found_is_found_again_without_a_query(hot: tuple[HotStore, Slow]) -> None:
    store, slow = hot
    await store.put(new("a", vector=unit(1)))
    assert await queries(store, slow) == 2
    assert await queries(store, slow) == 0
    (kept,) = (await store.find_exact(exact("a"))).candidates
    assert kept.answer.body == (await slow.find_exact(exact("a"))).candidates[0].answer.body


@pytest.mark.parametrize("change", ["purge", "put", "anything"])
async def test_a_reading_under_way_while_something_changes_is_not_kept(
    hot: tuple[HotStore, Slow], stores: Stores, change: str
) -> None:
    store, slow = hot
    await store.put(new("a", vector=unit(1)))
    slow.let_go.clear()
    by_key = asyncio.create_task(store.find_exact(exact("a")))
    by_vector = asyncio.create_task(store.find_nearest(nearest(unit(1))))
    while slow.queries < 2:
        slow.found.clear()
        await slow.found.wait()
    if change == "put":
        await store.put(new("a", vector=unit(1)))
    else:
        policy = json.dumps([TENANT, POLICY]) if change == "purge" else None
        store.heard(policy)
    slow.let_go.set()
    old = (await by_key).candidates[0].entry_id
    await by_vector
    assert await queries(store, slow) == 2
    if change == "put":
        assert (await store.find_exact(exact("a"))).candidates[0].entry_id != old


async def test_many_changes_are_forgotten_all_at_once_and_not_one_by_one(
    hot: tuple[HotStore, Slow],
) -> None:
    store, slow = hot
    await store.put(new("a", vector=unit(1)))
    assert await queries(store, slow) == 2
    for number in range(100_100):
        store.heard(json.dumps([TENANT, f"other {number}"]))
    assert await queries(store, slow) == 2
    assert len(store._trust._changed) < 100_001


async def test_another_wording_is_another_question(hot: tuple[HotStore, Slow]) -> None:
    store, slow = hot
    await store.put(new("a", vector=unit(1)))
    await store.settled()
    asked = nearest(near(unit(1), 0.95))
    first = (await store.find_nearest(asked)).candidates[0].similarity
    assert first == pytest.approx(0.95, abs=1e-3)
    assert (await store.find_nearest(nearest(unit(1)))).candidates[0].similarity == pytest.approx(
        1.0, abs=1e-3
    )
    assert slow.queries == 2
