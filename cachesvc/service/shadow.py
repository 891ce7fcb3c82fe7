"""Records what policies in shadow would have served, off the reply path and in batches."""

from __future__ import annotations

import time
from collections import OrderedDict
from itertools import count
from typing import TYPE_CHECKING

from cachesvc.core.model import Hit
from cachesvc.service.batches import Batches, Terms
from cachesvc.service.counting import HELD_SECONDS
from cachesvc.store.records import MAX_PROMPT_CHARS, ShadowHit

if TYPE_CHECKING:
    from cachesvc.service.asked import Asked
    from cachesvc.service.judged import Judged
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.store.base import Place
    from cachesvc.store.records import RecordStore

_WAITING_AT_MOST = 2000
_TERMS = Terms(
    "shadow", "recording shadow hits", every_seconds=0.05, at_most=_WAITING_AT_MOST, batch=500
)


class Shadow:
    """The shadow hits that wait to be written, each under a number of its own."""

    def __init__(self, records: RecordStore, telemetry: Telemetry) -> None:
        self._records = records
        self._batches: Batches[int, ShadowHit] = Batches(_TERMS, self._write, _first, telemetry)
        self._numbers = count()
        self._by_key: OrderedDict[tuple[Place, bytes], float] = OrderedDict()

    def saw(self, asked: Asked, judged: Judged) -> None:
        """Record a lookup that would have been a hit; anything else is passed over."""
        outcome = judged.outcome
        if not judged.shadowed or not isinstance(outcome, Hit) or judged.now is None:
            return
        # Asked with its vector now, because what the exact tier had found was not served: recorded.
        if asked.retry or (asked.after_exact and self._follows(asked)):
            return
        recorded = ShadowHit(
            place=asked.place,
            exact_key=asked.key,
            entry_id=outcome.candidate.entry_id,
            tier=outcome.tier.value,
            similarity=outcome.similarity,
            prompt_text=asked.prompt_text[:MAX_PROMPT_CHARS],
            asked_at=judged.now,
        )
        taken = self._batches.add(asked.place.tenant, next(self._numbers), recorded)
        if taken and asked.key is not None and asked.nearest is None:
            self._expect(asked.place, asked.key)

    async def drain(self, seconds: float) -> None:
        """Write what waits, within so long."""
        await self._batches.drain(seconds)

    async def _write(self, _tenant: str, batch: list[tuple[int, ShadowHit]]) -> None:
        await self._records.keep_shadow_hits([hit for _, hit in batch])

    def _expect(self, place: Place, key: bytes) -> None:
        self._by_key[place, key] = time.monotonic()
        self._by_key.move_to_end((place, key))
        if len(self._by_key) > _WAITING_AT_MOST:
            self._by_key.popitem(last=False)

    def _follows(self, asked: Asked) -> bool:
        if asked.key is None:
            return False
        since = self._by_key.pop((asked.place, asked.key), None)
        return since is not None and time.monotonic() - since < HELD_SECONDS


def _first(one: ShadowHit, _other: ShadowHit) -> ShadowHit:
    """Never asked: no number comes twice."""
    return one
