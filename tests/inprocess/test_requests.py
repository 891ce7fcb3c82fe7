"""Which requests a transport inside a client takes for its own, whoever makes them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import httpx2
import pytest

from tests.inprocess.rig import inside
from tests.inprocess.test_transport import COLOURS, HEADERS, PACKAGES, kept, post
from tests.proxy.rig import STREAM, always, chat_body, eventually
from tests.servers import answer

if TYPE_CHECKING:
    from pathlib import Path

_MESSAGES = """event: message_start
data: {"type":"message_start","message":{"id":"m","usage":{"input_tokens":3,"output_tokens":1}}}

event: content_block_delta
data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hi é"}}

event: message_delta
data: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}}

event: message_stop
data: {"type":"message_stop"}

""".encode()


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("package", PACKAGES)
async def test_the_messages_protocol_is_cached_and_keyed_by_its_version(
    tmp_path: Path, package: Any, colour: str
) -> None:
    script = always(answer(_MESSAGES, media_type=STREAM, framing="chunked"))
    async with inside(tmp_path, script) as rig:
        transport = await asyncio.to_thread(rig.make)
        url = f"{rig.upstream.url}/v1/messages"
        asked = chat_body(stream=True, max_tokens=9)

        async def told(version: str) -> tuple[str, bytes]:
            headers = {"anthropic-version": version}
            got = await post(package, colour, transport, url, asked, **headers)
            return got.headers["x-ai-cache-status"], got.content

        assert await told("2023-06-01") == ("MISS", _MESSAGES)
        await kept(rig, 1)
        assert await told("2023-06-01") == ("HIT", _MESSAGES)
        assert await told("2026-10-21") == ("MISS", _MESSAGES)


async def test_a_body_above_the_limit_goes_on_as_it_is(tmp_path: Path) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make, **{"proxy.max_request_bytes": 1024})
        asked = chat_body("x" * 2000)
        got = await post(httpx, "sync", transport, rig.url, asked)
        assert (got.status_code, "x-ai-cache-status" in got.headers) == (200, False)
        assert (rig.service.lookups, rig.upstream.seen[0].body) == ([], asked)


@pytest.mark.parametrize("colour", COLOURS)
async def test_closing_closes_every_connection_it_opened_and_the_inner_it_was_given(
    tmp_path: Path, colour: str
) -> None:
    class Inner(httpx.BaseTransport, httpx.AsyncBaseTransport):
        closed = 0

        def close(self) -> None:
            self.closed += 1

        async def aclose(self) -> None:
            self.closed += 1

    async with inside(tmp_path) as rig:
        inner = Inner()
        given = await asyncio.to_thread(rig.make, inner)
        plain = await asyncio.to_thread(rig.make)
        await post(httpx, colour, plain, rig.url, chat_body())
        if colour == "async":
            await post(httpx, "sync", plain, rig.url, chat_body("another"))
            assert len(rig.upstream._wires) == 2
            await given.aclose()
            await plain.aclose()
        else:
            await asyncio.to_thread(given.close)
            await asyncio.to_thread(plain.close)
        assert inner.closed == 1
        await eventually(lambda: not rig.upstream._wires)  # who is connected still


@pytest.mark.parametrize("colour", COLOURS)
async def test_one_transport_may_serve_clients_of_both_packages(
    tmp_path: Path, colour: str
) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make)
        first = await post(httpx, colour, transport, rig.url, chat_body("one"))
        other = await post(httpx2, colour, transport, rig.url, chat_body("two"))
        assert (type(first), type(other)) == (httpx.Response, httpx2.Response)
        await kept(rig, 2)
        again = await post(httpx2, colour, transport, rig.url, chat_body("one"))
        assert (again.headers["x-ai-cache-status"], again.content) == ("HIT", first.content)


async def test_a_request_of_a_subclass_is_of_its_package(tmp_path: Path) -> None:
    class Request(httpx.Request):
        """An application's own."""

    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make)
        request = Request("POST", rig.url, content=chat_body(), headers=HEADERS)
        got = await httpx.AsyncClient(transport=transport).send(request)
        assert got.headers["x-ai-cache-status"] == "MISS"


async def test_a_host_that_the_url_does_not_say_is_no_upstream_with_a_name(
    tmp_path: Path,
) -> None:
    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make)
        for host in ("a.example", "b.example"):
            got = await post(httpx, "sync", transport, rig.url, chat_body(), host=host)
            assert "x-ai-cache-status" not in got.headers
        assert rig.service.lookups == []
        assert len(rig.upstream.seen) == 2


async def test_an_event_loop_that_is_not_asyncios_goes_on_without_the_cache(
    tmp_path: Path,
) -> None:
    class Inner(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, content=b"whole")

    async with inside(tmp_path) as rig:
        transport = await asyncio.to_thread(rig.make, Inner())
        request = httpx.Request("POST", rig.url, content=chat_body(), headers=HEADERS)

        def drive() -> httpx.Response:
            """What another kind of loop does with it."""
            try:
                transport.handle_async_request(request).send(None)
            except StopIteration as ended:
                found: httpx.Response = ended.value
                return found
            raise AssertionError("it waits for what only asyncio has")

        assert (await asyncio.to_thread(drive)).content == b"whole"
        assert rig.service.lookups == []
