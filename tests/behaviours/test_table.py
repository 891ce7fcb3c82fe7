"""No case is waved away."""

from __future__ import annotations

from tests.behaviours.table import CASES, OTHERWISE, README, held, page

# No test can hold it: there is nothing here that could behave.
NOTHING_TO_TEST = {49}


def test_every_case_has_a_test_or_a_reason() -> None:
    assert list(CASES) == list(range(1, 96))
    assert set(held()) <= set(CASES)
    assert set(CASES) - set(held()) == NOTHING_TO_TEST
    assert set(OTHERWISE) >= NOTHING_TO_TEST


def test_the_table_is_the_one_that_the_tests_tell() -> None:
    assert README.read_text("utf-8") == page(), "run: python -m tests.behaviours.table"
