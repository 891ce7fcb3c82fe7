"""A cell is read after enough searches, and less and less often where that was no use."""

from __future__ import annotations

import pytest

from cachesvc.store import cell_searches
from cachesvc.store.cell_searches import ENOUGH, Searches


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def searches(clock: Clock) -> Searches:
    return Searches(5.0, clock)


def until_enough(searches: Searches) -> int:
    """How many searches it takes."""
    for number in range(1, 1000):
        searches.add("cell")
        if searches.enough("cell"):
            return number
    raise AssertionError("never")


def test_enough_of_them_are_told_once(searches: Searches) -> None:
    assert until_enough(searches) == ENOUGH
    assert not searches.enough("cell")
    assert not searches.enough("another")


def test_only_those_within_the_ttl_count(searches: Searches, clock: Clock) -> None:
    for _ in range(ENOUGH):
        searches.add("cell")
    clock.now += 5.1
    assert not searches.enough("cell")
    assert until_enough(searches) == ENOUGH


def test_what_changes_too_soon_is_read_less_and_less(searches: Searches, clock: Clock) -> None:
    taken = []
    for _ in range(7):
        taken.append(until_enough(searches))
        searches.too_late("cell")
        clock.now += 60  # a pause is of searches, not of time
    assert taken == [16, 32, 48, 80, 144, 272, 272]
    until_enough(searches)
    searches.worth_it("cell")
    assert until_enough(searches) == ENOUGH


def test_what_cannot_be_kept_has_a_long_pause(searches: Searches) -> None:
    until_enough(searches)
    searches.pause("cell")
    assert until_enough(searches) == 17 * ENOUGH


def test_the_longest_unseen_are_forgotten(
    searches: Searches, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_searches, "_CELLS_AT_MOST", 2)
    for _ in range(ENOUGH):
        for cell in "abc":
            searches.add(cell)
    assert [searches.enough(cell) for cell in "abc"] == [False, False, False]
    for cell in "bc":
        for _ in range(ENOUGH):
            searches.add(cell)
    assert [searches.enough(cell) for cell in "bc"] == [True, True]
