"""Upgrades byte by byte: what a WebSocket library never sends, and ends that come at a bad time."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.proxy.rig import PATH, always, chat_body, eventually, rig
from tests.servers import Wire, answer, calling, chunk, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.proxy.rig import Rig
    from tests.servers import Caller, Seen

    Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OFFER = [("Connection", "keep-alive, Upgrade"), ("Upgrade", "raw/1")]
AGREED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw/1\r\n\r\n"


@asynccontextmanager
async def before(peer: Peer, **settings: Any) -> AsyncIterator[Rig]:
    """A proxy whose upstream is `peer`, one call per connection."""
    errors: list[Exception] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await peer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as exc:
            errors.append(exc)
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(30), rig(upstream=url, **settings) as proxy:
        yield proxy
    server.close()
    await server.wait_closed()
    assert errors == []


async def agreed(caller: Caller, target: str = "/v1/realtime", behind: bytes = b"") -> None:
    await caller.send(request("GET", target, OFFER) + behind)
    assert await caller.head() == AGREED


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Agrees to everything, sends back all that comes, and ends when the caller has."""
    await reader.readuntil(b"\r\n\r\n")
    writer.write(AGREED)
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


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


async def test_each_half_closes_by_itself() -> None:
    async def patient(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(AGREED)
        writer.write(b"all: " + await reader.read())  # it answers when the caller has ended

    async with before(patient) as proxy, calling(proxy.url) as caller:
        await agreed(caller)
        await caller.send(b"question")
        caller.writer.write_eof()
        assert await caller.reader.read() == b"all: question"


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


async def _refused_port() -> int:
    with socket.socket() as bare:
        bare.bind(("127.0.0.1", 0))
        return int(bare.getsockname()[1])


async def test_an_upstream_that_is_away_is_a_502_in_the_protocols_shape() -> None:
    async with (
        rig(upstream=f"http://127.0.0.1:{await _refused_port()}") as proxy,
        calling(proxy.url) as caller,
    ):
        await caller.send(request("GET", "/v1/realtime", OFFER) + b"behind")
        got = await caller.got("GET")
        assert got.status == 502
        assert set(json.loads(got.body)["error"]) == {"message", "type", "param", "code"}
        assert await caller.reader.read() == b""


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 101", b"SSH-2.0-OpenSSH\r\n\r\n"])
async def test_an_upstream_that_does_not_answer_http_is_a_502(said: bytes) -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)

    async with before(peer) as proxy, calling(proxy.url) as caller:
        await caller.send(request("GET", "/v1/realtime", OFFER))
        if said.startswith(b"HTTP"):  # the beginning of an answer is sent on, then broken off
            assert await caller.reader.read() == said
        else:
            assert (await caller.got("GET")).status == 502


async def test_an_upstream_that_says_nothing_is_a_504() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async with before(peer, upstream_idle_seconds=0.2) as proxy, calling(proxy.url) as caller:
        await caller.send(request("GET", "/v1/realtime", OFFER))
        assert (await caller.got("GET")).status == 504


async def test_a_tunnel_in_which_nothing_moves_is_broken_off_at_both_ends() -> None:
    gone = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(AGREED)
        with suppress(ConnectionError):
            await reader.read()
        gone.set()

    async with before(peer, upstream_idle_seconds=0.3) as proxy, calling(proxy.url) as caller:
        await agreed(caller)
        with pytest.raises(ConnectionResetError):
            await caller.reader.read()
        await gone.wait()


async def test_a_caller_that_leaves_before_the_answer_is_gone_for_the_upstream() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        with suppress(ConnectionError):
            await reader.read()
        gone.set()

    async with before(peer) as proxy:
        async with calling(proxy.url) as caller:
            await caller.send(request("GET", "/v1/realtime", OFFER))
            await asked.wait()
        await gone.wait()


async def test_an_end_that_does_not_read_stops_the_other() -> None:
    """Both ways: what is on its way is bounded, and none of it is lost."""
    sent = 0
    go = asyncio.Event()

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(AGREED)
        for _ in range(64):
            writer.write(bytes(2**20))
            await writer.drain()
            sent += 2**20
        writer.write_eof()
        await go.wait()
        total = 0
        while data := await reader.read(2**20):
            total += len(data)
        assert total == 64 * 2**20

    async with before(peer) as proxy, calling(proxy.url) as caller:
        caller.reader._limit = 2**16  # type: ignore[attr-defined]
        await agreed(caller)
        stood = -1
        while stood != sent:
            stood = sent
            await asyncio.sleep(0.3)
        assert stood < 40 * 2**20
        got = 0
        while data := await caller.reader.read(2**20):
            got += len(data)
        assert got == 64 * 2**20
        flood = asyncio.create_task(caller.send(bytes(64 * 2**20)))
        await asyncio.wait({flood}, timeout=0.5)
        assert not flood.done()
        go.set()
        await flood
        caller.writer.write_eof()
        await eventually(caller.reader.at_eof)


async def test_own_pages_stay_our_own() -> None:
    async with before(echo) as proxy, calling(proxy.url) as caller:
        await caller.send(request("GET", "/livez", OFFER))
        got = await caller.got("GET")
        assert (got.status, got.body) == (200, b"ok\n")
        assert await caller.reader.read() == b""
