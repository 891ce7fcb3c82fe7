"""An upstream that is written byte by byte, and a caller who offers it an upgrade."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from tests.proxy.rig import rig
from tests.servers import request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.proxy.rig import Rig
    from tests.servers import Caller

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
