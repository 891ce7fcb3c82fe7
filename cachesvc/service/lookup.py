"""`POST /cache/lookup`: exact, then nearest, then decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from cachesvc.core.decision import decide_exact, decide_nearest
from cachesvc.core.model import Hit, Miss, Reason, Tier
from cachesvc.errors import Busy
from cachesvc.service import codec
from cachesvc.service.asked import closed_door, read_asked
from cachesvc.service.exchange import Reply
from cachesvc.service.judged import counted, judged_by, more_telling, told, unasked
from cachesvc.store.base import UNREAD, Alias, NearestQuery
from cachesvc.wire import check_lookup

if TYPE_CHECKING:
    from cachesvc.core.policy import Policy
    from cachesvc.service.asked import Asked
    from cachesvc.service.behind import Behind
    from cachesvc.service.bounds import Bounds
    from cachesvc.service.exchange import Call
    from cachesvc.service.judged import Judged
    from cachesvc.service.policies import Policies
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.store.base import Found, PolicyRow
    from cachesvc.store.layers import LayeredStore

_ATTEMPTS = 4


class Lookup:
    """The handler."""

    def __init__(
        self,
        store: LayeredStore,
        policies: Policies,
        behind: Behind,
        telemetry: Telemetry,
        bounds: Bounds,
    ) -> None:
        self._store = store
        self._policies = policies
        self._aliases, self._shadow, self._hits = behind.aliases, behind.shadow, behind.hits
        self._telemetry = telemetry
        self._bounds = bounds

    async def __call__(self, call: Call) -> Reply:
        with self._telemetry.stage("total"):
            request = codec.read_lookup(call.body, call.format)
            check_lookup(request)
            call.require("lookup")
            asked = read_asked(call.caller.tenant, request)
            judged = self._from_memory(asked)
            if judged is None:
                judged = await self._bounds.run(self.look_up(asked))
            self._leave_alias(asked, judged)
            self._shadow.saw(asked, judged)
            self._count(asked, judged)
            return Reply(told(judged))

    def _from_memory(self, asked: Asked) -> Judged | None:
        """A hit that needs no query, so neither a place among those who wait for the database."""
        row = self._policies.remembered(asked.place.tenant, asked.place.policy_id)
        if row is None or closed_door(asked, row.policy) is not None:
            return None
        policy = row.policy
        if asked.exact is not None and policy.has(Tier.EXACT):
            found = self._store.recall(asked.exact)
            outcome = None if found is None else self._decide_exact(found, policy, asked)
        elif asked.nearest is not None:
            query = _narrowed(asked.nearest, asked, policy)
            found = self._store.recall(query)
            threshold = query.served_from
            outcome = None if found is None else self._decide_nearest(found, policy, threshold)
        else:
            return None
        if found is None or not isinstance(outcome, Hit) or outcome.candidate.answer is UNREAD:
            return None
        return judged_by(outcome, row, found) if found.revision == row.revision else None

    async def look_up(self, asked: Asked) -> Judged:
        """Judge until the policy judged under is the one that the database has.

        Raises NotFound, StoreUnavailable, and Busy when the policy changes all the time.
        """
        tenant, policy_id = asked.place.tenant, asked.place.policy_id
        row = self._policies.remembered(tenant, policy_id)
        for _ in range(_ATTEMPTS):
            just_read = row is None
            if row is None:
                row = await self._policies.read(tenant, policy_id)
            judged = await self._judge(asked, row)
            if judged.revision == row.revision or (judged.revision is None and just_read):
                return judged
            row = None
        raise Busy("policy: changes faster than it can be read; try again later")

    async def _judge(self, asked: Asked, row: PolicyRow) -> Judged:
        """Exact, then nearest; ends early where the policy turns out to be another by now."""
        policy = row.policy
        closed = closed_door(asked, policy)
        if closed is not None:
            return unasked(closed, row)
        judged = unasked(Reason.NO_ENTRY, row)
        if asked.exact is not None and policy.has(Tier.EXACT):
            with self._telemetry.stage("exact"):
                found = await self._store.find_exact(asked.exact)
            judged = judged_by(self._decide_exact(found, policy, asked), row, found)
            if isinstance(judged.outcome, Hit) or found.revision != row.revision:
                return judged
        if asked.nearest is not None and policy.has(Tier.SEMANTIC):
            found, outcome = await self._nearest(asked, asked.nearest, policy)
            judged = judged_by(more_telling(judged.outcome, outcome), row, found)
        return judged

    async def _nearest(
        self, asked: Asked, query: NearestQuery, policy: Policy
    ) -> tuple[Found, Hit | Miss]:
        """What is near and the outcome; a hit has its answer, which is mostly there already."""
        query = _narrowed(query, asked, policy)
        threshold = query.served_from
        with self._telemetry.stage("nearest"):
            found = await self._store.find_nearest(query)
        again = _ATTEMPTS
        while True:
            outcome = self._decide_nearest(found, policy, threshold)
            if isinstance(outcome, Miss) or outcome.candidate.answer is not UNREAD:
                return found, outcome
            winner = outcome.candidate
            answer = await self._store.answer(asked.place, winner.entry_id)
            if answer is None and again:
                # It went in between, or from memory: what is near now may be none of the others.
                again -= 1
                found = await self._store.find_nearest(query)
                continue
            read = () if answer is None else (replace(winner, answer=answer),)
            others = tuple(one for one in found.candidates if one is not winner)
            found = replace(found, candidates=read + others)

    def _decide_exact(self, found: Found, policy: Policy, asked: Asked) -> Hit | Miss:
        threshold = policy.effective_threshold(asked.threshold)
        dead = None if found.dead is None else Reason(found.dead)
        return decide_exact(found.candidates, policy, threshold=threshold, now=found.now, dead=dead)

    def _decide_nearest(self, found: Found, policy: Policy, threshold: float) -> Hit | Miss:
        with self._telemetry.stage("decide"):
            return decide_nearest(found.candidates, policy, threshold=threshold, now=found.now)

    def _leave_alias(self, asked: Asked, judged: Judged) -> None:
        hit, policy = judged.outcome, judged.policy
        if isinstance(hit, Miss) or hit.tier is not Tier.SEMANTIC or asked.key is None:
            return
        # In shadow nothing is served, so nothing may change what later lookups see.
        if policy.has(Tier.EXACT) and not judged.shadowed:
            answered = hit.candidate.entry_id, hit.similarity, judged.revision
            self._aliases.leave(Alias(asked.place, asked.key, *answered))

    def _count(self, asked: Asked, judged: Judged) -> None:
        telemetry, place, outcome = self._telemetry, asked.place, judged.outcome
        count = counted(place, judged)
        if count.outcome == "hit" and isinstance(outcome, Hit):
            telemetry.saved(place.tenant, place.policy_id, outcome.candidate.answer)
            self._hits.saw(place.tenant, outcome.candidate)
        if asked.retry:
            return
        if asked.after_exact and asked.key is not None:
            telemetry.follow_up((place, asked.key), count)
        elif asked.key is not None and asked.nearest is None:
            telemetry.first_call((place, asked.key), count)
        else:
            telemetry.looked_up(count)
        nearest = asked.nearest is not None and judged.policy.has(Tier.SEMANTIC)
        if nearest and judged.revision is not None and count.tier != Tier.EXACT:
            telemetry.saw(place.tenant, place.policy_id, outcome.similarity)


def _narrowed(query: NearestQuery, asked: Asked, policy: Policy) -> NearestQuery:
    """The query with what the policy has to say about it."""
    threshold = policy.effective_threshold(asked.threshold)
    # Not by replace(), which takes three times as long.
    return NearestQuery(
        query.place,
        query.partition,
        query.space,
        query.vector,
        query.top_k or policy.top_k,
        query.max_age_seconds,
        served_from=threshold,
    )
