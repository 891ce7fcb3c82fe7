"""A remote embedding provider that can be broken while it runs; real bytes, its own thread."""

from __future__ import annotations

import asyncio
import hashlib
import json

from tests.end_to_end.threaded import ThreadedServer, read_json

DIMENSIONS = 16


class EmbeddingProvider(ThreadedServer):
    """`POST /v1/embeddings`. Each text has a direction of its own, so nothing is near anything."""

    def __init__(self) -> None:
        super().__init__("provider")
        self.calls = 0
        self._mode = "fine"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def turn(self, mode: str) -> None:
        """`fine`, `refuse` (connections are closed), `hang`, `error` (500) or `garbage` (200)."""
        self._mode = mode
        if mode == "refuse":
            self.loop.call_soon_threadsafe(self._close_connections)

    def _close_connections(self) -> None:
        for writer in self.writers:
            writer.transport.abort()

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if self._mode == "refuse":
            return False
        text = (await read_json(reader))["input"]
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
        return True


def _body(text: str | list[str]) -> bytes:
    words = text if isinstance(text, str) else text[0]
    digest = hashlib.sha256(words.encode()).digest()[:DIMENSIONS]
    vector = [byte / 255 - 0.5 for byte in digest]
    return json.dumps({"data": [{"index": 0, "embedding": vector}], "model": "fake"}).encode()
