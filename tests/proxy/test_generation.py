"""A put carries the generation known before its request went on: a purge in between wins."""

from __future__ import annotations

import asyncio

import pytest

from cachesvc.core.policy import Policy
from tests.proxy.rig import Rig, completion, eventually, rig
from tests.servers import Seen, Wire, answer

NO_CACHE = [("cache-control", "no-cache")]


class Gate:
    """An upstream that answers once it is told to."""

    def __init__(self) -> None:
        self.arrived = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, seen: Seen, wire: Wire) -> None:
        self.arrived.set()
        await self.go.wait()
        await wire.send(answer(completion()))


async def _purged_in_flight(proxy: Rig, gate: Gate, **options: object) -> int | None:
    call = asyncio.create_task(proxy.chat(**options))  # type: ignore[arg-type]
    await gate.arrived.wait()
    proxy.service.generation += 1
    # A later list tells of it before the answer is there.
    before = proxy.service.list_calls
    await eventually(lambda: proxy.service.list_calls >= before + 2)
    gate.go.set()
    assert (await call).status == 200
    await proxy.kept(1)
    return proxy.service.puts[0].generation


@pytest.mark.parametrize("headers", [[], NO_CACHE], ids=["a miss", "no-cache"])
async def test_a_purge_while_the_upstream_works_makes_the_put_stale(
    headers: list[tuple[str, str]],
) -> None:
    gate = Gate()
    async with rig(gate) as proxy:
        assert await _purged_in_flight(proxy, gate, headers=headers) == 1


async def test_the_lookups_own_reply_tells_the_generation() -> None:
    async with rig(policy_poll_seconds=2) as proxy:
        proxy.service.generation = 7
        await proxy.chat()
        await proxy.kept(1)
        assert proxy.service.puts[0].generation == 7
        assert proxy.service.policy_calls == 0


@pytest.mark.parametrize(
    ("headers", "policy"),
    [
        pytest.param(NO_CACHE, Policy(), id="no-cache"),
        pytest.param([], Policy(sharing="shared"), id="unproven"),
    ],
)
async def test_where_nothing_was_looked_up_the_policy_is_asked(
    headers: list[tuple[str, str]], policy: Policy
) -> None:
    async with rig(policy=policy, policy_poll_seconds=2) as proxy:
        proxy.service.generation = 7
        await proxy.chat(headers=headers)
        await proxy.kept(1)
        assert (proxy.service.puts[0].generation, proxy.service.policy_calls) == (7, 1)
        assert proxy.service.lookups == []


async def test_a_failed_lookup_asks_the_policy_too() -> None:
    async with rig(policy_poll_seconds=2) as proxy:
        proxy.service.generation = 7
        proxy.service.fault, proxy.service.faulty = "500", ("/cache/lookup",)
        await proxy.chat()
        await proxy.kept(1)
        assert (proxy.service.puts[0].generation, proxy.service.policy_calls) == (7, 1)


@pytest.mark.parametrize("fault", ["500", "garbage", "close"])
async def test_when_the_policy_cannot_be_had_the_last_one_read_counts(fault: str) -> None:
    async with rig(policy_poll_seconds=2) as proxy:
        proxy.service.generation = 7
        proxy.service.fault, proxy.service.faulty = fault, ("/policies",)
        await proxy.chat(headers=NO_CACHE)
        await proxy.kept(1)
        assert proxy.service.puts[0].generation == 1


async def test_after_a_restore_one_put_is_lost_and_the_next_is_kept() -> None:
    """The service has gone back to a generation before the one this proxy knows."""
    async with rig(policy_poll_seconds=60) as proxy:
        proxy.service.generation = 9
        await proxy.chat("one")
        await proxy.kept(1)
        proxy.service.generation = 3
        await proxy.chat("two")
        await proxy.counted("stale_generation")
        assert await proxy.not_put("cache_unavailable") == 0
        await proxy.chat("three")
        await proxy.kept(2)
        assert [put.generation for put in proxy.service.puts] == [9, 3]


async def test_after_a_restore_two_lists_are_enough() -> None:
    async with rig() as proxy:
        proxy.service.generation = 9
        await proxy.chat("one")
        await proxy.kept(1)
        proxy.service.generation = 3
        before = proxy.service.list_calls
        await eventually(lambda: proxy.service.list_calls >= before + 4)
        await proxy.chat("two")
        await proxy.kept(2)
        assert proxy.service.puts[1].generation == 3


async def test_what_keeps_nothing_asks_for_no_generation() -> None:
    async with rig(policy_poll_seconds=2) as proxy:
        await proxy.chat(headers=[("cache-control", "no-cache, no-store")])
        await proxy.chat(headers=[("x-higress-skip-ai-cache", "on")])
        assert proxy.service.policy_calls == 0
