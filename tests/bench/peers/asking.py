"""The driver's side of the wire: closed-loop clients on raw sockets, which judge every answer.

It runs in a process of its own, beside no system under test.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

import httptools

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PATIENCE_SECONDS = 30.0


class Served(Enum):
    """Whose answer came: the one stored for this asker, the upstream's, another's, none."""

    STORED = "stored"
    FRESH = "fresh"
    WRONG = "wrong"
    FAILED = "failed"


@dataclass(frozen=True)
class Ask:
    """A request, and how to judge its answer."""

    request: bytes
    judge: Callable[[int, bytes], Served]


@dataclass
class Seen:
    """What a run measured: seconds of each answer by what was served."""

    seconds: dict[Served, list[float]] = field(
        default_factory=lambda: {each: [] for each in Served}
    )
    took: float = 0.0
    failure: bytes = b""

    @property
    def count(self) -> int:
        return sum(len(each) for each in self.seconds.values())

    @property
    def per_second(self) -> float:
        return self.count / self.took

    def share(self, served: Served) -> float:
        return len(self.seconds[served]) / max(1, self.count)

    def percentile(self, share: float, *served: Served) -> float:
        """Milliseconds; NaN where there is none."""
        taken = sorted(value for each in served for value in self.seconds[each])
        return taken[int(len(taken) * share)] * 1000 if taken else float("nan")


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by name
        self._done: asyncio.Future[None] | None = None
        self._start()

    def _start(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionError("the connection was closed"))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        self._start()
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await asyncio.wait_for(self._done, _PATIENCE_SECONDS)
        return self._parser.get_status_code(), self._body

    def close(self) -> None:
        self._transport.close()


async def run(
    url: str, asks: Iterator[Ask], *, clients: int, seconds: float = float("inf")
) -> Seen:
    """Ask until `seconds` have passed or `asks` ends, `clients` at a time."""
    parts = urlsplit(url)
    host, port = str(parts.hostname), int(parts.port or 80)
    loop = asyncio.get_running_loop()
    seen = Seen()
    began = time.perf_counter()

    async def client() -> None:
        _, connection = await loop.create_connection(_Connection, host, port)
        try:
            while time.perf_counter() - began < seconds:
                ask = next(asks, None)
                if ask is None:
                    return
                start = time.perf_counter()
                try:
                    status, body = await connection.ask(ask.request)
                except (ConnectionError, TimeoutError) as exc:
                    # One answer lost; who does not even accept any more ends this client.
                    seen.seconds[Served.FAILED].append(time.perf_counter() - start)
                    seen.failure = str(exc).encode()
                    connection.close()
                    _, connection = await loop.create_connection(_Connection, host, port)
                    continue
                taken = time.perf_counter() - start
                served = ask.judge(status, body)
                seen.seconds[served].append(taken)
                if served is Served.FAILED or (served is Served.WRONG and not seen.failure):
                    seen.failure = body[:300]
        finally:
            connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    seen.took = time.perf_counter() - began
    return seen


def post(url: str, path: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a POST request."""
    lines = [f"POST {path} HTTP/1.1", f"Host: {urlsplit(url).netloc}", *headers]
    lines += [f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body
