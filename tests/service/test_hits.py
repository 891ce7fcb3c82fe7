"""Every hit is counted with its entry, off the reply path, also one that comes from memory."""

from __future__ import annotations

import time
from contextlib import closing

from tests.service.serving import KEY, Api, Running, fetch

PATIENCE_SECONDS = 10.0


def hits(api: Api, entry: str) -> int:
    return int(api.ok("GET", f"/cache/entries/{entry}")["hits"])


def wait_for(api: Api, entry: str, expected: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while hits(api, entry) != expected:
        assert time.monotonic() < deadline, hits(api, entry)


def test_hits_of_both_tiers_and_of_memory_are_counted(api: Api) -> None:
    policy_id = api.policy()
    entry = api.put(policy_id, exact_key=KEY, embedding=[1.0, 0.0], prompt_tokens=3)["entry_id"]
    assert api.ok("GET", f"/cache/entries/{entry}")["last_hit_at"] is None
    for _ in range(10):
        assert api.lookup(policy_id, exact_key=KEY)["hit"]
        assert api.lookup(policy_id, embedding=[1.0, 0.0])["hit"]
        assert not api.lookup(policy_id, embedding=[0.0, 1.0])["hit"]
    wait_for(api, entry, 20)
    assert api.ok("GET", f"/cache/entries/{entry}")["last_hit_at"]
    listed = api.ok("GET", f"/cache/entries?policy_id={policy_id}")["entries"]
    assert [one["hits"] for one in listed] == [20]


def test_a_shadow_hit_served_nobody(api: Api) -> None:
    policy_id = api.policy(mode="shadow")
    entry = api.put(policy_id, exact_key=KEY)["entry_id"]
    other = api.policy()
    counted = api.put(other, exact_key=KEY)["entry_id"]
    api.lookup(policy_id, exact_key=KEY)
    api.lookup(other, exact_key=KEY)
    wait_for(api, counted, 1)
    assert hits(api, entry) == 0


def test_what_waits_is_written_when_the_service_stops(database_url: str) -> None:
    with Running(database_url) as service, closing(Api(service.url)) as api:
        policy_id = api.policy()
        api.put(policy_id, exact_key=KEY)
        assert api.lookup(policy_id, exact_key=KEY)["hit"]
    assert fetch(database_url, "SELECT hits FROM hit_counts") == [(1,)]
