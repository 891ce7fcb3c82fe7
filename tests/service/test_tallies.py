"""Our own counters and histograms are told as Prometheus's own are, byte for byte."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    enable_created_metrics,
    generate_latest,
)

from cachesvc.service.tallies import Spreads, Tallies

if TYPE_CHECKING:
    from collections.abc import Iterator

BOUNDS = (0.00005, 0.001, 0.25, 0.5, 1.0, 2.5)
AWKWARD = ("plain", 'quo"ted', "back\\slash", "new\nline", "ü")


@pytest.fixture(autouse=True)
def without_created_series() -> Iterator[None]:
    disable_created_metrics()  # type: ignore[no-untyped-call]
    yield
    enable_created_metrics()  # type: ignore[no-untyped-call]


def told(registry: CollectorRegistry) -> bytes:
    return generate_latest(registry)


def test_a_counter_is_told_like_theirs() -> None:
    theirs, ours, dice = CollectorRegistry(), CollectorRegistry(), random.Random(1)
    counter = Counter("cachesvc_some", "Something.", ("policy", "kind"), registry=theirs)
    tallies = Tallies("cachesvc_some", "Something.", ("policy", "kind"), ours)
    assert told(ours) == told(theirs)
    for _ in range(500):
        labels = dice.choice(AWKWARD), dice.choice(AWKWARD)
        value = dice.choice((1, 2.5, 1e12, 0))
        counter.labels(*labels).inc(value)
        tallies.of(*labels).value += value
    assert told(ours) == told(theirs)


def test_a_histogram_is_told_like_theirs() -> None:
    theirs, ours, dice = CollectorRegistry(), CollectorRegistry(), random.Random(2)
    names = ("cachesvc_seconds", "Time.", ("stage",))
    histogram = Histogram(*names, buckets=BOUNDS, registry=theirs)
    spreads = Spreads(*names, BOUNDS, ours)
    histogram.labels("never seen")
    spreads.of("never seen")
    assert told(ours) == told(theirs)
    for _ in range(500):
        stage = dice.choice(AWKWARD)
        value = dice.choice((dice.random(), dice.choice(BOUNDS), 0.0, 1e6))
        histogram.labels(stage).observe(value)
        spreads.of(stage).observe(value)
    assert told(ours) == told(theirs)
