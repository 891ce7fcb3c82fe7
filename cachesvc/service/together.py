"""What `/metrics` tells of lookups that go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from cachesvc.store.together import Together


class TogetherCounts(Collector):
    """`cachesvc_lookups_*`: whether lookups wait for connections, and what comes of it."""

    def __init__(self, together: Sequence[Together]) -> None:
        """Those of the primary and of each replica."""
        self._together = together

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "cachesvc_lookups_taken_along",
            "Lookups by key that waited for a connection and were asked in another's statement.",
            sum(each.taken_along for each in self._together),
        )
        yield CounterMetricFamily(
            "cachesvc_lookups_left_alone",
            "Lookups that were taken along in a statement that failed or took long.",
            sum(each.left_alone for each in self._together),
        )
