"""Lookups from a real streaming replica: fresh within the bound, or from the primary."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg
import pytest

from cachesvc.core.policy import Policy
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.base import Selection
from cachesvc.store.hot import HotStore
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from cachesvc.store.replicas import Replica, ReplicaReads, Sample
from cachesvc.store.sql import statement
from tests.postgres import POLICY, TENANT
from tests.replication import ask_server, caught_up, replicated
from tests.store.entries import exact, nearest, new, unit
from tests.store.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.replication import Pair

LAG_SECONDS = 1.5


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with replicated(tmp_path_factory.mktemp("pair")) as both:
        yield both


@asynccontextmanager
async def reading(pair: Pair) -> AsyncIterator[tuple[ReplicaReads, PostgresAdmin, PostgresAdmin]]:
    """Reads of a service, its admin, and the admin of another service on the same database."""
    databases = [await connect(url) for url in (pair.primary.url, pair.replica.url)]
    elsewhere = await connect(pair.primary.url)
    primary, other = databases
    replica = Replica(other, PostgresStore(other))
    reads = ReplicaReads(PostgresStore(primary), primary, [replica], lag_seconds=LAG_SECONDS)
    following = asyncio.create_task(reads.run())
    try:
        admin = PostgresAdmin(primary)
        await admin.save_policy(TENANT, POLICY, Policy())
        await reads.policy(TENANT, POLICY)
        yield reads, admin, PostgresAdmin(elsewhere)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        for database in (*databases, elsewhere):
            await database.close()
        await ask_server(pair.primary.url, "TRUNCATE entries, aliases, policies CASCADE")


async def fresh(reads: ReplicaReads) -> None:
    """Wait until a lookup is answered by the replica."""

    async def read() -> bool:
        before = reads.replicas[0].reads
        await reads.find_exact(exact("nothing"))
        return reads.replicas[0].reads > before

    await until(read)


async def test_a_fresh_replica_answers_both_kinds_of_lookup(pair: Pair) -> None:
    async with reading(pair) as (reads, _, _):
        await reads.put(new("a", vector=unit(1)))
        await caught_up(pair)
        await fresh(reads)
        before = await ask_server(pair.replica.url, _FOUND)
        assert (await reads.find_exact(exact("a"))).candidates
        (near,) = (await reads.find_nearest(nearest(unit(1)))).candidates
        assert near.similarity == pytest.approx(1, abs=1e-3)
        assert reads.replicas[0].reads >= 3

        async def counted() -> bool:
            # What the replica itself says of it.
            return int(await ask_server(pair.replica.url, _FOUND)) > int(before)

        await until(counted)


_FOUND = "SELECT idx_scan FROM pg_stat_user_tables WHERE relname = 'entries'"


async def test_what_another_service_purged_is_not_found_after_the_bound(pair: Pair) -> None:
    async with reading(pair) as (reads, _, elsewhere):
        await reads.put(new("a", vector=unit(1)))
        await caught_up(pair)
        await fresh(reads)
        await ask_server(pair.replica.url, "SELECT pg_wal_replay_pause()::text")
        try:
            await elsewhere.purge(Selection(TENANT, POLICY), dry_run=False)
            purged = asyncio.get_running_loop().time()
            # Within the bound the replica may still answer, and does: the test can fail.
            assert (await reads.find_exact(exact("a"))).candidates
            while asyncio.get_running_loop().time() - purged <= LAG_SECONDS:
                await reads.find_exact(exact("a"))
                await asyncio.sleep(0.01)
            read = reads.replicas[0].reads
            for _ in range(50):
                assert not (await reads.find_exact(exact("a"))).candidates
                assert not (await reads.find_nearest(nearest(unit(1)))).candidates
            assert reads.replicas[0].reads == read
        finally:
            await ask_server(pair.replica.url, "SELECT pg_wal_replay_resume()::text")
        await fresh(reads)
        assert not (await reads.find_exact(exact("a"))).candidates


async def test_ones_own_purge_acts_on_the_next_lookup(pair: Pair) -> None:
    async with reading(pair) as (reads, admin, _):
        await reads.put(new("a"))
        await caught_up(pair)
        await fresh(reads)
        await ask_server(pair.replica.url, "SELECT pg_wal_replay_pause()::text")
        try:
            await admin.purge(Selection(TENANT, POLICY), dry_run=False)
            await reads.settled()
            assert not (await reads.find_exact(exact("a"))).candidates
        finally:
            await ask_server(pair.replica.url, "SELECT pg_wal_replay_resume()::text")


async def test_a_policy_that_changes_is_read_from_the_primary_until_replicas_have_it(
    pair: Pair,
) -> None:
    async with reading(pair) as (reads, _, elsewhere):
        await caught_up(pair)
        await fresh(reads)
        await ask_server(pair.replica.url, "SELECT pg_wal_replay_pause()::text")
        try:
            saved, _ = await elsewhere.save_policy(TENANT, POLICY, Policy(ttl_seconds=60))
            row = await reads.policy(TENANT, POLICY)
            assert row is not None
            assert row.revision == saved.revision
            for _ in range(10):
                assert (await reads.find_exact(exact("a"))).revision == saved.revision
        finally:
            await ask_server(pair.replica.url, "SELECT pg_wal_replay_resume()::text")


async def test_memory_keeps_nothing_that_a_replica_was_behind_with(pair: Pair) -> None:
    async with reading(pair) as (reads, _, elsewhere):
        hot = HotStore(reads, pair.primary.url, most_bytes=2**20, ttl_seconds=60)
        listening = asyncio.create_task(hot.notices.run())
        await hot.policy(TENANT, POLICY)
        await hot.put(new("a"))
        await caught_up(pair)
        await fresh(reads)

        async def trusted() -> bool:
            return hot.notices.holds

        await until(trusted)
        await ask_server(pair.replica.url, "SELECT pg_wal_replay_pause()::text")
        try:
            await elsewhere.purge(Selection(TENANT, POLICY), dry_run=False)
            purged = asyncio.get_running_loop().time()
            await hot.notices.settled()  # the purge was heard; now the replica is asked
            while asyncio.get_running_loop().time() - purged <= LAG_SECONDS:
                await hot.find_exact(exact("a"))
                await asyncio.sleep(0.01)
            for _ in range(50):
                assert not (await hot.find_exact(exact("a"))).candidates
        finally:
            await ask_server(pair.replica.url, "SELECT pg_wal_replay_resume()::text")
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def test_no_lookup_fails_when_the_replica_is_killed_and_it_comes_back(pair: Pair) -> None:
    async with reading(pair) as (reads, _, _):
        await reads.put(new("a", vector=unit(1)))
        await caught_up(pair)
        await fresh(reads)
        assert pair.replica.pid
        os.kill(pair.replica.pid, signal.SIGKILL)
        for _ in range(100):
            assert (await reads.find_exact(exact("a"))).candidates
            assert (await reads.find_nearest(nearest(unit(1)))).candidates
            await asyncio.sleep(0.005)
        pair.replica.start()
        await fresh(reads)


async def test_positions_of_another_timeline_prove_nothing(pair: Pair) -> None:
    database = await connect(pair.replica.url)
    replica = Replica(database, PostgresStore(database))
    await replica.look(deque([Sample(5.0, 2, 0)]), 6.0)
    assert replica.fresh_as_of == float("-inf")
    await replica.look(deque([Sample(4.0, 1, 0), Sample(5.0, 1, 2**62)]), 6.0)
    assert replica.fresh_as_of == 4.0
    primary = await connect(pair.primary.url)
    none = Replica(primary, PostgresStore(primary))
    await none.look(deque([Sample(4.0, 1, 0)]), 6.0)
    assert none.fresh_as_of == float("-inf")
    await database.close()
    await primary.close()


async def test_any_role_may_ask_how_far_a_server_is(pair: Pair) -> None:
    await ask_server(pair.primary.url, "DROP ROLE IF EXISTS nobody_special")
    await ask_server(pair.primary.url, "CREATE ROLE nobody_special")
    for server, name in ((pair.primary, "written"), (pair.replica, "replayed")):
        await caught_up(pair)
        connection = await asyncpg.connect(server.url)
        await connection.execute("SET ROLE nobody_special")
        assert (await connection.fetchrow(statement(name)))["timeline"] == 1
        await connection.close()
