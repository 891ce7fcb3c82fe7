"""Indexes are rebuilt beside the running service, and what was broken off is cleared away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest
from pgvector import HalfVector

from cachesvc.core.cells import code_of
from cachesvc.errors import Invalid, StartError
from cachesvc.store.reindex import INDEX_LOCK_KEY, Progress, reindex, vacuum
from cachesvc.store.sql import statement
from tests.postgres import TENANT
from tests.store.entries import near, nearest, new, save, unit
from tests.store.waiting import until

if TYPE_CHECKING:
    from tests.postgres import Stores

INDEX = "leaves_by_vector_384"


async def fill(stores: Stores, leaves: int) -> None:
    await save(stores, 3600)
    await stores.entries.put(new("a", vector=unit(3)))
    code = HalfVector(code_of(b"cell"))
    for number in range(leaves):
        one = [number.to_bytes(2, "big")], [HalfVector(unit(number))]
        await stores.database.row(statement("add_leaves"), TENANT, b"cell", code, *one)


async def invalid(stores: Stores) -> list[str]:
    rows = await stores.database.rows(
        "SELECT indexrelid::regclass::text AS name FROM pg_index WHERE NOT indisvalid"
    )
    return [row["name"] for row in rows]


async def is_left(stores: Stores) -> bool:
    return f"{INDEX}_ccnew" in await invalid(stores)


async def test_an_index_that_has_seen_rows_come_and_go_gets_small_again(stores: Stores) -> None:
    await fill(stores, 300)
    await stores.database.row("DELETE FROM leaves")
    await fill(stores, 5)
    (rebuilt,) = await reindex(stores.url, INDEX)
    assert rebuilt.name == INDEX
    assert rebuilt.after < rebuilt.before / 5
    found = await stores.entries.find_nearest(nearest(near(unit(3), 0.95)))
    assert found.candidates[0].similarity == pytest.approx(0.95, abs=0.001)


async def test_without_a_name_all_of_ours_are_rebuilt(stores: Stores) -> None:
    rebuilt = [one.name for one in await reindex(stores.url)]
    assert {INDEX, "entries_pkey", "aliases_by_expiry", "hit_counts_pkey"} <= set(rebuilt)
    assert rebuilt == sorted(set(rebuilt))


async def test_what_a_broken_off_rebuilding_left_is_removed(stores: Stores) -> None:
    """Broken off while it waits for an older transaction, as by Ctrl-C or a crash."""
    await fill(stores, 5)
    async with stores.database.connection() as holder:
        old = holder.transaction()
        await old.start()
        await holder.execute("UPDATE leaves SET closed_at = now()")
        running = asyncio.create_task(reindex(stores.url, INDEX, every=0.02))
        await until(lambda: is_left(stores))
        running.cancel()
        await asyncio.wait((running,))
        await old.rollback()
    assert await invalid(stores) == [f"{INDEX}_ccnew"]
    with pytest.raises(Invalid, match="must be one of"):
        await reindex(stores.url, f"{INDEX}_ccnew")
    assert await invalid(stores) == []
    await reindex(stores.url, INDEX)
    assert await invalid(stores) == []


async def test_a_broken_index_is_mended(stores: Stores) -> None:
    await fill(stores, 5)
    await stores.database.row(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = $1::text::regclass", INDEX
    )
    assert await invalid(stores) == [INDEX]
    await reindex(stores.url, INDEX)
    assert await invalid(stores) == []


async def test_progress_is_told_while_it_waits(stores: Stores) -> None:
    told: list[Progress] = []
    async with stores.database.connection() as holder, holder.transaction():
        await holder.execute("UPDATE policies SET id = id")
        await holder.execute("LOCK TABLE aliases IN ROW EXCLUSIVE MODE")
        running = asyncio.create_task(
            reindex(stores.url, "aliases_by_expiry", told=told.append, every=0.02)
        )

        async def heard() -> bool:
            return bool(told)

        await until(heard)
    await running
    assert told[0].name == "aliases_by_expiry"
    assert "waiting" in told[0].phase


async def test_lookups_and_puts_go_on_meanwhile(stores: Stores) -> None:
    await fill(stores, 50)
    running = asyncio.create_task(reindex(stores.url, INDEX))
    number = 0
    while not running.done():
        number += 1
        await stores.entries.put(new(f"new {number}", vector=unit(1000 + number)))
        found = await stores.entries.find_nearest(nearest(unit(number % 50)))
        assert found.candidates
    await running
    assert number


async def test_two_at_once_are_refused(stores: Stores) -> None:
    async with stores.database.connection() as other:
        await other.execute("SELECT pg_advisory_lock($1)", INDEX_LOCK_KEY)
        try:
            with pytest.raises(StartError, match="another index is being built"):
                await reindex(stores.url)
        finally:
            await other.execute("SELECT pg_advisory_unlock($1)", INDEX_LOCK_KEY)


async def test_a_vacuum_frees_what_dead_rows_take(stores: Stores) -> None:
    await fill(stores, 20)
    await stores.database.row("DELETE FROM entries")
    await vacuum(stores.url)
    connection = await asyncpg.connect(stores.url)
    try:
        size = await connection.fetchval("SELECT pg_relation_size('entries')")
    finally:
        await connection.close()
    assert size == 0
