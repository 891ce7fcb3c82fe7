"""Counts the hits of each entry, off the reply path: one statement a second, not one a hit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesvc.service.batches import Batches, Terms
from cachesvc.store.records import HitCount

if TYPE_CHECKING:
    from uuid import UUID

    from cachesvc.core.model import Candidate
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.store.records import RecordStore

_TERMS = Terms("hits", "counting hits", every_seconds=1.0, at_most=20_000, batch=1000)


class Hits:
    """Hits and the tokens that they saved, of at most 20,000 entries, that wait to be written."""

    def __init__(self, records: RecordStore, telemetry: Telemetry) -> None:
        self._records = records
        self._batches: Batches[UUID, tuple[int, int]] = Batches(
            _TERMS, self._write, _both, telemetry
        )

    def saw(self, tenant: str, candidate: Candidate) -> None:
        """An entry answered."""
        answer = candidate.answer
        tokens = answer.prompt_tokens + answer.completion_tokens
        self._batches.add(tenant, candidate.entry_id, (1, tokens))

    async def drain(self, seconds: float) -> None:
        """Write what waits, within so long."""
        await self._batches.drain(seconds)

    async def _write(self, tenant: str, batch: list[tuple[UUID, tuple[int, int]]]) -> None:
        await self._records.count_hits([HitCount(tenant, entry, *sums) for entry, sums in batch])


def _both(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    return one[0] + other[0], one[1] + other[1]
