"""A lookup in the core's nouns, and what needs no query to be told about it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from msgspec import Struct

from cachesvc.core.model import Reason, Tier
from cachesvc.core.policy import MAX_TTL_SECONDS
from cachesvc.core.vectors import read_vector
from cachesvc.store.base import ExactQuery, NearestQuery, Place

if TYPE_CHECKING:
    from cachesvc.core.policy import Policy
    from cachesvc.wire import LookupRequest


class Asked(Struct, frozen=True):
    """What a lookup asks. `key` is None or 32 bytes; `exact` and `nearest` are what to look for.

    `exact` is None when the exact tier is not asked, or was before (`after_exact`); `nearest` is
    None without a vector. Its `top_k` of 0 stands for the policy's. A `retry` was counted before.
    """

    place: Place
    key: bytes | None
    after_exact: bool
    exact: ExactQuery | None
    nearest: NearestQuery | None
    threshold: float | None
    prompt_text: str
    retry: bool

    def __repr__(self) -> str:
        return f"Asked({self.place!r})"


# One object for all lookups in one place: its hash and its parts are looked at many times.
_place = lru_cache(maxsize=2048)(Place)


def read_asked(tenant: str, request: LookupRequest) -> Asked:
    """Raises Invalid for a vector that has no direction, or too many dimensions."""
    place = _place(tenant, request.policy_id, request.scope or "")
    key = None if request.exact_key is None else bytes.fromhex(request.exact_key)
    after_exact = bool(request.after_exact)
    max_age = request.max_age_seconds
    if max_age is not None:
        # Nothing lives longer, and the database's intervals have an end.
        max_age = min(max_age, float(MAX_TTL_SECONDS))
    space, partition = request.space or "", bytes.fromhex(request.partition or "")
    exact = None
    if key is not None and not after_exact:
        exact = ExactQuery(place, key, max_age, space, partition)
    nearest = None
    if request.embedding is not None:
        vector, top_k = read_vector(request.embedding), request.top_k or 0
        nearest = NearestQuery(place, partition, space, vector, top_k, max_age)
    return Asked(
        place,
        key,
        after_exact,
        exact,
        nearest,
        request.threshold,
        request.prompt_text or "",
        bool(request.retry),
    )


def closed_door(asked: Asked, policy: Policy) -> Reason | None:
    """Why this lookup needs no query, or None when it does."""
    if not policy.active:
        return Reason.NO_POLICY
    if scope_is_missing(asked.place, policy):
        return Reason.SCOPE_REQUIRED
    exact = asked.exact is not None and policy.has(Tier.EXACT)
    nearest = asked.nearest is not None and policy.has(Tier.SEMANTIC)
    return None if exact or nearest else Reason.TIER_OFF


def scope_is_missing(place: Place, policy: Policy) -> bool:
    """Without a scope there is only what everybody shares."""
    return not place.scope and policy.sharing != "shared"
