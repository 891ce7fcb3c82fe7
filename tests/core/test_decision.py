"""The decision: threshold, expiry, and the first candidate that passes."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from uuid import uuid4

import pytest
from msgspec import structs

from cachesvc.core.decision import decide_exact, decide_nearest
from cachesvc.core.model import Answer, Candidate, Hit, Miss, Reason, Tier
from cachesvc.core.policy import Policy

NOW = datetime(2026, 11, 21, tzinfo=timezone.utc)
POLICY = Policy()
EXACT_ONLY = Policy(tiers=("exact",))


def candidate(
    similarity: float | None = None, *, alias: bool = False, ttl: float = 60
) -> Candidate:
    return Candidate(
        entry_id=uuid4(),
        answer=Answer(b"{}", None),
        created_at=NOW - timedelta(hours=1),
        expires_at=NOW + timedelta(seconds=ttl),
        similarity=similarity,
        alias=alias,
    )


def nearest(*found: Candidate, threshold: float = 0.9, policy: Policy = POLICY) -> Hit | Miss:
    return decide_nearest(found, policy, threshold=threshold, now=NOW)


def exact(
    *found: Candidate,
    threshold: float = 0.9,
    policy: Policy = POLICY,
    dead: Reason | None = None,
) -> Hit | Miss:
    return decide_exact(found, policy, threshold=threshold, now=NOW, dead=dead)


@pytest.mark.parametrize(
    ("similarity", "threshold", "hits"),
    [
        (0.9, 0.9, True),
        (0.899999, 0.9, False),
        (1.0, 1.0, True),
        (0.000001, 0.0, True),
        (0.0, 0.0, False),
        (-0.5, 0.0, False),
        (-1.0, -1.0, False),
    ],
)
def test_a_similarity_at_the_threshold_hits_and_zero_never_does(
    similarity: float, threshold: float, hits: bool
) -> None:
    assert isinstance(nearest(candidate(similarity), threshold=threshold), Hit) is hits


def test_the_first_candidate_that_passes_wins() -> None:
    stale, fresh = candidate(0.99, ttl=0), candidate(0.95)
    outcome = nearest(stale, fresh, candidate(0.94))
    assert outcome == Hit(Reason.SEMANTIC, Tier.SEMANTIC, fresh)


def test_a_miss_tells_the_best_similarity_seen() -> None:
    assert nearest(candidate(0.8), candidate(0.7)) == Miss(Reason.BELOW_THRESHOLD, 0.8)
    assert nearest() == Miss(Reason.NO_ENTRY, 0.0)
    assert nearest(candidate(0.95, ttl=0)) == Miss(Reason.EXPIRED, 0.95)
    assert nearest(candidate(0.95), policy=EXACT_ONLY) == Miss(Reason.TIER_OFF)


def test_an_entry_under_its_own_key_needs_no_similarity() -> None:
    own = candidate()
    assert exact(own, threshold=1.0) == Hit(Reason.EXACT, Tier.EXACT, own)
    assert Hit(Reason.EXACT, Tier.EXACT, own).similarity == 1.0


def test_an_alias_answers_on_the_exact_tier_while_its_similarity_passes() -> None:
    alias = candidate(0.93, alias=True)
    assert exact(alias) == Hit(Reason.ALIAS, Tier.EXACT, alias)
    assert exact(alias, threshold=0.94) == Miss(Reason.BELOW_THRESHOLD, 0.93)
    assert exact(alias, policy=EXACT_ONLY) == Miss(Reason.NO_ENTRY, 0.93)
    assert exact(structs.replace(alias, expires_at=NOW)) == Miss(Reason.EXPIRED, 0.93)


def test_the_entry_itself_goes_before_an_alias() -> None:
    own, alias = candidate(), candidate(0.99, alias=True)
    assert exact(own, alias) == Hit(Reason.EXACT, Tier.EXACT, own)


def test_a_dead_entry_says_why() -> None:
    assert exact(dead=Reason.EXPIRED) == Miss(Reason.EXPIRED)
    assert exact(dead=Reason.QUARANTINED) == Miss(Reason.QUARANTINED)
