"""What the replicas do, for Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.metrics_core import Metric

    from cachesvc.store.replicas import ReplicaReads


class ReplicaGauges(Collector):
    """`cachesvc_replica_*`, by the place in `read_database_url`."""

    def __init__(self, reads: ReplicaReads) -> None:
        self._reads = reads

    def collect(self) -> Iterator[Metric]:
        reads = CounterMetricFamily(
            "cachesvc_replica_reads", "Queries that a replica answered.", labels=["replica"]
        )
        lag = GaugeMetricFamily(
            "cachesvc_replica_lag_seconds", "How old what it holds may be.", labels=["replica"]
        )
        for place, replica in enumerate(self._reads.replicas):
            reads.add_metric([str(place)], replica.reads)
            lag.add_metric([str(place)], self._reads.lag(replica))
        yield reads
        yield lag
