"""A tunnel's two ends, each paused while the other cannot take what it sends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import httptools

from cachesvc.errors import UpstreamFailed

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from cachesvc.edge.handover import Handover

_SWITCHING = 101
_MAX_HEAD_BYTES = 256 * 1024
_KEPT_BYTES = 64 * 1024


class Tunnel:
    """The two ends, and what is known of the upstream's answer.

    `over` is done when both ends are; it raises UpstreamFailed while the caller has nothing yet.
    """

    def __init__(
        self, handover: Handover, head: bytes, body_bytes: int, idle_seconds: float
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()
        self.near = handover
        self.caller = Caller(self, body_bytes)
        self.upstream = Upstream(self, head)
        self.begun = False
        self._opening: asyncio.Future[None] | None = None
        self._idle_seconds = idle_seconds
        self._moved = self._loop.time()
        self._watch = self._loop.call_later(idle_seconds, self._look)

    async def open(self, connecting: Coroutine[Any, Any, None], seconds: float) -> None:
        """Connect, unless the caller leaves before. Raises UpstreamFailed."""
        self._opening = asyncio.ensure_future(asyncio.wait_for(connecting, seconds))
        self.near.take(self.caller)
        await asyncio.wait({self._opening})
        if self._opening.cancelled():
            self.settle()
            return
        fault = self._opening.exception()
        if isinstance(fault, TimeoutError):
            raise UpstreamFailed("the upstream did not answer in time", status=504) from fault
        if isinstance(fault, OSError | ValueError):
            raise UpstreamFailed("the upstream cannot be reached") from fault
        if fault is not None:
            raise fault

    def moved(self) -> None:
        """Bytes came, from either end."""
        self._moved = self._loop.time()

    def fail(self, failure: UpstreamFailed) -> None:
        """The upstream failed: the caller gets an error, or where it has begun to read, a break."""
        if self.begun:
            self.near.abort()
        elif not self.over.done():
            self.over.set_exception(failure)

    def settle(self) -> None:
        """Nothing is left to do when both ends are gone."""
        opening = self._opening is not None and not self._opening.done()
        if self.caller.lost and opening and self._opening is not None:
            self._opening.cancel()
        elif self.caller.lost and self.upstream.lost and not self.over.done():
            self.over.set_result(None)

    def break_off(self) -> None:
        """Let nothing of it live on."""
        self._watch.cancel()
        if self._opening is not None:
            self._opening.cancel()
        if self.upstream.transport is not None:
            self.upstream.transport.abort()
        if self.begun and not self.caller.lost:
            self.near.abort()
        if not self.over.cancel() and not self.over.cancelled():
            self.over.exception()  # told, or there was nobody left to tell

    def _look(self) -> None:
        left = self._moved + self._idle_seconds - self._loop.time()
        if left > 0:
            self._watch = self._loop.call_later(left, self._look)
            return
        self.fail(UpstreamFailed("the upstream did not answer in time", status=504))
        if self.upstream.transport is not None:
            self.upstream.transport.abort()


class Caller(asyncio.Protocol):
    """Gets what the caller sends; the edge's connection calls it.

    Until the upstream has agreed, nothing goes on but the offer and its body: what is behind them
    would be another request to an upstream that refuses, with a Host of the caller's choice.
    """

    def __init__(self, tunnel: Tunnel, body_bytes: int) -> None:
        self._tunnel = tunnel
        self._due = body_bytes
        self._through = False
        self._kept: list[bytes] = []
        self._kept_bytes = 0
        self.ended = self.lost = False

    def flow_to(self, upstream: asyncio.Transport, head: bytes) -> None:
        """The upstream is there: `head`, and what has come of the body."""
        upstream.write(head)
        self.let_go()

    def data_received(self, data: bytes) -> None:
        self._tunnel.moved()
        upstream = self._tunnel.upstream.transport
        if upstream is not None:
            now = data if self._tunnel.upstream.agreed else data[: self._due]
            self._due = max(0, self._due - len(now))
            if now:
                upstream.write(now)
            data = data[len(now) :]
        if data:
            self._kept.append(data)
            self._kept_bytes += len(data)
            if self._kept_bytes > _KEPT_BYTES:
                self._tunnel.near.pause_reading()

    def let_go(self) -> None:
        """Send on what was kept and may go by now."""
        # Resumed before the bytes are written: writing may pause it again, and says so only once.
        if not self._tunnel.upstream.full:
            self._tunnel.near.resume_reading()
        kept, self._kept, self._kept_bytes = self._kept, [], 0
        if kept:
            self.data_received(b"".join(kept))
        self._end_if_through()

    def eof_received(self) -> bool:
        self.ended = True
        upstream = self._tunnel.upstream
        if upstream.ended:
            self._tunnel.near.close()
        self._end_if_through()
        return True

    def _end_if_through(self) -> None:
        """Pass the caller's end on, unless something before it may yet go on, too."""
        upstream = self._tunnel.upstream.transport
        if self.ended and not self._through and not self._kept and upstream is not None:
            self._through = True
            _end(upstream)

    def pause_writing(self) -> None:
        upstream = self._tunnel.upstream.transport
        if upstream is not None and not upstream.is_closing():
            upstream.pause_reading()

    def resume_writing(self) -> None:
        upstream = self._tunnel.upstream.transport
        if upstream is not None and not upstream.is_closing():
            upstream.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        upstream = self._tunnel.upstream.transport
        if upstream is not None and exc is not None:
            upstream.abort()
        elif upstream is not None:
            upstream.close()
        self._tunnel.settle()


class Upstream(asyncio.Protocol):
    """Gets what the upstream sends, and looks at it until it has agreed or refused."""

    def __init__(self, tunnel: Tunnel, head: bytes) -> None:
        self._tunnel = tunnel
        self.head = head
        self.transport: asyncio.Transport | None = None
        self.ended = self.lost = False
        self.full = False  # it takes no more for now
        self.agreed = self._in_body = self._refused = False
        self._parser: Any = httptools.HttpResponseParser(self)
        self._looked_at = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._tunnel.caller.flow_to(self.transport, self.head)

    def data_received(self, data: bytes) -> None:
        self._tunnel.moved()
        if not self.agreed:
            try:
                self._look_at(data)
            except UpstreamFailed as failure:
                self._tunnel.fail(failure)
                return
            if self.agreed:
                self._tunnel.caller.let_go()
        self._tunnel.begun = True
        self._tunnel.near.write(data)
        if self._refused:
            # What the caller sends behind a refusal is for nobody.
            self._tunnel.near.close()

    def _look_at(self, data: bytes) -> None:
        self._looked_at += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            return
        except httptools.HttpParserError as exc:
            if not (self.agreed or self._refused):
                raise UpstreamFailed("the upstream's answer is not HTTP") from exc
        if not self._in_body and not self.agreed and self._looked_at > _MAX_HEAD_BYTES:
            raise UpstreamFailed("the upstream's answer is not HTTP")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        self.agreed = status == _SWITCHING
        self._in_body = status >= 200

    def on_message_complete(self) -> None:
        self._refused = self._in_body

    def eof_received(self) -> bool:
        self.ended = True
        if not self._tunnel.begun:
            self._tunnel.fail(UpstreamFailed("the upstream broke the connection"))
        elif self.agreed and not self._tunnel.caller.ended:
            self._tunnel.near.write_eof()
        else:
            self._tunnel.near.close()
        return self.transport is not None and self.transport.can_write_eof()

    def pause_writing(self) -> None:
        self.full = True
        self._tunnel.near.pause_reading()

    def resume_writing(self) -> None:
        self.full = False
        self._tunnel.near.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if exc is not None or not self._tunnel.begun:
            self._tunnel.fail(UpstreamFailed("the upstream broke the connection"))
        else:
            self._tunnel.near.close()
        self._tunnel.settle()


def _end(transport: asyncio.Transport) -> None:
    """Pass the end on: TLS knows no half-closed connection."""
    if transport.can_write_eof():
        transport.write_eof()
    else:
        transport.close()
