"""Leaves that hold nothing are removed, and no put is lost by that."""

from __future__ import annotations

from cachesvc.store.base import Selection
from cachesvc.store.growing import GrowingLeaves
from cachesvc.store.leaves import sweep
from tests.postgres import POLICY, TENANT, Stores
from tests.store.cells import BOUNDS, CELL, fill, found, kept, later, share, sizes, split, store
from tests.store.entries import save


async def test_a_leaf_that_is_empty_goes_and_the_others_stay(stores: Stores) -> None:
    await save(stores, 3600)
    entries = store(stores)
    ids = await fill(entries, range(BOUNDS.cell + 1))
    await split(stores, entries)
    before = await kept(stores)
    assert CELL in before
    await sweep(stores.database, GrowingLeaves())
    assert await kept(stores) == before  # a put may still be on its way there
    await later(stores)
    await sweep(stores.database, GrowingLeaves())
    assert sorted(await kept(stores)) == sorted(set(before) - {CELL})
    assert await share(entries, ids) == 1


async def test_a_cell_that_holds_nothing_any_more_is_a_new_one(stores: Stores) -> None:
    await save(stores, 3600)
    entries = store(stores)
    await fill(entries, range(BOUNDS.cell + 1))
    await split(stores, entries)
    assert await found(entries, 3)
    await stores.admin.purge(Selection(TENANT, POLICY), dry_run=False)
    for _ in range(2):
        await sweep(stores.database, GrowingLeaves())
        await later(stores)
    await sweep(stores.database, GrowingLeaves())
    assert await kept(stores) == []
    assert await found(entries, 3) is None
    ids = await fill(entries, range(5))
    assert await share(entries, ids) == 1
    assert await sizes(stores) == [5]


async def test_a_put_into_a_leaf_that_was_just_closed_keeps_it(stores: Stores) -> None:
    await save(stores, 3600)
    entries = store(stores)
    await fill(entries, range(BOUNDS.cell + 1))
    await split(stores, entries)
    await stores.database.row("DELETE FROM entries")
    await later(stores)
    await sweep(stores.database, GrowingLeaves())
    (id,) = await fill(entries, range(1))
    # As by a put that chose its leaf before it was closed.
    (one, *_) = set(await kept(stores)) - {CELL}
    await stores.database.row("UPDATE entries SET leaf = $1", one)
    await later(stores)
    await sweep(stores.database, GrowingLeaves())
    assert await kept(stores) == [one]
    assert await found(entries, 0) == id


async def test_a_put_into_a_cell_whose_leaves_are_all_closed_is_found(stores: Stores) -> None:
    await save(stores, 3600)
    entries = store(stores)
    await fill(entries, range(BOUNDS.cell + 1))
    await split(stores, entries)
    await later(stores)
    await sweep(stores.database, GrowingLeaves())
    assert CELL not in await kept(stores)
    await stores.database.row("DELETE FROM entries")
    await later(stores)
    await sweep(stores.database, GrowingLeaves())
    assert len(await kept(stores)) > 2
    ids = await fill(entries, range(3))
    assert await share(entries, ids) == 1
    # Also where one of them was opened again.
    await stores.database.row(
        "UPDATE leaves SET closed_at = NULL WHERE leaf = (SELECT leaf FROM leaves LIMIT 1)"
    )
    assert await share(entries, ids) == 1


async def test_leaves_that_were_just_made_are_not_taken_for_empty(stores: Stores) -> None:
    """By another service, before the first rows are moved there."""
    await save(stores, 3600)
    entries = store(stores)
    await fill(entries, range(BOUNDS.cell + 1))
    await stores.database.row("DELETE FROM leaves")
    await split(stores, entries)
    before = await kept(stores)
    await stores.database.row("DELETE FROM entries")
    await sweep(stores.database, GrowingLeaves())
    rows = await stores.database.rows("SELECT leaf FROM leaves WHERE closed_at IS NULL")
    assert {row["leaf"] for row in rows} == set(before) - {CELL}
