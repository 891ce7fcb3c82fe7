"""What the service knows about itself, for Prometheus and for `/stats`. Names: `design.md` 9."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily

from cachesvc.service.counting import Counted, HeldMisses
from cachesvc.service.tallies import Spreads, Tallies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from prometheus_client.metrics_core import Metric

    from cachesvc.core.model import Answer
    from cachesvc.service.tallies import Spread, Tally
    from cachesvc.settings import Settings

_SERIES_AT_MOST = 1000  # (tenant, policy) pairs with series of their own
_TENANTS_AT_MOST = 50
_OTHER = "other"
_STAGES = ("exact", "nearest", "decide", "total")
_SECONDS = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
_SIMILARITIES = (0.0, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 0.99, 1.0)


class _Stage:
    """Observes how long its block takes, whatever comes of it."""

    __slots__ = ("_began", "_spread")

    def __init__(self, spread: Spread) -> None:
        self._spread = spread

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._spread.observe(time.perf_counter() - self._began)


@dataclass(slots=True)
class Totals:
    """What this process did with one policy since it started."""

    hits: int = 0
    misses: int = 0
    puts: int = 0
    prompt_tokens: int = 0  # these three: made needless by hits
    completion_tokens: int = 0
    upstream_seconds: float = 0.0


@dataclass(slots=True)
class _Series:
    """What is counted of one policy: the labels, the totals, and the series met so far."""

    labels: tuple[str, ...]
    totals: Totals = field(default_factory=Totals)
    lookups: dict[tuple[str, str, str], Tally] = field(default_factory=dict)
    saved: tuple[Tally, Tally, Tally] | None = None
    similarity: Spread | None = None


class Telemetry:
    """The counters of one process. Labels are bounded: what is beyond the bound is `other`."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        service = settings.service
        self.by_tenant = service.metrics_tenants or not service.tls.on
        self.registry = CollectorRegistry()
        self.entries = EntriesGauge(self)
        self.registry.register(self.entries)
        self._series: dict[tuple[str, str], tuple[str, ...]] = {}
        self.tenants: set[str] = set()
        self._policies: dict[tuple[str, str], _Series] = {}
        self._held = HeldMisses(self._write, clock)
        self._lookups = self._counter(
            "lookups", "Lookups, by what became of them.", "outcome", "tier", "reason"
        )
        self._puts = self._counter("puts", "Puts, by what became of them.", "result")
        self._tokens = self._counter("tokens_saved", "Tokens of answers served.", "kind")
        self._upstream = self._counter(
            "upstream_seconds_saved", "Time that the upstream took for answers served."
        )
        self._verdicts = self._counter(
            "verdicts", "Judgements of answers, by who judged.", "verdict", "source"
        )
        self._similarity = Spreads(
            "cachesvc_similarity",
            "Best similarity that a semantic lookup saw.",
            self._names(),
            _SIMILARITIES,
            self.registry,
        )
        seconds = Spreads(
            "cachesvc_lookup_seconds",
            "Time of a lookup, by stage.",
            ("stage",),
            _SECONDS,
            self.registry,
        )
        self._stages = {name: seconds.of(name) for name in _STAGES}
        self._failures = Tallies(
            "cachesvc_fail_open",
            "What callers had to do without, by cause.",
            ("cause",),
            self.registry,
        )
        self._evictions = Tallies(
            "cachesvc_evictions", "Rows removed, by cause.", ("cause",), self.registry
        )

    def looked_up(self, counted: Counted) -> None:
        """Count a lookup that came as one call."""
        self._write(counted)

    def first_call(self, key: tuple[object, ...], counted: Counted) -> None:
        """Count an exact-only call; its miss is held back for a follow-up."""
        if counted.outcome == "hit":
            self._write(counted)
        else:
            self._held.hold(key, counted)

    def follow_up(self, key: tuple[object, ...], counted: Counted) -> None:
        """Count an `after_exact` call in the place of the first."""
        self._held.follow(key, counted)

    def put(self, tenant: str, policy_id: str, result: str) -> None:
        """`result` is `stored` or the reason why not."""
        known = self._known(tenant, policy_id)
        self._puts.of(*known.labels, result).value += 1
        known.totals.puts += result == "stored"

    def saved(self, tenant: str, policy_id: str, answer: Answer) -> None:
        """What a hit made needless: the answer's tokens, and the time that it took upstream."""
        known = self._known(tenant, policy_id)
        if known.saved is None:
            tokens, upstream = self._tokens.of, self._upstream.of(*known.labels)
            of_both = tokens(*known.labels, "prompt"), tokens(*known.labels, "completion")
            known.saved = (*of_both, upstream)
        prompt, completion, upstream = known.saved
        seconds = (answer.upstream_ms or 0.0) / 1000
        prompt.value += answer.prompt_tokens
        completion.value += answer.completion_tokens
        upstream.value += seconds
        totals = known.totals
        totals.prompt_tokens += answer.prompt_tokens
        totals.completion_tokens += answer.completion_tokens
        totals.upstream_seconds += seconds

    def judged(self, tenant: str, policy_id: str, verdict: str, source: str) -> None:
        """`verdict` is right or wrong; `source` the role it was given in: admin or data."""
        self._verdicts.of(*self.series(tenant, policy_id), verdict, source).value += 1

    def saw(self, tenant: str, policy_id: str, similarity: float) -> None:
        """The best similarity of a semantic lookup."""
        known = self._known(tenant, policy_id)
        if known.similarity is None:
            known.similarity = self._similarity.of(*known.labels)
        known.similarity.observe(similarity)

    def stage(self, name: str) -> AbstractContextManager[object]:
        """Measures one of the stages."""
        return _Stage(self._stages[name])

    def failed(self, cause: str, times: int = 1) -> None:
        """`unavailable`, `busy`, `internal`, `alias`, `shadow` or `hits`."""
        self._failures.of(cause).value += times

    def evicted(self, cause: str, rows: int) -> None:
        """`expired`, `purged`, `max_entries`, `max_bytes` or the tenant's, `tenant_max_…`."""
        self._evictions.of(cause).value += rows

    def settle(self) -> None:
        """Count what is held back; call it before the counters are read."""
        self._held.write_all()

    def totals(self, tenant: str, policy_id: str) -> Totals:
        """What was done with a policy in this process, since it started."""
        known = self._policies.get((tenant, policy_id))
        return Totals() if known is None else known.totals

    def series(self, tenant: str, policy_id: str) -> tuple[str, ...]:
        """The labels of a policy that exists: (policy,) or (tenant, policy)."""
        known = self._series.get((tenant, policy_id))
        if known is not None:
            return known
        if len(self._series) >= _SERIES_AT_MOST:
            return (_OTHER, _OTHER) if self.by_tenant else (_OTHER,)
        if tenant not in self.tenants and len(self.tenants) < _TENANTS_AT_MOST:
            self.tenants.add(tenant)
        shown = tenant if tenant in self.tenants else _OTHER
        labels = (shown, policy_id) if self.by_tenant else (policy_id,)
        self._series[tenant, policy_id] = labels
        return labels

    def _known(self, tenant: str, policy_id: str) -> _Series:
        known = self._policies.get((tenant, policy_id))
        if known is None:
            series = self.series(tenant, policy_id)
            known = self._policies[tenant, policy_id] = _Series(series)
        return known

    def _write(self, counted: Counted) -> None:
        known = self._known(counted.tenant, counted.policy_id)
        outcome = counted.outcome
        words = outcome, counted.tier, counted.reason
        tally = known.lookups.get(words)
        if tally is None:
            tally = known.lookups[words] = self._lookups.of(*known.labels, *words)
        tally.value += 1
        if outcome == "hit":
            known.totals.hits += 1
        elif outcome != "bypass":
            known.totals.misses += 1

    def _names(self, *more: str) -> tuple[str, ...]:
        return (*(("tenant", "policy") if self.by_tenant else ("policy",)), *more)

    def _counter(self, name: str, what: str, *labels: str) -> Tallies:
        return Tallies(f"cachesvc_{name}", what, self._names(*labels), self.registry)


class EntriesGauge:
    """`cachesvc_entries{policy}`: shows what was counted last, or nothing."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._counted: dict[tuple[str, ...], int] | None = None

    def show(self, counts: Iterable[tuple[str, str, int]]) -> None:
        """(tenant, policy, entries) of every policy; equal labels are added up."""
        self._counted = {}
        for tenant, policy_id, entries in counts:
            series = self._telemetry.series(tenant, policy_id)
            self._counted[series] = self._counted.get(series, 0) + entries

    def hide(self) -> None:
        """The database is away: no figure is better than an old one."""
        self._counted = None

    def collect(self) -> Iterator[Metric]:
        names = ("tenant", "policy") if self._telemetry.by_tenant else ("policy",)
        family = GaugeMetricFamily("cachesvc_entries", "Entries kept.", labels=names)
        for series, entries in (self._counted or {}).items():
            family.add_metric(list(series), entries)
        if self._counted is not None:
            yield family
