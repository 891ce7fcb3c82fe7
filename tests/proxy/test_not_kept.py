"""What is not kept, and that the caller gets it unchanged all the same."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import TYPE_CHECKING

import brotli
import pytest
import zstandard

from cachesvc.core.policy import Policy
from tests.proxy.rig import STREAM, always, completion, events, rig
from tests.servers import answer

if TYPE_CHECKING:
    from tests.servers import Seen, Wire


@pytest.mark.parametrize(
    "status", [201, 202, 203, 206, 301, 400, 401, 404, 409, 429, 500, 503, 529]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_only_a_200_is_kept(status: int, stream: bool) -> None:
    body, media_type = (events("Hi"), STREAM) if stream else (completion(), "application/json")
    headers = [("retry-after", "3"), ("x-should-retry", "true"), ("x-ratelimit-reset", "1s")]
    raw = answer(body, status=f"{status} Something", media_type=media_type, headers=headers)
    async with rig(always(raw)) as proxy:
        got = await proxy.chat(stream=stream)
        assert (got.status, got.body) == (status, body)
        assert [got[name] for name, _ in headers] == [value for _, value in headers]
        assert got["cache-status"] == f"cachesvc; fwd=miss; fwd-status={status}; detail=no_entry"
        assert len(proxy.upstream.seen) == 1
        await proxy.refused("not_cacheable")


@pytest.mark.parametrize("first", [401, 201])
async def test_after_a_failure_the_next_success_is_a_miss_and_is_kept(first: int) -> None:
    statuses = iter([first, 200])

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(completion(), status=f"{next(statuses)} X"))

    async with rig(script) as proxy:
        for _ in range(2):
            assert (await proxy.chat())["x-ai-cache-status"] == "MISS"
        await proxy.kept(1)
        assert (await proxy.chat())["x-ai-cache-status"] == "HIT"


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_an_answer_over_the_cap_is_not_kept_even_when_it_ends_as_it_should(
    framing: str,
) -> None:
    body = events("x" * 2000)

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(body, media_type=STREAM, framing=framing))
        if framing == "close":
            wire.close()

    async with rig(script, policy=Policy(max_body_bytes=len(body) - 1)) as proxy:
        for number in (1, 2):
            got = await proxy.chat(stream=True)
            assert (got.body, got.clean) == (body, True)
            await proxy.refused("too_large", number)


async def test_an_answer_at_the_cap_is_kept_and_a_cap_of_zero_keeps_nothing() -> None:
    body = completion()
    async with rig(always(answer(body)), policy=Policy(max_body_bytes=len(body))) as proxy:
        await proxy.chat()
        await proxy.kept(1)
    async with rig(always(answer(body)), policy=Policy(max_body_bytes=0)) as proxy:
        assert (await proxy.chat()).body == body
        await proxy.refused("too_large")


@pytest.mark.parametrize(
    ("coding", "coded", "result"),
    [
        pytest.param("compress", completion(), "not_cacheable", id="unknown"),
        pytest.param("gzip, br", gzip.compress(completion()), "not_cacheable", id="stacked"),
        pytest.param("gzip", completion(), "not_cacheable", id="not gzip"),
        pytest.param("br", completion(), "not_cacheable", id="not brotli"),
        pytest.param("zstd", completion(), "not_cacheable", id="not zstd"),
        pytest.param("deflate", b"\xff" * 30, "not_cacheable", id="not deflate"),
        pytest.param("gzip", gzip.compress(completion())[:-9], "incomplete", id="cut gzip"),
        pytest.param("deflate", zlib.compress(completion())[:-5], "incomplete", id="cut deflate"),
        pytest.param("br", brotli.compress(completion())[:-3], "incomplete", id="cut brotli"),
        pytest.param("zstd", zstandard.compress(completion())[:-3], "incomplete", id="cut zstd"),
        pytest.param("gzip", gzip.compress(bytes(30_000_000)), "too_large", id="gzip bomb"),
        pytest.param("br", brotli.compress(bytes(30_000_000)), "too_large", id="brotli bomb"),
        pytest.param("zstd", zstandard.compress(bytes(30_000_000)), "too_large", id="zstd bomb"),
    ],
)
async def test_a_coding_that_cannot_be_undone_within_bounds_is_not_kept(
    coding: str, coded: bytes, result: str
) -> None:
    raw = answer(coded, headers=[("content-encoding", coding)])
    async with rig(always(raw)) as proxy:
        got = await proxy.chat()
        assert (got.body, got["content-encoding"]) == (coded, coding)
        await proxy.refused(result)


@pytest.mark.parametrize(
    ("body", "media_type", "result"),
    [
        pytest.param(b'{"choices": [', "application/json", "incomplete", id="broken json"),
        pytest.param(b'{"error": {"message": "x"}}', "application/json", "incomplete", id="error"),
        pytest.param(b"<html>", "text/html", "incomplete", id="html"),
        pytest.param(events("a", end=""), STREAM, "incomplete", id="no done"),
        pytest.param(events("a [DONE]", end=""), STREAM, "incomplete", id="done inside"),
        pytest.param(
            events("a", end="data: [DONE]\n\ndata: {}"), STREAM, "incomplete", id="more after"
        ),
        pytest.param(
            completion(finish_reason="content_filter"), "application/json", "not_cacheable", id="f"
        ),
        pytest.param(b"\x00\x00\x00\x10event", "application/vnd.aws", "incomplete", id="binary"),
        pytest.param(events("a"), "application/json", "incomplete", id="stream as json"),
    ],
)
async def test_what_is_no_whole_answer_is_not_kept(
    body: bytes, media_type: str, result: str
) -> None:
    async with rig(always(answer(body, media_type=media_type))) as proxy:
        got = await proxy.chat()
        assert (got.status, got.body, got.clean) == (200, body, True)
        await proxy.refused(result)


async def test_an_answer_without_or_with_two_media_types_is_not_kept() -> None:
    body = completion()
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    async with rig(always(raw)) as proxy:
        assert (await proxy.chat()).body == body
        await proxy.refused("not_cacheable")
    twice = answer(body, headers=[("content-type", "text/plain")])
    async with rig(always(twice)) as proxy:
        assert (await proxy.chat()).body == body
        await proxy.refused("not_cacheable")


async def test_a_first_try_that_died_does_not_spoil_the_second() -> None:
    tries = 0

    async def script(seen: Seen, wire: Wire) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            wire.reset()
        else:
            await wire.send(answer(events("Hi"), media_type=STREAM))

    async with rig(script) as proxy:
        assert (await proxy.chat(stream=True)).status == 502
        assert (await proxy.chat(stream=True)).status == 200
        await proxy.kept(1)


async def test_puts_that_pile_up_are_dropped_and_counted() -> None:
    async with rig(policy=Policy(sharing="shared"), credential_proof_seconds=0) as proxy:
        proxy.service.fault, proxy.service.faulty = "hang", ("/cache/put",)
        replies = await asyncio.gather(*(proxy.chat(str(n)) for n in range(300)))
        assert {got.status for got in replies} == {200}
        assert await proxy.not_put("dropped") == 300 - 256
