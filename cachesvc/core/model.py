"""The nouns. Everything cachesvc decides is said in these words."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from uuid import UUID

from msgspec import Struct


class Tier(StrEnum):
    """Which of the two ways found the entry."""

    EXACT = "exact"
    SEMANTIC = "semantic"


class Reason(StrEnum):
    """Why a lookup, a put or a bypass ended as it did: the closed set of `design.md` 2."""

    # hits
    EXACT = "exact"
    ALIAS = "alias"
    SEMANTIC = "semantic"
    # misses the service decides
    NO_ENTRY = "no_entry"
    BELOW_THRESHOLD = "below_threshold"
    EXPIRED = "expired"
    QUARANTINED = "quarantined"
    TIER_OFF = "tier_off"
    SCOPE_REQUIRED = "scope_required"
    CREDENTIAL_UNPROVEN = "credential_unproven"
    # puts that store nothing
    STALE_GENERATION = "stale_generation"
    TOO_LARGE = "too_large"
    NOT_CACHEABLE = "not_cacheable"
    INCOMPLETE = "incomplete"
    UNREADABLE = "unreadable"
    # the cache failed, the caller did not
    LOOKUP_TIMEOUT = "lookup_timeout"
    CACHE_UNAVAILABLE = "cache_unavailable"
    CIRCUIT_OPEN = "circuit_open"
    EMBEDDER_FAILED = "embedder_failed"
    BUG = "bug"
    # somebody asked for it
    CALLER_NO_CACHE = "caller_no_cache"
    CALLER_NO_STORE = "caller_no_store"
    CALLER_SKIP = "caller_skip"
    BYPASS_RULE = "bypass_rule"
    STATEFUL = "stateful"
    NO_POLICY = "no_policy"
    SHADOW = "shadow"


class Answer(Struct, frozen=True):
    """One stored answer: what came, as it came.

    `media_type` is None when the answer was put as `response` (opaque JSON text, spliced into
    replies unchanged); otherwise it is the Content-Type the bytes came with. `upstream_ms` is how
    long the upstream took for it, None where whoever put it did not say.
    """

    body: bytes
    media_type: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    upstream_ms: float | None = None


class Candidate(Struct, frozen=True):
    """A stored entry that may answer a lookup.

    `similarity` is the cosine rounded once to 6 decimals; None on the exact tier, except through
    an alias, where it is the similarity of the semantic hit that left the alias.
    `expires_at` is the answering tier's, already cut down to the policy in force.
    """

    entry_id: UUID
    answer: Answer
    created_at: datetime
    expires_at: datetime
    similarity: float | None = None
    alias: bool = False


class Hit(Struct, frozen=True):
    """An entry answers."""

    reason: Reason
    tier: Tier
    candidate: Candidate

    @property
    def similarity(self) -> float:
        return 1.0 if self.candidate.similarity is None else self.candidate.similarity


class Miss(Struct, frozen=True):
    """Nothing answers. `similarity` is the best one seen, 0 where none was."""

    reason: Reason
    similarity: float = 0.0


class Bypass(Struct, frozen=True):
    """The cache was not asked."""

    reason: Reason


Outcome = Hit | Miss | Bypass
