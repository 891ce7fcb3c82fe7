"""The port of the records: what is remembered of answers that were judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from uuid import UUID

    from cachesvc.core.vectors import Vector
    from cachesvc.store.base import Place

MAX_PROMPT_CHARS = 4096  # kept of a prompt: more than any model of ours compares


@dataclass(frozen=True, slots=True)
class NewVerdict:
    """A judgement of an entry. `scope` None: of whatever scope it is.

    `source` is who judged; `lifts` tells whether their "right" ends a quarantine.
    """

    tenant: str
    entry_id: UUID
    scope: str | None
    wrong: bool
    source: str
    lifts: bool
    prompt_text: str | None = field(default=None, repr=False)
    vector: Vector | None = field(default=None, repr=False)
    note: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class ShadowHit:
    """What a policy in shadow would have served; `prompt_text` is the asker's."""

    place: Place
    exact_key: bytes | None
    entry_id: UUID
    tier: str
    similarity: float
    prompt_text: str = field(repr=False)
    asked_at: datetime


@dataclass(frozen=True, slots=True)
class HitCount:
    """How often an entry answered since its hits were written last, and the tokens that saved."""

    tenant: str
    entry_id: UUID
    hits: int
    tokens: int


class RecordStore(Protocol):
    """What is remembered of answers that were judged, by a verdict or in shadow.

    Records are kept apart from entries: what they tell of may be gone.
    """

    async def give_verdict(self, verdict: NewVerdict) -> tuple[str, bool] | None:
        """(policy, whether the entry is quarantined now); None where there is no such entry.

        "Wrong" quarantines it in both tiers and takes its aliases.
        """

    async def keep_shadow_hits(self, hits: Sequence[ShadowHit]) -> None:
        """Write all or none; those of policies that are gone, or purged since, are dropped.

        Raises StoreUnsure when it may be either, as `count_hits` does.
        """

    async def count_hits(self, counts: Sequence[HitCount]) -> None:
        """Add all of them up or none; those of entries that are gone are dropped."""

    async def trim(self) -> int:
        """Remove a batch of records beyond what is kept of each policy; how many went."""
