"""A fault that lasts, or flickers, does not flood the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesvc.service.faults import FaultLog, describe

if TYPE_CHECKING:
    import pytest


def test_a_fault_is_logged_when_it_starts_when_it_lasts_and_when_it_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    faults = FaultLog("database", lambda: now[0])
    faults.fine()
    for tick in range(650):  # 65 s of ten failures a second, with a success between any two
        now[0] = tick / 10
        faults.failed("is away")
        faults.fine()
    assert [r.getMessage() for r in caplog.records] == ["database: is away"] * 2
    now[0] += 1
    faults.fine()
    faults.fine()
    assert [r.getMessage() for r in caplog.records][2:] == ["database: works again"]
    faults.failed("is away again")
    assert len(caplog.records) == 4


def test_a_description_has_places_and_types_and_no_values() -> None:
    try:
        try:
            int("a secret")
        except ValueError as exc:
            raise KeyError("another secret") from exc
    except KeyError as exc:
        told = describe(exc)
    assert "KeyError" in told
    assert "ValueError" in told
    assert "test_faults.py" in told
    assert "secret" not in told
