"""A cell is read into memory beside the lookups, and nobody is the worse for it."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from cachesvc.errors import StoreUnavailable
from cachesvc.store import hot_cells
from cachesvc.store.base import Place
from tests.postgres import POLICY, TENANT
from tests.store.cells_in_memory import SEARCHES, TTL, Hot, put
from tests.store.entries import near, nearest, new, save, unit
from tests.store.hearing import hearing

if TYPE_CHECKING:
    from cachesvc.store.base import NearestQuery
    from tests.postgres import Stores


@pytest.mark.parametrize("replaces", [False, True])
async def test_a_put_while_the_cell_is_read_is_not_lost(hot: Hot, replaces: bool) -> None:
    old = await put(hot, 1, "a")
    await put(hot, 2)
    hot.counted.let_go.clear()
    for _ in range(SEARCHES + 1):
        await hot.best(1)
    await hot.counted.read.wait()
    entry = new("a" if replaces else "b", vector=near(unit(1), 0.99))
    stored = await hot.store.put(entry)
    ended = hot.ended
    hot.counted.let_go.set()
    await hot.until_read(ended)
    assert hot.store.cells.reads["changed" if replaces else "kept"] == 1
    query = structs.replace(nearest(near(unit(1), 0.99)), served_from=0.9)
    ids = [one.entry_id for one in (await hot.store.find_nearest(query)).candidates]
    assert ids[0] == stored.entry_id
    assert (old in ids) is not replaces


async def test_nobody_waits_while_a_cell_is_read(hot: Hot) -> None:
    first = await put(hot, 1)
    hot.counted.let_go.clear()
    for _ in range(5 * SEARCHES):
        assert await hot.best(1) == first
    assert hot.counted.reads == 1
    await hot.store.close()
    assert hot.ended == 1


async def test_after_many_puts_a_cell_is_read_again_and_kept(hot: Hot) -> None:
    """What is put while it is read again spoils nothing, though the old copy lacked too much."""
    first = await put(hot, 1)
    await hot.warm(1)
    for _ in range(SEARCHES):
        await hot.best(1)
    for number in range(40):
        await put(hot, 10 + number)
    hot.counted.read.clear()
    hot.counted.let_go.clear()
    for _ in range(SEARCHES + 1):
        await hot.best(1)
    await hot.counted.read.wait()
    ended = hot.ended
    await put(hot, 60)
    hot.counted.let_go.set()
    await hot.until_read(ended)
    assert hot.store.cells.reads["kept"] == 2
    searches = hot.counted.searches
    assert await hot.best(1) == first
    assert hot.counted.searches == searches


async def test_a_copy_that_answers_is_read_anew_before_its_time_is_over(hot: Hot) -> None:
    first = await put(hot, 1)
    await hot.warm(1)
    searches = hot.counted.searches
    for _ in range(SEARCHES):
        await hot.best(1)
    for reads in range(2, 5):
        hot.later += 0.7 * TTL
        ended = hot.ended
        assert await hot.best(1) == first
        await hot.until_read(ended)
        for _ in range(SEARCHES):
            assert await hot.best(1) == first
        assert hot.counted.reads == reads
    hot.counted.fault = StoreUnavailable()
    hot.later += 0.7 * TTL
    for _ in range(3):
        await hot.best(1)
        await hot.until_read(reads)
    assert (hot.counted.reads, hot.counted.searches) == (reads + 1, searches)


async def test_what_is_replaced_all_the_time_is_read_less_and_less(hot: Hot) -> None:
    await put(hot, 1, "a")
    for _ in range(30):
        for _ in range(SEARCHES + 1):
            await hot.best(1)
        newest = await put(hot, 1, "a")
        assert await hot.best(1) == newest
    assert 1 < hot.counted.reads < 10


async def test_a_reading_that_is_given_up_holds_its_place_until_it_has_ended(
    hot: Hot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot_cells, "_PATIENCE_SECONDS", 0.05)
    ended = asyncio.Event()

    async def slow(_query: NearestQuery, _most_rows: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await ended.wait()

    monkeypatch.setattr(hot.store.cells, "_read_all", slow)
    scopes = [f"scope {number}" for number in range(3)]
    places = [Place(TENANT, POLICY, scope) for scope in scopes]
    for number, place in enumerate(places):
        await hot.store.put(dataclasses.replace(new(f"{number}", vector=unit(1)), place=place))
    for place in places * 2:
        for _ in range(2 * SEARCHES):
            await hot.best(1, place=place)
    assert hot.ended <= 1
    ended.set()
    await hot.until_read(0)
    assert hot.store.cells.reads["failed"] == hot.ended == 1


async def test_a_copy_that_answers_hardly_anybody_is_given_up(hot: Hot) -> None:
    await put(hot, 1)
    await hot.warm(1)
    for seed in range(100, 170):
        await hot.store.find_nearest(hot.wording(seed))
    searches = hot.counted.searches
    await hot.best(1)
    assert hot.counted.searches == searches + 1
    for _ in range(SEARCHES + 1):
        await hot.best(1)
    assert hot.counted.reads == 1


async def test_a_reading_that_takes_long_is_given_up(
    hot: Hot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hot_cells, "_PATIENCE_SECONDS", 0.05)
    first = await put(hot, 1)
    hot.counted.let_go.clear()
    await hot.ask_until_read(1)
    assert hot.store.cells.reads["failed"] == 1
    assert await hot.best(1) == first
    await asyncio.wait_for(hot.store.close(), 5)


async def test_once_it_is_closed_nothing_is_read(hot: Hot) -> None:
    await put(hot, 1)
    await hot.store.close()
    for _ in range(3 * SEARCHES):
        await hot.best(1)
    assert hot.counted.reads == 0


async def test_who_asks_does_not_fail_by_the_reading_of_a_cell(hot: Hot) -> None:
    first = await put(hot, 1)
    hot.counted.fault = StoreUnavailable()
    await hot.ask_until_read(1)
    for _ in range(5 * SEARCHES):
        assert await hot.best(1) == first
    assert hot.counted.reads == 1
    assert hot.store.cells.reads["failed"] == 1


async def test_a_cell_that_is_too_large_is_left_to_the_database(stores: Stores) -> None:
    await save(stores, 3600)
    hot = Hot(stores, most_bytes=2_700_000)
    async with hearing(hot.store):
        for number in range(200):
            await hot.store.put(new(f"{number}", vector=unit(number)))
        await hot.ask_until_read(199)
        for _ in range(5 * SEARCHES):
            await hot.best(199)
        assert hot.counted.reads == 1
        assert hot.store.cells.reads["too_large"] == 1
