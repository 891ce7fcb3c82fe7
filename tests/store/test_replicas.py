"""Lookups from a real streaming replica: fresh within the bound, or from the primary."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from typing import TYPE_CHECKING

import asyncpg
import pytest

from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from cachesvc.store.replicas import Replica, Sample
from cachesvc.store.sql import statement
from tests.replication import ask_server, caught_up, replicated
from tests.store.entries import exact, nearest, new, unit
from tests.store.reading import fresh, reading
from tests.store.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.replication import Pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with replicated(tmp_path_factory.mktemp("pair")) as both:
        yield both


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
