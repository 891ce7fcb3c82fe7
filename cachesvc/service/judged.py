"""What became of a lookup, and how it is told to its caller and to the metrics."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec import Raw, Struct

from cachesvc.core.model import Hit, Miss, Reason
from cachesvc.core.policy import Policy
from cachesvc.service.counting import Counted
from cachesvc.wire import LookupReply, rfc3339

if TYPE_CHECKING:
    from cachesvc.core.model import Candidate
    from cachesvc.store.base import Found, Place, PolicyRow


_SECOND = timedelta(seconds=1)


class Judged(Struct, frozen=True):
    """An outcome, and the policy it was reached under.

    `revision` is the policy's as the database told it with what it found, and `now` its clock;
    both are None when no query was needed.
    """

    outcome: Hit | Miss
    policy: Policy
    generation: int
    revision: int | None = None
    now: datetime | None = None

    @property
    def shadowed(self) -> bool:
        """Judged, but not to be served."""
        return self.policy.mode == "shadow" and self.revision is not None


def unasked(reason: Reason, row: PolicyRow) -> Judged:
    """A miss that needed no query."""
    return Judged(Miss(reason), row.policy, row.generation)


def judged_by(outcome: Hit | Miss, row: PolicyRow, found: Found) -> Judged:
    """An outcome reached under `row` on what one query found."""
    return Judged(outcome, row.policy, found.generation, found.revision, found.now)


def more_telling(exact: Hit | Miss, nearest: Hit | Miss) -> Hit | Miss:
    """The outcome of both tiers: that an answer is there but expired says more than none near."""
    if isinstance(exact, Hit) or isinstance(nearest, Hit):
        return nearest
    reason = nearest.reason if exact.reason is Reason.NO_ENTRY else exact.reason
    return Miss(reason, max(exact.similarity, nearest.similarity))


def counted(place: Place, judged: Judged) -> Counted:
    """The outcome in the words of the metrics; in shadow, what it would have been."""
    outcome = judged.outcome
    tier = outcome.tier._value_ if isinstance(outcome, Hit) else "none"
    if outcome.reason is Reason.NO_POLICY:
        name = "bypass"
    elif judged.shadowed:
        name = "shadow"
    else:
        name = "hit" if isinstance(outcome, Hit) else "miss"
    return Counted(place.tenant, place.policy_id, name, tier, outcome.reason._value_)


def told(judged: Judged) -> LookupReply:
    """What the caller gets to see."""
    outcome = judged.outcome
    if isinstance(outcome, Miss) or judged.shadowed or judged.now is None:
        reason = Reason.SHADOW if judged.shadowed else outcome.reason
        return LookupReply(
            hit=False,
            tier=None,
            reason=reason.value,
            similarity=outcome.similarity,
            generation=judged.generation,
        )
    reply = _told_hit(outcome, judged.generation, judged.now)
    _add_answer(reply, outcome.candidate)
    return reply


def _told_hit(hit: Hit, generation: int, now: datetime) -> LookupReply:
    candidate = hit.candidate
    answer = candidate.answer
    return LookupReply(
        hit=True,
        tier=hit.tier._value_,
        reason=hit.reason._value_,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        similarity=hit.similarity,
        generation=generation,
        entry_id=str(candidate.entry_id),
        age_seconds=max(0, (now - candidate.created_at) // _SECOND),
        expires_at=_shown(candidate.expires_at),
    )


# What is asked for often is told often: made once, it costs a tenth.
_shown = lru_cache(maxsize=2048)(rfc3339)


def _add_answer(reply: LookupReply, candidate: Candidate) -> None:
    answer = candidate.answer
    if answer.upstream_ms is not None:
        reply.upstream_ms = answer.upstream_ms
    if answer.media_type is None:
        reply.response = Raw(answer.body)
    else:
        reply.body, reply.media_type = answer.body, answer.media_type
