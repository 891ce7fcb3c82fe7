"""The caller's wishes."""

from __future__ import annotations

import pytest

from cachesvc.core.model import Reason
from cachesvc.core.policy import BypassRule, Policy
from cachesvc.core.steering import Steering, read_steering

RULES = Policy(
    bypass_on=(BypassRule(header="X-Debug", equals="1"), BypassRule(header="x-env", equals="dev"))
)


@pytest.mark.parametrize(
    ("values", "wish"),
    [
        ([], Steering()),
        (["no-cache"], Steering(no_cache=True)),
        (["NO-Cache, No-Store"], Steering(no_cache=True, no_store=True)),
        (["no-store", "max-age=5"], Steering(no_store=True, max_age_seconds=5)),
        (["max-age=0"], Steering(max_age_seconds=0)),
        (['max-age="7"'], Steering(max_age_seconds=7)),
        (["max-age=9, max-age=3"], Steering(max_age_seconds=3)),
        (["max-age=-1"], Steering()),
        (["max-age=soon, s-maxage="], Steering()),
        (["s-maxage=60"], Steering(ttl_seconds=60)),
        (["only-if-cached"], Steering(only_if_cached=True)),
        (['no-cache="set-cookie"'], Steering()),
        (["no-store=1"], Steering()),
        (["x-no-cache, no-cachey, no_cache"], Steering()),
        (['ext="no-cache, no-store"'], Steering()),
        (['ext="a\\", no-store", no-cache'], Steering(no_cache=True)),
        (['ext="unclosed, no-cache'], Steering()),
        (['"x" no-cache'], Steering()),
        (["no-cache="], Steering()),
        ([" ,, no-transform ,no-store ,"], Steering(no_store=True)),
        (["max-age=99999999999999999999999"], Steering()),
    ],
)
def test_cache_control_is_read_as_rfc_9111_says(values: list[str], wish: Steering) -> None:
    assert read_steering({"cache-control": values}, RULES) == wish


@pytest.mark.parametrize(
    ("headers", "skip"),
    [
        ({"x-higress-skip-ai-cache": ["on"]}, Reason.CALLER_SKIP),
        ({"x-higress-skip-ai-cache": ["ON"]}, Reason.CALLER_SKIP),
        ({"x-higress-skip-ai-cache": ["off"]}, None),
        ({"x-debug": ["1"]}, Reason.BYPASS_RULE),
        ({"x-debug": ["0"], "x-env": ["dev"]}, Reason.BYPASS_RULE),
        ({"x-debug": ["01"]}, None),
        ({"x-env": ["DEV"]}, None),
    ],
)
def test_skip_switches_are_exact(headers: dict[str, list[str]], skip: Reason | None) -> None:
    assert read_steering(headers, RULES).skip is skip


def test_only_an_unsteered_request_is_plain() -> None:
    assert read_steering({"accept": ["*/*"]}, RULES).plain
    assert not read_steering({"cache-control": ["max-age=60"]}, RULES).plain


@pytest.mark.parametrize(
    "value", ['"x"' + " " * 8000 + "b" + " " * 8000 + "c x", '"' * 16_000, "a" * 16_000]
)
def test_reading_takes_time_in_proportion_to_the_length(value: str) -> None:
    """A pattern that tries every split of white space took 8 s for a seventh of this."""
    import timeit

    once = timeit.timeit(lambda: read_steering({"cache-control": [value]}, RULES), number=3)
    twice = timeit.timeit(lambda: read_steering({"cache-control": [value * 2]}, RULES), number=3)
    assert twice < once * 16 + 0.05
