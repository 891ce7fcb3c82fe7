"""Records what policies in shadow would have served, off the reply path and in batches."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from cachesvc.core.model import Hit
from cachesvc.errors import StoreError
from cachesvc.service.counting import HELD_SECONDS
from cachesvc.service.faults import FaultLog
from cachesvc.store.records import MAX_PROMPT_CHARS, ShadowHit

if TYPE_CHECKING:
    from cachesvc.service.asked import Asked
    from cachesvc.service.judged import Judged
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.store.base import Place
    from cachesvc.store.records import RecordStore

_WAITING_AT_MOST = 2000
_BATCH = 500
_BATCHING_SECONDS = 0.05


class Shadow:
    """The shadow hits that wait to be written. What finds no place is dropped, and counted."""

    def __init__(self, records: RecordStore, telemetry: Telemetry) -> None:
        self._records = records
        self._telemetry = telemetry
        self._waiting: deque[ShadowHit] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._by_key: OrderedDict[tuple[Place, bytes], float] = OrderedDict()
        self._faults = FaultLog("recording shadow hits")

    def saw(self, asked: Asked, judged: Judged) -> None:
        """Record a lookup that would have been a hit; anything else is passed over."""
        outcome = judged.outcome
        if not judged.shadowed or not isinstance(outcome, Hit) or judged.now is None:
            return
        # Asked with its vector now, because what the exact tier had found was not served: recorded.
        if asked.retry or (asked.after_exact and self._follows(asked)):
            return
        if len(self._waiting) >= _WAITING_AT_MOST:
            self._telemetry.failed("shadow")
            return
        if asked.key is not None and asked.nearest is None:
            self._expect(asked.place, asked.key)
        self._waiting.append(
            ShadowHit(
                place=asked.place,
                exact_key=asked.key,
                entry_id=outcome.candidate.entry_id,
                tier=outcome.tier.value,
                similarity=outcome.similarity,
                prompt_text=asked.prompt_text[:MAX_PROMPT_CHARS],
                asked_at=judged.now,
            )
        )
        if self._writer is None:
            self._writer = asyncio.create_task(self._write())

    async def drain(self, seconds: float) -> None:
        """Let what waits be written, for so long at most."""
        if self._writer is not None:
            _, late = await asyncio.wait((self._writer,), timeout=seconds)
            for task in late:
                task.cancel()

    async def _write(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(_BATCHING_SECONDS)
                batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
                try:
                    await self._records.keep_shadow_hits(batch)
                except StoreError as exc:
                    for _ in batch:
                        self._telemetry.failed("shadow")
                    self._faults.failed(exc.message)
                else:
                    self._faults.fine()
        finally:
            self._writer = None

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
