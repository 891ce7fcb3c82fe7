"""A stored answer as a response of the client's package."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from cachesvc.proxy.request import SHORTEST_SLEEP_SECONDS, schedule, with_length

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cachesvc.inprocess.package import Package
    from cachesvc.proxy.request import Whole


def replay(package: Package, found: Whole) -> Any:
    """For a Client."""
    return _response(package, found, package.stream(_pieces(found), _nothing))


def replay_async(package: Package, found: Whole) -> Any:
    """For an AsyncClient."""
    return _response(package, found, package.async_stream(_async_pieces(found), _nothing_async))


def _response(package: Package, found: Whole, stream: Any) -> Any:
    extensions = {"http_version": b"HTTP/1.1"}
    headers = list(with_length(found))
    return package.Response(found.status, headers=headers, stream=stream, extensions=extensions)


def _pieces(found: Whole) -> Iterator[bytes]:
    began = time.monotonic()
    for due, event in schedule(found):
        ahead = began + due - time.monotonic()
        if ahead > SHORTEST_SLEEP_SECONDS:
            time.sleep(ahead)
        yield event


async def _async_pieces(found: Whole) -> AsyncIterator[bytes]:
    began = time.monotonic()
    for due, event in schedule(found):
        ahead = began + due - time.monotonic()
        if ahead > SHORTEST_SLEEP_SECONDS:
            await asyncio.sleep(ahead)
        yield event


def _nothing() -> None: ...


async def _nothing_async() -> None: ...
