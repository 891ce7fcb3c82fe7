"""What the cache says to a request: an answer, or how it goes on to the upstream.

Knows nothing of connections: the reverse proxy and the in-process transport both ask it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from cachesvc.core.model import Bypass, Miss, Reason
from cachesvc.core.policy import Policy
from cachesvc.core.steering import read_steering
from cachesvc.errors import Unreadable
from cachesvc.proxy.apart import INLINE_BYTES, offloaded
from cachesvc.proxy.client import Found
from cachesvc.proxy.flights import Ticket
from cachesvc.proxy.repeats import Repeats
from cachesvc.proxy.request import Whole
from cachesvc.proxy.seam import Budget, DeadlinePassed, within
from cachesvc.proxy.sides import Bystander, Keeper, Teller

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cachesvc.dialects.base import Dialect
    from cachesvc.proxy.apart import Apart
    from cachesvc.proxy.headers import CacheHeaders
    from cachesvc.proxy.judge import Judge, Judged
    from cachesvc.proxy.lookup import Lookups
    from cachesvc.proxy.policies import PolicyBook
    from cachesvc.proxy.proofs import Proofs
    from cachesvc.proxy.puts import Puts
    from cachesvc.proxy.request import Head
    from cachesvc.proxy.seam import Guard
    from cachesvc.proxy.sides import Side
    from cachesvc.proxy.telemetry import Telemetry

_JSON = (b"content-type", b"application/json")
_PLAIN = Policy()
# A replay is paced as the upstream once was, but nobody waits longer than this.
_LONGEST_REPLAY_SECONDS = 10.0
# Who has shown nothing yet, or says of nobody who shares, shares no call either.
_ALONE = frozenset({Reason.CREDENTIAL_UNPROVEN, Reason.SCOPE_REQUIRED})


@dataclass(frozen=True, slots=True)
class Onward:
    """Ask the upstream while `side` looks on; with a `ticket` the call may be shared."""

    side: Side
    ticket: Ticket | None = None


class Cache:
    """The whole of the cache, seen from a transport. Never fails."""

    def __init__(
        self,
        *,
        dialects: Sequence[Dialect],
        book: PolicyBook,
        judge: Judge,
        apart: Apart,
        lookups: Lookups,
        puts: Puts,
        proofs: Proofs,
        headers: CacheHeaders,
        telemetry: Telemetry,
        guard: Guard,
        budget_seconds: Callable[[str], float],
    ) -> None:
        self._dialects = {dialect.path: dialect for dialect in dialects}
        self.main = dialects[0]
        self.guard = guard
        self._bystander = Bystander(self.main)
        self._book = book
        self._judge = judge
        self._apart = apart
        self._lookups = lookups
        self._puts = puts
        self._proofs = proofs
        self._headers = headers
        self._telemetry = telemetry
        self._repeats = Repeats()
        self._budget_seconds = budget_seconds

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the protocols that are cached."""
        return tuple(self._dialects)

    def dialect_of(self, head: Head) -> Dialect | None:
        """The protocol of a request that is cached, None for everything else."""
        return self._dialects.get(head.path) if head.method == "POST" else None

    @property
    def wants_body(self) -> bool:
        """There is a policy to judge by."""
        return self._book.any_active

    def unjudged(self) -> Onward:
        """A request that is none of ours."""
        return Onward(self._bystander)

    async def consult(self, dialect: Dialect, head: Head, body: bytes | None) -> Whole | Onward:
        """An answer, or how to go on; `body` is None where it was not wanted or is too large."""
        # Which policy rules it is not known before it is read.
        budget = Budget(self._budget_seconds(""))
        judged = await self._judged(dialect, head, body, budget)
        if judged is None:
            return self.unjudged()
        if isinstance(judged, Miss):
            return self._unable(dialect, head, judged)
        return await self._answer(judged, budget)

    async def _answer(self, judged: Judged, budget: Budget) -> Whole | Onward:
        budget.seconds = self._budget_seconds(judged.policy.embed)
        judged.retry = self._repeats.again(judged.call, judged.headers)
        found = await self._look_up(judged, budget)
        self._telemetry.added(budget.spent)
        if isinstance(found, Whole):
            judged.release()
            return found
        self._telemetry.outcome(judged.policy.id, found, again=judged.retry)
        if found.reason is Reason.NO_POLICY:
            judged.release()
            return self.unjudged()
        if judged.steering.only_if_cached:
            judged.release()
            return self._refusal(judged.dialect, found, judged.policy)
        keeper = Keeper(judged, found, self._headers, self._proofs, self._puts, self.guard)
        return Onward(keeper, _ticket(judged, found))

    async def _judged(
        self, dialect: Dialect, head: Head, body: bytes | None, budget: Budget
    ) -> Judged | Miss | None:
        """The request under its policy; None when none rules it; why it could not be judged."""
        if body is None:
            if not self._book.loaded.is_set():
                return Miss(Reason.CACHE_UNAVAILABLE)
            return Miss(Reason.TOO_LARGE) if self._book.any_active else None
        with self.guard:
            judge = partial(self._judge.judge, dialect, head, body)
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

    def _unable(self, dialect: Dialect, head: Head, outcome: Miss) -> Whole | Onward:
        """A request of ours that the cache could not even judge; its headers still steer."""
        only_if_cached = False
        with self.guard:
            only_if_cached = read_steering(head.headers, _PLAIN).only_if_cached
        late = outcome.reason is Reason.LOOKUP_TIMEOUT
        policy = self._book.only() if late else None
        if late or (only_if_cached and outcome.reason is Reason.CACHE_UNAVAILABLE):
            self._telemetry.outcome(policy.id if policy else "", outcome)
        if only_if_cached:
            return self._refusal(dialect, outcome, policy)
        if policy is None:
            return self.unjudged()
        return Onward(Teller(dialect, outcome, self._headers, policy, self.guard))

    async def _look_up(self, judged: Judged, budget: Budget) -> Whole | Miss | Bypass:
        """The reply of a hit, or why there is none."""
        with self.guard:
            outcome = await self._lookups.outcome(judged, budget)
            return await self._replay(judged, outcome) if isinstance(outcome, Found) else outcome
        return Miss(Reason.BUG)

    async def _replay(self, judged: Judged, found: Found) -> Whole:
        policy, body = judged.policy, found.body
        if policy.usage_on_hit == "zero":
            zeroed = partial(judged.dialect.without_usage, found.media_type, body)
            body = await offloaded(len(body), zeroed)
        paced = policy.replay == "paced" and found.media_type.startswith("text/event-stream")
        seconds = min((found.upstream_ms or 0.0) / 1000, _LONGEST_REPLAY_SECONDS)
        headers = tuple(self._headers.of_hit(found, policy))
        return Whole(200, headers, body, paced_seconds=seconds if paced else 0.0)

    def _refusal(self, dialect: Dialect, outcome: Miss | Bypass, policy: Policy | None) -> Whole:
        """`only-if-cached` without an answer (RFC 9111, 5.2.1.7)."""
        error = dialect.error(504, "not_cached", "no stored answer, and only-if-cached")
        headers = self._headers.of_refusal(outcome, policy) if policy else ()
        return Whole(504, (_JSON, *headers), error)


def _ticket(judged: Judged, outcome: Miss | Bypass) -> Ticket | None:
    """The flight this request may share: none where its caller steers, or in shadow."""
    policy = judged.policy
    collapses = policy.collapse and policy.mode == "live" and judged.steering.plain
    if not collapses or isinstance(outcome, Bypass) or outcome.reason in _ALONE:
        return None
    return Ticket(
        key=judged.call,
        generation=judged.generation,
        codings=tuple(judged.headers.get("accept-encoding", ())),
        most_bytes=policy.max_body_bytes,
    )
