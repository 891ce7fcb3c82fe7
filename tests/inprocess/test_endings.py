"""How an answer may end, and what the upstream is called, where a client has the cache inside."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from cachesvc import CachingTransport
from cachesvc.core.policy import Policy
from cachesvc.errors import ConfigError
from cachesvc.wire import LookupReply
from tests.inprocess.rig import inside
from tests.inprocess.test_transport import COLOURS, HEADERS, PACKAGES, kept, post
from tests.proxy.rig import PATH, STREAM, chat_body, completion, events, started
from tests.servers import PATIENCE_SECONDS, answer, ask, chunk

if TYPE_CHECKING:
    from pathlib import Path

    from tests.servers import Seen, Wire

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("package", PACKAGES)
async def test_a_stream_without_a_length_that_lacks_its_end_raises_the_packages_own_error(
    tmp_path: Path, package: Any, colour: str
) -> None:
    # So large that to look at its end takes a while, in a thread.
    cut = events(*["a" * 100] * 5000, end="")

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(answer(cut, media_type=STREAM, framing="close"))
        wire.close()

    async with inside(tmp_path, script) as rig:
        transport = await asyncio.to_thread(rig.make)
        with pytest.raises(package.RemoteProtocolError, match="too early"):
            await post(package, colour, transport, rig.url, chat_body(stream=True))
        await transport.aclose()  # waits for what would be put
        assert rig.service.puts == []


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("package", PACKAGES)
async def test_a_caller_who_leaves_a_stream_leaves_the_upstream_too(
    tmp_path: Path, package: Any, colour: str
) -> None:
    left = asyncio.Event()

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(_HEAD + chunk(events("a", end="")))
        await wire.gone()
        left.set()

    async with inside(tmp_path, script) as rig:
        transport = await asyncio.to_thread(rig.make)
        asked = {"content": chat_body(stream=True), "headers": HEADERS}

        def leave() -> None:
            client = package.Client(transport=transport)
            with client.stream("POST", rig.url, **asked) as response:
                assert next(response.iter_raw()) == events("a", end="")

        if colour == "sync":
            await asyncio.to_thread(leave)
        else:
            client = package.AsyncClient(transport=transport)
            async with client.stream("POST", rig.url, **asked) as response:
                assert await anext(response.aiter_raw()) == events("a", end="")
        async with asyncio.timeout(PATIENCE_SECONDS):
            await left.wait()  # long before the transport is closed
        await transport.aclose()
        assert rig.service.puts == []


@pytest.mark.parametrize("colour", COLOURS)
async def test_a_paced_replay_takes_the_time_the_upstream_took(tmp_path: Path, colour: str) -> None:
    whole = events("a", "b", "c")
    async with inside(tmp_path, policy=Policy(replay="paced")) as rig:
        rig.service.reply = LookupReply(
            hit=True,
            tier="exact",
            reason="exact",
            body=whole,
            media_type=STREAM,
            upstream_ms=400.0,
        )
        transport = await asyncio.to_thread(rig.make)
        began = time.monotonic()
        got = await post(httpx, colour, transport, rig.url, chat_body(stream=True))
        assert time.monotonic() - began >= 0.4
        assert (got.content, got.headers["x-ai-cache-status"]) == (whole, "HIT")


async def test_an_upstream_with_a_name_of_its_own_is_called_so(tmp_path: Path) -> None:
    named = {"proxy.upstream_name": "house model", "proxy.listen": "127.0.0.1:0"}
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make, **named)
        first = await post(httpx, "async", transport, rig.url, chat_body())
        await kept(rig, 1)
        async with started(transport._settings) as proxy:
            headers = [("authorization", HEADERS["authorization"])]
            got = await ask(proxy, "POST", PATH, headers, chat_body())
        assert (got["x-ai-cache-status"], got.body) == ("HIT", first.content)
        # The name is that upstream's and no other's.
        elsewhere = rig.url.replace(PATH, f"/other{PATH}")
        other = await post(httpx, "async", transport, elsewhere, chat_body())
        assert other.headers["x-ai-cache-status"] == "MISS"


class _Answers(httpx.AsyncBaseTransport):
    """An upstream at whatever address."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"id": "c", "choices": []})


async def test_an_upstream_may_be_an_ipv6_address(tmp_path: Path) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make, _Answers())
        got = await post(httpx, "async", transport, f"http://[::1]:9{PATH}", chat_body())
        assert got.headers["x-ai-cache-status"] == "MISS"


async def test_a_request_target_that_is_not_the_urls_goes_on_without_the_cache(
    tmp_path: Path,
) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make)
        async with httpx.AsyncClient(transport=transport, headers=HEADERS) as client:
            told = {"target": f"/tenant{PATH}".encode()}
            got = await client.post(rig.url, content=chat_body(), extensions=told)
        assert rig.upstream.seen[0].line == f"POST /tenant{PATH} HTTP/1.1"
        assert ("x-ai-cache-status" in got.headers, rig.service.lookups) == (False, [])
        assert got.content == completion("answer 1")


async def test_settings_that_were_read_before_are_taken_and_checked(tmp_path: Path) -> None:
    async with inside(tmp_path) as rig:
        first = await asyncio.to_thread(rig.make)
        read = first._settings
        again = await asyncio.to_thread(partial(CachingTransport, config=read))
        try:
            assert again._settings == read
            got = await post(httpx, "sync", again, rig.url, chat_body())
            assert got.headers["x-ai-cache-status"] == "MISS"
        finally:
            await again.aclose()
        for name, value in (("proxy.lookup_budget_ms", "soon"), ("proxy.upstraem", "x")):
            with pytest.raises(ConfigError, match=name.rpartition(".")[2]):
                CachingTransport(config=read, settings={name: value})
        with pytest.raises(ConfigError, match=r"proxy\.scope_secret"):
            CachingTransport(config=read, scope_secret="short")
