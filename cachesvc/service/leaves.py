"""Splits leaves that have grown too large, and removes empty ones, bit by bit."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from cachesvc.errors import StoreError
from cachesvc.service.faults import FaultLog
from cachesvc.store.leaves import remove_empty, tend, unfinished

if TYPE_CHECKING:
    from cachesvc.store.base import AdminStore
    from cachesvc.store.growing import GrowingLeaves
    from cachesvc.store.pool import Database

_EVERY_SECONDS = 1.0
# What a process has left half done is gone on with, and what holds nothing goes.
_SWEEP_SECONDS = 120.0


async def tend_leaves(
    database: Database,
    growing: GrowingLeaves,
    admin: AdminStore,
    every: float = _EVERY_SECONDS,
    sweep: float = _SWEEP_SECONDS,
) -> None:
    """Go on until cancelled; looks for work every so many seconds.

    After each step it rests for as long as that took: it takes half of a connection at most.
    """
    faults, swept = FaultLog("splitting leaves"), time.monotonic() - sweep
    while True:
        began, moved = time.monotonic(), 0
        try:
            if began - swept >= sweep:
                swept = began
                for tenant in await admin.tenants():
                    await unfinished(database, growing, tenant)
                    await remove_empty(database, tenant)
            moved = await tend(database, growing)
            faults.fine()
        except StoreError as exc:
            faults.failed(exc.message)
        await asyncio.sleep(time.monotonic() - began if moved else every)
