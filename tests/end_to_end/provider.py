"""A remote embedding provider that can be broken while it runs; real bytes, its own thread."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading

DIMENSIONS = 16


class EmbeddingProvider:
    """`POST /v1/embeddings`. Each text has a direction of its own, so nothing is near anything."""

    def __init__(self) -> None:
        self.calls = 0
        self.url = ""
        self._mode = "fine"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="provider")
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> EmbeddingProvider:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def turn(self, mode: str) -> None:
        """`fine`, `refuse` (connections are closed), `hang`, `error` (500) or `garbage` (200)."""
        self._mode = mode
        if mode == "refuse":
            self._loop.call_soon_threadsafe(self._close_connections)

    def _close_connections(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _start(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while self._mode != "refuse":
                await self._exchange(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        length = next(int(li.split(b":")[1]) for li in lines if li.startswith(b"content-length:"))
        text = json.loads(await reader.readexactly(length))["input"]
        self.calls += 1
        if self._mode == "hang":
            await asyncio.sleep(3600)
        status = b"500 Internal Server Error" if self._mode == "error" else b"200 OK"
        body = b'{"data":[{"embedding":"what?"}]}' if self._mode == "garbage" else _body(text)
        writer.write(
            b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (status, len(body), body)
        )
        await writer.drain()


def _body(text: str | list[str]) -> bytes:
    words = text if isinstance(text, str) else text[0]
    digest = hashlib.sha256(words.encode()).digest()[:DIMENSIONS]
    vector = [byte / 255 - 0.5 for byte in digest]
    return json.dumps({"data": [{"index": 0, "embedding": vector}], "model": "fake"}).encode()
