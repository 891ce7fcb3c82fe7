"""What a hit saved is told once per hit; a call that is sent again is no new lookup."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.serving import KEY, Api, Running

if TYPE_CHECKING:
    from collections.abc import Iterator

NORTH, NEAR, EAST = [1.0, 0.0, 0.0], [0.95, 0.3122499, 0.0], [0.0, 1.0, 0.0]
PARAPHRASE = "cd" * 32
PUT = {"exact_key": KEY, "embedding": NORTH, "prompt_tokens": 5, "completion_tokens": 6}


@pytest.fixture
def fresh(database_url: str) -> Iterator[Api]:
    """Calls to a service that has counted nothing yet."""
    with Running(database_url) as service, closing(Api(service.url)) as api:
        yield api


def stats(api: Api, policy: str) -> dict[str, Any]:
    (one,) = (p for p in api.ok("GET", "/stats")["policies"] if p["policy_id"] == policy)
    return dict(one)


def lookups(api: Api, policy: str) -> float:
    samples = api.metrics().items()
    return sum(v for name, v in samples if "lookups_total" in name and policy in name)


def test_every_kind_of_hit_tells_how_long_the_upstream_took(api: Api) -> None:
    policy = api.policy(threshold=0.9)
    entry = api.put(policy, **PUT, upstream_ms=812.5)["entry_id"]
    for fields in (
        {"exact_key": KEY},
        {"embedding": NORTH},
        {"exact_key": PARAPHRASE, "embedding": NEAR, "after_exact": True},
    ):
        assert api.lookup(policy, **fields)["upstream_ms"] == 812.5
    api.wait_for_alias(entry)
    alias = api.lookup(policy, exact_key=PARAPHRASE)
    assert (alias["reason"], alias["upstream_ms"]) == ("alias", 812.5)
    assert "upstream_ms" not in api.lookup(policy, embedding=EAST)


def test_what_is_not_known_is_not_told(api: Api) -> None:
    policy = api.policy()
    api.put(policy, **PUT)
    assert "upstream_ms" not in api.lookup(policy, exact_key=KEY)
    api.put(policy, **PUT, upstream_ms=0)
    assert api.lookup(policy, exact_key=KEY)["upstream_ms"] == 0


def test_time_and_tokens_saved_are_counted_per_hit_and_told_by_stats(fresh: Api) -> None:
    policy = fresh.policy(threshold=0.9)
    fresh.put(policy, **PUT, upstream_ms=1500)
    fresh.lookup(policy, exact_key=KEY)
    fresh.lookup(policy, embedding=NEAR)
    fresh.lookup(policy, embedding=EAST)
    labels = f'{{policy="{policy}",tenant="default"}}'
    assert fresh.metrics()[f"cachesvc_upstream_seconds_saved_total{labels}"] == 3
    shown = stats(fresh, policy)
    assert (shown["prompt_tokens_saved"], shown["completion_tokens_saved"]) == (10, 12)
    assert shown["upstream_seconds_saved"] == 3


def test_a_call_that_is_sent_again_is_no_new_lookup_but_saves_what_it_saves(fresh: Api) -> None:
    policy = fresh.policy(threshold=0.9)
    again = {"retry": True}
    fresh.lookup(policy, exact_key=KEY)
    fresh.lookup(policy, exact_key=KEY, embedding=NORTH, after_exact=True)
    fresh.lookup(policy, exact_key=KEY, **again)
    fresh.lookup(policy, exact_key=KEY, embedding=NORTH, after_exact=True, **again)
    fresh.lookup(policy, embedding=NORTH, **again)
    assert lookups(fresh, policy) == 1
    fresh.put(policy, **PUT, upstream_ms=1000)
    assert fresh.lookup(policy, exact_key=KEY, **again)["hit"]
    assert fresh.lookup(policy, embedding=NEAR, **again)["hit"]
    assert lookups(fresh, policy) == 1
    shown = stats(fresh, policy)
    assert (shown["hits"], shown["misses"]) == (0, 1)
    assert (shown["prompt_tokens_saved"], shown["upstream_seconds_saved"]) == (10, 2)
    assert fresh.lookup(policy, exact_key=KEY, retry=False)["hit"]
    assert lookups(fresh, policy) == 2


def test_nothing_is_saved_in_shadow(fresh: Api) -> None:
    policy = fresh.policy(mode="shadow")
    fresh.put(policy, **PUT, upstream_ms=1000)
    fresh.lookup(policy, exact_key=KEY)
    shown = stats(fresh, policy)
    assert (shown["prompt_tokens_saved"], shown["upstream_seconds_saved"]) == (0, 0)
