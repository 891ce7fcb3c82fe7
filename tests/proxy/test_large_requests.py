"""What a large request may cost the proxy: two at a time, one copy, nothing parsed is kept."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cachesvc.core.policy import Policy, resolve
from cachesvc.dialects.openai_chat import OpenAIChat
from cachesvc.proxy.apart import INLINE_BYTES, Apart
from cachesvc.proxy.judge import Judge, Judged
from cachesvc.proxy.policies import PolicyBook
from cachesvc.proxy.request import Request
from cachesvc.settings import Proxy, Settings
from tests.proxy.rig import PATH, SECRET, chat_body

if TYPE_CHECKING:
    from collections.abc import MutableMapping

POLICY = Policy(window=2)


def _request(*pieces: bytes) -> Request:
    coming = list(pieces)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.request", "body": coming.pop(0), "more_body": bool(coming)}

    scope = {"method": "POST", "raw_path": PATH.encode(), "query_string": b"", "headers": []}
    return Request(scope, receive)


def _judged(body: bytes, policy: Policy = POLICY) -> Judged:
    book = PolicyBook()
    book.replace([resolve(policy, "p", 1)])
    settings = Settings(proxy=Proxy(scope_secret=SECRET))
    judged = Judge(settings, book).judge(OpenAIChat(), _request(body), body)
    assert judged is not None
    return judged


async def test_a_whole_body_is_kept_once() -> None:
    pieces = [b"a" * 100, b"b" * 100, b"c"]
    request = _request(*pieces)
    whole = await request.read(1000)
    assert whole == b"".join(pieces)
    assert [piece async for piece in request.pieces()] == [whole]
    again = _request(*pieces)
    assert await again.read(150) is None
    assert [piece async for piece in again.pieces()] == pieces


@pytest.mark.parametrize("tiers", [("exact",), ("exact", "semantic")])
async def test_of_a_large_request_nothing_parsed_is_kept(tiers: tuple[str, ...]) -> None:
    small = _judged(chat_body("question"), Policy(tiers=tiers))
    assert small.read is not None
    large = _judged(chat_body("question", metadata="x" * INLINE_BYTES), Policy(tiers=tiers))
    assert large.read is None
    assert (large.partition() is not None) == ("semantic" in tiers)


async def test_a_partition_is_made_once_and_is_the_same_for_lookup_and_put() -> None:
    judged = _judged(chat_body("question"))
    first = judged.partition()
    assert first is not None
    assert judged.read is None
    assert judged.partition() is first
    assert _judged(chat_body("another")).partition() == first
    assert _judged(chat_body("another", seed=1)).partition() != first


async def test_at_most_two_are_read_at_once_and_what_nobody_waits_for_is_not_begun() -> None:
    apart, go, running = Apart(), threading.Event(), threading.Semaphore(0)
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        running.release()
        go.wait(10)
        return number

    calls = [asyncio.create_task(apart.run(lambda n=n: work(n))) for n in range(5)]  # type: ignore[misc]
    try:
        for _ in range(2):
            assert await asyncio.to_thread(running.acquire, timeout=10)
        assert sorted(begun) == [0, 1]
        for late in calls[2:4]:
            late.cancel()
        await asyncio.gather(*calls[2:4], return_exceptions=True)
    finally:
        go.set()
    assert [await call for call in (calls[0], calls[1], calls[4])] == [0, 1, 4]
    assert sorted(begun) == [0, 1, 4]
    apart.close()


def test_what_is_over_the_default_bound_is_not_judged_at_all() -> None:
    assert Proxy().max_request_bytes == 4 * 1024 * 1024
