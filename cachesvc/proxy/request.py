"""The caller's side of a call: the request as it came, the reply as it goes (raw ASGI)."""

from __future__ import annotations

import asyncio
import re
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any

from cachesvc.errors import CallerLeft, UpstreamFailed

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
        MutableMapping,
        Sequence,
    )

    Scope = MutableMapping[str, Any]
    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    RawHeaders = Sequence[tuple[bytes, bytes]]

_MAX_REQUEST_ID = 256
SHORTEST_SLEEP_SECONDS = 0.001
# They say where a message ends, whatever Connection says of them.
_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
# An event of a stream with the blank line behind it, or what is left at the end.
_EVENT = re.compile(rb".+?(?:\n\n|\r\n\r\n|\r\r|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Whole:
    """A reply that is all there: status, headers without length and date, body.

    `paced_seconds` is the time over which an event stream is spread; 0 is at once.
    """

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    paced_seconds: float = 0.0


class Head:
    """A request but for its body.

    `headers` maps lower-case names to their values in order (latin-1). Headers that its
    `Connection` names are none of it (RFC 9110, 7.6.1): the upstream never sees them, so neither
    may a key or a scope. `sent_on` are all the others, as they came. `upstream` is the name of
    where it goes, None where that is the one of the settings.
    """

    def __init__(
        self,
        method: str,
        path: str,
        query: str,
        headers: RawHeaders,
        upstream: str | None = None,
    ) -> None:
        self.upstream = upstream
        self.method = method
        self.path = path
        self.query = query
        self.sent_on: RawHeaders = _without_named(headers)
        self.headers: dict[str, tuple[str, ...]] = {}
        for name, value in self.sent_on:
            key = name.decode("latin-1").lower()
            self.headers[key] = (*self.headers.get(key, ()), value.decode("latin-1"))

    @property
    def request_id(self) -> str | None:
        """The caller's `x-request-id`, where it is fit to go on to others."""
        value = self.headers.get("x-request-id", ("",))[0]
        fit = value.isascii() and value.isprintable() and len(value) <= _MAX_REQUEST_ID
        return value or None if fit else None


class Request(Head):
    """A request of a caller who is on the other end of an ASGI connection."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        super().__init__(
            scope["method"],
            scope["raw_path"].decode("latin-1"),
            scope["query_string"].decode("latin-1"),
            scope["headers"],
        )
        # The target ends in `?`, with nothing behind it.
        self.bare_query = "cachesvc.bare_query" in (scope.get("extensions") or {})
        self.gone = False
        self._receive = receive
        self._kept: list[bytes] = []
        self._read_through = asyncio.Event()
        self._handler: asyncio.Task[Any] | None = None

    @property
    def has_body(self) -> bool:
        """A body was announced (RFC 9112, 6)."""
        lengths = self.headers.get("content-length", ("0",))
        return "transfer-encoding" in self.headers or lengths != ("0",)

    async def read(self, limit: int) -> bytes | None:
        """The whole body, or None when it has more than `limit` bytes.

        `pieces` gives all of it in either case. Raises CallerLeft.
        """
        announced = self.headers.get("content-length", ("0",))[0]
        if announced.isdecimal() and int(announced) > limit:
            return None
        size = sum(map(len, self._kept))
        while not self._read_through.is_set():
            piece = await self._next()
            self._kept.append(piece)
            size += len(piece)
            if size > limit:
                return None
        whole = b"".join(self._kept)
        self._kept = [whole]  # the pieces would be a second copy
        return whole

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body from its start, as it comes. Only once. Raises CallerLeft."""
        while self._kept:
            yield self._kept.pop(0)
        while not self._read_through.is_set():
            yield await self._next()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While inside, the caller's leaving cancels the current task, which ends as CallerLeft."""
        handler = self._handler = asyncio.current_task()
        watcher = asyncio.create_task(self._watch())
        try:
            yield
        except asyncio.CancelledError:
            if handler is None or not self.gone or handler.uncancel() > 0:
                raise
            raise CallerLeft from None
        finally:
            self._handler = None
            watcher.cancel()

    async def _watch(self) -> None:
        # Two readers must not call receive() at once: until the body is read, its reader watches.
        await self._read_through.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._leave()

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._leave()
            raise CallerLeft
        if not message.get("more_body", False):
            self._read_through.set()
        return bytes(message.get("body", b""))

    def _leave(self) -> None:
        self.gone = True
        if self._handler is not None:
            self._handler.cancel()


def schedule(reply: Whole) -> Iterator[tuple[float, bytes]]:
    """The body in its events, each with when it is due, in seconds from the start.

    The first is due at once, the last after `paced_seconds`. A reply that is not paced is one
    piece; joined the pieces are the body.
    """
    events = _EVENT.findall(reply.body) if reply.paced_seconds else [reply.body]
    pause = reply.paced_seconds / max(1, len(events) - 1)
    return ((number * pause, event) for number, event in enumerate(events))


def with_length(reply: Whole) -> RawHeaders:
    """The headers of a reply that is all there."""
    return (
        *reply.headers,
        (b"content-length", b"%d" % len(reply.body)),
        (b"date", _date(int(monotonic()))),
    )


@lru_cache(maxsize=1)
def _date(_second: int) -> bytes:
    """Now, made once a second."""
    return formatdate(usegmt=True).encode("ascii")


def named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """The lower-case names of the headers that are for this connection only."""
    values = (value for name, value in headers if name.lower() == b"connection")
    return {token.strip().lower() for value in values for token in value.split(b",")}


def _without_named(headers: RawHeaders) -> RawHeaders:
    named = named_by_connection(headers) - _FRAMING
    return [pair for pair in headers if pair[0].lower() not in named] if named else headers


class Reply:
    """What goes back to the caller, piece by piece."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        extensions = scope.get("extensions") or {}
        self._abort: Callable[[], None] | None = extensions.get("cachesvc.abort")
        self._at_once: Callable[..., bool] | None = extensions.get("cachesvc.reply")

    async def start(self, status: int, headers: RawHeaders) -> None:
        """Status and headers."""
        await self._send(
            {"type": "http.response.start", "status": status, "headers": list(headers)}
        )

    async def piece(self, data: bytes) -> None:
        """Some bytes of the body, sent at once."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        """A clean end."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(self, reply: Whole) -> None:
        """All at once, with length and date."""
        headers = with_length(reply)
        if self._at_once is not None:
            lowered = [(name.lower(), value) for name, value in headers]
            if self._at_once(reply.status, lowered, reply.body):
                return
        await self.start(reply.status, headers)
        await self._send({"type": "http.response.body", "body": reply.body, "more_body": False})

    async def paced(self, reply: Whole) -> None:
        """The same bytes, event after event, evenly over `paced_seconds`."""
        await self.start(reply.status, with_length(reply))
        clock = asyncio.get_running_loop().time
        began = clock()
        for due, event in schedule(reply):
            # By the schedule, not by adding up sleeps, which each take longer than asked.
            ahead = began + due - clock()
            if ahead > SHORTEST_SLEEP_SECONDS:
                await asyncio.sleep(ahead)
            await self.piece(event)
        await self.end()

    def break_off(self) -> None:
        """Break the connection, so that nobody takes what was sent for all there is."""
        if self._abort is None:
            # Any server closes without the last chunk when the application fails.
            raise UpstreamFailed("the upstream broke off its answer")
        self._abort()
