"""Counters and histograms that cost a lookup little: plain numbers, told to Prometheus when asked.

prometheus_client's own check their labels and take a lock: a microsecond each, six times a lookup.
Only the event loop counts here, and it is one thread.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


class Tally:
    """One series of a counter: add to `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Tallies:
    """A counter with labels."""

    def __init__(
        self, name: str, what: str, labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._name, self._what, self._labels = name, what, labels
        self._series: dict[tuple[str, ...], Tally] = {}
        registry.register(self)

    def of(self, *labels: str) -> Tally:
        """The series of these labels' values: find it once and keep it."""
        known = self._series.get(labels)
        if known is None:
            known = self._series[labels] = Tally()
        return known

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._what, labels=self._labels)
        for labels, tally in self._series.items():
            family.add_metric(labels, tally.value)
        yield family


class Spread:
    """One series of a histogram."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * len(bounds)
        self.total = 0.0

    def observe(self, value: float) -> None:
        # A bound is the last value of its bucket; the last bound is infinity.
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Spreads:
    """A histogram with labels; `bounds` rise, and infinity follows them."""

    def __init__(
        self,
        name: str,
        what: str,
        labels: Sequence[str],
        bounds: tuple[float, ...],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._what, self._labels = name, what, labels
        self._bounds = (*bounds, inf)
        self._names = [*map(str, bounds), "+Inf"]
        self._series: dict[tuple[str, ...], Spread] = {}
        registry.register(self)

    def of(self, *labels: str) -> Spread:
        """The series of these labels' values: find it once and keep it."""
        known = self._series.get(labels)
        if known is None:
            known = self._series[labels] = Spread(self._bounds)
        return known

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(self._name, self._what, labels=self._labels)
        for labels, spread in self._series.items():
            buckets = list(zip(self._names, accumulate(spread.counts), strict=True))
            family.add_metric(labels, buckets, spread.total)
        yield family
