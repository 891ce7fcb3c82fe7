"""WebSockets through the proxy, with a real client and a real server at its ends."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.typing import Subprotocol

from cachesvc import certificates
from tests.proxy.rig import PATH, eventually, rig

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.proxy.rig import Rig

MIB = 2**20


class Sockets:
    """A WebSocket server that echoes, and does as it is told by some words."""

    def __init__(self) -> None:
        self.seen: list[ServerConnection] = []
        self.left = asyncio.Event()

    async def __call__(self, connection: ServerConnection) -> None:
        self.seen.append(connection)
        try:
            async for message in connection:
                if message == "close":
                    await connection.close(4321, "as told")
                elif message == "die":
                    connection.transport.abort()
                else:
                    await connection.send(message)
        except ConnectionClosed:
            pass
        finally:
            self.left.set()


def _realtime(_: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return Subprotocol("realtime") if "realtime" in offered else None


@asynccontextmanager
async def tunnelled(
    sockets: Sockets, context: ssl.SSLContext | None = None, base: str = ""
) -> AsyncIterator[tuple[Rig, str]]:
    """A proxy in front of `sockets`, and its ws:// address."""
    server = await serve_websockets(
        sockets, "127.0.0.1", 0, ssl=context, max_size=None, select_subprotocol=_realtime
    )
    port = next(iter(server.sockets)).getsockname()[1]
    scheme = "https" if context else "http"
    try:
        async with rig(upstream=f"{scheme}://127.0.0.1:{port}{base}") as proxy:
            yield proxy, proxy.url.replace("http", "ws")
    finally:
        server.close()
        await server.wait_closed()


async def test_text_and_binary_and_pings_pass_both_ways() -> None:
    async with tunnelled(Sockets()) as (_, url), connect(f"{url}/v1/realtime?model=m") as caller:
        for message in ("hello \u00e9", b"\x00\xff" * 500, "", "x" * 70_000):
            await caller.send(message)
            assert await caller.recv() == message
        await asyncio.wait_for(await caller.ping(b"are you there"), 10)


async def test_the_upstream_gets_the_offer_as_it_came_and_its_own_host() -> None:
    sockets = Sockets()
    headers = [
        ("Authorization", "Bearer k"),
        ("OpenAI-Beta", "realtime=v1"),
        ("X-One", "caf\u00e9"),
    ]
    async with (
        tunnelled(sockets, base="/base") as (proxy, url),
        connect(
            f"{url}/v1/realtime?model=m&x=%C3%A9",
            additional_headers=headers,
            subprotocols=[Subprotocol("realtime"), Subprotocol("other")],
        ) as caller,
    ):
        assert caller.subprotocol == "realtime"
        seen = sockets.seen[0].request
        assert seen is not None
        assert seen.path == "/base/v1/realtime?model=m&x=%C3%A9"
        upstream = proxy.settings.proxy.upstream.removeprefix("http://").removesuffix("/base")
        assert seen.headers.get_all("host") == [upstream]
        assert seen.headers["authorization"] == "Bearer k"
        assert seen.headers["openai-beta"] == "realtime=v1"
        assert "permessage-deflate" in seen.headers["sec-websocket-extensions"]


async def test_frames_of_a_mebibyte_pass_whole() -> None:
    async with (
        tunnelled(Sockets()) as (_, url),
        connect(f"{url}/v1/realtime", max_size=None, compression=None) as caller,
    ):
        for _ in range(8):
            frame = os.urandom(MIB)
            await caller.send(frame)
            assert await caller.recv() == frame


async def test_close_codes_pass_both_ways() -> None:
    sockets = Sockets()
    async with tunnelled(sockets) as (_, url):
        async with connect(f"{url}/v1/realtime") as caller:
            await caller.send("close")
            with pytest.raises(ConnectionClosedError):
                await caller.recv()
            assert (caller.close_code, caller.close_reason) == (4321, "as told")
        async with connect(f"{url}/v1/realtime") as caller:
            await caller.close(4567, "enough")
        await eventually(lambda: len(sockets.seen) == 2 and sockets.seen[1].close_code == 4567)
        assert sockets.seen[1].close_reason == "enough"


async def test_a_dead_upstream_is_no_clean_end() -> None:
    async with tunnelled(Sockets()) as (_, url), connect(f"{url}/v1/realtime") as caller:
        await caller.send("die")
        with pytest.raises(ConnectionClosedError):
            await caller.recv()
        assert caller.close_code == 1006


async def test_a_caller_that_dies_is_gone_for_the_upstream_too() -> None:
    sockets = Sockets()
    async with tunnelled(sockets) as (_, url), connect(f"{url}/v1/realtime") as caller:
        await caller.send("hello")
        await caller.recv()
        caller.transport.abort()
        await asyncio.wait_for(sockets.left.wait(), 10)


async def test_an_open_socket_does_not_hold_up_a_stop() -> None:
    sockets = Sockets()
    async with tunnelled(sockets) as (_, url):
        caller = await connect(f"{url}/v1/realtime")
        await caller.send("hello")
        await caller.recv()
    assert sockets.left.is_set()
    await caller.wait_closed()


async def test_a_refusal_comes_back_as_the_upstream_said_it() -> None:
    async with rig() as proxy:
        with pytest.raises(InvalidStatus) as refused:
            await connect(proxy.url.replace("http", "ws") + "/v1/realtime")
        assert refused.value.response.status_code == 200
        assert b"answer 1" in (refused.value.response.body or b"")


async def test_an_upgrade_on_a_cached_path_is_never_judged() -> None:
    async with tunnelled(Sockets()) as (proxy, url), connect(f"{url}{PATH}") as caller:
        await caller.send("hello")
        assert await caller.recv() == "hello"
        assert proxy.service.lookups == []


async def test_an_upstream_with_a_certificate_we_trust_is_talked_to_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = certificates.make(tmp_path / "certs", tenant="acme", force=False).files
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["service.pem"], files["service.key"])
    async with tunnelled(Sockets(), context) as (_, url):
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"{url}/v1/realtime")
        assert refused.value.response.status_code == 502
    monkeypatch.setenv("SSL_CERT_FILE", str(files["ca.pem"]))
    async with (
        tunnelled(Sockets(), context) as (_, url),
        connect(f"{url}/v1/realtime", max_size=None) as caller,
    ):
        frame = os.urandom(MIB)
        await caller.send(frame)
        assert await caller.recv() == frame
        await caller.send("close")
        with pytest.raises(ConnectionClosedError):
            await caller.recv()
        assert caller.close_code == 4321
