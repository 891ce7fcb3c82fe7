"""`cachesvc serve` with a replica: lookups come from there, and a purge acts at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.proxy.rig import eventually
from tests.replication import ask_server, caught_up, replicated
from tests.service.test_run import LOOKUP, PUT, served

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

            async def from_the_replica() -> bool:
                # Each with a key of its own, which memory does not know.
                before = await reads(client)
                await client.post("/cache/lookup", json={**LOOKUP, "exact_key": f"{before:064x}"})
                return await reads(client) > before

            await eventually(from_the_replica)
            assert (await client.post("/cache/lookup", json=LOOKUP)).json()["hit"]
            await ask_server(pair.replica.url, "SELECT pg_wal_replay_pause()::text")
            await client.post("/cache/purge", json={"policy_id": "default"})
            assert not (await client.post("/cache/lookup", json=LOOKUP)).json()["hit"]


async def reads(client: httpx.AsyncClient) -> int:
    """How many queries the replica has answered."""
    found = re.search(
        r'^cachesvc_replica_reads_total\{replica="0"\} ([0-9.]+)',
        (await client.get("/metrics")).text,
        re.MULTILINE,
    )
    assert found
    return int(float(found[1]))
