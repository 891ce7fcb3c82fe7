"""Which requests are judged at all, and what holds while the service is away."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from cachesvc import wire as contract
from cachesvc.core.policy import Policy, resolve
from cachesvc.errors import ServiceUnavailable
from cachesvc.proxy.client import ServiceClient
from cachesvc.proxy.policies import PolicyBook, Poller
from cachesvc.proxy.seam import Circuit, CircuitOpen
from cachesvc.settings import ProxyTLS
from tests.proxy.fakes import FakeService
from tests.proxy.rig import Clock, Rig, eventually, rig
from tests.servers import ask


async def _reread(proxy: Rig) -> None:
    before = proxy.service.list_calls
    await eventually(lambda: proxy.service.list_calls >= before + 2)


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(Policy(enabled=False), id="disabled"),
        pytest.param(Policy(mode="off"), id="off"),
        pytest.param(Policy(applies_to="model:other"), id="another model's"),
        pytest.param(Policy(streaming=False), id="no streams"),
    ],
)
async def test_what_no_policy_rules_is_not_judged(policy: Policy) -> None:
    async with rig(policy=policy) as proxy:
        for _ in range(2):
            got = await proxy.chat(stream=True)
            assert got.status == 200
            assert not [name for name, _ in got.headers if "cache" in name or name == "age"]
        assert len(proxy.upstream.seen) == 2
        assert proxy.service.lookups == []


async def test_a_policy_without_streams_still_judges_the_rest() -> None:
    async with rig(policy=Policy(streaming=False)) as proxy:
        assert (await proxy.chat())["x-ai-cache-status"] == "MISS"


async def test_the_highest_priority_then_the_narrower_policy_rules() -> None:
    policies = {
        "a": Policy(),
        "b": Policy(applies_to="model:m"),
        "c": Policy(priority=-1, applies_to="model:m"),
        "d": Policy(priority=9, enabled=False),
    }
    async with rig(policies=policies) as proxy:
        await proxy.chat()
        assert proxy.service.lookups[0].policy_id == "b"


async def test_a_forced_model_decides_which_policy_rules() -> None:
    policy = Policy(applies_to="model:forced")
    async with rig(policy=policy, forced={"model": "forced"}) as proxy:
        assert (await proxy.chat(model="asked"))["x-ai-cache-status"] == "MISS"
        await proxy.kept(1)
        assert (await proxy.chat(model="another"))["x-ai-cache-status"] == "HIT"
        assert proxy.service.puts[0].model == "forced"
        assert b'"asked"' in proxy.upstream.seen[0].body


async def test_a_change_holds_from_the_next_list_on() -> None:
    async with rig() as proxy:
        assert (await proxy.chat())["x-ai-cache-status"] == "MISS"
        proxy.service.policies["p"] = Policy(enabled=False)
        await _reread(proxy)
        assert (await proxy.chat())["x-ai-cache-status"] is None
        proxy.service.policies["p"] = Policy(header_names="aisix")
        await _reread(proxy)
        assert (await proxy.chat())["x-aisix-cache"] == "hit"


@pytest.mark.parametrize("fault", ["close", "500", "garbage", "hang"])
async def test_the_last_list_stays_in_force_while_the_service_is_away(fault: str) -> None:
    async with rig() as proxy:
        await proxy.chat()
        await proxy.kept(1)
        proxy.service.fault, proxy.service.faulty = fault, ("/policies",)
        if fault == "hang":
            await proxy.service.stalled.wait()
        assert (await proxy.chat())["x-ai-cache-status"] == "HIT"
        assert (await ask(proxy.url, "GET", "/readyz")).status == 200


async def test_without_any_list_nothing_is_judged_until_there_is_one() -> None:
    async with rig(policies={}) as proxy:
        assert (await proxy.chat())["x-ai-cache-status"] is None
        proxy.service.policies["p"] = Policy()
        await _reread(proxy)
        assert (await proxy.chat())["x-ai-cache-status"] == "MISS"


async def test_a_policy_that_the_service_no_longer_knows_is_left_out() -> None:
    async with rig(policy_poll_seconds=2) as proxy:
        proxy.service.fault, proxy.service.faulty = "404", ("/cache",)
        for _ in range(3):
            got = await proxy.chat()
            assert (got.status, got["x-ai-cache-status"]) == (200, None)
        assert proxy.service.puts == []
        counted = await proxy.metrics()
        sample = 'cachesvc_lookups_total{outcome="bypass",policy="p",reason="no_policy",tier=""}'
        assert counted[sample] == 1


async def test_a_policy_that_was_just_switched_off_rules_nothing() -> None:
    """The service says so before the next list does."""
    async with rig(policy_poll_seconds=2) as proxy:
        proxy.service.reply = contract.LookupReply(hit=False, tier=None, reason="no_policy")
        for headers in ([], [("cache-control", "only-if-cached")]):
            got = await proxy.chat(headers=headers)
            assert (got.status, got["x-ai-cache-status"]) == (200, None)
        assert proxy.service.puts == []


async def test_a_list_that_is_read_lets_an_open_circuit_try_at_once() -> None:
    """However long the circuit would have waited by itself."""
    service, clock = FakeService(), Clock()
    circuit = Circuit(clock)
    async with service.server:
        client = ServiceClient(service.server.url, ProxyTLS())
        poller = asyncio.create_task(
            Poller(PolicyBook(), client, circuit, every_seconds=0.01).run()
        )
        await eventually(lambda: service.list_calls > 1)
        service.fault = "500"
        await eventually(lambda: _is_open_after_failures(circuit))
        service.fault = ""
        await eventually(circuit.would_allow)
        assert circuit.open
        assert clock.now == Clock().now
        poller.cancel()
        await asyncio.gather(poller, return_exceptions=True)
        await client.close()


def _is_open_after_failures(circuit: Circuit) -> bool:
    with contextlib.suppress(ServiceUnavailable, CircuitOpen), circuit.call():
        raise ServiceUnavailable("away")
    return circuit.open and not circuit.would_allow()


def test_a_database_that_was_restored_is_believed_from_the_second_list_on() -> None:
    book = PolicyBook()
    for generation in (7, 5, 7, 5):
        book.replace([resolve(Policy(), "p", generation)])
        assert book.generation("p") == 7
    book.replace([resolve(Policy(), "p", 5)])
    assert book.generation("p") == 5
    assert book.learn("p", 6) == 6


def test_a_list_that_lags_behind_takes_no_generation_back() -> None:
    book = PolicyBook()
    assert book.generation("p") is None
    book.replace([resolve(Policy(), "p", 7)])
    book.replace([resolve(Policy(), "p", 5)])
    assert book.generation("p") == 7
    assert book.learn("p", 6) == 7
    assert book.learn("p", 9) == 9
    book.replace([])
    assert book.generation("p") == 9


async def test_that_nothing_is_judged_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    off = Policy(enabled=False)
    async with rig(policy=off) as proxy:
        for _ in range(3):
            assert "x-ai-cache-status" not in dict((await proxy.chat("hello")).headers)
        told = [r.getMessage() for r in caplog.records if "no policy is active" in r.getMessage()]
        assert len(told) == 1
