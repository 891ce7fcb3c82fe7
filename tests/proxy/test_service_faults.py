"""The service fails in every way, and no caller notices more than a miss within the budget."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from cachesvc.core.policy import Policy
from tests.proxy.rig import completion, eventually, rig
from tests.servers import RawServer, answer, ask

if TYPE_CHECKING:
    from tests.servers import Got, Seen, Wire

FAULTS = ["close", "500", "garbage", "no answer", "403"]


async def _fixed(seen: Seen, wire: Wire) -> None:
    await wire.send(answer(completion()))


def _detail(got: Got) -> str:
    return (got["cache-status"] or "").rpartition("detail=")[2]


def _served(got: Got) -> bool:
    return (got.status, got.body, got.clean) == (200, completion(), True)


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_request_succeeds_with_the_upstreams_own_answer(fault: str) -> None:
    async with rig(_fixed, embed=True) as proxy:
        proxy.service.fault = fault
        for number in range(20):
            got = await proxy.chat(str(number))
            assert _served(got)
            assert got["x-ai-cache-status"] == "MISS"
            assert _detail(got) in ("cache_unavailable", "circuit_open")
            assert "fwd=bypass" in (got["cache-status"] or "")


async def test_a_service_that_refuses_connections_is_a_miss() -> None:
    async with rig(_fixed) as proxy:
        await proxy.service.server.stop()
        got = await proxy.chat()
        assert (_served(got), _detail(got)) == (True, "cache_unavailable")


async def test_a_service_that_hangs_costs_the_budget_and_no_more() -> None:
    async with rig(_fixed, budget_ms=100) as proxy:
        proxy.service.fault, proxy.service.faulty = "hang", ("/cache/lookup",)
        async with asyncio.timeout(5):  # it would hang for ever
            got = await proxy.chat()
        assert (_served(got), _detail(got)) == (True, "lookup_timeout")


async def test_a_dead_service_is_left_alone_and_then_costs_nothing() -> None:
    budget_ms = 400
    async with rig(_fixed, budget_ms=budget_ms) as proxy:
        proxy.service.fault = "hang"
        first = await asyncio.gather(*(proxy.chat(str(n)) for n in range(5)))
        assert {_detail(got) for got in first} == {"lookup_timeout"}
        calls = proxy.service.broken_calls
        began = time.monotonic()
        got = await proxy.chat()
        assert (_served(got), _detail(got)) == (True, "circuit_open")
        assert (time.monotonic() - began) * 1000 < budget_ms / 2
        assert proxy.service.broken_calls == calls == 5
        counted = await proxy.metrics()
        assert counted['cachesvc_circuit_open{part="service"}'] == 1
        assert counted['cachesvc_fail_open_total{cause="lookup_timeout"}'] == 5
        assert counted['cachesvc_fail_open_total{cause="circuit_open"}'] == 1


async def test_refusals_do_not_open_the_circuit() -> None:
    async with rig(_fixed) as proxy:
        proxy.service.fault, proxy.service.faulty = "403", ("/cache",)
        for _ in range(12):
            assert _detail(await proxy.chat()) == "cache_unavailable"
        assert proxy.service.broken_calls == 12


@pytest.mark.parametrize("fault", ["hang", "close", "500"])
async def test_hits_come_again_by_themselves_soon_after_the_service_is_back(fault: str) -> None:
    async with rig(_fixed, budget_ms=100) as proxy:
        await proxy.chat("warm")
        await proxy.kept(1)
        proxy.service.fault = fault
        for number in range(7):
            assert _served(await proxy.chat(str(number)))
        assert (await proxy.metrics())['cachesvc_circuit_open{part="service"}'] == 1
        proxy.service.fault = ""
        await proxy.service.server.stop()  # what hung is answered by nobody
        await proxy.service.server.listen(proxy.service.server.port)

        async def hits() -> bool:
            return (await proxy.chat("warm"))["x-ai-cache-status"] == "HIT"

        await eventually(hits)
        assert (await proxy.metrics())['cachesvc_circuit_open{part="service"}'] == 0


async def test_a_put_that_fails_is_counted_and_the_caller_never_knows() -> None:
    async with rig(_fixed, put_timeout_ms=100) as proxy:
        for number, fault in enumerate(["500", "close", "garbage", "403", "hang"], 1):
            proxy.service.fault, proxy.service.faulty = fault, ("/cache/put",)
            assert _served(await proxy.chat(fault))
            await proxy.refused("cache_unavailable", number)
        # Puts do not feed the circuit: lookups go on.
        assert (await proxy.metrics())['cachesvc_circuit_open{part="service"}'] == 0


async def test_while_the_circuit_is_open_nothing_is_put() -> None:
    async with rig(_fixed) as proxy:
        proxy.service.fault, proxy.service.faulty = "500", ("/cache/lookup", "/policies")
        for number in range(6):
            await proxy.chat(str(number))
        await proxy.counted("circuit_open")
        assert len(proxy.service.puts) < 6


async def test_a_service_url_that_leads_elsewhere_is_a_miss() -> None:
    async def elsewhere(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(b"", status="302 Found", headers=[("location", "/login")]))

    async with rig(_fixed) as proxy:
        proxy.service.server.script = elsewhere
        got = await proxy.chat()
        assert (_served(got), _detail(got)) == (True, "cache_unavailable")
        assert "/login" not in "".join(seen.line for seen in proxy.service.server.seen)


async def test_the_proxy_accepts_and_fails_open_when_the_service_never_came() -> None:
    nobody = RawServer(_fixed)
    async with nobody:
        pass
    async with rig(_fixed, service_url=nobody.url) as proxy:
        got = await proxy.chat()
        assert _served(got)
        assert got["x-ai-cache-status"] is None
        ready = await ask(proxy.url, "GET", "/readyz")
        assert (ready.status, ready.body) == (503, b"policies are not loaded\n")
        assert (await ask(proxy.url, "GET", "/livez")).status == 200


async def test_reading_a_huge_request_is_within_the_budget_too_and_is_told() -> None:
    async with rig(_fixed, budget_ms=1) as proxy:
        got = await proxy.chat("x" * 4_000_000)
        assert _served(got)
        assert (got["x-ai-cache-status"], _detail(got)) == ("MISS", "lookup_timeout")
        assert (proxy.service.lookups, proxy.service.puts) == ([], [])
        counted = await proxy.metrics()
        assert counted['cachesvc_fail_open_total{cause="lookup_timeout"}'] == 1


async def test_where_no_one_policy_can_be_named_a_late_judgement_says_nothing() -> None:
    async with rig(_fixed, budget_ms=1, policy=Policy(applies_to="model:m")) as proxy:
        got = await proxy.chat("x" * 4_000_000)
        assert (_served(got), got["x-ai-cache-status"]) == (True, None)


async def test_an_upstream_fault_after_a_late_judgement_is_told_in_the_same_way() -> None:
    async def broken(seen: Seen, wire: Wire) -> None:
        wire.reset()

    async with rig(broken, budget_ms=1) as proxy:
        got = await proxy.chat("x" * 4_000_000)
        assert (got.status, got["x-ai-cache-status"]) == (502, "MISS")
