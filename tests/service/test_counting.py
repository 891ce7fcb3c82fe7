"""A lookup that comes as two calls is counted once, at the right time."""

from __future__ import annotations

import pytest

from cachesvc.service.counting import _HELD_AT_MOST, HELD_SECONDS, Counted, HeldMisses

MISS = Counted("t", "p", "miss", "none", "no_entry")
BELOW = Counted("t", "p", "miss", "none", "below_threshold")
HIT = Counted("t", "p", "hit", "semantic", "semantic")
FOUND_IN_SHADOW = Counted("t", "p", "shadow", "exact", "exact")
BELOW_IN_SHADOW = Counted("t", "p", "shadow", "none", "below_threshold")
NEAR_IN_SHADOW = Counted("t", "p", "shadow", "semantic", "semantic")
KEY = ("place", b"key")


class Bench:
    """Held misses with a clock to turn and a list of what was counted."""

    def __init__(self) -> None:
        self.now = 100.0
        self.counted: list[Counted] = []
        self.held = HeldMisses(self.counted.append, lambda: self.now)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("outcome", [HIT, BELOW])
def test_a_follow_up_takes_the_place_of_the_first_call(bench: Bench, outcome: Counted) -> None:
    bench.held.hold(KEY, MISS)
    assert bench.counted == []
    bench.held.follow(KEY, outcome)
    assert bench.counted == [outcome]
    bench.now += HELD_SECONDS
    bench.held.write_all()
    assert bench.counted == [outcome]


def test_a_first_call_that_nobody_follows_is_a_miss_in_the_end(bench: Bench) -> None:
    bench.held.hold(KEY, MISS)
    bench.now += HELD_SECONDS - 0.1
    bench.held.age()
    assert bench.counted == []
    bench.now += 0.1
    bench.held.hold(("place", b"another"), BELOW)
    assert bench.counted == [MISS]


def test_a_follow_up_that_comes_too_late_is_a_lookup_of_its_own(bench: Bench) -> None:
    bench.held.hold(KEY, MISS)
    bench.now += HELD_SECONDS
    bench.held.follow(KEY, HIT)
    assert bench.counted == [MISS, HIT]


def test_a_follow_up_without_a_first_call_counts(bench: Bench) -> None:
    bench.held.follow(KEY, BELOW)
    assert bench.counted == [BELOW]


def test_calls_for_one_key_at_the_same_time_are_each_counted_once(bench: Bench) -> None:
    for _ in range(3):
        bench.held.hold(KEY, MISS)
    bench.held.follow(KEY, HIT)
    bench.held.follow(KEY, HIT)
    bench.held.write_all()
    assert bench.counted == [HIT, HIT, MISS]


def test_a_scrape_counts_what_is_held_and_never_counts_a_miss_twice(bench: Bench) -> None:
    bench.held.hold(KEY, MISS)
    bench.held.write_all()
    bench.held.write_all()
    assert bench.counted == [MISS]
    bench.held.follow(KEY, BELOW)
    assert bench.counted == [MISS]
    bench.held.hold(KEY, MISS)
    bench.held.write_all()
    assert bench.counted == [MISS, MISS]


@pytest.mark.parametrize("scraped", [False, True])
def test_in_shadow_the_exact_tiers_answer_stands_whatever_the_vector_finds(
    bench: Bench, scraped: bool
) -> None:
    for other in (BELOW_IN_SHADOW, NEAR_IN_SHADOW):
        bench.counted.clear()
        bench.held.hold(KEY, FOUND_IN_SHADOW)
        if scraped:
            bench.held.write_all()
        bench.held.follow(KEY, other)
        bench.held.write_all()
        assert bench.counted == [FOUND_IN_SHADOW]


def test_what_is_held_is_bounded_and_nothing_is_lost(bench: Bench) -> None:
    for number in range(_HELD_AT_MOST + 5):
        bench.held.hold(("place", number), MISS)
    assert len(bench.counted) == 5
    bench.held.write_all()
    assert len(bench.counted) == _HELD_AT_MOST + 5
