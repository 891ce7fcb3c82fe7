"""Upgrades byte by byte: what a WebSocket library never sends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.proxy.rig import PATH, always, chat_body, rig
from tests.proxy.upgrading import AGREED, OFFER, agreed, before, echo
from tests.servers import answer, calling, chunk, request

if TYPE_CHECKING:
    from tests.servers import Seen, Wire


async def test_bytes_sent_at_once_behind_the_head_are_not_lost() -> None:
    async with before(echo) as proxy, calling(proxy.url) as caller:
        await agreed(caller, behind=b"at once " * 5000)
        assert await caller.reader.readexactly(40_000) == b"at once " * 5000
        await caller.send(b"later")
        assert await caller.reader.readexactly(5) == b"later"


async def test_bytes_of_the_upstream_behind_its_head_are_not_lost() -> None:
    async def eager(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(AGREED + b"HTTP/1.1 \x00 at once")

    async with before(eager) as proxy, calling(proxy.url) as caller:
        await agreed(caller)
        assert await caller.reader.read() == b"HTTP/1.1 \x00 at once"


async def test_the_head_goes_on_as_it_came_but_for_the_host() -> None:
    heads = asyncio.Queue[bytes]()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.put_nowait(await reader.readuntil(b"\r\n\r\n"))
        writer.write(AGREED)

    raw = (
        b"GET /v1//realtime/%2f/? HTTP/1.1\r\nHoSt: here\r\nX-UPPER: \xe9\r\n"
        b"connection: Upgrade\r\nSec-WebSocket-Key: k\r\nupgrade: raw/1\r\n"
        b"Keep-Alive: 5\r\nx-two: 1\r\nX-Two: 2\r\n\r\n"
    )
    async with before(peer) as proxy, calling(proxy.url) as caller:
        await caller.send(raw)
        assert await caller.head() == AGREED
        host = proxy.settings.proxy.upstream.removeprefix("http://").encode()
        expected = raw.replace(b"HoSt: here", b"Host: " + host).replace(b"Keep-Alive: 5\r\n", b"")
        assert heads.get_nowait() == expected


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_a_refusal_comes_whole_and_closes(framing: str) -> None:
    """The caller's next request must not go to the upstream unseen, so there is none."""
    refusal = answer(b"no" * 40_000, status="426 Upgrade Required", framing=framing)

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.send(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + refusal)
        if framing == "close":
            wire.close()

    async with rig(script) as proxy, calling(proxy.url) as caller:
        await caller.send(request("GET", "/v1/realtime", OFFER))
        got = await caller.got("GET")
        assert (got.status, got.body, got.clean) == (426, b"no" * 40_000, True)
        assert await caller.reader.read() == b""
        assert len(proxy.upstream.seen) == 1


async def test_a_post_with_a_body_and_an_offer_arrives_whole_and_unjudged() -> None:
    body = chat_body("x" * 100_000)
    async with rig(always(answer(b"{}"))) as proxy, calling(proxy.url) as caller:
        await caller.send(request("POST", PATH, OFFER, body))
        got = await caller.got()
        assert (got.status, got["x-ai-cache-status"]) == (200, None)
        assert proxy.upstream.seen[0].body == body
        assert proxy.upstream.seen[0].values("upgrade") == ["raw/1"]
        assert proxy.service.lookups == []


async def test_an_offer_with_a_body_of_unknown_length_is_refused() -> None:
    async with rig(always(answer(b"{}"))) as proxy, calling(proxy.url) as caller:
        headers = [*OFFER, ("Transfer-Encoding", "chunked")]
        await caller.send(request("POST", PATH, headers) + chunk(b"x") + chunk(b""))
        assert (await caller.got()).status == 400
        assert proxy.upstream.seen == []


@pytest.mark.parametrize("body", [None, b"a body"])
async def test_nothing_behind_an_offer_reaches_an_upstream_that_refuses_it(
    body: bytes | None,
) -> None:
    behind = request("GET", "/admin", [("authorization", "smuggled")])
    async with (
        rig(always(answer(b"no", status="426 Upgrade"))) as proxy,
        calling(proxy.url) as caller,
    ):
        await caller.send(request("POST" if body else "GET", "/x", OFFER, body) + behind)
        got = await caller.got()
        assert (got.status, got.body) == (426, b"no")
        assert await caller.reader.read() == b""
        assert [seen.line.split(" ")[1] for seen in proxy.upstream.seen] == ["/x"]
        assert proxy.upstream.seen[0].body == (body or b"")


async def test_an_upgrade_header_that_connection_does_not_name_is_an_ordinary_request() -> None:
    async with rig() as proxy:
        got = await proxy.post(chat_body(), [("upgrade", "websocket")])
        assert got["x-ai-cache-status"] == "MISS"
        assert proxy.upstream.seen[0].values("upgrade") == []


async def test_an_offer_of_h2c_is_not_sent_on() -> None:
    async with rig() as proxy:
        offer = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")]
        got = await proxy.post(chat_body(), [*offer, ("http2-settings", "AAEA")])
        assert got["x-ai-cache-status"] == "MISS"
        assert proxy.upstream.seen[0].values("upgrade") == []


async def test_own_pages_stay_our_own() -> None:
    async with before(echo) as proxy, calling(proxy.url) as caller:
        await caller.send(request("GET", "/livez", OFFER))
        got = await caller.got("GET")
        assert (got.status, got.body) == (200, b"ok\n")
        assert await caller.reader.read() == b""
