"""The doctor tells what is wrong with a database, and what it says to run helps."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from pgvector import HalfVector

from cachesvc.commands.doctor_database import conditions, examine_database
from cachesvc.commands.finding import OK, WARN
from cachesvc.core.cells import code_of
from cachesvc.core.model import Answer
from cachesvc.settings import Service, Settings
from cachesvc.store.condition import Condition, Index, condition
from cachesvc.store.migrate import status
from cachesvc.store.reindex import reindex, vacuum
from cachesvc.store.sql import statement
from tests.postgres import TENANT
from tests.store.entries import new, save, unit

if TYPE_CHECKING:
    from cachesvc.commands.finding import Finding
    from tests.postgres import Stores

ROWS = 3000
_COLUMNS = (
    "tenant, policy_id, scope, space, partition, body, prompt_text, prompt_tokens, "
    "completion_tokens, model, tags, generation, provenance, created_at, exact_expires_at"
)
_COPIES = (
    f"INSERT INTO entries (id, exact_key, prompt_hash, {_COLUMNS}) SELECT gen_random_uuid(), "
    f"n::text::bytea, '', {_COLUMNS} FROM entries, generate_series(1, $1) n"
)


async def fill(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.entries.put(new("seed", answer=Answer(b"x" * 500, None)))
    await stores.database.row(_COPIES, ROWS)


async def warnings(stores: Stores, dimensions: set[int] | None = None) -> dict[str, Finding]:
    settings = Settings(service=Service(database_url=stores.url))
    found = await asyncio.to_thread(lambda: list(examine_database(settings, dimensions or set())))
    return {finding.what: finding for finding in found if finding.state != OK}


async def report(stores: Stores) -> None:
    """Have the connections tell now what they changed: the server counts what it is told."""
    for _ in range(8):
        await stores.database.row("SELECT pg_stat_force_next_flush()")


async def kept(stores: Stores) -> Condition:
    return await asyncio.to_thread(condition, stores.url)


async def test_of_a_new_database_only_the_test_servers_autovacuum_is_told(stores: Stores) -> None:
    assert list(await warnings(stores, {384})) == ["autovacuum"]


async def test_rows_never_counted_and_dead_ones_are_told_until_a_vacuum(stores: Stores) -> None:
    await fill(stores)
    await stores.database.row("DELETE FROM entries WHERE prompt_hash = '' AND random() < 0.9")
    await report(stores)
    told = await warnings(stores)
    assert "rows changed since" in told["statistics"].found
    assert "dead rows beside" in told["bloat"].found
    assert told["statistics"].advice == told["bloat"].advice == "cachesvc migrate vacuum"
    await vacuum(stores.url)
    assert list(await warnings(stores)) == ["autovacuum"]


async def test_a_vector_whose_dimensions_have_no_index_is_told(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.entries.put(new("a", vector=unit(1, 300)))
    told = await warnings(stores)
    assert told["index"].found == "300 dimensions are scanned exactly"
    assert told["index"].advice == "cachesvc migrate index --dimensions 300"


async def test_a_broken_index_is_told_with_what_mends_it(stores: Stores) -> None:
    name = "leaves_by_vector_512"
    await stores.database.row(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = $1::text::regclass", name
    )
    told = await warnings(stores)
    assert told["index"].found == f"{name} is broken and not used"
    assert told["index"].advice == f"cachesvc migrate reindex --index {name}"
    assert 512 not in (await asyncio.to_thread(status, stores.url)).indexed_dimensions
    await reindex(stores.url, name)
    assert "index" not in await warnings(stores)


async def test_a_table_that_autovacuum_passes_over_is_told(stores: Stores) -> None:
    found = await kept(stores)
    assert not any(table.vacuumed_by_server for table in found.tables)
    on = tuple(replace(table, vacuumed_by_server=True) for table in found.tables)
    states = {one.what: one.state for one in conditions(replace(found, tables=on))}
    assert states["autovacuum"] == OK
    await stores.database.row("ALTER TABLE aliases SET (autovacuum_enabled = off)")
    found = await kept(stores)
    on = tuple(replace(table, vacuumed_by_server=True) for table in found.tables)
    told = {one.what: one for one in conditions(replace(found, tables=on))}
    assert told["autovacuum"].found == "is off for aliases"


async def test_estimates_are_near_what_a_packed_table_and_index_take(stores: Stores) -> None:
    """Otherwise a warning would come always, or never."""
    await fill(stores)
    await stores.database.row("DELETE FROM entries WHERE exact_key = '1'")
    for number in range(300):
        await stores.entries.put(new(f"v{number}", vector=unit(number)))
        one = [number.to_bytes(2, "big")], [HalfVector(unit(number))]
        code = HalfVector(code_of(b"cell"))
        await stores.database.row(statement("add_leaves"), TENANT, b"cell", code, *one)
    await report(stores)
    await reindex(stores.url, "leaves_by_vector_384")
    await vacuum(stores.url)
    found = await kept(stores)
    entries = next(table for table in found.tables if table.name == "entries")
    assert 0.6 < entries.bytes / entries.packed_bytes < 1.6
    walked = next(index for index in found.indexes if index.name == "leaves_by_vector_384")
    assert walked.rows == 300
    assert 0.7 < walked.bytes / walked.packed_bytes < 1.4
    assert list(found.bloated()) == []


async def test_an_index_far_larger_than_its_rows_need_is_told(stores: Stores) -> None:
    found = await kept(stores)
    bloated = Index("leaves_by_vector_384", valid=True, walked=True, rows=7000, bytes=90 * 2**20)
    findings = list(conditions(replace(found, indexes=(bloated,))))
    (told,) = [one for one in findings if one.what == "bloat"]
    assert told.state == WARN
    assert told.found == "leaves_by_vector_384 takes 90 MiB where 7 would do"
    assert told.advice == "cachesvc migrate reindex --index leaves_by_vector_384"
