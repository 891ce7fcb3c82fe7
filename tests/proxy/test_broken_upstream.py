"""The upstream fails: as the bare upstream would have failed, never cleanly, never kept."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import TYPE_CHECKING

import pytest

from tests.proxy.rig import PATH, STREAM, chat_body, completion, events, rig
from tests.servers import answer, calling, chunk, request

if TYPE_CHECKING:
    from tests.servers import Got, Script, Seen, Wire

FRAMINGS = ("length", "chunked", "close")


def _error(got: Got) -> dict[str, object]:
    assert got["content-type"] == "application/json"
    error: dict[str, object] = json.loads(got.body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def _reset(seen: Seen, wire: Wire) -> None:
    wire.reset()


async def _close(seen: Seen, wire: Wire) -> None:
    wire.close()


async def _garbage(seen: Seen, wire: Wire) -> None:
    await wire.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    wire.close()


async def _half_a_head(seen: Seen, wire: Wire) -> None:
    await wire.send(b"HTTP/1.1 200 OK\r\ncontent-le")
    wire.close()


async def _switching(seen: Seen, wire: Wire) -> None:
    await wire.send(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"
    )


async def _never(seen: Seen, wire: Wire) -> None:
    await wire.gone()


@pytest.mark.parametrize("script", [_reset, _close, _garbage, _half_a_head, _switching])
async def test_before_the_first_byte_a_fault_is_502_and_is_not_retried(script: Script) -> None:
    async with rig(script) as proxy:
        got = await proxy.chat()
        assert got.status == 502
        assert got["x-ai-cache-status"] == "MISS"
        assert got["cache-status"] == "cachesvc; fwd=miss; detail=no_entry"
        assert _error(got)["code"] == "upstream_error"
        assert len(proxy.upstream.seen) == 1
        await proxy.refused("incomplete")


async def test_a_refused_connection_is_502() -> None:
    async with rig() as proxy:
        await proxy.upstream.stop()
        got = await proxy.chat()
        assert got.status == 502
        assert _error(got)["code"] == "upstream_error"


async def test_an_upstream_that_does_not_answer_is_504() -> None:
    async with rig(_never, upstream_idle_seconds=0.2) as proxy:
        got = await proxy.chat()
        assert got.status == 504
        assert _error(got)["code"] == "upstream_timeout"
        assert len(proxy.upstream.seen) == 1


async def test_unjudged_calls_fail_in_the_same_way() -> None:
    async with rig(_reset) as proxy, calling(proxy.url) as caller:
        await caller.send(request("GET", "/v1/models"))
        got = await caller.got()
        assert got.status == 502
        assert got["x-ai-cache-status"] is None
        assert _error(got)["code"] == "upstream_error"


async def test_a_get_into_a_connection_that_just_closed_is_not_sent_again() -> None:
    """Keep-alive first, then closed under the second request: clients of ours may retry, we not."""
    count = 0

    async def script(seen: Seen, wire: Wire) -> None:
        nonlocal count
        count += 1
        if count == 1:
            await wire.send(answer(b"{}"))
        else:
            wire.close()

    async with rig(script) as proxy, calling(proxy.url) as caller:
        await caller.send(request("GET", "/v1/models"))
        assert (await caller.got()).status == 200
        await caller.send(request("GET", "/v1/models"))
        assert (await caller.got()).status == 502
        assert count == 2


def _cut(whole: bytes, at: int, *, by_reset: bool) -> Script:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(whole[:at])
        if by_reset:
            wire.reset()
        else:
            wire.close()

    return script


@pytest.mark.parametrize("by_reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("kind", ["stream", "json"])
async def test_an_answer_cut_at_any_byte_is_not_kept_and_never_ends_cleanly(
    kind: str, framing: str, by_reset: bool
) -> None:
    if kind == "stream":
        whole = answer(events("Hi", " é"), media_type=STREAM, framing=framing)
        stop = len(whole) - (len(b"\n") if framing == "close" else 0)
    else:
        whole = answer(completion(), framing=framing)
        stop = len(whole)
    head = whole.index(b"\r\n\r\n") + 4
    async with rig() as proxy:
        for at in range(head, stop):
            proxy.upstream.script = _cut(whole, at, by_reset=by_reset)
            got = await proxy.chat(stream=kind == "stream")
            if got.status == 502:  # the reset overtook the head
                assert by_reset
                continue
            assert got.status == 200
            assert not got.clean, f"looks whole when cut at {at} of {len(whole)}"
        await proxy.refused("incomplete", stop - head)
        proxy.upstream.script = _cut(whole, len(whole), by_reset=False)
        assert (await proxy.chat(stream=kind == "stream")).clean
        await proxy.kept(1)


@pytest.mark.parametrize("framing", FRAMINGS)
async def test_the_callers_connection_is_reset_and_no_error_of_ours_is_logged(
    framing: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = answer(events("Hi"), media_type=STREAM, framing=framing)
    async with rig(_cut(whole, len(whole) - 9, by_reset=False)) as proxy:
        async with calling(proxy.url) as caller:
            await caller.send(request("POST", PATH, proxy.headers, chat_body(stream=True)))
            assert b"200 OK" in await caller.head()
            with pytest.raises(ConnectionResetError):
                await caller.reader.readuntil(b"never sent")
        await proxy.refused("incomplete")
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_reset_after_a_whole_stream_without_length_is_a_break_all_the_same() -> None:
    whole = answer(b"plain text", media_type="text/plain", framing="close")
    async with rig(_cut(whole, len(whole), by_reset=True)) as proxy, calling(proxy.url) as caller:
        await caller.send(request("GET", "/v1/files/1/content"))
        try:
            assert not (await caller.got()).clean
        except asyncio.IncompleteReadError:
            pytest.fail("nothing came at all")


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(events("Hi", end='data: {"error": {"message": "x"}}\n\n'), id="error"),
        pytest.param(events("Hi", end="event: error\ndata: {}\n\n"), id="named"),
    ],
)
async def test_an_error_event_passes_and_is_not_kept(body: bytes, framing: str) -> None:
    whole = answer(body, media_type=STREAM, framing=framing)

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(whole)
        if framing == "close":
            wire.close()

    async with rig(script) as proxy:
        got = await proxy.chat(stream=True)
        assert (got.status, got.body, got.clean) == (200, body, True)
        await proxy.refused("incomplete")


async def test_an_upstream_that_falls_silent_is_broken_off() -> None:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(events("Hi"), media_type=STREAM, framing="chunked")[:-20])
        await wire.gone()

    async with rig(script, upstream_idle_seconds=0.2) as proxy:
        got = await proxy.chat(stream=True)
        assert got.body.startswith(b"data: ")
        assert not got.clean
        await proxy.refused("incomplete")


async def test_a_caller_who_leaves_takes_the_upstream_call_along() -> None:
    left, sent = asyncio.Event(), asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n" + chunk(events("Hi"))
        )
        sent.set()
        await wire.gone()
        left.set()

    async with rig(script) as proxy, asyncio.timeout(10):
        async with calling(proxy.url) as caller:
            await caller.send(request("POST", PATH, proxy.headers, chat_body(stream=True)))
            await caller.head()
            await sent.wait()
        await left.wait()
        await proxy.refused("incomplete")


async def test_a_caller_who_leaves_before_the_answer_takes_the_call_along() -> None:
    arrived, left = asyncio.Event(), asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        arrived.set()
        await wire.gone()
        left.set()

    async with rig(script) as proxy, asyncio.timeout(10):
        for headers, path in (([], "/v1/files"), (proxy.headers, PATH)):
            arrived.clear()
            left.clear()
            async with calling(proxy.url) as caller:
                await caller.send(request("POST", path, headers, chat_body()))
                await arrived.wait()
            await left.wait()


async def test_a_caller_who_leaves_in_its_upload_takes_the_call_along() -> None:
    left = asyncio.Event()

    async def bare(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"0\r\n\r\n")
        except asyncio.IncompleteReadError:
            left.set()
        writer.close()

    async with rig() as proxy, asyncio.timeout(10):
        await proxy.upstream.stop()
        server = await asyncio.start_server(bare, "127.0.0.1", proxy.upstream.port)
        async with calling(proxy.url) as caller:
            head = b"POST /v1/files HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            await caller.send(head + chunk(b"first"))
        await left.wait()
        server.close()
        await server.wait_closed()
