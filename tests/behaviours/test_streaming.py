"""Cases 74 to 85: streams that break, lie, or come in other dress."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.behaviours.stack import counting, said, stack
from tests.proxy.rig import PATH, STREAM, always, chat_body, completion, events
from tests.servers import answer, calling, chunk, request

if TYPE_CHECKING:
    from tests.servers import Seen, Wire

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.case(76)
@pytest.mark.parametrize(
    ("stream", "kept"),
    [
        (events("a"), True),
        (events("a", end=""), False),
        (events('data: [DONE]"'), True),
        (events("data: [DONE]", end=""), False),
        (events("a") + b": a comment\n\n", True),
        (events("a") + b": a comm", False),
        (events("a", end='data: {"error": {"message": "m"}}\n\ndata: [DONE]\n\n'), False),
        (events("a", end="event: error\ndata: {}\n\ndata: [DONE]\n\n"), False),
    ],
)
async def test_only_the_end_event_on_a_frame_boundary_makes_a_stream_whole(
    database_url: str, stream: bytes, kept: bool
) -> None:
    script = always(answer(stream, media_type=STREAM, framing="chunked"))
    async with stack(database_url, {}, script) as run:
        await run.expect("MISS", stream=True, kept=kept)
        if kept:
            await run.expect("HIT exact", stream=True)
        else:
            await run.refused(1)
            await run.expect("MISS", stream=True, kept=False)


@pytest.mark.case(77)
@pytest.mark.case(83)
@pytest.mark.parametrize(
    ("media_type", "body"),
    [
        ("application/json", events("a")),
        ("text/event-stream", completion()),
        ("text/plain", completion()),
        ("application/vnd.amazon.eventstream", b"\x00\x00\x00\x10binary frames"),
        ("application/octet-stream", events("a")),
        ("application/json", b": a comment\n\n" + events("a")),
        ("application/json", completion() + completion()),
        ("application/json", completion()[:-1]),
    ],
)
async def test_bytes_that_are_not_what_they_are_called_are_not_kept(
    database_url: str, media_type: str, body: bytes
) -> None:
    script = always(answer(body, media_type=media_type))
    async with stack(database_url, {}, script) as run:
        for _ in range(2):
            got = await run.chat(stream=True)
            assert (said(got), got.body) == ("MISS", body)
        await run.refused(2)
        run.upstream.script = counting()
        await run.expect("MISS")
        await run.expect("HIT exact")


@pytest.mark.case(79)
@pytest.mark.case(65)
@pytest.mark.parametrize(
    "long",
    [events("x" * 3000), events("a") + b": a comment\n\n" * 300],
    ids=["its end is over the cap", "its end is within"],
)
async def test_an_answer_over_the_cap_is_passed_on_whole_and_not_kept(
    database_url: str, long: bytes
) -> None:
    script = always(answer(long, media_type=STREAM, framing="chunked"))
    async with stack(database_url, {"max_body_bytes": 2000}, script) as run:
        for _ in range(2):
            got = await run.expect("MISS", stream=True, kept=False)
            assert (got.body, got.clean) == (long, True)
        await run.refused(2)
        await run.holds(0)


@pytest.mark.case(80)
async def test_an_error_in_the_dress_of_a_stream_is_passed_on_and_not_kept(
    database_url: str,
) -> None:
    script = always(answer(events("no"), status="400 Bad Request", media_type=STREAM))
    async with stack(database_url, {}, script) as run:
        for _ in range(2):
            got = await run.expect("MISS", stream=True, kept=False)
            assert (got.status, got.body) == (400, events("no"))
        await run.refused(2)


@pytest.mark.case(81)
async def test_a_first_try_that_failed_keeps_nothing_out_of_the_second(database_url: str) -> None:
    tries = 0

    async def script(seen: Seen, wire: Wire) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            wire.reset()
        else:
            await wire.send(answer(events("a"), media_type=STREAM, framing="chunked"))

    async with stack(database_url, {}, script) as run:
        first = await run.expect("MISS", stream=True, kept=False)
        assert first.status == 502
        await run.expect("MISS", stream=True)
        await run.expect("HIT exact", stream=True)


@pytest.mark.case(75)
async def test_a_stream_that_its_caller_left_is_not_kept(database_url: str) -> None:
    left = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(HEAD + chunk(events("a", end="")))
        await wire.gone()
        left.set()

    async with stack(database_url, {}, script) as run:
        async with calling(run.proxy) as caller:
            await caller.send(
                request("POST", PATH, [("authorization", "Bearer a")], chat_body(stream=True))
            )
            await caller.reader.readuntil(b"\n\n\r\n")
        await left.wait()
        await run.refused(1)
        await run.holds(0)


@pytest.mark.case(75)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_whose_transport_broke_is_not_kept_though_its_end_was_seen(
    database_url: str, stream: bool
) -> None:
    whole = HEAD + chunk(events("a"))  # and no last chunk
    if not stream:
        whole = HEAD.replace(STREAM.encode(), b"application/json") + chunk(completion())

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(whole)
        wire.close()

    async with stack(database_url, {}, script) as run:
        for count in (1, 2):
            got = await run.expect("MISS", stream=stream, kept=False)
            assert not got.clean
            await run.refused(count)
        await run.holds(0)


@pytest.mark.case(85)
async def test_a_policy_may_leave_streams_alone(database_url: str) -> None:
    async with stack(database_url, {"streaming": False}) as run:
        for _ in range(2):
            await run.expect(None, stream=True)
        assert len(run.upstream.seen) == 2
        await run.expect("MISS")
        await run.expect("HIT exact")
