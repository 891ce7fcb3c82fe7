"""An answer of the upstream on its way to the caller, while the cache looks on."""

from __future__ import annotations

import asyncio
from concurrent.futures import CancelledError, wait
from typing import TYPE_CHECKING, Any

from cachesvc.core.model import Reason
from cachesvc.errors import UpstreamFailed
from cachesvc.proxy.capture import is_framed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from concurrent.futures import Future

    from cachesvc.inprocess.package import Package
    from cachesvc.inprocess.thread import CoreThread
    from cachesvc.proxy.request import RawHeaders
    from cachesvc.proxy.sides import Side

_LOOK_SECONDS = 5.0


def awaited(answer: Future[Any]) -> asyncio.Future[Any]:
    """What the running loop can wait for; who waits looks at `answer` for its result."""
    waiting = asyncio.wrap_future(answer)
    # asyncio reports an error that nobody has fetched.
    waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return waiting


class Came:
    """The head of an answer, as a side reads it."""

    def __init__(self, response: Any) -> None:
        self.status: int = response.status_code
        self.headers: RawHeaders = tuple(response.headers.raw)
        by_frames = response.extensions.get("http_version") == b"HTTP/2"
        self.framed = by_frames or is_framed(self.status, self.headers)

    def values(self, name: bytes) -> list[str]:
        return [value.decode("latin-1") for key, value in self.headers if key.lower() == name]


class Passing:
    """The body of one answer: its pieces for the caller, and how it ended for the cache."""

    def __init__(
        self, thread: CoreThread, side: Side, inner: Any, package: Package, *, framed: bool
    ) -> None:
        self._thread = thread
        self._side = side
        self._inner = inner
        self._package = package
        self._framed = framed
        self._told = False

    def pieces(self) -> Iterator[bytes]:
        """What the inner transport yields, and raises."""
        try:
            for piece in self._inner:
                self._side.piece(piece)
                yield piece
            ending = self._ending()
            if ending is not None:
                wait([ending], timeout=_LOOK_SECONDS)
            self._look(ending)
        except GeneratorExit:
            raise  # `close` tells
        except BaseException:
            self._tell(self._broken)
            raise
        self._tell(self._side.done)

    async def async_pieces(self) -> AsyncIterator[bytes]:
        """The same for an AsyncClient."""
        try:
            async for piece in self._inner:
                self._side.piece(piece)
                yield piece
            ending = self._ending()
            if ending is not None:
                await asyncio.wait([awaited(ending)], timeout=_LOOK_SECONDS)
            self._look(ending)
        except GeneratorExit:
            raise
        except BaseException:
            self._tell(self._broken)
            raise
        self._tell(self._side.done)

    def close(self) -> None:
        """The caller reads no further."""
        self._tell(self._side.left)
        self._inner.close()

    async def aclose(self) -> None:
        """The same for an AsyncClient."""
        self._tell(self._side.left)
        await self._inner.aclose()

    def _ending(self) -> Future[None] | None:
        """Whether a body without a length was cut, where that is to be asked."""
        return None if self._framed else self._thread.submit(self._side.ending())

    def _look(self, ending: Future[None] | None) -> None:
        """What was found. Waits for nothing; where nothing was found, the puts look again."""
        try:
            if ending is not None:
                ending.result(0)
        except (TimeoutError, CancelledError):
            return
        except UpstreamFailed as exc:
            raise self._package.RemoteProtocolError(exc.message) from exc

    def _broken(self) -> None:
        self._side.broken(Reason.INCOMPLETE)

    def _tell(self, what: Callable[[], None]) -> None:
        """Say how it ended, once."""
        if not self._told:
            self._told = True
            self._thread.tell(what)
