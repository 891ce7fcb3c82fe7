"""`POST /cache/purge`: every selector alone and and-ed, within one tenant."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.serving import KEY, Api, fetch, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.serving import Running

NORTH, NEAR = [1.0, 0.0, 0.0], [0.95, 0.3122499, 0.0]
PARAPHRASE = "cd" * 32
SHELF: dict[str, dict[str, Any]] = {
    "plain": {},
    "scoped": {"scope": "alice"},
    "red": {"tags": ["red"]},
    "red and blue": {"tags": ["red", "blue"], "scope": "alice"},
    "gpt": {"model": "gpt"},
}


@pytest.fixture(scope="module")
def tenants(running: Running) -> Iterator[tuple[Api, Api]]:
    """Two tenants; only the first one ever purges."""
    made = Api(running.url, "acme"), Api(running.url, "globex")
    yield made
    for one in made:
        one.close()


def fill(api: Api, policy: str) -> dict[str, str]:
    """Entry ids by name."""
    return {
        name: api.put(policy, exact_key=f"{n:064x}", prompt_text=name, **fields)["entry_id"]
        for n, (name, fields) in enumerate(SHELF.items())
    }


def left(api: Api, policy: str) -> set[str]:
    entries = api.ok("GET", f"/cache/entries?policy_id={policy}")["entries"]
    return {entry["prompt_text"] for entry in entries}


SELECTORS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "policy": ({"policy_id": True}, set(SHELF)),
    "scope": ({"scope": "alice"}, {"scoped", "red and blue"}),
    "empty scope": ({"scope": ""}, {"plain", "red", "gpt"}),
    "tag": ({"tags": ["red"]}, {"red", "red and blue"}),
    "tags": ({"tags": ["red", "blue"]}, {"red and blue"}),
    "model": ({"model": "gpt"}, {"gpt"}),
    "prompt": ({"prompt_text": "plain"}, {"plain"}),
    "part of a prompt": ({"prompt_text": "plai"}, set()),
    "age": ({"older_than_seconds": 0}, set(SHELF)),
    "great age": ({"older_than_seconds": 3600}, set()),
    "entry": ({"entry_id": "red"}, {"red"}),
    "tag and scope": ({"tags": ["red"], "scope": "alice"}, {"red and blue"}),
    "entry and another scope": ({"entry_id": "red", "scope": "alice"}, set()),
    "all of them": (
        {
            "policy_id": True,
            "scope": "alice",
            "tags": ["red"],
            "model": "",
            "older_than_seconds": 0,
            "prompt_text": "red and blue",
            "entry_id": "red and blue",
        },
        {"red and blue"},
    ),
}


@pytest.mark.parametrize("case", SELECTORS)
def test_selectors_select_alone_and_together_and_stay_with_their_tenant(
    tenants: tuple[Api, Api], case: str
) -> None:
    api, stranger = tenants
    selectors, expected = SELECTORS[case]
    api.purge(older_than_seconds=0)
    policy = api.policy()
    stranger.ok("PUT", f"/policies/{policy}", {"sharing": "shared"})
    ids = fill(api, policy)
    fill(stranger, policy)
    selectors = dict(selectors)
    if "policy_id" in selectors:
        selectors["policy_id"] = policy
    if "entry_id" in selectors:
        selectors["entry_id"] = ids[selectors["entry_id"]]
    told = api.purge(**selectors, dry_run=True)
    assert told == {"matched": len(expected), "purged": 0, "dry_run": True}
    assert left(api, policy) == set(SHELF)
    told = api.purge(**selectors)
    assert told == {"matched": len(expected), "purged": len(expected), "dry_run": False}
    assert left(api, policy) == set(SHELF) - expected
    assert left(stranger, policy) == set(SHELF)
    for name in SHELF:
        reply = stranger.lookup(
            policy,
            exact_key=f"{list(SHELF).index(name):064x}",
            **({"scope": SHELF[name]["scope"]} if "scope" in SHELF[name] else {}),
        )
        assert reply["hit"]
        assert reply["generation"] == 1


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_policy_that_is_unknown_or_anothers_is_404(
    tenants: tuple[Api, Api], dry_run: bool
) -> None:
    api, stranger = tenants
    theirs = stranger.policy()
    for policy in ("never", theirs):
        body = {"policy_id": policy, "scope": "s", "dry_run": dry_run}
        reply = api.call("POST", "/cache/purge", body)
        assert refused(reply, 404, "NOT_FOUND") == "cache_policy not found"


def test_anothers_entry_is_not_selected(tenants: tuple[Api, Api]) -> None:
    api, stranger = tenants
    policy = stranger.policy()
    entry = stranger.put(policy, exact_key=KEY)["entry_id"]
    assert api.purge(entry_id=entry) == {"matched": 0, "purged": 0, "dry_run": False}
    assert stranger.lookup(policy, exact_key=KEY)["hit"]


def test_aliases_go_and_verdicts_stay(api: Api, module_database_url: str) -> None:
    policy = api.policy(threshold=0.9)
    entry = api.put(policy, exact_key=KEY, embedding=NORTH, tags=["t"])["entry_id"]
    api.lookup(policy, exact_key=PARAPHRASE, embedding=NEAR)
    api.wait_for_alias(entry)
    api.ok("POST", "/cache/feedback", {"entry_id": entry, "verdict": "right"})
    assert api.purge(policy_id=policy, tags=["t"])["purged"] == 1
    for table, rows in (("aliases", 0), ("verdicts", 1)):
        query = f"SELECT count(*) FROM {table} WHERE policy_id = '{policy}'"
        assert fetch(module_database_url, query) == [(rows,)]


def test_a_quarantined_entry_is_purged_like_any_other(api: Api) -> None:
    policy = api.policy()
    entry = api.put(policy, exact_key=KEY)["entry_id"]
    api.ok("POST", "/cache/feedback", {"entry_id": entry, "verdict": "wrong"})
    assert api.purge(policy_id=policy, scope="")["purged"] == 1
    assert api.lookup(policy, exact_key=KEY)["reason"] == "no_entry"


@pytest.mark.parametrize("change", ["wording", "vector", "both"])
def test_a_refresh_leaves_no_stale_twin_in_either_tier(api: Api, change: str) -> None:
    """Of one exact key: whatever else is new, the old answer is nowhere."""
    policy, east = api.policy(threshold=0.9), [0.0, 1.0, 0.0]
    api.put(policy, exact_key=KEY, embedding=NORTH, prompt_text="old?", response="old")
    vector = NORTH if change == "wording" else east
    wording = "old?" if change == "vector" else "new?"
    api.put(policy, exact_key=KEY, embedding=vector, prompt_text=wording, response="new")
    assert api.lookup(policy, exact_key=KEY)["response"] == "new"
    assert api.lookup(policy, embedding=vector)["response"] == "new"
    found = api.lookup(policy, embedding=NORTH)
    assert found.get("response") == ("new" if change == "wording" else None)
    assert len(api.ok("GET", f"/cache/entries?policy_id={policy}")["entries"]) == 1


def test_a_late_writer_of_before_the_purge_changes_nothing(api: Api) -> None:
    policy = api.policy()
    before = api.lookup(policy, exact_key=KEY)["generation"]
    api.purge(policy_id=policy, tags=["none"])
    api.put(policy, exact_key=KEY, response="young", generation=before + 1)
    late = api.put(policy, exact_key=KEY, response="late", generation=before)
    assert (late["stored"], late["reason"]) == (False, "stale_generation")
    assert api.lookup(policy, exact_key=KEY)["response"] == "young"


@pytest.mark.parametrize(("asked", "lives"), [(5, 5), (10_000, 60)])
def test_an_asked_ttl_caps_both_tiers_and_the_alias(api: Api, asked: int, lives: int) -> None:
    policy = api.policy(threshold=0.9, ttl_seconds=60)
    put = api.put(policy, exact_key=KEY, embedding=NORTH, ttl_seconds=asked)
    shown = api.ok("GET", f"/cache/entries/{put['entry_id']}")
    assert shown["exact_expires_at"] == shown["semantic_expires_at"] == put["expires_at"]
    made, ends = (datetime.fromisoformat(shown[f]) for f in ("created_at", "exact_expires_at"))
    assert (ends - made).total_seconds() == lives
    assert api.lookup(policy, embedding=NORTH)["expires_at"] == put["expires_at"]
    api.lookup(policy, exact_key=PARAPHRASE, embedding=NEAR)
    api.wait_for_alias(put["entry_id"])
    alias = api.lookup(policy, exact_key=PARAPHRASE)
    assert alias["reason"] == "alias"
    assert alias["expires_at"] <= put["expires_at"]
