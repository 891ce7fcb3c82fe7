"""Replicas that are behind: what is known to have changed is not read from them."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from cachesvc.core.policy import Policy
from cachesvc.store.base import Place, Selection
from cachesvc.store.hot import HotStore
from cachesvc.store.layers import Layer
from tests.postgres import POLICY, TENANT
from tests.replication import caught_up, replicated
from tests.store.entries import exact, nearest, new, unit
from tests.store.reading import LONG_SECONDS, behind, fresh, hearing, held_by_the_replica, reading
from tests.store.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachesvc.store.base import ExactQuery, Found
    from cachesvc.store.layers import LayeredStore
    from tests.replication import Pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with replicated(tmp_path_factory.mktemp("pair")) as both:
        yield both


@pytest.mark.parametrize(("lag_seconds", "bound"), [(0.9, 0.9), (LONG_SECONDS, 1.0)])
async def test_what_another_service_purged_is_not_found_after_the_bound_though_nobody_tells(
    pair: Pair, lag_seconds: float, bound: float
) -> None:
    async with reading(pair, lag_seconds) as (reads, _, elsewhere):
        await reads.put(new("a", vector=unit(1)))
        await caught_up(pair)
        await fresh(reads)
        async with behind(pair):
            await elsewhere.purge(Selection(TENANT, POLICY), dry_run=False)
            await asyncio.sleep(bound)
            assert await held_by_the_replica(reads)
            read = reads.replicas[0].reads
            for _ in range(50):
                assert not (await reads.find_exact(exact("a"))).candidates
                assert not (await reads.find_nearest(nearest(unit(1)))).candidates
            assert reads.replicas[0].reads == read
        await fresh(reads)
        assert not (await reads.find_exact(exact("a"))).candidates


async def test_of_a_policy_whose_purge_was_heard_a_replica_behind_is_not_asked(pair: Pair) -> None:
    async with reading(pair, LONG_SECONDS) as (reads, admin, elsewhere), hearing(reads) as notices:
        await admin.save_policy(TENANT, "other", Policy())
        await reads.policy(TENANT, "other")
        await reads.put(new("a", vector=unit(1)))
        await caught_up(pair)
        await fresh(reads)
        async with behind(pair):
            await elsewhere.purge(Selection(TENANT, POLICY), dry_run=False)
            await notices.settled()
            assert await held_by_the_replica(reads)
            read = reads.replicas[0].reads
            for _ in range(50):
                assert not (await reads.find_exact(exact("a"))).candidates
                assert not (await reads.find_nearest(nearest(unit(1)))).candidates
            assert reads.replicas[0].reads == read
            # Of another policy it knows all that it must.
            other = structs.replace(exact("a"), place=Place(TENANT, "other", "me"))

            async def from_the_replica() -> bool:
                await reads.find_exact(other)
                return reads.replicas[0].reads > read

            await until(from_the_replica)
        await fresh(reads)


async def test_what_was_put_in_the_place_of_another_is_found_at_once(pair: Pair) -> None:
    async with reading(pair, LONG_SECONDS) as (reads, _, _):
        first = await reads.put(new("a"))
        await caught_up(pair)
        await fresh(reads)
        async with behind(pair):
            second = await reads.put(new("a"))
            assert second.entry_id != first.entry_id
            (found,) = (await reads.find_exact(exact("a"))).candidates
            assert found.entry_id == second.entry_id
            assert await held_by_the_replica(reads)


async def test_what_changes_while_a_replica_is_asked_is_asked_of_the_primary(pair: Pair) -> None:
    async with reading(pair, LONG_SECONDS) as (reads, _, _), hearing(reads):
        await reads.put(new("a"))
        await caught_up(pair)
        await fresh(reads)
        slow = reads.replicas[0].store = _Slow(reads.replicas[0].store)
        for changes in (False, True):
            await fresh(reads)
            before = reads.replicas[0].reads
            slow.asked.clear()
            slow.let_go.clear()
            asking = asyncio.create_task(reads.find_exact(exact("a")))
            await slow.asked.wait()
            if changes:
                reads.heard(json.dumps([TENANT, POLICY]))
            slow.let_go.set()
            assert (await asking).candidates
            assert reads.replicas[0].reads == before + (not changes)


class _Slow(Layer):
    """A replica's store; what it has found it holds back until it is let go."""

    def __init__(self, store: LayeredStore) -> None:
        super().__init__(store)
        self.asked, self.let_go = asyncio.Event(), asyncio.Event()
        self.let_go.set()

    async def find_exact(self, query: ExactQuery) -> Found:
        found = await super().find_exact(query)
        self.asked.set()
        await self.let_go.wait()
        return found


async def test_ones_own_purge_acts_on_the_next_lookup(pair: Pair) -> None:
    async with reading(pair, LONG_SECONDS) as (reads, admin, _):
        await reads.put(new("a"))
        await caught_up(pair)
        await fresh(reads)
        async with behind(pair):
            await admin.purge(Selection(TENANT, POLICY), dry_run=False)
            await reads.settled()
            assert not (await reads.find_exact(exact("a"))).candidates


async def test_a_policy_that_changes_is_read_from_the_primary_until_replicas_have_it(
    pair: Pair,
) -> None:
    async with reading(pair) as (reads, _, elsewhere):
        await caught_up(pair)
        await fresh(reads)
        async with behind(pair):
            saved, _ = await elsewhere.save_policy(TENANT, POLICY, Policy(ttl_seconds=60))
            row = await reads.policy(TENANT, POLICY)
            assert row is not None
            assert row.revision == saved.revision
            for _ in range(10):
                assert (await reads.find_exact(exact("a"))).revision == saved.revision


async def test_memory_keeps_nothing_that_a_replica_was_behind_with(pair: Pair) -> None:
    async with reading(pair, LONG_SECONDS) as (reads, _, elsewhere):
        hot = HotStore(reads, reads.notices, most_bytes=2**20, ttl_seconds=60)
        async with hearing(hot) as notices:
            await hot.policy(TENANT, POLICY)
            await hot.put(new("a"))
            await caught_up(pair)
            await fresh(reads)
            async with behind(pair):
                assert (await hot.find_exact(exact("a"))).candidates
                await elsewhere.purge(Selection(TENANT, POLICY), dry_run=False)
                await notices.settled()
                assert await held_by_the_replica(reads)
                for _ in range(50):
                    assert not (await hot.find_exact(exact("a"))).candidates
