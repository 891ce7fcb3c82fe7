"""Policies, purge, one entry, stats; and who may do what."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from cachesvc.core.policy import Policy, resolve
from tests.service.serving import CALLERS, KEY, Api, execute, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.serving import Running

NO_ENTRY = "00000000-0000-0000-0000-000000000000"


def test_an_empty_policy_gets_every_default(api: Api) -> None:
    made = api.call("PUT", "/policies/plain", {})
    assert made.status_code == 201
    expected = resolve(Policy(), "plain", 1)
    shown = {name: getattr(expected, name) for name in expected.__struct_fields__}
    assert made.json() == {
        name: list(value) if isinstance(value, tuple) else value for name, value in shown.items()
    }
    again = api.call("PUT", "/policies/plain", made.json())
    assert again.status_code == 200
    assert again.json() == made.json()
    assert api.ok("GET", "/policies/plain") == made.json()
    assert made.json() in api.ok("GET", "/policies")["policies"]


def test_put_replaces_a_policy_whole(api: Api) -> None:
    policy = api.policy(threshold=0.5, ttl_seconds=7)
    changed = api.change(policy, ttl_seconds=8)
    assert (changed["threshold"], changed["ttl_seconds"]) == (0.92, 8)


def test_null_is_the_default_and_generation_is_read_only(api: Api) -> None:
    policy = api.policy(threshold=None, mode=None, max_entries=None, generation=99)
    shown = api.ok("GET", f"/policies/{policy}")
    assert (shown["threshold"], shown["mode"], shown["generation"]) == (0.92, "live", 1)


def test_a_deleted_policy_is_gone_with_what_it_held(api: Api) -> None:
    policy = api.policy()
    entry = api.put(policy, exact_key=KEY)["entry_id"]
    gone = api.call("DELETE", f"/policies/{policy}")
    assert (gone.status_code, gone.content) == (204, b"")
    assert "content-type" not in gone.headers
    for method in ("GET", "DELETE"):
        reply = api.call(method, f"/policies/{policy}")
        assert refused(reply, 404, "NOT_FOUND") == "cache_policy not found"
    refused(api.call("GET", f"/cache/entries/{entry}"), 404, "NOT_FOUND")
    assert policy not in [one["id"] for one in api.ok("GET", "/policies")["policies"]]


@pytest.mark.parametrize("policy_id", ["a%20b", "%00", "x" * 129, "%D0%B6"])
def test_an_id_that_no_policy_can_have_is_422(api: Api, policy_id: str) -> None:
    for method in ("GET", "PUT", "DELETE"):
        body = b"{}" if method == "PUT" else None
        refused(api.call(method, f"/policies/{policy_id}", body), 422, "INVALID", "policy_id")


def test_a_purge_removes_what_all_its_selectors_select(api: Api) -> None:
    policy = api.policy()
    for number, tags in enumerate((["a"], ["a", "b"], ["b"])):
        api.put(
            policy, exact_key=f"{number:064}", scope=f"s{number}", tags=tags, prompt_text="hello?"
        )
    assert api.purge(policy_id=policy, tags=["a"], dry_run=True) == {
        "matched": 2,
        "purged": 0,
        "dry_run": True,
    }
    assert api.lookup(policy, exact_key="0" * 64, scope="s0")["generation"] == 1
    purged = api.purge(policy_id=policy, tags=["a"], scope="s1", prompt_text="hello?")
    assert purged == {"matched": 1, "purged": 1, "dry_run": False}
    assert api.lookup(policy, exact_key="0" * 64, scope="s0")["generation"] == 2
    assert not api.lookup(policy, exact_key=f"{1:064}", scope="s1")["hit"]
    assert api.purge(policy_id=policy, older_than_seconds=1000)["purged"] == 0
    assert api.purge(policy_id=policy)["purged"] == 2
    reply = api.call("POST", "/cache/purge", {"policy_id": "there-is-none"})
    assert refused(reply, 404, "NOT_FOUND") == "cache_policy not found"


def test_a_purged_wording_matches_only_what_came_after(api: Api) -> None:
    policy, north, near = api.policy(threshold=0.9), [1.0, 0.0], [0.95, 0.3122499]
    api.put(policy, exact_key=KEY, embedding=north, response={"n": "old"})
    api.purge(policy_id=policy)
    assert not api.lookup(policy, exact_key=KEY, embedding=near)["hit"]
    api.put(policy, exact_key="cd" * 32, embedding=near, response={"n": "new"})
    reply = api.lookup(policy, exact_key=KEY, embedding=north)
    assert (reply["tier"], reply["response"]) == ("semantic", {"n": "new"})


def test_deleting_an_entry_is_a_purge(api: Api) -> None:
    policy = api.policy()
    entry = api.put(policy, exact_key=KEY)["entry_id"]
    gone = api.call("DELETE", f"/dp/cache/entries/{entry}")
    assert (gone.status_code, gone.content) == (204, b"")
    reply = api.lookup(policy, exact_key=KEY)
    assert (reply["hit"], reply["generation"]) == (False, 2)
    for method in ("GET", "DELETE"):
        for absent in (entry, NO_ENTRY, "no-uuid", "%00"):
            reply_ = api.call(method, f"/cache/entries/{absent}")
            assert refused(reply_, 404, "NOT_FOUND") == "entry not found"


def test_no_tags_select_nothing_and_leave_the_other_selectors_alone(api: Api) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY, scope="a", tags=["t"])
    api.put(policy, exact_key=KEY, scope="b")
    reply = api.call("POST", "/cache/purge", {"tags": []})
    refused(reply, 400, "BAD_REQUEST", "at least one")
    assert api.purge(policy_id=policy, scope="a", tags=[])["purged"] == 1
    assert api.lookup(policy, exact_key=KEY, scope="b")["hit"]


def test_an_expired_entry_is_shown_and_deleted_alike(api: Api, module_database_url: str) -> None:
    policy = api.policy()
    entry = api.put(policy, exact_key=KEY)["entry_id"]
    execute(
        module_database_url,
        f"UPDATE entries SET exact_expires_at = now() - interval '1 s' WHERE id = '{entry}'",
    )
    assert not api.lookup(policy, exact_key=KEY)["hit"]
    assert api.call("GET", f"/cache/entries/{entry}").status_code == 200
    assert api.call("DELETE", f"/cache/entries/{entry}").status_code == 204
    for method in ("GET", "DELETE"):
        refused(api.call(method, f"/cache/entries/{entry}"), 404, "NOT_FOUND")


def test_a_purged_entry_is_gone_for_both_though_its_row_is_still_there(
    api: Api, module_database_url: str
) -> None:
    policy = api.policy()
    entry = api.put(policy, exact_key=KEY)["entry_id"]
    execute(
        module_database_url,
        "UPDATE policies SET generation = 5, oldest_generation = 5, revision = revision + 1"
        f" WHERE id = '{policy}'",
    )
    for method in ("GET", "DELETE"):
        refused(api.call(method, f"/cache/entries/{entry}"), 404, "NOT_FOUND")
    assert api.ok("GET", f"/policies/{policy}")["generation"] == 5


def test_stats_tell_what_is_held_and_what_was_done(api: Api) -> None:
    policy = api.policy()
    api.put(
        policy,
        exact_key=KEY,
        response="12345678",
        prompt_tokens=3,
        completion_tokens=4,
        upstream_ms=250,
    )
    api.lookup(policy, exact_key=KEY)
    api.lookup(policy, exact_key="cd" * 32)
    api.lookup(policy, embedding=[1.0])
    found = api.ok("GET", "/stats")
    assert found["tenant"] == "default"
    shown = next(one for one in found["policies"] if one["policy_id"] == policy)
    assert shown.pop("oldest_created_at").endswith("Z")
    assert shown == {
        "policy_id": policy,
        "entries": 1,
        "aliases": 0,
        "shadow_hits": 0,
        "body_bytes": 10,
        "generation": 1,
        "hits": 1,
        "misses": 2,
        "puts": 1,
        "prompt_tokens_saved": 3,
        "completion_tokens_saved": 4,
        "upstream_seconds_saved": 0.25,
    }


@pytest.fixture(scope="module")
def callers(running: Running) -> Iterator[dict[str, Api]]:
    made = {name: Api(running.url, name) for name in CALLERS}
    yield made
    for one in made.values():
        one.close()


ACTIONS: dict[str, tuple[str, str, Any]] = {
    "lookup": ("POST", "/cache/lookup", {"policy_id": "p", "exact_key": KEY}),
    "put": ("POST", "/cache/put", {"policy_id": "p", "exact_key": KEY, "response": 1}),
    "list": ("GET", "/policies", None),
    "show": ("GET", "/policies/p", None),
    "save": ("PUT", "/policies/p", {"sharing": "shared"}),
    "delete": ("DELETE", "/policies/absent", None),
    "purge": ("POST", "/cache/purge", {"policy_id": "p"}),
    "entries": ("GET", "/cache/entries", None),
    "feedback": ("POST", "/cache/feedback", {"entry_id": NO_ENTRY, "verdict": "wrong"}),
    "entry": ("GET", f"/cache/entries/{NO_ENTRY}", None),
    "delete entry": ("DELETE", f"/cache/entries/{NO_ENTRY}", None),
    "stats": ("GET", "/stats", None),
}
MAY = {
    "acme-lookup": {"lookup"},
    "acme-put": {"put"},
    "acme-feedback": {"feedback"},
    "acme-data": {"lookup", "put", "feedback", "list", "show"},
    "acme-admin": set(ACTIONS),
}


@pytest.mark.parametrize("caller", MAY)
def test_a_role_grants_what_it_says_and_nothing_more(callers: dict[str, Api], caller: str) -> None:
    callers["acme-admin"].ok("PUT", "/policies/p", {"sharing": "shared"})
    allowed = set()
    for action, (method, path, body) in ACTIONS.items():
        reply = callers[caller].call(method, path, body)
        if reply.status_code != 403:
            assert reply.status_code in (200, 404), (action, reply.text)
            allowed.add(action)
        else:
            needed = action if action in ("lookup", "put", "feedback") else "admin"
            refused(reply, 403, "FORBIDDEN", "role", repr(needed))
    assert allowed == MAY[caller]


def test_a_role_is_refused_before_any_query(nowhere: Api) -> None:
    with closing(Api(str(nowhere.http.base_url), "acme-feedback")) as caller:
        for method, path, body in (ACTIONS[name] for name in ACTIONS if name != "feedback"):
            refused(caller.call(method, path, body), 403, "FORBIDDEN", "role")


def test_who_is_not_known_is_401(running: Running) -> None:
    with closing(Api(running.url, "stranger")) as stranger:
        for method, path, body in ACTIONS.values():
            refused(stranger.call(method, path, body), 401, "UNAUTHENTICATED")
        assert stranger.call("GET", "/livez").status_code == 200
