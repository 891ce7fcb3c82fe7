"""What the hot tier does, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from cachesvc.store.hot import HotStore


class HotGauges(Collector):
    """`cachesvc_hot_*`: read when somebody asks."""

    def __init__(self, hot: HotStore) -> None:
        self._hot = hot

    def collect(self) -> Iterator[Metric]:
        hits = CounterMetricFamily(
            "cachesvc_hot_hits", "Queries answered from memory.", labels=["tier"]
        )
        for tier, number in self._hot.hits.items():
            hits.add_metric([tier], number)
        yield hits
        reads = CounterMetricFamily(
            "cachesvc_hot_cell_reads",
            "Cells read whole, to be searched in memory, by what became of it.",
            labels=["outcome"],
        )
        for outcome, number in self._hot.cells.reads.items():
            reads.add_metric([outcome], number)
        yield reads
        yield GaugeMetricFamily("cachesvc_hot_bytes", "Kept in memory.", self._hot.weight)
        yield GaugeMetricFamily("cachesvc_hot_entries", "Copies in memory.", self._hot.number)
        yield GaugeMetricFamily(
            "cachesvc_hot_trusted",
            "1 while every change of other replicas is known to be heard, and copies may answer.",
            float(self._hot.notices.holds),
        )
