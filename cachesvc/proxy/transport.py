"""THE STORY: read a request, ask the cache, replay or forward, keep a copy."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cachesvc.core.model import Reason
from cachesvc.errors import CallerLeft, UpstreamFailed
from cachesvc.proxy.cache import Onward
from cachesvc.proxy.flights import Released
from cachesvc.proxy.sides import error_reply

if TYPE_CHECKING:
    from cachesvc.proxy.cache import Cache
    from cachesvc.proxy.flights import Flights, Ticket
    from cachesvc.proxy.relay import Relay
    from cachesvc.proxy.request import Reply, Request, Whole
    from cachesvc.proxy.sides import Side
    from cachesvc.proxy.telemetry import Telemetry


class Transport:
    """A request in, a reply out; the cache in between, or out of the way."""

    def __init__(
        self,
        cache: Cache,
        relay: Relay,
        flights: Flights,
        telemetry: Telemetry,
        *,
        max_request_bytes: int,
    ) -> None:
        self._cache = cache
        self._relay = relay
        self._flights = flights
        self._telemetry = telemetry
        self._max_request_bytes = max_request_bytes

    async def answer(self, request: Request, reply: Reply) -> None:
        """One call, from its first byte to its last. Raises CallerLeft."""
        if not request.path.startswith("/"):  # it cannot be appended to the upstream's
            refusal = error_reply(self._cache.main, 400, "the request target must be a path")
            await reply.whole(refusal)
            return
        dialect = self._cache.dialect_of(request)
        if dialect is None:
            await self._forward(request, None, reply, self._cache.unjudged().side)
            return
        wanted = self._cache.wants_body
        body = await request.read(self._max_request_bytes) if wanted else None
        found = await self._cache.consult(dialect, request, body)
        if not isinstance(found, Onward):
            await self._replay(request, reply, found)
        elif found.ticket is None:
            await self._forward(request, body, reply, found.side)
        else:
            await self._share(request, body, reply, found.side, found.ticket)

    async def _replay(self, request: Request, reply: Reply, found: Whole) -> None:
        if not found.paced_seconds:
            await reply.whole(found)
            return
        with request.watched():
            await reply.paced(found)

    async def _forward(
        self, request: Request, body: bytes | None, reply: Reply, side: Side
    ) -> None:
        """Relay the call. After the first byte a failure breaks the caller's connection, too."""
        begun = False
        try:
            with request.watched():
                async with self._relay.call(request, body) as upstream:
                    headers, begun = side.head(upstream), True
                    await reply.start(upstream.status, headers)
                    async for piece in upstream.pieces():
                        await reply.piece(piece)
                        side.piece(piece)
                    await side.ending()
        except CallerLeft:
            side.broken(Reason.INCOMPLETE)
            raise
        except UpstreamFailed as failure:
            side.broken(Reason.INCOMPLETE)
            await _failed(reply, side, failure, begun=begun)
            return
        await reply.end()
        side.done()

    async def _share(
        self, request: Request, body: bytes | None, reply: Reply, side: Side, ticket: Ticket
    ) -> None:
        """Lead a flight or join one; whoever joined one that failed early goes alone."""
        reader = self._flights.board(ticket, partial(self._relay.call, request, body), side)
        if not reader.leads:
            self._telemetry.joined(ticket.key[0])
        begun = landed = alone = False
        try:
            with request.watched():
                upstream = await reader.upstream()
                begun = True
                headers = reader.head if reader.leads else side.joined(upstream)
                await reply.start(upstream.status, headers)
                async for piece in reader.pieces():
                    await reply.piece(piece)
            await reply.end()
            landed = True
        except Released:
            alone = True
            reader.leave()
            await self._forward(request, body, reply, side)
        except UpstreamFailed as failure:
            await _failed(reply, side, failure, begun=begun)
        finally:
            reader.leave(landed=landed)
            if not (reader.leads or begun or alone):
                side.released()


async def _failed(reply: Reply, side: Side, failure: UpstreamFailed, *, begun: bool) -> None:
    if begun:
        reply.break_off()
    else:
        await reply.whole(side.error(failure))
