"""What a process remembers of cells saves it work, and decides nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesvc.store.growing import Bounds, GrowingLeaves

if TYPE_CHECKING:
    import pytest


def test_what_is_known_of_cells_is_a_hint_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cachesvc.store.growing._REMEMBERED", 2)
    growing = GrowingLeaves()
    for name in (b"a", b"b", b"c"):
        growing.found(name, split=True)
        growing.add("t", name)
    assert [growing.is_split(name) for name in (b"a", b"b", b"c")] == [False, True, True]
    # One after the other; what cannot go on lets others pass.
    assert [growing.crowded() for _ in range(2)] == [("t", b"b"), ("t", b"b")]
    growing.later(b"b")
    assert growing.crowded() == ("t", b"c")
    for name in (b"b", b"c"):
        growing.done(name)
    assert growing.crowded() is None


def test_a_leaf_is_looked_at_after_half_of_what_it_may_have() -> None:
    growing = GrowingLeaves(lambda _: Bounds(cell=24, leaf=6))
    for _ in range(2):
        growing.put("t", b"d", dimensions=384)
    assert growing.crowded() is None
    growing.put("t", b"d", dimensions=384)
    assert growing.crowded() == ("t", b"d")


def test_a_cell_that_cannot_be_split_is_not_looked_at_again_and_again() -> None:
    growing = GrowingLeaves()
    growing.searched("t", b"a")
    assert growing.crowded() == ("t", b"a")
    growing.done(b"a")
    growing.searched("t", b"a")
    assert growing.crowded() is None
    growing.add("t", b"a")
    assert growing.crowded() == ("t", b"a")


def test_a_longer_vector_is_scanned_for_in_fewer_rows() -> None:
    rows = [Bounds.of(dimensions) for dimensions in (1, 384, 768, 1536, 3984)]
    assert rows == sorted(rows, reverse=True)
    assert rows == [(1000, 250), (1000, 250), (500, 125), (250, 62), (250, 62)]
