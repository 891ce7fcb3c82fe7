"""A cell that outgrows scanning is split into leaves, and nothing of it is lost meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry

from cachesvc.service.leaves import LeafGauges
from cachesvc.store import leaves
from cachesvc.store.growing import Bounds, GrowingLeaves
from cachesvc.store.leaves import sweep, tend
from cachesvc.store.postgres import PostgresStore
from tests.postgres import TENANT, Stores
from tests.store.cells import (
    BOUNDS,
    CELL,
    MORE,
    D,
    bounds,
    fill,
    found,
    kept,
    later,
    share,
    sizes,
    split,
    store,
    tending,
)
from tests.store.entries import near, nearest, new, save, unit
from tests.store.waiting import until

if TYPE_CHECKING:
    from uuid import UUID


async def half_split(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> tuple[PostgresStore, list[UUID]]:
    """A store, and what it has put into a cell of which few rows have been moved yet."""
    await save(stores, 3600)
    monkeypatch.setattr(leaves, "_MOVED", 7)
    entries = store(stores)
    ids = await fill(entries, range(BOUNDS.cell + 1))
    await tend(stores.database, entries.growing)
    return entries, ids


async def test_a_small_cell_is_its_own_leaf(stores: Stores) -> None:
    await save(stores, 3600)
    entries = store(stores)
    ids = await fill(entries, range(BOUNDS.cell))
    await split(stores, entries)
    assert await kept(stores) == []
    assert await sizes(stores) == [BOUNDS.cell]
    assert await share(entries, ids) == 1


async def test_a_cell_that_grows_is_split_again_and_again_and_all_of_it_is_found(
    stores: Stores,
) -> None:
    await save(stores, 3600)
    entries, ids = store(stores), []
    for number in range(MORE):
        ids += await fill(entries, range(number, number + 1))
        if number % 20 == 19:
            await split(stores, entries)
    assert max(await sizes(stores)) <= BOUNDS.leaf + BOUNDS.leaf // 2 + 20
    # Some have a few more than they may, which are too few to be looked at: the sweep finds them.
    await sweep(stores.database, entries.growing)
    await split(stores, entries)
    many = await sizes(stores)
    assert sum(many) == MORE
    assert MORE / BOUNDS.leaf <= len(many) <= 4 * MORE / BOUNDS.leaf
    assert await share(entries, ids) >= 0.99
    # What was put just now is found, too.
    assert await found(entries, 1000) not in (await fill(entries, range(1000, 1001)))
    assert await found(entries, MORE) is not None


async def test_what_came_all_at_once_is_split_until_no_leaf_is_too_large(stores: Stores) -> None:
    await save(stores, 3600)
    many = 30 * BOUNDS.cell
    ids = await fill(store(stores), range(many))
    entries = store(stores)  # another process, which has counted none of it
    await found(entries, 1)
    await split(stores, entries)
    assert max(await sizes(stores)) <= 2 * BOUNDS.leaf
    # What nobody has counted the sweep counts.
    await sweep(stores.database, entries.growing)
    await split(stores, entries)
    assert max(await sizes(stores)) <= BOUNDS.leaf
    again = [await found(entries, number) == ids[number] for number in range(0, many, 20)]
    assert sum(again) >= 0.95 * len(again)


async def test_of_many_leaves_that_are_split_at_once_all_are_scanned(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    await save(stores, 3600)
    entries = store(stores)
    ids = await fill(entries, range(MORE))
    await split(stores, entries)
    # Those that were split before are empty, and in nobody's way.
    row = await stores.database.row("SELECT leaf, count(*) FROM entries GROUP BY 1 ORDER BY 2 DESC")
    monkeypatch.setattr(leaves, "_MOVED", 1)
    entries.growing.bounds = lambda _: Bounds(cell=2, leaf=2)
    entries.growing.add(TENANT, row["leaf"])
    assert await tend(stores.database, entries.growing) == 1
    entries.growing.bounds = bounds
    rows = await stores.database.rows("SELECT id FROM entries WHERE leaf = $1", row["leaf"])
    assert len(rows) == row["count"] - 1
    for row in rows:
        number = ids.index(row["id"])
        assert await found(entries, number) == ids[number]


async def test_while_a_leaf_is_split_nothing_is_lost(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    await save(stores, 3600)
    monkeypatch.setattr(leaves, "_MOVED", 7)
    entries = store(stores)
    ids = await fill(entries, range(BOUNDS.cell + 1))
    moved = 0
    for number in range(9):
        assert await share(entries, ids) == 1
        moved += await tend(stores.database, entries.growing)
        ids += await fill(entries, range(len(ids), len(ids) + 1))
        assert moved == min(7 * (number + 1), BOUNDS.cell + 1)
    # What was put meanwhile went into the new ones.
    assert moved == BOUNDS.cell + 1
    rows = await stores.database.rows("SELECT FROM entries WHERE leaf = $1", CELL)
    assert rows == []


async def test_the_service_splits_what_has_grown(stores: Stores) -> None:
    await save(stores, 3600)
    entries = PostgresStore(stores.database)
    bound = Bounds.of(3984)
    for number in range(bound.cell + 1):
        vector = unit(number, 3984)
        await entries.put(new(str(number), vector=vector))
    registry = CollectorRegistry()
    registry.register(LeafGauges(entries.growing))
    assert registry.get_sample_value("cachesvc_leaves_waiting") == 1

    async def are_small() -> bool:
        many = await sizes(stores)
        moved = registry.get_sample_value("cachesvc_leaves_moved_entries_total") or 0
        return len(many) > 1 and max(many) <= bound.leaf and moved > bound.cell

    async with tending(stores, entries.growing):
        await until(are_small)
    asked = nearest(near(unit(7, 3984), 0.97), served_from=0.9)
    (best, *_) = (await entries.find_nearest(asked)).candidates
    assert best.similarity == pytest.approx(0.97, abs=0.001)


async def test_the_service_goes_on_with_what_was_left_half_done_and_removes_what_is_empty(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries, ids = await half_split(stores, monkeypatch)

    async def is_gone() -> bool:
        await later(stores)
        return CELL not in await kept(stores)

    async with tending(stores, GrowingLeaves(bounds), sweep_every=0.05):
        await until(is_gone)
    assert await share(entries, ids) == 1


async def test_a_search_tells_of_a_cell_that_was_filled_elsewhere(stores: Stores) -> None:
    await save(stores, 3600)
    await fill(store(stores), range(BOUNDS.cell + 1))
    entries = store(stores)
    await found(entries, 1)
    assert entries.growing.crowded() == (TENANT, CELL)


async def test_what_one_process_has_begun_another_ends(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    _entries, ids = await half_split(stores, monkeypatch)
    other = store(stores)
    await sweep(stores.database, other.growing)
    assert other.growing.crowded() == (TENANT, CELL)
    await split(stores, other)
    assert await share(other, ids) == 1
    assert CELL not in {row[0] for row in await stores.database.rows("SELECT leaf FROM entries")}


async def test_two_that_split_the_same_leaf_split_it_once(stores: Stores) -> None:
    await save(stores, 3600)
    one, other = store(stores), store(stores)
    ids = await fill(one, range(BOUNDS.cell + 1))
    await found(other, 1)
    await asyncio.gather(
        *(tend(stores.database, each.growing) for each in (one, other) for _ in range(3))
    )
    await split(stores, one)
    many = await sizes(stores)
    assert sum(many) == len(ids)
    assert len(await kept(stores)) == 1 + round(1.25 * len(ids) / BOUNDS.leaf)
    assert await share(one, ids) == 1


async def test_an_entry_that_is_being_changed_is_moved_later(stores: Stores) -> None:
    await save(stores, 3600)
    entries = store(stores)
    ids = await fill(entries, range(BOUNDS.cell + 1))
    async with stores.database.transaction() as connection:
        await connection.execute("SELECT FROM entries WHERE id = $1 FOR UPDATE", ids[0])
        assert await tend(stores.database, entries.growing) == BOUNDS.cell
        assert await found(entries, 0) == ids[0]
    assert await tend(stores.database, entries.growing) == 1
    await split(stores, entries)
    assert await share(entries, ids) == 1


async def test_entries_that_are_all_the_same_are_not_split_for_ever(stores: Stores) -> None:
    await save(stores, 3600)
    entries = store(stores)
    for number in range(2 * BOUNDS.cell):
        await entries.put(new(str(number), vector=unit(1, D)))
    await split(stores, entries)
    assert await kept(stores) == []
    assert await found(entries, 1) is not None


@pytest.mark.parametrize("why", ["quarantined", "purged", "expired", "young", "scope"])
async def test_what_a_leaf_holds_answers_only_while_it_lives(stores: Stores, why: str) -> None:
    await save(stores, 3600)
    entries = store(stores)
    ids = await fill(entries, range(MORE))
    await split(stores, entries)
    asked = nearest(unit(5, D), served_from=0.9)
    assert (await entries.find_nearest(asked)).candidates[0].entry_id == ids[5]
    changes = {
        "quarantined": "UPDATE entries SET quarantined_at = now() WHERE id = $1",
        "purged": "UPDATE entries SET generation = -1 WHERE id = $1",
        "expired": "UPDATE entries SET semantic_expires_at = now() WHERE id = $1",
        "young": "UPDATE entries SET created_at = now() - interval '2 hours' WHERE id = $1",
        "scope": "UPDATE entries SET scope = 'another' WHERE id = $1",
    }
    await stores.database.row(changes[why], ids[5])
    candidates = (await entries.find_nearest(asked)).candidates
    assert ids[5] not in [candidate.entry_id for candidate in candidates]
    assert len(candidates) == asked.top_k
    similarities = [candidate.similarity or 0.0 for candidate in candidates]
    assert similarities == sorted(similarities, reverse=True)


async def test_an_entry_put_again_is_where_its_new_vector_belongs(stores: Stores) -> None:
    await save(stores, 3600)
    entries = store(stores)
    await fill(entries, range(MORE))
    await split(stores, entries)
    stored = await entries.put(new("3", vector=unit(5000, D)))
    assert await found(entries, 5000) == stored.entry_id
