"""Settings that the right plans need are in force on every connection, every time."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pgvector import HalfVector

from cachesvc.core.cells import cell_of, code_of
from cachesvc.store import sql
from cachesvc.store.base import Alias
from cachesvc.store.postgres import _alias_values, _values
from cachesvc.store.sql import plural, statement
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import PLACE, key, new, save, unit

if TYPE_CHECKING:
    from collections.abc import Iterator

FOREVER = timedelta(days=1000)
SETTINGS = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_sort": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "hnsw.iterative_scan": "strict_order",
    "hnsw.ef_search": "400",
    "hnsw.max_scan_tuples": "20000",
    "jit": "off",
    "synchronous_commit": "on",
    "statement_timeout": "5s",
    "lock_timeout": "5s",
    "application_name": "cachesvc",
}


def cell_in(scope: str) -> bytes:
    return cell_of(TENANT, POLICY, scope, "", 384, b"")


async def fill(stores: Stores, scope: str, number: int) -> None:
    """Copies of the one stored entry with random vectors, in `scope`."""
    same = (
        "tenant, policy_id, space, dimensions, partition, body, prompt_text, prompt_tokens, "
        "completion_tokens, model, tags, generation, provenance, created_at, semantic_expires_at"
    )
    for _ in range(0, number, 500):  # each of them well within the statement timeout
        await _fill(stores, scope, min(number, 500), same)


async def _fill(stores: Stores, scope: str, number: int, same: str) -> None:
    await stores.database.row(
        f"INSERT INTO entries (id, scope, leaf, embedding, prompt_hash, {same}) "
        "SELECT gen_random_uuid(), $1, $3, (SELECT array_agg(random() - 0.5)::halfvec "
        f"FROM generate_series(1, 384) WHERE n > 0), gen_random_uuid()::text::bytea, {same} "
        "FROM (SELECT * FROM entries LIMIT 1) e, generate_series(1, $2::int) n",
        scope,
        number,
        cell_in(scope),
    )


async def split(stores: Stores, scope: str, leaves: int) -> None:
    """So many leaves of the cell, with nothing in them."""
    cell = cell_in(scope)
    names = [f"{scope} {number}".encode() for number in range(leaves)]
    centroids = [HalfVector(unit(number)) for number in range(leaves)]
    values = TENANT, cell, HalfVector(code_of(cell)), names, centroids
    await stores.database.row(statement("add_leaves"), *values)


async def ran(stores: Stores, name: str, scope: str) -> dict[str, bool]:
    """The indexes in the plan of a search of `scope`, and which of them were really scanned."""
    vector = unit(2)
    coded = HalfVector(np.concatenate([vector, code_of(cell_in(scope))]))
    places = TENANT, POLICY, scope, "", b""
    asked: tuple[object, ...] = HalfVector(vector), 4, FOREVER, 0.92
    asked = {"find_nearest": (*asked, coded), "scan_cell": asked, "whole_cell": ()}[name]
    async with stores.database.connection() as connection:
        plan = await connection.fetchval(
            "EXPLAIN (ANALYZE, FORMAT JSON) " + sql.statement_for(name, 384),
            *(*places, *asked, cell_in(scope), 1000),
        )
    used: dict[str, bool] = {}
    for scan in scans(json.loads(plan)[0]["Plan"]["Plans"]):
        index = scan["Index Name"]
        used[index] = used.get(index, False) or scan["Actual Loops"] > 0
    return used


def scans(plans: list[Any]) -> Iterator[Any]:
    """The index scans of entries and leaves in and below these plans."""
    for plan in plans:
        if plan.get("Index Name", "").startswith(("entries_", "leaves_")):
            yield plan
        yield from scans(plan.get("Plans", []))


@pytest.mark.parametrize("analysed", [False, True])
async def test_each_cell_is_searched_through_the_index_that_is_made_for_it(
    stores: Stores, analysed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "_RANKED_VALUES", 384 * 1000)
    monkeypatch.setattr(sql, "statement_for", sql.statement_for.__wrapped__)
    await save(stores, 3600)
    await stores.entries.put(new(vector=unit(1)))
    await fill(stores, "some", 500)
    await fill(stores, "many", 500)
    await split(stores, "some", 900)
    await split(stores, "many", 1100)
    if analysed:
        async with stores.database.connection() as connection:
            await connection.execute("ANALYZE entries, leaves")
    for _ in range(7):  # after five uses a prepared statement may fall to another plan
        scanned = await ran(stores, "scan_cell", "small")
        assert scanned["entries_by_leaf"]
        assert set(scanned) <= {"entries_by_leaf", "entries_pkey", "leaves_by_cell"}
        for scope, walked in (("some", False), ("many", True)):
            used = await ran(stores, "find_nearest", scope)
            assert used["entries_by_leaf"]
            assert used["leaves_by_cell"]
            assert used["leaves_by_vector_384"] is walked
            assert set(used) <= {
                *("entries_by_leaf", "entries_pkey", "leaves_by_cell", "leaves_splitting"),
                "leaves_by_vector_384",
            }
        for scope in ("small", "some", "many"):
            assert set(await ran(stores, "whole_cell", scope)) == {
                *("entries_by_leaf", "leaves_by_cell"),
            }


@pytest.mark.parametrize("asking", [1, 8])
@pytest.mark.parametrize("analysed", ["never", "empty", "full"])
async def test_a_key_is_looked_up_through_unique_indexes(
    stores: Stores, analysed: str, asking: int
) -> None:
    await save(stores, 3600)
    if analysed == "empty":
        await analyse(stores)
    for n in range(100):
        entry = await stores.entries.put(new(str(n), vector=unit(1, 2)))
        assert entry.entry_id
        alias = Alias(PLACE, key(f"alias {n}"), entry.entry_id, 0.95)
        await stores.entries.add_aliases([alias])
    if analysed == "full":
        await analyse(stores)
    query, values = plural("find_exact"), (POLICY, "shared", key("7"), FOREVER, "", b"")
    arrays = [[value] * asking for value in values]
    for _ in range(7):
        rows = await stores.database.rows(
            "EXPLAIN (COSTS OFF) " + (query.one if asking == 1 else query.many),
            *(TENANT, *(values if asking == 1 else arrays)),
        )
        text = "\n".join(row[0] for row in rows)
        for index in ("entries_by_exact_key", "policies_pkey", "aliases_pkey", "entries_pkey"):
            assert index in text, text
        assert "Seq Scan" not in text
        assert not re.search("Hash|Merge|Sort|Materialize", text), text


async def analyse(stores: Stores) -> None:
    async with stores.database.connection() as connection:
        await connection.execute("ANALYZE")


async def test_settings_survive_the_pool(stores: Stores) -> None:
    async def shown(name: str) -> str:
        async with stores.database.connection() as connection:
            return str(await connection.fetchval(f"SHOW {name}"))

    for _ in range(3):
        values = await asyncio.gather(*map(shown, SETTINGS))
        assert dict(zip(SETTINGS, values, strict=True)) == SETTINGS
        assert (await stores.database.row("SHOW enable_seqscan"))[0] == "off"


@pytest.mark.parametrize("analysed", ["never", "empty", "full"])
async def test_what_writes_reads_no_more_than_it_writes(stores: Stores, analysed: str) -> None:
    """Whatever is believed of the tables, and though an order is wanted that an index has."""
    await save(stores, 3600)
    if analysed == "empty":
        await analyse(stores)
    entry = await stores.entries.put(new("first", vector=unit(1)))
    assert entry.entry_id
    await fill_with_aliases(stores, 2000)
    if analysed == "full":
        await analyse(stores)
    aliases = [Alias(PLACE, key(f"alias {n}"), entry.entry_id, 0.95) for n in range(8)]
    columns = zip(*(_alias_values(alias) for alias in aliases), strict=True)
    values = await _values(new("second", vector=unit(2)), cell_in("shared"))
    for name, asked in (
        ("add_aliases", (TENANT, *map(list, columns))),
        ("count_hits", (TENANT, [entry.entry_id], [1], [1])),
        ("put_by_exact_key", (*values, None)),
    ):
        async with stores.database.connection() as connection, connection.transaction():
            explained = "EXPLAIN (ANALYZE, COSTS OFF, FORMAT JSON) " + statement(name)
            plan = json.loads(await connection.fetchval(explained, *asked))[0]["Plan"]
        assert most_read(plan) < 50, (name, plan)


def most_read(plan: Any) -> int:
    """The most rows that one node of a plan has looked at, kept or not."""
    removed = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Join Filter", 0)
    own = int(plan["Actual Loops"] * (plan["Actual Rows"] + removed))
    return max([own, *map(most_read, plan.get("Plans", []))])


async def fill_with_aliases(stores: Stores, number: int) -> None:
    """As many entries under keys of their own, and as many aliases of theirs."""
    await fill(stores, "shared", number)
    own = "decode(md5(id::text) || md5(id::text), 'hex')"
    await stores.database.row(
        f"UPDATE entries SET exact_key = {own}, exact_expires_at = semantic_expires_at "
        "WHERE exact_key IS NULL"
    )
    await stores.database.row(
        "INSERT INTO aliases (tenant, policy_id, scope, exact_key, entry_id, similarity, "
        "created_at, expires_at) SELECT tenant, policy_id, scope, sha256(exact_key), id, 0.95, "
        "now(), semantic_expires_at FROM entries"
    )
