"""What `/metrics` tells of lookups that go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from cachesvc.store.together import Together


class TogetherCounts(Collector):
    """`cachesvc_lookups_*`: whether lookups wait for connections, and what comes of it."""

    def __init__(self, together: Together) -> None:
        self._together = together

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(
            "cachesvc_lookups_taken_along",
            "Lookups by key that waited for a connection and were asked in another's statement.",
            self._together.taken_along,
        )
        yield CounterMetricFamily(
            "cachesvc_lookups_left_alone",
            "Lookups that were taken along in a statement that failed or took long.",
            self._together.left_alone,
        )
