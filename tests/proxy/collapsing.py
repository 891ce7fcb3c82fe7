"""Requests that are under way at the same time, and what they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.proxy.rig import PATH, chat_body, eventually
from tests.servers import calling, request

if TYPE_CHECKING:
    import asyncio
    from contextlib import AsyncExitStack

    from tests.proxy.rig import Rig
    from tests.servers import Caller, Got, Script, Seen, Wire

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def held(gate: asyncio.Event, data: bytes) -> Script:
    """Answers everybody with `data` once the gate opens."""

    async def script(seen: Seen, wire: Wire) -> None:
        await gate.wait()
        await wire.send(data)

    return script


async def joined(proxy: Rig, count: int) -> None:
    """Wait until so many requests have joined the call of another."""

    async def enough() -> bool:
        return (await proxy.metrics()).get('cachesvc_collapsed_total{policy="p"}', 0) >= count

    await eventually(enough)


def collapsed(got: Got) -> bool:
    return "; collapsed" in (got["cache-status"] or "")


async def asked(proxy: Rig, stack: AsyncExitStack, **fields: object) -> Caller:
    """A caller on a connection of its own who has sent the same request."""
    caller = await stack.enter_async_context(calling(proxy.url))
    await caller.send(request("POST", PATH, proxy.headers, chat_body(**fields)))  # type: ignore[arg-type]
    return caller
