"""An embedding provider on a real socket, which answers with the bytes it is given."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass(frozen=True)
class Received:
    method: str
    target: str
    headers: dict[str, str]
    body: Any


def answer(body: object, status: str = "200 OK") -> bytes:
    """A whole HTTP/1.1 answer. `body` is bytes as they are, or what JSON is made of."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


def vectors(*embeddings: object) -> bytes:
    data = [{"object": "embedding", "index": i, "embedding": e} for i, e in enumerate(embeddings)]
    return answer({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": 3}})


@dataclass
class FakeProvider:
    """`reply` is sent to every request once `open` is set; `gone` is set when a caller hangs up."""

    reply: bytes = field(default_factory=lambda: vectors([0.6, 0.8, 0.0]))
    received: list[Received] = field(default_factory=list)
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    open: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                self.received.append(await _read(reader))
                self.arrived.release()
                await self._wait_for_caller(reader)
                writer.write(self.reply)
                await writer.drain()
        writer.close()

    async def _wait_for_caller(self, reader: asyncio.StreamReader) -> None:
        opened = asyncio.create_task(self.open.wait())
        left = asyncio.create_task(reader.read(1))
        try:
            done, _ = await asyncio.wait((opened, left), return_when=asyncio.FIRST_COMPLETED)
        finally:
            opened.cancel()
            left.cancel()
            await asyncio.gather(opened, left, return_exceptions=True)
        if left in done:
            self.gone.set()
            raise ConnectionResetError


async def _read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
    first, *lines = head.removesuffix("\r\n\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, target, headers, json.loads(body))


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[FakeProvider]:
    provider = FakeProvider()
    provider.open.set()
    connections: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await provider.handle(reader, writer)
        finally:
            writer.close()
            connections.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield provider
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await server.wait_closed()
