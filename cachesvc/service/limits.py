"""Holds policies to their `max_entries`, off the reply path: the oldest entries go.

Each replica looks after the policies that it was given puts for, and all of them may do so at once:
what goes is told by the database alone, and what another one is removing is passed over.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from cachesvc.errors import StoreError
from cachesvc.service.faults import FaultLog

if TYPE_CHECKING:
    from cachesvc.core.policy import Policy
    from cachesvc.service.telemetry import Telemetry
    from cachesvc.store.base import AdminStore

CAUSE = "max_entries"
_PAUSE_SECONDS = 0.2  # at least, between two looks at one policy
# A look walks over as many entries as may be kept; of a policy's time it takes no more than a
# tenth, so that a limit of a million costs a late removal and not a busy database.
_REST = 9.0
_POLICIES_AT_MOST = 1000  # in hand at once; the sweeper sees to the others


class Limits:
    """The policies being held to their limits."""

    def __init__(self, store: AdminStore, telemetry: Telemetry) -> None:
        self._store = store
        self._telemetry = telemetry
        self._keeping: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._again: set[tuple[str, str]] = set()
        self._one_at_a_time = asyncio.Lock()
        self._faults = FaultLog("removing entries over max_entries")

    def check(self, tenant: str, policy: Policy) -> None:
        """Something was put under `policy`, or its limit may be another: look soon."""
        if policy.max_entries is None:
            return
        key = tenant, policy.id
        self._again.add(key)
        if key in self._keeping:
            return
        if len(self._keeping) >= _POLICIES_AT_MOST:
            self._again.discard(key)
            return
        self._keeping[key] = asyncio.create_task(self._keep(key))

    async def drain(self, seconds: float) -> None:
        """Stop, within so long: what is left to remove is the sweeper's."""
        tasks = list(self._keeping.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    async def _keep(self, key: tuple[str, str]) -> None:
        """Look as long as there are puts; many of them cost one look."""
        try:
            while key in self._again:
                await asyncio.sleep(_PAUSE_SECONDS)
                self._again.discard(key)
                async with self._one_at_a_time:
                    seconds = await self._remove(key)
                await asyncio.sleep(_REST * seconds)
        finally:
            del self._keeping[key]

    async def _remove(self, key: tuple[str, str]) -> float:
        """Remove the overflow; how many seconds the slowest look took."""
        slowest, removed = 0.0, 1
        while removed:
            began = time.monotonic()
            try:
                removed = await self._store.remove_overflow(*key)
            except StoreError as exc:
                self._faults.failed(exc.message)
                return slowest
            self._telemetry.evicted(CAUSE, removed)
            slowest = max(slowest, time.monotonic() - began)
        self._faults.fine()
        return slowest
