"""Cases 59 to 63: how long answers live, and how many."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviours.stack import PARAPHRASE, RESET, near, said, stack, vector
from tests.proxy.rig import eventually

if TYPE_CHECKING:
    from tests.servers import Got


def ttl_of(hit: Got) -> int:
    """The seconds that the answer may still be kept, as `Cache-Status` tells them."""
    return int((hit["cache-status"] or "").partition("ttl=")[2].partition(";")[0])


@pytest.mark.case(59)
@pytest.mark.case(60)
async def test_an_answer_lives_as_long_as_its_policy_says_however_often_it_is_read(
    database_url: str,
) -> None:
    async with stack(database_url, {"ttl_seconds": 2, "semantic_ttl_seconds": 2}) as run:
        run.provider.vectors |= {"a": vector(1.0), "b": vector(0.99)}
        began = time.monotonic()
        await run.expect("MISS", "a")

        async def expired() -> bool:
            return said(await run.chat("a", headers=[("cache-control", "no-store")])) == "MISS"

        hits = 0
        while time.monotonic() - began < 1.5:
            hits += said(await run.chat("a")) == "HIT exact"
            await asyncio.sleep(0.1)
        assert hits > 3
        await eventually(expired)
        assert time.monotonic() - began < 4
        await run.expect("MISS", "b", kept=False, headers=[("cache-control", "no-store")])


@pytest.mark.case(59)
async def test_s_maxage_shortens_one_answers_life_in_both_tiers(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        near(run)
        await run.expect("MISS", RESET, headers=[("cache-control", "s-maxage=100")])
        for hit in (
            await run.expect("HIT exact", RESET),
            await run.expect("HIT semantic", PARAPHRASE),
        ):
            assert 90 <= ttl_of(hit) <= 100


@pytest.mark.case(59)
async def test_each_tier_has_a_lifetime_and_nobody_asks_for_a_longer_one(database_url: str) -> None:
    async with stack(database_url, {"ttl_seconds": 600, "semantic_ttl_seconds": 60}) as run:
        near(run)
        await run.expect("MISS", RESET, headers=[("cache-control", "s-maxage=9999")])
        assert 590 <= ttl_of(await run.expect("HIT exact", RESET)) <= 600
        assert 50 <= ttl_of(await run.expect("HIT semantic", PARAPHRASE)) <= 60


@pytest.mark.case(59)
async def test_a_shorter_lifetime_acts_at_once_and_a_longer_one_revives_nothing(
    database_url: str,
) -> None:
    async with stack(database_url, {"ttl_seconds": 100}) as run:
        await run.expect("MISS")
        await run.policy(ttl_seconds=50)
        assert 40 <= ttl_of(await run.expect("HIT exact")) <= 50
        await run.policy(ttl_seconds=3600)
        assert ttl_of(await run.expect("HIT exact")) <= 100
        await run.policy(ttl_seconds=1)

        async def died() -> bool:
            probe = [("cache-control", "no-store")]
            return said(await run.chat(headers=probe)) == "MISS"

        await eventually(died)
        await run.policy(ttl_seconds=3600)
        await run.expect("MISS", kept=False)


@pytest.mark.case(61)
async def test_an_alias_never_outlives_the_answer_it_points_at(database_url: str) -> None:
    async with stack(database_url, {"ttl_seconds": 3600, "semantic_ttl_seconds": 60}) as run:
        run.provider.vectors |= {"a": vector(1.0), "b": vector(0.99)}
        await run.expect("MISS", "a")
        await run.expect("HIT semantic", "b")

        async def aliased() -> bool:
            return said(await run.chat("b")) == "HIT exact"

        await eventually(aliased)
        hit = await run.expect("HIT exact", "b")
        assert ttl_of(hit) <= 60
        assert "detail=alias" in (hit["cache-status"] or "")


@pytest.mark.case(62)
async def test_the_oldest_go_where_there_are_too_many_and_a_twin_is_none_too_many(
    database_url: str,
) -> None:
    async with stack(database_url, {"tiers": ["exact"], "max_entries": 3}) as run:
        await run.policy("q", applies_to="model:other")
        await run.expect("MISS", model="other")
        for text in ("a", "b", "c"):
            await run.expect("MISS", text)
        await run.expect("BYPASS", "c", headers=[("cache-control", "no-cache")])
        # Nobody asks for it again before: a hit would make it worth more than its years.
        await run.expect("MISS", "d", kept=False)

        async def evicted() -> bool:
            return await run.metric("cachesvc_evictions_total", cause="max_entries") == 1

        await eventually(evicted)
        await run.holds(4)
        for text in ("b", "c", "d"):
            await run.expect("HIT exact", text)
        await run.expect("HIT exact", model="other")
        await run.expect("MISS", "a", kept=False)


@pytest.mark.case(63)
async def test_what_has_expired_stands_before_nothing_that_lives(database_url: str) -> None:
    async with stack(database_url, {"top_k": 1, "threshold": 0.96}) as run:
        run.provider.vectors |= {"dying": vector(0.98, 2), "living": vector(0.97, 3)}
        run.provider.vectors["asked"] = vector(1.0)
        await run.expect("MISS", "dying", headers=[("cache-control", "s-maxage=1")])
        living = await run.expect("MISS", "living")

        async def died() -> bool:
            probe = [("cache-control", "no-store")]
            return said(await run.chat("dying", headers=probe)) != "HIT exact"

        await eventually(died)
        assert (await run.expect("HIT semantic", "asked")).body == living.body
