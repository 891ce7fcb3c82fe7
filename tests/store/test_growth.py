"""What comes and goes for a day leaves the table and its indexes as large as they were."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import pytest

from tests.bench.growth import HOURS, Day, growth, server

if TYPE_CHECKING:
    from collections.abc import Iterator

PUTS, SECONDS = 80, 0.65  # of a simulated hour


@pytest.fixture(scope="module")
def vacuumed_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(tmp_path_factory.mktemp("growth")) as url:
        yield url


@pytest.mark.alone
async def test_after_a_day_nothing_is_half_as_large_again(vacuumed_url: str) -> None:
    hours = await Day(vacuumed_url, puts=PUTS, seconds=SECONDS).run()
    assert len(hours) == HOURS
    assert sum(hour.puts for hour in hours) > HOURS * PUTS / 2
    # What expires within an hour or two, and the limit of the other policy.
    assert statistics.median(hour.rows for hour in hours[4:]) < 4 * PUTS
    assert hours[-1].vacuums > hours[0].vacuums
    grown = growth(hours)
    assert max(grown.values()) < 1.5, grown
