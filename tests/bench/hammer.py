"""A load generator that costs little: one thread, raw sockets, no event loop, one request each.

`load.py` spends 60 us a request on asyncio and a parser, which is more than the fastest handlers
spend; this one spends about 15. It belongs into a process of its own, beside no server.
"""

from __future__ import annotations

import selectors
import socket
import time
from itertools import cycle
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tests.bench.load import Figures

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_LENGTH = b"content-length: "
_PATIENCE_SECONDS = 10.0


def hammer(
    url: str,
    requests: Iterable[bytes],
    *,
    connections: int,
    seconds: float = float("inf"),
    count: int = 2**62,
    expect: bytes = b"",
) -> Figures:
    """Send `requests` over and over, until `seconds` or `count` answers have passed.

    Every answer must contain `expect`. Raises AssertionError for one that does not.
    """
    parts = urlsplit(url)
    again: Iterator[bytes] = cycle(requests)
    taken: list[float] = []
    with selectors.DefaultSelector() as selector:
        sockets = [
            socket.create_connection((str(parts.hostname), int(parts.port or 80)))
            for _ in range(connections)
        ]
        try:
            for each in sockets:
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(each, selectors.EVENT_READ)
            took = _drive(selector, sockets, again, taken, seconds, count, expect)
        finally:
            for each in sockets:
                each.close()
    taken.sort()
    return Figures(
        per_second=len(taken) / took,
        p50=taken[len(taken) // 2] * 1000,
        p99=taken[int(len(taken) * 0.99)] * 1000,
    )


def _drive(
    selector: selectors.BaseSelector,
    sockets: list[socket.socket],
    requests: Iterator[bytes],
    taken: list[float],
    seconds: float,
    count: int,
    expect: bytes,
) -> float:
    """One request in flight per socket; seconds from the first to the last answer."""
    clock = time.perf_counter
    partial: dict[socket.socket, bytes] = {}
    sent: dict[socket.socket, float] = {}
    began = clock()
    for each in sockets:
        sent[each] = clock()
        each.sendall(next(requests))
    while len(taken) < count and clock() - began < seconds:
        ready = selector.select(_PATIENCE_SECONDS)
        assert ready, f"no answer within {_PATIENCE_SECONDS:g} s"
        for key, _ in ready:
            each = key.fileobj  # type: ignore[assignment]
            data = partial.pop(each, b"") + each.recv(262144)
            if not _whole(data):
                partial[each] = data
                continue
            assert expect in data, f"unexpected answer: {data[:300]!r}"
            now = clock()
            taken.append(now - sent[each])
            sent[each] = now
            each.sendall(next(requests))
    return clock() - began


def _whole(data: bytes) -> bool:
    assert data, "the connection was closed"
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    start = data.find(_LENGTH, 0, end)
    assert start >= 0, f"an answer without length: {data[:300]!r}"
    start += len(_LENGTH)
    return len(data) >= end + 4 + int(data[start : data.find(b"\r\n", start)])
