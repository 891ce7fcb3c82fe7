"""A cell that outgrows scanning is indexed bit by bit, and nothing of it is lost meanwhile."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cachesvc.core.cells import cell_of
from cachesvc.service.indexing import index
from cachesvc.store.base import Selection
from cachesvc.store.large import LargeCells, index_waiting
from cachesvc.store.migrate import add_index
from cachesvc.store.postgres import PostgresStore
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import PLACE, near, nearest, new, save, unit

if TYPE_CHECKING:
    from uuid import UUID

D = 16  # quick to index
MOST = 300
MORE = 700  # than twice as many, for those that wait are scanned, too
CELL = cell_of(TENANT, POLICY, PLACE.scope, "", D, b"")


def store(stores: Stores, large: LargeCells | None = None) -> PostgresStore:
    """One that scans few rows only."""
    return PostgresStore(stores.database, large=large, scanned=lambda _: MOST)


async def fill(entries: PostgresStore, numbers: range) -> list[UUID]:
    """Puts, in order; their ids."""
    ids = []
    for number in numbers:
        id = (await entries.put(new(str(number), vector=unit(number, D)))).entry_id
        assert id is not None
        ids.append(id)
    return ids


async def coded(stores: Stores) -> int:
    row = await stores.database.row("SELECT count(code) FROM entries")
    return int(row[0])


async def found(entries: PostgresStore, number: int) -> UUID | None:
    """Whatever is nearest to what the `number`th asks."""
    asked = nearest(near(unit(number, D), 0.97, number), served_from=0.9)
    candidates = (await entries.find_nearest(asked)).candidates
    return candidates[0].entry_id if candidates else None


async def test_entries_of_a_small_cell_are_not_indexed(stores: Stores) -> None:
    await save(stores, 3600)
    entries = store(stores)
    ids = await fill(entries, range(20))
    assert await coded(stores) == 0
    assert [await found(entries, number) for number in range(20)] == ids


async def test_what_a_cell_holds_when_it_has_outgrown_scanning_is_found_and_then_indexed(
    stores: Stores,
) -> None:
    await save(stores, 3600)
    assert await add_index(stores.url, D)
    entries = store(stores)
    ids = await fill(entries, range(MOST + 1))
    assert await coded(stores) == 0
    asked = range(0, MOST, 7)
    assert [await found(entries, n) for n in asked] == [ids[n] for n in asked]
    assert CELL in entries.large
    # From now on puts are indexed at once.
    ids += await fill(entries, range(MOST + 1, MOST + 21))
    assert await coded(stores) == 20
    indexed = 0
    while more := await index_waiting(stores.database, entries.large, 64):
        assert more <= 64
        indexed += more
        number = indexed % MOST
        assert await found(entries, number) == ids[number]
    assert indexed == MOST + 1
    assert await coded(stores) == len(ids)
    again = [await found(entries, number) for number in range(len(ids))]
    assert sum(one == id for one, id in zip(again, ids, strict=True)) >= 0.99 * len(ids)
    # There is nothing left to do, and nobody asks for it.
    assert entries.large.crowded() is None


async def test_the_service_indexes_what_its_searches_have_found_waiting(stores: Stores) -> None:
    await save(stores, 3600)
    entries = store(stores)
    await fill(entries, range(MOST + 1))
    await found(entries, 1)
    assert entries.large.crowded() == (TENANT, CELL)
    work = asyncio.create_task(index(stores.database, entries.large, every=0.01))
    try:
        for _ in range(3000):
            if await coded(stores) > MOST:
                break
            await asyncio.sleep(0.02)
        else:
            pytest.fail("not indexed within a minute")
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def test_many_puts_without_a_search_are_indexed_from_the_bound_on(stores: Stores) -> None:
    await save(stores, 3600)
    assert await add_index(stores.url, D)
    entries = store(stores)
    ids = await fill(entries, range(MORE))
    assert await coded(stores) == MORE - MOST - 1
    few = [0, 1, MOST, MOST + 1, MORE - 1]
    assert [await found(entries, number) for number in few] == [ids[number] for number in few]


async def test_a_cell_that_has_shrunk_is_scanned_again(stores: Stores) -> None:
    await save(stores, 3600)
    assert await add_index(stores.url, D)
    entries = store(stores)
    ids = await fill(entries, range(MOST + 1))
    await found(entries, 0)
    assert CELL in entries.large
    for id in ids[MOST - 5 :]:
        await stores.admin.delete_entry(TENANT, id)
    assert await found(entries, 3) == ids[3]
    assert CELL not in entries.large


async def test_a_store_that_reads_elsewhere_shares_what_is_known(stores: Stores) -> None:
    await save(stores, 3600)
    writes = store(stores)
    reads = store(stores, writes.large)
    await fill(writes, range(MOST + 1))
    await found(reads, 0)
    await fill(writes, range(MOST + 1, MOST + 3))
    assert await coded(stores) == 2


@pytest.mark.parametrize("why", ["quarantined", "purged", "expired", "young", "scope"])
async def test_what_waits_in_a_large_cell_answers_only_while_it_lives(
    stores: Stores, why: str
) -> None:
    await save(stores, 3600)
    entries = store(stores)
    ids = await fill(entries, range(MOST + 10))
    asked = nearest(unit(5, D), served_from=0.9)
    assert (await entries.find_nearest(asked)).candidates[0].entry_id == ids[5]
    assert CELL in entries.large
    changes = {
        "quarantined": "UPDATE entries SET quarantined_at = now() WHERE id = $1",
        "purged": "UPDATE entries SET generation = -1 WHERE id = $1",
        "expired": "UPDATE entries SET semantic_expires_at = now() WHERE id = $1",
        "young": "UPDATE entries SET created_at = now() - interval '2 hours' WHERE id = $1",
        "scope": "UPDATE entries SET scope = 'another' WHERE id = $1",
    }
    await stores.database.row(changes[why], ids[5])
    candidates = (await entries.find_nearest(asked)).candidates
    assert CELL in entries.large
    assert ids[5] not in [candidate.entry_id for candidate in candidates]
    assert len(candidates) == asked.top_k


async def test_whoever_asks_for_few_gets_no_more_from_both_halves_of_a_cell(
    stores: Stores,
) -> None:
    await save(stores, 3600)
    assert await add_index(stores.url, D)
    entries = store(stores)
    await fill(entries, range(MORE))
    rows = (await entries.find_nearest(nearest(unit(1, D), top_k=3))).candidates
    assert len(rows) == 3
    similarities = [row.similarity or 0.0 for row in rows]
    assert similarities == sorted(similarities, reverse=True)


async def test_a_purge_takes_what_waits(stores: Stores) -> None:
    await save(stores, 3600)
    entries = store(stores)
    await fill(entries, range(MOST + 1))
    await found(entries, 1)
    await stores.admin.purge(Selection(TENANT, POLICY), dry_run=False)
    assert await index_waiting(stores.database, entries.large, 64) == 0
    assert entries.large.crowded() is None


async def test_an_entry_that_is_being_changed_is_left_for_later(stores: Stores) -> None:
    await save(stores, 3600)
    entries = store(stores)
    ids = await fill(entries, range(MOST + 1))
    await found(entries, 1)
    async with stores.database.transaction() as connection:
        await connection.execute("SELECT FROM entries WHERE id = $1 FOR UPDATE", ids[0])
        assert await index_waiting(stores.database, entries.large, 1000) == MOST
    assert await index_waiting(stores.database, entries.large, 1000) == 1


def test_what_is_known_of_cells_is_a_belief_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachesvc.store.large._REMEMBERED", 2)
    cells = LargeCells()
    for name in (b"a", b"b", b"c"):
        cells.found(name, large=True)
        cells.waiting("t", name, 101)
    assert [name in cells for name in (b"a", b"b", b"c")] == [False, True, True]
    # Each in its turn.
    assert [cells.crowded() for _ in range(3)] == [("t", b"b"), ("t", b"c"), ("t", b"b")]
    for _ in range(2):
        cells.put(b"d", most=2)
    cells.found(b"d", large=False)
    for _ in range(2):
        cells.put(b"d", most=2)
    assert b"d" not in cells
    cells.put(b"d", most=2)
    assert b"d" in cells
