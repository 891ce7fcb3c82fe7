"""What the proxy counts. Label values are policies, reasons and providers: all bounded.

`lookups_total` and `puts_total` hold what the service never saw, so that the sum over both parts
counts every judged request once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cachesvc.core.model import Bypass, Miss, Reason

if TYPE_CHECKING:
    from collections.abc import Callable

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
# The cache failed and the caller did not notice.
FAILURES = frozenset(
    {
        Reason.LOOKUP_TIMEOUT,
        Reason.CACHE_UNAVAILABLE,
        Reason.CIRCUIT_OPEN,
        Reason.EMBEDDER_FAILED,
        Reason.BUG,
    }
)
_DECIDED_HERE = FAILURES | {Reason.CREDENTIAL_UNPROVEN}


class Telemetry:
    """The proxy's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lookups = self._counter(
            "lookups",
            "Judged requests that the service did not decide.",
            ("policy", "outcome", "tier", "reason"),
        )
        self._puts = self._counter(
            "puts", "Answers not sent to the service, or not taken by it.", ("policy", "result")
        )
        self._collapsed = self._counter(
            "collapsed", "Requests that joined the upstream call of another.", ("policy",)
        )
        self._fail_open = self._counter(
            "fail_open", "Requests that went on without the cache because it failed.", ("cause",)
        )
        self._embedding_failures = self._counter(
            "embedding_failures", "Embedding calls that gave no vector.", ("provider", "cause")
        )
        self._embedding = self._histogram(
            "embedding_seconds", "Embedding calls, failed ones included.", ("provider",)
        )
        self._added = self._histogram(
            "added_latency_seconds",
            "From a judged request's last byte to its replay or to its going on.",
        )
        self._circuit = Gauge(
            "cachesvc_circuit_open",
            "1 while this part of the cache is left alone.",
            ("part",),
            registry=self.registry,
        )
        for cause in sorted(FAILURES):
            self._fail_open.labels(cause)

    def unreadable(self) -> None:
        """A request of a cached path that is not judged."""
        self._lookups.labels("", "bypass", "", Reason.UNREADABLE).inc()

    def outcome(self, policy_id: str, outcome: Miss | Bypass, *, again: bool = False) -> None:
        """A judged request that goes on; counted as a lookup unless the service has done so.

        `again`: its first try was counted.
        """
        if outcome.reason in FAILURES and outcome.reason is not Reason.BUG:  # counted by `bug`
            self._fail_open.labels(outcome.reason).inc()
        if again:
            return
        if isinstance(outcome, Bypass):
            self._lookups.labels(policy_id, "bypass", "", outcome.reason).inc()
        elif outcome.reason in _DECIDED_HERE:
            self._lookups.labels(policy_id, "miss", "", outcome.reason).inc()

    def joined(self, policy_id: str) -> None:
        """A request that shares the upstream call of another."""
        self._collapsed.labels(policy_id).inc()

    def bug(self) -> None:
        """The outer guard caught something."""
        self._fail_open.labels(Reason.BUG).inc()

    def not_put(self, policy_id: str, result: str) -> None:
        """An answer that is not kept, and why."""
        self._puts.labels(policy_id, result).inc()

    def embedded(self, provider: str, seconds: float) -> None:
        self._embedding.labels(provider).observe(seconds)

    def embedding_failed(self, provider: str, cause: str) -> None:
        self._embedding_failures.labels(provider, cause).inc()

    def added(self, seconds: float) -> None:
        """What the cache added to a judged request."""
        self._added.observe(seconds)

    def watch_circuit(self, part: str, is_open: Callable[[], bool]) -> None:
        self._circuit.labels(part).set_function(lambda: float(is_open()))

    def page(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"cachesvc_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(f"cachesvc_{name}", text, labels, buckets=_SECONDS, registry=self.registry)
