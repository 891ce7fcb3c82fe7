"""The benchmark of recall, in small: what an exact scan finds is found."""

from __future__ import annotations

from tests.bench.recall.__main__ import main


def test_nearly_everything_that_an_exact_scan_finds_is_found() -> None:
    figures = main(["--quick", "--asked", "200"])
    assert {figure.cells for figure in figures} == {"10^1", "10^2", "10^3"}
    assert all(figure.found >= 0.99 for figure in figures), figures
