"""Indexes what waits in cells that have outgrown scanning, bit by bit."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from cachesvc.errors import StoreError
from cachesvc.service.faults import FaultLog
from cachesvc.store.large import index_waiting

if TYPE_CHECKING:
    from cachesvc.store.large import LargeCells
    from cachesvc.store.pool import Database

_EVERY_SECONDS = 1.0
# An entry takes a few ms: a batch is done well before anybody who puts the same again gives up.
_BATCH = 50


async def index(database: Database, cells: LargeCells, every: float = _EVERY_SECONDS) -> None:
    """Go on until cancelled; looks for work every so many seconds.

    After each batch it rests for as long as that took, so that it takes half of a core at most.
    """
    faults = FaultLog("indexing entries of large cells")
    while True:
        began, indexed = time.monotonic(), 0
        try:
            indexed = await index_waiting(database, cells, _BATCH)
            faults.fine()
        except StoreError as exc:
            faults.failed(exc.message)
        await asyncio.sleep(time.monotonic() - began if indexed else every)
