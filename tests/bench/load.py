"""A small HTTP load generator: raw sockets, one request in flight per connection."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httptools

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Figures:
    """What a run measured; times in milliseconds."""

    per_second: float
    p50: float
    p99: float


class _Connection(asyncio.Protocol):
    """Sends a request, waits for its whole answer."""

    def __init__(self, expect: bytes) -> None:
        self._expect = expect
        self._done: asyncio.Future[None] | None = None
        self._seen = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        self._seen += data
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        done, seen = self._done, self._seen
        self._seen = b""
        if done is None or done.done():
            return
        if self._expect not in seen.lower():
            done.set_exception(AssertionError(f"unexpected answer: {seen[:300]!r}"))
        else:
            done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError("the connection was closed"))

    async def ask(self, request: bytes) -> float:
        """Seconds until the whole answer was there."""
        self._done = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        self._transport.write(request)  # type: ignore[attr-defined]
        await self._done
        return time.perf_counter() - began

    def close(self) -> None:
        self._transport.close()


def post(url: str, body: bytes, media_type: str = "application/json", *headers: str) -> bytes:
    """The bytes of a POST request."""
    parts = urlsplit(url)
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", f"Content-Type: {media_type}"]
    lines += [*headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


async def http(
    url: str, request: Callable[[int], bytes], *, count: int, connections: int, expect: str
) -> Figures:
    """Send `request(0)` … `request(count - 1)`. Every answer must contain `expect`."""
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    made = [
        await loop.create_connection(
            lambda: _Connection(expect.lower().encode()), str(parts.hostname), int(parts.port or 80)
        )
        for _ in range(connections)
    ]
    numbers = iter(range(count))

    async def run(connection: _Connection) -> list[float]:
        return [await connection.ask(request(number)) for number in numbers]

    try:
        return await _timed([run(connection) for _, connection in made])
    finally:
        for _, connection in made:
            connection.close()


async def calls(call: Callable[[int], object], *, count: int, workers: int) -> Figures:
    """The same for coroutines instead of requests: a floor without HTTP."""
    numbers = iter(range(count))

    async def run() -> list[float]:
        taken = []
        for number in numbers:
            began = time.perf_counter()
            await call(number)  # type: ignore[misc]
            taken.append(time.perf_counter() - began)
        return taken

    return await _timed([run() for _ in range(workers)])


async def _timed(runs: list[object]) -> Figures:
    began = time.perf_counter()
    results: list[list[float]] = await asyncio.gather(*runs)  # type: ignore[call-overload]
    took = time.perf_counter() - began
    taken = sorted(seconds for result in results for seconds in result)
    return Figures(
        per_second=len(taken) / took,
        p50=taken[len(taken) // 2] * 1000,
        p99=taken[int(len(taken) * 0.99)] * 1000,
    )
