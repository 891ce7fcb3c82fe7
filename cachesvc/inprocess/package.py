"""httpx and httpx2: two packages of one shape. A reply is of the package its request came from."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

_KNOWN = ("httpx", "httpx2")


class Package:
    """What we need of one of them. Its objects are `Any` here: they are of one or the other."""

    def __init__(self, name: str) -> None:
        module: Any = importlib.import_module(name)
        self.Response: Any = module.Response
        self.RequestNotRead: type[Exception] = module.RequestNotRead
        self.RemoteProtocolError: Any = module.RemoteProtocolError
        self.transport: Callable[[], Any] = module.HTTPTransport
        self.async_transport: Callable[[], Any] = module.AsyncHTTPTransport
        self._stream: Any = type("Stream", (_Sync, module.SyncByteStream), {})
        self._async_stream: Any = type("AsyncStream", (_Async, module.AsyncByteStream), {})

    def stream(self, pieces: Iterator[bytes], close: Callable[[], None]) -> Any:
        """A body that is read piece by piece."""
        return self._stream(pieces, close)

    def async_stream(
        self, pieces: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]
    ) -> Any:
        """The same for an AsyncClient."""
        return self._async_stream(pieces, close)


class _Sync:
    def __init__(self, pieces: Iterator[bytes], close: Callable[[], None]) -> None:
        self._pieces = pieces
        self._close = close

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def close(self) -> None:
        self._close()


class _Async:
    def __init__(self, pieces: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]) -> None:
        self._pieces = pieces
        self._close = close

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def aclose(self) -> None:
        await self._close()


@lru_cache(maxsize=2)
def _package(name: str) -> Package:
    return Package(name)


def package_of(request: object) -> Package:
    """The package of a request. Raises TypeError for a request of neither."""
    names = [kind.__module__.partition(".")[0] for kind in type(request).__mro__]
    for name in names:
        if name in _KNOWN:
            return _package(name)
    raise TypeError(f"request: is of {names[0]!r}; must be of {' or '.join(_KNOWN)}")
