"""THE STORY: read a request, judge it, look it up, replay or forward, keep a copy."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cachesvc.core.model import Bypass, Miss, Reason
from cachesvc.core.policy import Policy
from cachesvc.core.steering import read_steering
from cachesvc.errors import CallerLeft, Unreadable, UpstreamFailed
from cachesvc.proxy.apart import INLINE_BYTES
from cachesvc.proxy.client import Found
from cachesvc.proxy.request import Whole
from cachesvc.proxy.seam import Budget, DeadlinePassed, within
from cachesvc.proxy.sides import Bystander, Keeper, Teller, error_reply

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesvc.dialects.base import Dialect
    from cachesvc.proxy.apart import Apart
    from cachesvc.proxy.headers import CacheHeaders
    from cachesvc.proxy.judge import Judge, Judged
    from cachesvc.proxy.lookup import Lookups
    from cachesvc.proxy.policies import PolicyBook
    from cachesvc.proxy.proofs import Proofs
    from cachesvc.proxy.puts import Puts
    from cachesvc.proxy.relay import Relay
    from cachesvc.proxy.request import Reply, Request
    from cachesvc.proxy.seam import Guard
    from cachesvc.proxy.sides import Side
    from cachesvc.proxy.telemetry import Telemetry

_JSON = (b"content-type", b"application/json")
_PLAIN = Policy()


class Transport:
    """A request in, a reply out; the cache in between, or out of the way."""

    def __init__(
        self,
        *,
        dialects: Sequence[Dialect],
        book: PolicyBook,
        judge: Judge,
        apart: Apart,
        lookups: Lookups,
        relay: Relay,
        puts: Puts,
        proofs: Proofs,
        headers: CacheHeaders,
        telemetry: Telemetry,
        guard: Guard,
        budget_seconds: float,
        max_request_bytes: int,
    ) -> None:
        self._dialects = {dialect.path: dialect for dialect in dialects}
        self._main = dialects[0]
        self._bystander = Bystander(self._main)
        self._book = book
        self._judge = judge
        self._apart = apart
        self._lookups = lookups
        self._relay = relay
        self._puts = puts
        self._proofs = proofs
        self._headers = headers
        self._telemetry = telemetry
        self._guard = guard
        self._budget_seconds = budget_seconds
        self._max_request_bytes = max_request_bytes

    async def answer(self, request: Request, reply: Reply) -> None:
        """One call, from its first byte to its last. Raises CallerLeft."""
        if not request.path.startswith("/"):  # it cannot be appended to the upstream's
            await reply.whole(error_reply(self._main, 400, "the request target must be a path"))
            return
        dialect = self._dialects.get(request.path) if request.method == "POST" else None
        if dialect is None:
            await self._forward(request, None, reply, self._bystander)
            return
        active = self._book.any_active
        body = await request.read(self._max_request_bytes) if active else None
        budget = Budget(self._budget_seconds)
        judged = await self._judged(dialect, request, body, budget)
        if judged is None:
            await self._forward(request, body, reply, self._bystander)
        elif isinstance(judged, Miss):
            await self._unable(dialect, request, body, reply, judged)
        else:
            await self._answer_judged(judged, request, body, reply, budget)

    async def _answer_judged(
        self, judged: Judged, request: Request, body: bytes | None, reply: Reply, budget: Budget
    ) -> None:
        found = await self._look_up(judged, budget)
        self._telemetry.added(budget.spent)
        if isinstance(found, Whole):
            judged.release()
            await reply.whole(found)
            return
        self._telemetry.outcome(judged.policy.id, found)
        if found.reason is Reason.NO_POLICY:
            await self._forward(request, body, reply, self._bystander)
            return
        if judged.steering.only_if_cached:
            judged.release()
            await reply.whole(self._refusal(judged.dialect, found, judged.policy))
            return
        await self._forward(request, body, reply, self._keeper(judged, found))

    async def _judged(
        self, dialect: Dialect, request: Request, body: bytes | None, budget: Budget
    ) -> Judged | Miss | None:
        """The request under its policy; None when none rules it; why it could not be judged."""
        if body is None:
            if not self._book.loaded.is_set():
                return Miss(Reason.CACHE_UNAVAILABLE)
            return Miss(Reason.TOO_LARGE) if self._book.any_active else None
        with self._guard:
            judge = partial(self._judge.judge, dialect, request, body)
            try:
                if len(body) <= INLINE_BYTES:
                    return judge()
                return await within(budget, self._apart.run(judge))
            except Unreadable:
                self._telemetry.unreadable()
                return None
            except DeadlinePassed:
                return Miss(Reason.LOOKUP_TIMEOUT)
        return Miss(Reason.BUG)

    async def _unable(
        self, dialect: Dialect, request: Request, body: bytes | None, reply: Reply, outcome: Miss
    ) -> None:
        """A request of ours that the cache could not even judge; its headers still steer."""
        only_if_cached = False
        with self._guard:
            only_if_cached = read_steering(request.headers, _PLAIN).only_if_cached
        late = outcome.reason is Reason.LOOKUP_TIMEOUT
        policy = self._book.only() if late else None
        if late or (only_if_cached and outcome.reason is Reason.CACHE_UNAVAILABLE):
            self._telemetry.outcome(policy.id if policy else "", outcome)
        if only_if_cached:
            await reply.whole(self._refusal(dialect, outcome, policy))
        elif policy is None:
            await self._forward(request, body, reply, self._bystander)
        else:
            teller = Teller(dialect, outcome, self._headers, policy, self._guard)
            await self._forward(request, body, reply, teller)

    async def _look_up(self, judged: Judged, budget: Budget) -> Whole | Miss | Bypass:
        """The reply of a hit, or why there is none."""
        with self._guard:
            outcome = await self._lookups.outcome(judged, budget)
            if isinstance(outcome, Found):
                headers = tuple(self._headers.of_hit(outcome, judged.policy))
                return Whole(200, headers, outcome.body)
            return outcome
        return Miss(Reason.BUG)

    def _refusal(self, dialect: Dialect, outcome: Miss | Bypass, policy: Policy | None) -> Whole:
        """`only-if-cached` without an answer (RFC 9111, 5.2.1.7)."""
        error = dialect.error(504, "not_cached", "no stored answer, and only-if-cached")
        headers = self._headers.of_refusal(outcome, policy) if policy else ()
        return Whole(504, (_JSON, *headers), error)

    def _keeper(self, judged: Judged, outcome: Miss | Bypass) -> Keeper:
        return Keeper(judged, outcome, self._headers, self._proofs, self._puts, self._guard)

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
            if begun:
                reply.break_off()
            else:
                await reply.whole(side.error(failure))
            return
        await reply.end()
        side.done()
