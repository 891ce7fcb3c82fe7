"""`cachesvc serve` with a replica: lookups come from there, and a purge acts at once."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.proxy.rig import eventually
from tests.replication import ask_server, caught_up, replicated
from tests.service.test_run import LOOKUP, PUT, served
from tests.store.reading import behind

if TYPE_CHECKING:
    from pathlib import Path

    import httpx


@pytest.mark.parametrize("hot_bytes", [0, 2**20])
async def test_a_replica_answers_until_a_purge_that_it_has_not_heard_of(
    tmp_path: Path, hot_bytes: int
) -> None:
    with replicated(tmp_path) as pair:
        async with served(
            pair.primary.url,
            read_database_url=pair.replica.url,
            read_lag_seconds=10,
            hot_bytes=hot_bytes,
        ) as client:
            assert (await client.post("/cache/put", json=PUT)).status_code == 200
            await caught_up(pair)

            await until_read_by(client)
            assert (await client.post("/cache/lookup", json=LOOKUP)).json()["hit"]
            await ask_server(pair.replica.url, "SELECT pg_wal_replay_pause()::text")
            await client.post("/cache/purge", json={"policy_id": "default"})
            assert not (await client.post("/cache/lookup", json=LOOKUP)).json()["hit"]


@pytest.mark.parametrize("hot_bytes", [0, 2**20])
async def test_what_one_service_purges_another_finds_in_no_replica_after_a_second(
    tmp_path: Path, hot_bytes: int
) -> None:
    """Though its replica is behind, and allowed to be so for a minute."""
    with replicated(tmp_path) as pair:
        several: dict[str, Any] = {
            "read_database_url": pair.replica.url,
            "read_lag_seconds": 60,
            "hot_bytes": hot_bytes,
            "hot_ttl_seconds": 60.0,
        }
        async with (
            served(pair.primary.url, **several) as a,
            served(pair.primary.url, **several) as b,
        ):
            for changed in (purge, refresh, off):
                assert (await a.put("/policies/default", json={})).is_success
                old = (await a.post("/cache/put", json=PUT)).json()["entry_id"]
                await caught_up(pair)
                await until_read_by(b)
                async with behind(pair):
                    assert (await b.post("/cache/lookup", json=LOOKUP)).json()["entry_id"] == old
                    await changed(a)
                    await asyncio.sleep(1.0)
                    for _ in range(20):
                        found = (await b.post("/cache/lookup", json=LOOKUP)).json()
                        assert found.get("entry_id") != old
                    query = f"SELECT count(*) FROM entries WHERE id = '{old}'"
                    assert await ask_server(pair.replica.url, query), "else this could not fail"


async def purge(client: httpx.AsyncClient) -> None:
    assert (await client.post("/cache/purge", json={"policy_id": "default"})).is_success


async def refresh(client: httpx.AsyncClient) -> None:
    assert (await client.post("/cache/put", json=PUT)).is_success


async def off(client: httpx.AsyncClient) -> None:
    assert (await client.put("/policies/default", json={"mode": "off"})).is_success


async def until_read_by(client: httpx.AsyncClient) -> None:
    """Wait until a replica answers it."""

    async def from_the_replica() -> bool:
        # Each with a key of its own, which memory does not know.
        before = await reads(client)
        await client.post("/cache/lookup", json={**LOOKUP, "exact_key": f"{before:064x}"})
        return await reads(client) > before

    await eventually(from_the_replica)


async def reads(client: httpx.AsyncClient) -> int:
    """How many queries the replica has answered."""
    found = re.search(
        r'^cachesvc_replica_reads_total\{replica="0"\} ([0-9.]+)',
        (await client.get("/metrics")).text,
        re.MULTILINE,
    )
    assert found
    return int(float(found[1]))
