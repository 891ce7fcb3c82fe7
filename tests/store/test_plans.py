"""Settings that the right plans need are in force on every connection, every time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from pgvector import HalfVector

from cachesvc.store.sql import statement, statement_for
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import key, new, save, unit

FOREVER = timedelta(days=1000)
SETTINGS = {
    "plan_cache_mode": "force_custom_plan",
    "hnsw.iterative_scan": "strict_order",
    "hnsw.ef_search": "100",
    "hnsw.max_scan_tuples": "20000",
    "jit": "off",
    "synchronous_commit": "on",
    "statement_timeout": "5s",
    "lock_timeout": "5s",
    "application_name": "cachesvc",
}


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
        f"INSERT INTO entries (id, scope, embedding, prompt_hash, {same}) "
        "SELECT gen_random_uuid(), $1, (SELECT array_agg(random() - 0.5)::halfvec "
        f"FROM generate_series(1, 384) WHERE n > 0), gen_random_uuid()::text::bytea, {same} "
        "FROM (SELECT * FROM entries LIMIT 1) e, generate_series(1, $2::int) n",
        scope,
        number,
    )


async def plan(stores: Stores, scope: str) -> str:
    async with stores.database.connection() as connection:
        rows = await connection.fetch(
            "EXPLAIN (COSTS OFF) " + statement_for("find_nearest", 384),
            *(TENANT, POLICY, scope, "", b"", HalfVector(unit(2)), 4, FOREVER, 0.92),
        )
    return "\n".join(row[0] for row in rows)


async def test_a_large_partition_is_searched_through_its_index_and_a_small_one_exactly(
    stores: Stores,
) -> None:
    await save(stores, 3600)
    await stores.entries.put(new(vector=unit(1)))
    await fill(stores, "large", 4000)
    await fill(stores, "small", 20)
    async with stores.database.connection() as connection:
        await connection.execute("ANALYZE entries")
    for _ in range(7):  # after five uses a prepared statement may fall to a generic plan
        assert "Index Scan using entries_by_vector_384" in await plan(stores, "large")
        assert "Index Scan using entries_by_partition" in await plan(stores, "small")


@pytest.mark.parametrize("analysed", [False, True])
async def test_a_key_is_looked_up_through_unique_indexes(stores: Stores, analysed: bool) -> None:
    await save(stores, 3600)
    for n in range(100):
        await stores.entries.put(new(str(n), vector=unit(1, 2)))
    if analysed:
        async with stores.database.connection() as connection:
            await connection.execute("ANALYZE")
    for _ in range(7):
        rows = await stores.database.rows(
            "EXPLAIN (COSTS OFF) " + statement("find_exact"),
            *(TENANT, POLICY, "shared", key("7"), FOREVER, "", b""),
        )
        text = "\n".join(row[0] for row in rows)
        assert "entries_by_exact_key" in text
        assert "policies_pkey" in text
        assert "Seq Scan" not in text


async def test_settings_survive_the_pool(stores: Stores) -> None:
    async def shown(name: str) -> str:
        async with stores.database.connection() as connection:
            return str(await connection.fetchval(f"SHOW {name}"))

    for _ in range(3):
        values = await asyncio.gather(*map(shown, SETTINGS))
        assert dict(zip(SETTINGS, values, strict=True)) == SETTINGS
        assert (await stores.database.row("SHOW enable_seqscan"))[0] == "off"
        assert (await stores.database.row("SHOW plan_cache_mode"))[0] == "auto"
