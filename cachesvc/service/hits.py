"""Counts the hits of each entry, off the reply path: one statement a second, not one a hit."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cachesvc.errors import StoreError
from cachesvc.service.faults import FaultLog
from cachesvc.store.records import HitCount

if TYPE_CHECKING:
    from uuid import UUID

    from cachesvc.core.model import Candidate
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.store.records import RecordStore

_EVERY_SECONDS = 1.0
_ENTRIES_AT_MOST = 20_000
_BATCH = 1000


class Hits:
    """Hits that wait to be written. Beyond 20,000 entries they are dropped, and that is counted."""

    def __init__(self, records: RecordStore, telemetry: Telemetry) -> None:
        self._records = records
        self._telemetry = telemetry
        self._waiting: dict[tuple[str, UUID], tuple[int, int]] = {}
        self._writer: asyncio.Task[None] | None = None
        self._faults = FaultLog("counting hits")

    def saw(self, tenant: str, candidate: Candidate) -> None:
        """An entry answered."""
        key, answer = (tenant, candidate.entry_id), candidate.answer
        hits, tokens = self._waiting.get(key, (0, 0))
        if not hits and len(self._waiting) >= _ENTRIES_AT_MOST:
            self._telemetry.failed("hits")
            return
        saved = answer.prompt_tokens + answer.completion_tokens
        self._waiting[key] = (hits + 1, tokens + saved)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def drain(self, seconds: float) -> None:
        """Write what waits, within so long."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait((self._writer,), timeout=seconds)
        if self._waiting:
            await asyncio.wait((asyncio.create_task(self._flush()),), timeout=seconds)

    async def _write(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(_EVERY_SECONDS)
                await self._flush()
        finally:
            self._writer = None

    async def _flush(self) -> None:
        waiting, self._waiting = self._waiting, {}
        counts = [HitCount(*key, *counted) for key, counted in waiting.items()]
        try:
            for start in range(0, len(counts), _BATCH):
                await self._records.count_hits(counts[start : start + _BATCH])
        except StoreError as exc:
            self._telemetry.failed("hits")
            self._faults.failed(exc.message)
        else:
            self._faults.fine()
