"""Who calls alone though the same request is under way."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from cachesvc.core.policy import BypassRule, Policy
from tests.proxy.collapsing import HEAD, asked, collapsed, held
from tests.proxy.rig import always, completion, events, eventually, rig
from tests.servers import answer, chunk

if TYPE_CHECKING:
    from tests.servers import Seen, Wire

DEBUGGABLE = Policy(bypass_on=(BypassRule(header="x-debug", equals="1"),))


@pytest.mark.parametrize(
    "steering",
    [
        ("cache-control", "no-cache"),
        ("cache-control", "no-store"),
        ("cache-control", "max-age=5"),
        ("cache-control", "s-maxage=5"),
        ("x-higress-skip-ai-cache", "on"),
        ("x-debug", "1"),
        ("authorization", "Bearer another"),
        ("accept-encoding", "br"),
    ],
)
async def test_who_steers_or_is_another_or_takes_other_codings_calls_alone(
    steering: tuple[str, str],
) -> None:
    gate = asyncio.Event()
    async with rig(held(gate, answer(completion())), policy=DEBUGGABLE) as proxy:
        proxy.headers = [pair for pair in proxy.headers if pair[0] != steering[0]]
        plain = [("authorization", "Bearer key-1")] if steering[0] == "authorization" else []
        leader = asyncio.create_task(proxy.chat(headers=plain))
        await eventually(lambda: len(proxy.upstream.seen) == 1)
        other = asyncio.create_task(proxy.chat(headers=[steering]))
        await eventually(lambda: len(proxy.upstream.seen) == 2)
        gate.set()
        assert not collapsed(await leader)
        assert not collapsed(await other)


@pytest.mark.parametrize("policy", [Policy(collapse=False), Policy(mode="shadow")])
async def test_nothing_is_shared_where_the_policy_does_not_say_so(policy: Policy) -> None:
    gate = asyncio.Event()
    async with rig(held(gate, answer(completion())), policy=policy) as proxy:
        calls = [asyncio.create_task(proxy.chat()) for _ in range(3)]
        await eventually(lambda: len(proxy.upstream.seen) == 3)
        gate.set()
        assert not any(map(collapsed, await asyncio.gather(*calls)))


async def test_a_credential_that_has_shown_nothing_neither_joins_nor_leads() -> None:
    gate = asyncio.Event()
    policy = Policy(sharing="shared")
    async with rig(held(gate, answer(completion())), policy=policy) as proxy:
        calls = [asyncio.create_task(proxy.chat()) for _ in range(3)]
        await eventually(lambda: len(proxy.upstream.seen) == 3)
        gate.set()
        assert not any(map(collapsed, await asyncio.gather(*calls)))


async def test_a_call_from_before_a_purge_is_not_joined_after_it() -> None:
    gate = asyncio.Event()
    async with rig(held(gate, answer(completion()))) as proxy:
        before = asyncio.create_task(proxy.chat())
        await eventually(lambda: len(proxy.upstream.seen) == 1)
        proxy.service.generation += 1
        after = asyncio.create_task(proxy.chat())
        await eventually(lambda: len(proxy.upstream.seen) == 2)
        gate.set()
        assert not collapsed(await before)
        assert not collapsed(await after)


async def test_nobody_joins_what_is_too_large_to_keep() -> None:
    gate = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(HEAD + chunk(events("x" * 2000, end="")))
        await gate.wait()
        await wire.send(chunk(events("y")) + chunk(b""))

    whole = events("x" * 2000, end="") + events("y")
    async with (
        rig(script, policy=Policy(max_body_bytes=1000)) as proxy,
        AsyncExitStack() as stack,
    ):
        leader = await asked(proxy, stack, stream=True)
        await leader.head()
        await leader.reader.readuntil(b"\n\n\r\n")
        other = asyncio.create_task(proxy.chat(stream=True))
        await eventually(lambda: len(proxy.upstream.seen) == 2)
        gate.set()
        got = await other
        assert (got.body, collapsed(got)) == (whole, False)


async def test_a_flight_that_has_landed_is_not_joined_any_more() -> None:
    async with rig(always(answer(b'{"object":"no completion"}'))) as proxy:
        for _ in range(3):
            assert not collapsed(await proxy.chat())
        assert len(proxy.upstream.seen) == 3
