"""decide(): which candidate answers, if any.

Threshold, expiry, then guards; the first candidate that passes all wins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesvc.core.model import Hit, Miss, Reason, Tier

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from cachesvc.core.model import Candidate
    from cachesvc.core.policy import Policy


def decide_exact(
    candidates: Sequence[Candidate],
    policy: Policy,
    *,
    threshold: float,
    now: datetime,
    dead: Reason | None = None,
) -> Hit | Miss:
    """Judge what is stored under one exact key: the entry itself, or an alias of another.

    An alias answers only while the semantic tier is on and its similarity passes `threshold`.
    `dead` is why something stored there does not answer.
    """
    reason, best = dead or Reason.NO_ENTRY, 0.0
    for candidate in candidates:
        if candidate.alias:
            seen = candidate.similarity or 0.0
            best = max(best, seen)
            if not policy.has(Tier.SEMANTIC):
                continue
            if not _passes(seen, threshold):
                reason = Reason.BELOW_THRESHOLD
                continue
        if candidate.expires_at <= now:
            reason = Reason.EXPIRED
            continue
        found = Reason.ALIAS if candidate.alias else Reason.EXACT
        return Hit(found, Tier.EXACT, candidate)
    return Miss(reason, best)


def decide_nearest(
    candidates: Sequence[Candidate], policy: Policy, *, threshold: float, now: datetime
) -> Hit | Miss:
    """Judge candidates, nearest first. A similarity of 0 or less never hits."""
    if not policy.has(Tier.SEMANTIC):
        return Miss(Reason.TIER_OFF)
    reason, best = Reason.NO_ENTRY, 0.0
    for candidate in candidates:
        seen = candidate.similarity or 0.0
        if reason is Reason.NO_ENTRY:
            best = seen
        if not _passes(seen, threshold):
            reason = Reason.BELOW_THRESHOLD if reason is Reason.NO_ENTRY else reason
            break  # nearest first: nothing further passes
        if candidate.expires_at <= now:
            reason = Reason.EXPIRED
            continue
        return Hit(Reason.SEMANTIC, Tier.SEMANTIC, candidate)
    return Miss(reason, best)


def nearest_first(candidates: Iterable[Candidate], number: int) -> list[Candidate]:
    """The `number` nearest of them; of equally near ones the newest first."""
    found = sorted(candidates, key=lambda candidate: candidate.created_at, reverse=True)
    found.sort(key=lambda candidate: candidate.similarity or 0.0, reverse=True)
    return found[:number]


def _passes(similarity: float, threshold: float) -> bool:
    return similarity > 0 and similarity >= threshold
