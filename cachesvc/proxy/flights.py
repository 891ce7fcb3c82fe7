"""Flights: identical requests under way share one upstream call (`design.md` 5, Collapse).

The call is read by a task of its own, so that it goes on when the caller that began it leaves, and
a slow caller holds up nobody else. What has come is kept for those who join later.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cachesvc.core.model import Reason
from cachesvc.errors import CacheError, CallerLeft, UpstreamFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from cachesvc.proxy.relay import Upstream
    from cachesvc.proxy.request import RawHeaders
    from cachesvc.proxy.seam import Guard
    from cachesvc.proxy.sides import Side

    Call = Callable[[], AbstractAsyncContextManager[Upstream]]

_OK = 200
# How far the upstream may be ahead of the fastest reader, and a reader behind the upstream.
_AHEAD_BYTES = 256 * 1024
_BEHIND_BYTES = 16 * 1024 * 1024


class Released(CacheError):
    """The flight failed before its first body byte: whoever joined it makes a call of its own."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Which flight a request may share.

    `key` is (policy, scope, exact key). A flight under way is not joined under another generation,
    since its answer is from before a purge, nor by a caller who takes other content codings.
    Nobody joins once more than `most_bytes` have come.
    """

    key: tuple[str, str, str]
    generation: int | None
    codings: tuple[str, ...]
    most_bytes: int


class Flight:
    """One upstream call and its readers."""

    def __init__(self, ticket: Ticket, side: Side) -> None:
        self.ticket = ticket
        self.side = side
        self.upstream: Upstream | None = None
        self.head: RawHeaders = ()
        self.failure: UpstreamFailed | None = None
        self.ended = False
        self.size = 0
        self.pump: asyncio.Task[None] | None = None
        self.readers: set[Reader] = set()
        self._pieces: list[bytes] = []
        self._dropped = 0  # how many pieces every reader has had, and are kept no more
        self._landed = False
        self._settled = False
        self._news = asyncio.Event()
        self._moved = asyncio.Event()

    @property
    def joinable(self) -> bool:
        """What has come is all there, and may be shared."""
        good = self.upstream is None or self.upstream.status == _OK
        return good and not self.over and self.size <= self.ticket.most_bytes

    @property
    def over(self) -> bool:
        return self.ended or self.failure is not None

    def begin(self, upstream: Upstream, head: RawHeaders) -> None:
        self.upstream, self.head = upstream, head
        self._tell()

    async def add(self, piece: bytes) -> None:
        """Keep a piece; waits while even the fastest reader is far behind."""
        while self.readers and min(r.behind for r in self.readers) > _AHEAD_BYTES:
            self._moved.clear()
            await self._moved.wait()
        self._pieces.append(piece)
        self.size += len(piece)
        if not self.joinable:
            self._drop_read()
        self._tell()

    def end(self) -> None:
        self.ended = True
        self._tell()
        self._settle()

    def fail(self, failure: UpstreamFailed) -> None:
        if not self.over:
            self.failure = failure
            self._tell()
            self._settle()

    def piece(self, number: int) -> bytes | None:
        """The piece of this number, None where it has not come."""
        at = number - self._dropped
        return self._pieces[at] if at < len(self._pieces) else None

    async def news(self) -> None:
        """Wait until something has come since the last look."""
        await self._news.wait()

    def moved(self) -> None:
        """A reader has read on."""
        self._moved.set()

    def left(self, reader: Reader, *, landed: bool) -> None:
        """A reader is through, or gone. Without readers the call is given up."""
        self.readers.discard(reader)
        self._landed = self._landed or landed
        self._moved.set()
        if not self.readers and not self.over and self.pump is not None:
            self.pump.cancel()
            self.failure = UpstreamFailed("nobody reads any more")
        self._settle()

    def _settle(self) -> None:
        """Tell the side once: a caller has the whole answer, or nobody ever will."""
        if self._settled or not self.over:
            return
        if self._landed:
            self._settled = True
            self.side.done()
        elif self.failure is not None or not self.readers:
            self._settled = True
            self.side.broken(Reason.INCOMPLETE)

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _drop_read(self) -> None:
        for reader in [r for r in self.readers if r.behind > _BEHIND_BYTES]:
            reader.lost = True
        numbers = [reader.number for reader in self.readers if not reader.lost]
        most = min(numbers, default=self._dropped + len(self._pieces)) - self._dropped
        del self._pieces[:most]
        self._dropped += most


class Reader:
    """One caller's way through a flight."""

    def __init__(self, flight: Flight, *, leads: bool) -> None:
        self.leads = leads
        self.number = 0
        self.lost = False  # so far behind that what it would read next is not kept
        self._flight = flight
        self._read = 0
        flight.readers.add(self)

    @property
    def behind(self) -> int:
        """Bytes that have come and that it has not read."""
        return self._flight.size - self._read

    @property
    def head(self) -> RawHeaders:
        """The headers for the one who leads."""
        return self._flight.head

    async def upstream(self) -> Upstream:
        """The answer's beginning. Raises UpstreamFailed, or Released for one who joined.

        One who joined waits for the first byte of the body, too.
        """
        flight = self._flight
        while True:
            answer = flight.upstream
            if not self.leads and (answer is not None and answer.status != _OK):
                raise Released
            if answer is not None and (self.leads or flight.size or flight.ended):
                return answer
            if flight.failure is not None:
                raise (flight.failure if self.leads else Released())
            await flight.news()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body from its start. Raises UpstreamFailed."""
        flight = self._flight
        while True:
            piece = None if self.lost else flight.piece(self.number)
            if piece is not None:
                yield piece
                self.number += 1
                self._read += len(piece)
                flight.moved()
            elif self.lost:
                raise UpstreamFailed("this caller reads too slowly")
            elif flight.failure is not None:
                raise flight.failure
            elif flight.ended:
                return
            else:
                await flight.news()

    def leave(self, *, landed: bool = False) -> None:
        """`landed`: with the whole answer."""
        self._flight.left(self, landed=landed)


class Flights:
    """The calls under way that may be shared."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._joinable: dict[tuple[str, str, str], Flight] = {}
        self._pumps: set[asyncio.Task[None]] = set()

    def board(self, ticket: Ticket, call: Call, side: Side) -> Reader:
        """A place in the flight under way, or in a new one, which is then `call`."""
        known = self._joinable.get(ticket.key)
        if known is not None and known.joinable:
            same = (known.ticket.generation, known.ticket.codings)
            if same == (ticket.generation, ticket.codings):
                return Reader(known, leads=False)
        flight = Flight(ticket, side)
        self._joinable[ticket.key] = flight
        reader = Reader(flight, leads=True)
        pump = flight.pump = asyncio.create_task(self._pump(flight, call))
        self._pumps.add(pump)
        pump.add_done_callback(lambda ended: self._landed(flight, ended))
        return reader

    async def close(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def _landed(self, flight: Flight, pump: asyncio.Task[None]) -> None:
        self._pumps.discard(pump)
        if self._joinable.get(flight.ticket.key) is flight:
            del self._joinable[flight.ticket.key]
        flight.fail(UpstreamFailed("the call was given up"))

    async def _pump(self, flight: Flight, call: Call) -> None:
        """Read the upstream to its end, for whoever reads."""
        side = flight.side
        with self._guard:
            try:
                async with call() as upstream:
                    flight.begin(upstream, side.head(upstream))
                    async for piece in upstream.pieces():
                        side.piece(piece)
                        await flight.add(piece)
                    await side.ending()
            except UpstreamFailed as failure:
                flight.fail(failure)
            except CallerLeft:  # the one who began it; without readers it would not be read on
                flight.fail(UpstreamFailed("the upstream broke the connection"))
            else:
                flight.end()
