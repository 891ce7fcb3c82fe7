"""Leaves aliases behind semantic hits, off the reply path: no caller ever waits for one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from cachesvc.errors import NotFound, StoreError
from cachesvc.service.faults import FaultLog

if TYPE_CHECKING:
    from uuid import UUID

    from cachesvc.service.telemetry import Telemetry
    from cachesvc.store.base import EntryStore, Place

_AT_MOST = 16  # in the air at once; an alias that finds no place is left by the next such hit


class Aliases:
    """The aliases being written."""

    def __init__(self, store: EntryStore, telemetry: Telemetry) -> None:
        self._store = store
        self._telemetry = telemetry
        self._writing: set[asyncio.Task[None]] = set()
        self._faults = FaultLog("alias")

    def leave(
        self,
        place: Place,
        exact_key: bytes,
        entry_id: UUID,
        similarity: float,
        revision: int | None,
    ) -> None:
        """Start writing an alias: exact key (32 bytes) -> entry; `revision` as in the store."""
        if len(self._writing) >= _AT_MOST:
            self._telemetry.failed("alias")
            return
        task = asyncio.create_task(self._write(place, exact_key, entry_id, similarity, revision))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def drain(self, seconds: float) -> None:
        """Let what is being written end, for so long at most."""
        if self._writing:
            _, late = await asyncio.wait(self._writing, timeout=seconds)
            for task in late:
                task.cancel()

    async def _write(
        self,
        place: Place,
        exact_key: bytes,
        entry_id: UUID,
        similarity: float,
        revision: int | None,
    ) -> None:
        try:
            await self._store.add_alias(place, exact_key, entry_id, similarity, revision)
        except (StoreError, NotFound) as exc:
            self._telemetry.failed("alias")
            self._faults.failed(exc.message)
        else:
            self._faults.fine()
