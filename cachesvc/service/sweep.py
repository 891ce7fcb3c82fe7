"""Removes what can never answer again, what is over a limit, and old records: bit by bit."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from cachesvc.errors import StoreError
from cachesvc.service.faults import FaultLog
from cachesvc.service.limits import cause_of, room_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from cachesvc.service.telemetry import Telemetry
    from cachesvc.settings import Settings
    from cachesvc.store.base import AdminStore
    from cachesvc.store.records import RecordStore

_EVERY_SECONDS = 30.0
_BATCH = 500
# After each batch it rests for as long as that took: sweeping takes one connection half of the time
# at most, and removes what expires many times faster than puts bring it.
_REST = 1.0


async def reap(
    settings: Settings,
    admin: AdminStore,
    records: RecordStore,
    telemetry: Telemetry,
    every: float = _EVERY_SECONDS,
) -> None:
    """Sweep until cancelled, every so many seconds."""
    faults = FaultLog("removing expired entries")
    while True:
        try:
            await _sweep(settings, admin, records, telemetry)
            faults.fine()
        except StoreError as exc:
            faults.failed(exc.message)
        await asyncio.sleep(every)


async def _sweep(
    settings: Settings, admin: AdminStore, records: RecordStore, telemetry: Telemetry
) -> None:
    """Raises StoreError."""
    async for gone in _batches(admin.remove_expired, _BATCH, enough=_BATCH):
        telemetry.evicted("expired", gone)
    tenants = [room_of(settings, tenant) for tenant in await admin.tenants()]
    for room in await admin.limited() + tenants:
        async for gone in _batches(admin.remove_overflow, room, enough=1):
            telemetry.evicted(cause_of(room), gone)
    async for _ in _batches(records.trim, enough=_BATCH):
        pass


async def _batches(
    remove: Callable[..., Awaitable[int]], *values: object, enough: int
) -> AsyncIterator[int]:
    """How many went, each time, with rests between; until fewer than `enough` did.

    Not until none did: where something expires all the time, nothing else would have its turn.
    """
    while True:
        began = time.monotonic()
        removed = await remove(*values)
        if removed:
            yield removed
        if removed < enough:
            return
        await asyncio.sleep(_REST * (time.monotonic() - began))
