"""Cases 51 to 58: when nothing is cached, what the caller may say, and purging."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.behaviours.stack import PARAPHRASE, RESET, near, running_service, said, stack
from tests.proxy.rig import eventually

if TYPE_CHECKING:
    from tests.servers import Seen, Wire


@pytest.mark.case(51)
@pytest.mark.parametrize("policy", [{"enabled": False}, {"mode": "off"}, None])
async def test_without_an_active_policy_nothing_is_cached_and_nothing_is_said(
    database_url: str, policy: dict[str, object] | None
) -> None:
    async with stack(database_url, policy) as run:
        for _ in range(2):
            got = await run.expect(None)
            assert got["cache-status"] is None
        assert len(run.upstream.seen) == 2


@pytest.mark.case(52)
async def test_a_policy_of_one_model_caches_that_model_alone(database_url: str) -> None:
    async with stack(database_url, {"applies_to": "model:X"}) as run:
        await run.expect("MISS", model="X")
        await run.expect("HIT exact", model="X")
        await run.expect(None, model="Y")
        got = await run.call("PUT", "/policies/q", {"applies_to": "team:x"})
        assert (got.status, b"policy.applies_to" in got.body) == (422, True)


@pytest.mark.case(54)
async def test_no_store_keeps_nothing_and_may_be_answered(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        near(run)
        no_store = [("cache-control", "no-store")]
        for count in (1, 2):
            await run.expect("MISS", RESET, headers=no_store, kept=False)
            await run.refused(count)
        first = await run.expect("MISS", RESET)
        got = await run.expect("HIT exact", RESET, headers=no_store)
        assert got.body == first.body


@pytest.mark.case(54)
async def test_no_cache_asks_the_upstream_and_refreshes_both_tiers(database_url: str) -> None:
    async with stack(database_url, {}) as run:
        near(run)
        old = await run.expect("MISS", RESET)
        await run.expect("HIT semantic", PARAPHRASE)
        new = await run.expect("BYPASS", RESET, headers=[("Cache-Control", "No-Cache")])
        assert new.body != old.body

        async def refreshed() -> bool:
            return (await run.chat(RESET)).body == new.body

        await eventually(refreshed)
        assert (await run.expect("HIT semantic", PARAPHRASE)).body == new.body
        await run.holds(1)
        argument = [("cache-control", 'no-cache="set-cookie"')]
        await run.expect("HIT exact", RESET, headers=argument)


@pytest.mark.case(55)
async def test_a_rule_leaves_the_cache_out_altogether(database_url: str) -> None:
    rules = [{"header": "X-Debug", "equals": "1"}, {"header": "x-test", "equals": "yes"}]
    async with stack(database_url, {"bypass_on": rules}) as run:
        for header in (("x-debug", "1"), ("X-Test", "yes")):
            for _ in range(2):
                await run.expect("BYPASS", headers=[header])
        first = await run.expect("MISS", headers=[("x-debug", "11")])
        await run.expect("BYPASS", headers=[("x-debug", "1")])
        assert (await run.expect("HIT exact", headers=[("x-test", "no")])).body == first.body


@pytest.mark.case(56)
async def test_the_skip_header_reads_and_writes_nothing(database_url: str) -> None:
    skip = [("x-higress-skip-ai-cache", "on")]
    async with stack(database_url, {}) as run:
        got = await run.expect("BYPASS", headers=skip)
        assert got["cache-status"] == "cachesvc; fwd=request; fwd-status=200; detail=caller_skip"
        first = await run.expect("MISS")
        await run.expect("BYPASS", headers=skip)
        off = [("x-higress-skip-ai-cache", "off")]
        assert (await run.expect("HIT exact", headers=off)).body == first.body


@pytest.mark.case(57)
@pytest.mark.case(73)
async def test_after_a_purge_only_the_new_entry_is_found_at_every_replica(
    database_url: str,
) -> None:
    async with stack(database_url, {}) as run, running_service(database_url) as replica:
        near(run)
        await run.expect("MISS", RESET)
        await run.expect("HIT semantic", PARAPHRASE)
        here, run.service = run.service, replica
        await run.admin("POST", "/cache/purge", {"policy_id": "p"})
        run.service = here
        await run.holds(0)
        new = await run.expect("MISS", PARAPHRASE)
        got = await run.expect("HIT semantic", RESET)
        assert got.body == new.body


@pytest.mark.case(58)
async def test_an_answer_asked_for_before_a_purge_is_dropped_and_harms_nothing(
    database_url: str,
) -> None:
    async with stack(database_url, {}) as run:
        arrived, go = asyncio.Event(), asyncio.Event()
        counting = run.upstream.script

        async def slow(seen: Seen, wire: Wire) -> None:
            arrived.set()
            await go.wait()
            await counting(seen, wire)

        run.upstream.script = slow
        late = asyncio.create_task(run.chat("late"))
        await arrived.wait()
        run.upstream.script = counting
        generation = (await run.admin("GET", "/policies/p"))["generation"]
        for _ in range(2):
            await run.admin("POST", "/cache/purge", {"policy_id": "p"})
        await run.expect("MISS", "after")
        go.set()
        assert said(await late) == "MISS"

        async def dropped() -> bool:
            return await run.metric("cachesvc_puts_total", result="stale_generation") == 1

        await eventually(dropped)
        await run.holds(1)
        assert (await run.admin("GET", "/policies/p"))["generation"] == generation + 2
        await run.expect("HIT exact", "after")
        await run.expect("MISS", "late")
