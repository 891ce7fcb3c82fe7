"""Holds policies and tenants to what they may keep, off the reply path: what is worth least goes.

Each replica looks after the policies that it was given puts for, and all of them may do so at once:
what goes is told by the database alone, and what another one is removing is passed over.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from cachesvc.errors import StoreError
from cachesvc.service.faults import FaultLog
from cachesvc.store.base import Room

if TYPE_CHECKING:
    from cachesvc.core.policy import Policy
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.settings import Settings
    from cachesvc.store.base import AdminStore

_PAUSE_SECONDS = 0.2  # at least, between two looks at one policy
# A look walks over as many entries as may be kept; of a policy's time it takes no more than a
# tenth, so that a limit of a million costs a late removal and not a busy database.
_REST = 9.0
_POLICIES_AT_MOST = 1000  # in hand at once; the sweeper sees to the others


class Limits:
    """The policies and tenants being held to their limits."""

    def __init__(self, store: AdminStore, settings: Settings, telemetry: Telemetry) -> None:
        self._store = store
        self._settings = settings
        self._telemetry = telemetry
        self._keeping: dict[tuple[str, str | None], asyncio.Task[None]] = {}
        self._again: dict[tuple[str, str | None], Room] = {}
        self._one_at_a_time = asyncio.Lock()
        self._faults = FaultLog("removing entries over a limit")

    def check(self, tenant: str, policy: Policy) -> None:
        """Something was put under `policy`, or its limit may be another: look soon."""
        self._look_soon(Room(tenant, policy.id, policy.max_entries, policy.max_bytes))
        self._look_soon(room_of(self._settings, tenant))

    def _look_soon(self, room: Room) -> None:
        if room.max_entries is None and room.max_bytes is None:
            return
        key = room.tenant, room.policy_id
        if key not in self._keeping and len(self._keeping) >= _POLICIES_AT_MOST:
            return
        self._again[key] = room
        if key not in self._keeping:
            self._keeping[key] = asyncio.create_task(self._keep(key))

    async def drain(self, seconds: float) -> None:
        """Stop, within so long: what is left to remove is the sweeper's."""
        tasks = list(self._keeping.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def _keep(self, key: tuple[str, str | None]) -> None:
        """Look as long as there are puts; many of them cost one look."""
        try:
            while key in self._again:
                await asyncio.sleep(_PAUSE_SECONDS)
                room = self._again.pop(key)
                async with self._one_at_a_time:
                    seconds = await self._remove(room)
                await asyncio.sleep(_REST * seconds)
        finally:
            self._again.pop(key, None)
            del self._keeping[key]

    async def _remove(self, room: Room) -> float:
        """Remove the overflow; how many seconds the slowest look took."""
        slowest, removed = 0.0, 1
        while removed:
            began = time.monotonic()
            try:
                removed = await self._store.remove_overflow(room)
            except StoreError as exc:
                self._faults.failed(exc.message)
                return max(slowest, time.monotonic() - began)
            self._telemetry.evicted(cause_of(room), removed)
            slowest = max(slowest, time.monotonic() - began)
        self._faults.fine()
        return slowest


def room_of(settings: Settings, tenant: str) -> Room:
    """What a tenant may hold in all."""
    limits = settings.tenant_limits(tenant)
    return Room(tenant, None, limits.max_entries or None, limits.max_bytes or None)


def cause_of(room: Room) -> str:
    """What evictions are counted under: `max_entries`, `max_bytes`, or the tenant's."""
    what = "max_bytes" if room.max_entries is None else "max_entries"
    return what if room.policy_id is not None else f"tenant_{what}"
