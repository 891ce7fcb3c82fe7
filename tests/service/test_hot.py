"""Repeated hits come from memory, and are as right as those that come from the database."""

from __future__ import annotations

import itertools
import time
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.service.serving import KEY, NOWHERE, Api, Running, execute

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE_SECONDS = 20.0
OTHER_KEY = "cd" * 32
VECTOR = [1.0, 0.0, 0.0, 0.0]
BOUND_SECONDS = 1.0


@pytest.fixture(scope="module")
def long(module_database_url: str) -> Iterator[Running]:
    """A replica that keeps its copies for a minute: only what it hears makes it forget."""
    with Running(module_database_url, {"hot_ttl_seconds": 60.0}) as service:
        yield service


@pytest.fixture(scope="module")
def b(long: Running) -> Iterator[Api]:
    """Calls to that replica; `api` calls another one."""
    api = Api(long.url)
    yield api
    api.close()


def from_memory(api: Api, tier: str) -> float:
    return api.metrics().get(f'cachesvc_hot_hits_total{{tier="{tier}"}}', 0.0)


def until_hot(api: Api, policy_id: str, tier: str = "exact", **asked: Any) -> dict[str, Any]:
    """Ask until the answer has come from memory; the answer."""
    deadline, before = time.monotonic() + PATIENCE_SECONDS, from_memory(api, tier)
    while True:
        reply = api.lookup(policy_id, **asked)
        assert reply["hit"], reply
        if from_memory(api, tier) > before:
            return reply
        assert time.monotonic() < deadline


def without_age(reply: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in reply.items() if name != "age_seconds"}


@pytest.mark.parametrize(
    ("tier", "asked"), [("exact", {"exact_key": KEY}), ("semantic", {"embedding": VECTOR})]
)
def test_a_repeated_hit_comes_from_memory_and_is_told_as_before(
    b: Api, module_database_url: str, tier: str, asked: dict[str, Any]
) -> None:
    policy_id = b.policy()
    b.put(policy_id, exact_key=KEY, embedding=VECTOR, prompt_text="why?")
    first = b.lookup(policy_id, **asked)
    assert first["tier"] == tier
    assert without_age(until_hot(b, policy_id, tier, **asked)) == without_age(first)
    # Changed past the service, so that nobody is told: who still says the old asked no database.
    execute(module_database_url, "UPDATE entries SET body = '{\"answer\": 43}'")
    assert until_hot(b, policy_id, tier, **asked)["response"] == first["response"]


def test_an_alias_is_answered_from_memory_as_an_alias(b: Api) -> None:
    policy_id = b.policy()
    entry = b.put(policy_id, embedding=VECTOR, prompt_text="why?")["entry_id"]
    assert b.lookup(policy_id, exact_key=KEY, embedding=VECTOR)["tier"] == "semantic"
    b.wait_for_alias(entry)
    assert until_hot(b, policy_id, exact_key=KEY)["reason"] == "alias"


CHANGES: dict[str, Callable[[Api, str, str], object]] = {
    "purge of the policy": lambda a, policy_id, _: a.purge(policy_id=policy_id),
    "purge by tag": lambda a, policy_id, _: a.purge(policy_id=policy_id, tags=["faq"]),
    "purge of the entry": lambda a, _, entry: a.purge(entry_id=entry),
    "delete of the entry": lambda a, _, entry: a.ok("DELETE", f"/cache/entries/{entry}"),
    "wrong verdict": lambda a, _, entry: a.ok(
        "POST", "/cache/feedback", {"entry_id": entry, "verdict": "wrong"}
    ),
    "delete of the policy": lambda a, policy_id, _: a.ok("DELETE", f"/policies/{policy_id}"),
    "policy off": lambda a, policy_id, _: a.change(policy_id, mode="off"),
    "refresh": lambda a, policy_id, _: a.put(
        policy_id, exact_key=KEY, embedding=VECTOR, response={"answer": "new"}
    ),
}


@pytest.mark.parametrize("asked", [{"exact_key": KEY}, {"embedding": VECTOR}], ids=["key", "vec"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_one_replica_changes_the_other_knows_within_a_second(
    api: Api, b: Api, change: str, asked: dict[str, Any]
) -> None:
    policy_id = api.policy()
    entry = api.put(policy_id, exact_key=KEY, embedding=VECTOR, tags=["faq"])["entry_id"]
    tier = "exact" if "exact_key" in asked else "semantic"
    until_hot(b, policy_id, tier, **asked)
    until_hot(api, policy_id, tier, **asked)
    CHANGES[change](api, policy_id, entry)
    changed = time.monotonic()
    assert answered(api, policy_id, asked) != entry, "the replica that changed it, at once"
    time.sleep(max(0.0, changed + BOUND_SECONDS - time.monotonic()))
    assert answered(b, policy_id, asked) != entry


def answered(api: Api, policy_id: str, asked: dict[str, Any]) -> str | None:
    """The entry that answers, None where none does."""
    reply = api.call("POST", "/cache/lookup", {"policy_id": policy_id, **asked})
    return reply.json().get("entry_id") if reply.json().get("hit") else None


def test_an_alias_does_not_outlive_the_refresh_of_its_entry(api: Api, b: Api) -> None:
    policy_id = api.policy()
    entry = api.put(policy_id, exact_key=OTHER_KEY, embedding=VECTOR)["entry_id"]
    api.lookup(policy_id, exact_key=KEY, embedding=VECTOR)
    api.wait_for_alias(entry)
    for replica in (api, b):
        until_hot(replica, policy_id, exact_key=KEY)
    api.put(policy_id, exact_key=OTHER_KEY, embedding=VECTOR)
    assert answered(api, policy_id, {"exact_key": KEY}) is None
    time.sleep(BOUND_SECONDS)
    assert answered(b, policy_id, {"exact_key": KEY}) is None


def test_a_nearer_answer_that_was_put_here_is_served_at_once(b: Api) -> None:
    policy_id = b.policy()
    b.put(policy_id, embedding=[1.0, 0.3, 0.0, 0.0], prompt_text="older")
    until_hot(b, policy_id, "semantic", embedding=VECTOR)
    newer = b.put(policy_id, embedding=VECTOR, prompt_text="newer")["entry_id"]
    assert b.lookup(policy_id, embedding=VECTOR)["entry_id"] == newer


def test_a_replica_that_may_have_missed_something_forgets_everything(
    b: Api, module_database_url: str
) -> None:
    policy_id = b.policy()
    b.put(policy_id, exact_key=KEY)
    until_hot(b, policy_id, exact_key=KEY)
    execute(module_database_url, "UPDATE entries SET body = '{\"answer\": 44}'")
    execute(
        module_database_url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'cachesvc notices' AND datname = current_database()",
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while b.lookup(policy_id, exact_key=KEY)["response"] != {"answer": 44}:
        assert time.monotonic() < deadline
    assert until_hot(b, policy_id, exact_key=KEY)["response"] == {"answer": 44}


@pytest.mark.parametrize("listens", ["nowhere", "to another database"])
def test_nothing_comes_from_memory_where_no_notification_can_be_heard(
    module_database_url: str, listens: str
) -> None:
    other = urlsplit(module_database_url)._replace(path="/cachesvc").geturl()
    listen_url = NOWHERE if listens == "nowhere" else other
    with Running(module_database_url, {"listen_url": listen_url}) as service:
        api = Api(service.url)
        policy_id = api.policy()
        api.put(policy_id, exact_key=KEY)
        for _ in range(20):
            assert api.lookup(policy_id, exact_key=KEY)["hit"]
        assert from_memory(api, "exact") == 0
        assert api.metrics()["cachesvc_hot_trusted"] == 0
        api.close()


def test_nothing_lives_longer_in_memory_than_in_the_database(b: Api) -> None:
    policy_id = b.policy()
    put = b.put(policy_id, exact_key=KEY, ttl_seconds=3)
    expires = datetime.fromisoformat(put["expires_at"])
    until_hot(b, policy_id, exact_key=KEY)
    while datetime.now(timezone.utc) < expires:
        b.lookup(policy_id, exact_key=KEY)
    assert not b.lookup(policy_id, exact_key=KEY)["hit"]


def test_whoever_asks_for_a_younger_answer_gets_none_from_memory(b: Api) -> None:
    policy_id = b.policy()
    b.put(policy_id, exact_key=KEY, embedding=VECTOR)
    until_hot(b, policy_id, exact_key=KEY)
    until_hot(b, policy_id, "semantic", embedding=VECTOR)
    time.sleep(0.01)
    for asked in ({"exact_key": KEY}, {"embedding": VECTOR}):
        assert not b.lookup(policy_id, max_age_seconds=0, **asked)["hit"]
        assert b.lookup(policy_id, max_age_seconds=60, **asked)["hit"]


def test_a_copy_answers_nobody_but_those_whom_the_entry_would_answer(b: Api) -> None:
    policy_id, other = b.policy(), b.policy()
    placed = {"scope": "alice", "space": "s", "partition": "ef" * 32}
    b.put(policy_id, exact_key=KEY, embedding=VECTOR, **placed)
    near = {"embedding": [1.0, 0.3, 0.0, 0.0], "threshold": 0.92, **placed}
    until_hot(b, policy_id, exact_key=KEY, **placed)
    until_hot(b, policy_id, "semantic", **near)
    assert not b.lookup(policy_id, **{**near, "threshold": 0.99})["hit"]
    for changed in ({"scope": "bob"}, {"space": "t"}, {"partition": "ab" * 32}):
        assert not b.lookup(policy_id, **{**near, **changed})["hit"], changed
    assert not b.lookup(policy_id, exact_key=KEY, **{**placed, "scope": "bob"})["hit"]
    for asked in (near, {"exact_key": KEY, **placed}):
        assert not b.lookup(other, **asked)["hit"]


def test_memory_is_bounded_in_bytes(module_database_url: str) -> None:
    with Running(module_database_url, {"hot_bytes": 300_000}) as service:
        api = Api(service.url)
        policy_id = api.policy()
        for number in range(100):
            key = f"{number:064x}"
            api.put(policy_id, exact_key=key, response={"text": "x" * 10_000})
            for _ in range(2):
                assert api.lookup(policy_id, exact_key=key)["hit"]
        metrics = api.metrics()
        assert 10_000 < metrics["cachesvc_hot_bytes"] <= 300_000
        assert 1 <= metrics["cachesvc_hot_entries"] <= 30
        api.close()


def wordings() -> Iterator[dict[str, Any]]:
    """Vectors near VECTOR, none of them twice."""
    for number in itertools.count(1):
        yield {"embedding": [1.0, 0.0001 * number, 0.0, 0.1]}


def until_whole(api: Api, policy_id: str, asked: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Ask in new wordings until one has been answered from memory; the answer."""
    before = from_memory(api, "semantic")
    for _ in range(100):
        reply = api.lookup(policy_id, **next(asked))
        assert reply["tier"] == "semantic", reply
        if from_memory(api, "semantic") > before + 1:
            return reply
    raise AssertionError("no new wording was answered from memory")


def test_a_new_wording_comes_from_memory_and_is_told_as_before(
    b: Api, module_database_url: str
) -> None:
    policy_id, asked = b.policy(), wordings()
    entry = b.put(policy_id, embedding=VECTOR, prompt_text="why?")
    first = b.lookup(policy_id, **next(asked))
    reply = until_whole(b, policy_id, asked)
    assert reply["entry_id"] == entry["entry_id"]
    told = ("tier", "reason", "response", "expires_at", "generation")
    assert {name: reply[name] for name in told} == {name: first[name] for name in told}
    assert b.metrics()['cachesvc_hot_cell_reads_total{outcome="kept"}'] >= 1
    assert b.metrics()["cachesvc_hot_entries"] >= 2
    # Changed past the service, so that nobody is told: who still says the old asked no database.
    execute(module_database_url, "UPDATE entries SET body = '{\"answer\": 43}'")
    assert b.lookup(policy_id, **next(asked))["response"] == first["response"]


@pytest.mark.parametrize("change", CHANGES)
def test_so_does_the_other_know_it_for_new_wordings(api: Api, b: Api, change: str) -> None:
    policy_id, asked = api.policy(), wordings()
    entry = api.put(policy_id, exact_key=KEY, embedding=VECTOR, tags=["faq"])["entry_id"]
    until_whole(b, policy_id, asked)
    until_whole(api, policy_id, asked)
    CHANGES[change](api, policy_id, entry)
    changed = time.monotonic()
    assert answered(api, policy_id, next(asked)) != entry, "the replica that changed it, at once"
    time.sleep(max(0.0, changed + BOUND_SECONDS - time.monotonic()))
    assert answered(b, policy_id, next(asked)) != entry
