"""Splits leaves that have grown too large, and removes empty ones, bit by bit."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from cachesvc.errors import StoreError
from cachesvc.service.faults import FaultLog
from cachesvc.store.leaves import sweep, tend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from cachesvc.store.growing import GrowingLeaves
    from cachesvc.store.pool import Database

_EVERY_SECONDS = 1.0
# What a process has left half done is gone on with, and what holds nothing goes.
_SWEEP_SECONDS = 120.0


class LeafGauges(Collector):
    """`cachesvc_leaves_*`: whether splitting keeps up with what is put."""

    def __init__(self, growing: GrowingLeaves) -> None:
        self._growing = growing

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "cachesvc_leaves_waiting", "Leaves that may be too large.", self._growing.waiting
        )
        yield CounterMetricFamily(
            "cachesvc_leaves_moved_entries", "Entries moved to a nearer leaf.", self._growing.moved
        )


async def tend_leaves(
    database: Database,
    growing: GrowingLeaves,
    every: float = _EVERY_SECONDS,
    sweep_every: float = _SWEEP_SECONDS,
) -> None:
    """Go on until cancelled; looks for work every so many seconds.

    After each step it rests for as long as that took: it takes half of a connection at most.
    """
    faults, swept = FaultLog("splitting leaves"), time.monotonic() - sweep_every
    while True:
        began = time.monotonic()
        try:
            if began - swept >= sweep_every:
                swept = began
                await sweep(database, growing)
            await tend(database, growing)
        except StoreError as exc:
            faults.failed(exc.message)
            pause = every
        else:
            faults.fine()
            pause = every if growing.crowded() is None else time.monotonic() - began
        await asyncio.sleep(pause)
