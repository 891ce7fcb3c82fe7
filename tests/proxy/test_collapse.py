"""Identical requests under way share one upstream call, and nobody is harmed by it."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from cachesvc.core.policy import Policy
from tests.proxy.collapsing import HEAD, asked, collapsed, held, joined
from tests.proxy.rig import PATH, STREAM, chat_body, completion, events, eventually, rig
from tests.servers import PATIENCE_SECONDS, answer, calling, chunk, request

if TYPE_CHECKING:
    from tests.servers import Seen, Wire

COOKIE = [("set-cookie", "session=1"), ("x-ratelimit-remaining", "3"), ("x-request-id", "req-1")]


async def test_identical_requests_share_one_call_and_one_put() -> None:
    gate, whole = asyncio.Event(), completion()
    async with rig(held(gate, answer(whole, headers=COOKIE))) as proxy:
        calls = [asyncio.create_task(proxy.chat()) for _ in range(8)]
        await joined(proxy, 7)
        gate.set()
        replies = await asyncio.gather(*calls)
        assert len(proxy.upstream.seen) == 1
        assert {reply.body for reply in replies} == {whole}
        assert {reply["x-ai-cache-status"] for reply in replies} == {"MISS"}
        assert sorted(map(collapsed, replies)) == [False] + [True] * 7
        await proxy.kept(1)
        followers = [reply for reply in replies if collapsed(reply)]
        (leader,) = [reply for reply in replies if not collapsed(reply)]
        assert leader["set-cookie"] == "session=1"
        assert all(reply[name] is None for reply in followers for name, _ in COOKIE)
        assert {reply["content-type"] for reply in followers} == {"application/json"}
        assert {reply["cache-status"] for reply in followers} == {
            "cachesvc; fwd=miss; fwd-status=200; collapsed; detail=no_entry"
        }
        hit = await proxy.chat()
        assert (hit["x-ai-cache-status"], hit.body) == ("HIT", whole)


async def test_who_joins_a_stream_late_gets_what_has_come_and_then_follows() -> None:
    steps = [asyncio.Event() for _ in range(3)]
    pieces = [events("one", end=""), events("two", end=""), events("three")]

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(HEAD)
        for step, piece in zip(steps, pieces, strict=True):
            await step.wait()
            await wire.send(chunk(piece))
        await wire.send(chunk(b""))

    async with rig(script) as proxy, AsyncExitStack() as stack:
        leader = await asked(proxy, stack, stream=True)
        steps[0].set()
        await leader.head()
        late = await asked(proxy, stack, stream=True)
        await joined(proxy, 1)
        head = await late.head()
        assert b"collapsed" in head
        assert pieces[0] in await late.reader.readuntil(b"\n\n\r\n")
        steps[1].set()
        assert pieces[1] in await late.reader.readuntil(b"\n\n\r\n")
        steps[2].set()
        for caller in (leader, late):
            rest = await caller.reader.readuntil(b"0\r\n\r\n")
            assert b"[DONE]" in rest
        assert len(proxy.upstream.seen) == 1
        await proxy.kept(1)
        assert proxy.service.puts[0].body == b"".join(pieces)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_leader_may_leave_and_the_call_goes_on(stream: bool) -> None:
    gate = asyncio.Event()
    whole = events("a", "b") if stream else completion()
    data = answer(whole, media_type=STREAM if stream else "application/json", framing="chunked")
    async with rig(held(gate, data)) as proxy, AsyncExitStack() as stack:
        async with calling(proxy.url) as leader:
            await leader.send(request("POST", PATH, proxy.headers, chat_body(stream=stream)))
            await eventually(lambda: len(proxy.upstream.seen) == 1)
            follower = await asked(proxy, stack, stream=stream)
            await joined(proxy, 1)
        gate.set()
        got = await follower.got()
        assert (got.body, got.clean) == (whole, True)
        assert len(proxy.upstream.seen) == 1
        await proxy.kept(1)


async def test_the_call_is_given_up_when_the_last_reader_leaves() -> None:
    left = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(HEAD + chunk(events("a", end="")))
        await wire.gone()
        left.set()

    async with rig(script) as proxy:
        async with AsyncExitStack() as stack:
            first = await asked(proxy, stack, stream=True)
            await first.head()
            second = await asked(proxy, stack, stream=True)
            await joined(proxy, 1)
            await second.head()
            first.writer.close()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await left.wait()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await left.wait()
        await proxy.refused("incomplete")


@pytest.mark.parametrize("failure", ["reset", "fin", "500", "429", "204"])
async def test_a_failure_before_the_first_byte_lets_everybody_call_for_themselves(
    failure: str,
) -> None:
    gate, whole = asyncio.Event(), completion()

    async def script(seen: Seen, wire: Wire) -> None:
        if len(proxy.upstream.seen) > 1:
            await wire.send(answer(whole))
            return
        await gate.wait()
        if failure == "reset":
            wire.reset()
        elif failure == "fin":
            wire.close()
        else:
            body = b"" if failure == "204" else b'{"error":{"message":"m"}}'
            await wire.send(answer(body, status=f"{failure} X", framing="length"))

    async with rig(script) as proxy:
        leader = asyncio.create_task(proxy.chat())
        await eventually(lambda: len(proxy.upstream.seen) == 1)
        followers = [asyncio.create_task(proxy.chat()) for _ in range(3)]
        await joined(proxy, 3)
        gate.set()
        failed = await leader
        assert failed.status == (int(failure) if failure.isdigit() else 502)
        for reply in await asyncio.gather(*followers):
            assert (reply.status, reply.body, collapsed(reply)) == (200, whole, False)
        assert len(proxy.upstream.seen) == 4


async def test_a_failure_after_the_first_byte_breaks_all_and_keeps_nothing() -> None:
    gate = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(HEAD + chunk(events("a", end="")))
        await gate.wait()
        wire.reset()

    async with rig(script) as proxy:
        calls = [asyncio.create_task(proxy.chat(stream=True)) for _ in range(3)]
        await joined(proxy, 2)
        gate.set()
        for got in await asyncio.gather(*calls):
            assert not got.clean
            assert got.body in (b"", events("a", end=""))
        assert len(proxy.upstream.seen) == 1
        await proxy.refused("incomplete")


async def test_a_caller_who_reads_nothing_holds_up_nobody() -> None:
    long = events(*("x" * 4000 for _ in range(2000)))  # more than any socket buffers
    data = answer(long, media_type=STREAM, framing="chunked")
    gate = asyncio.Event()
    policy = Policy(max_body_bytes=16 * 2**20)
    async with rig(held(gate, data), policy=policy) as proxy, AsyncExitStack() as stack:
        await asked(proxy, stack, stream=True)  # leads, and never reads
        await eventually(lambda: len(proxy.upstream.seen) == 1)
        follower = asyncio.create_task(proxy.chat(stream=True))
        await joined(proxy, 1)
        gate.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            got = await follower
        assert (got.clean, got.body) == (True, long)
        await proxy.kept(1)
