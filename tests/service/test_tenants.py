"""Two tenants with the same policies, keys, scopes and vectors never see each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.service.serving import KEY, MESSAGEPACK, Api, outcome, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.serving import Running

VECTOR = [0.6, 0.8]
SAME = {"exact_key": KEY, "embedding": VECTOR, "scope": "team", "space": "s", "partition": KEY}


@pytest.fixture(scope="module")
def acme(running: Running) -> Iterator[Api]:
    api = Api(running.url, "acme")
    yield api
    api.close()


@pytest.fixture(scope="module")
def globex(running: Running) -> Iterator[Api]:
    api = Api(running.url, "globex")
    yield api
    api.close()


@pytest.fixture
def policy(acme: Api, globex: Api) -> str:
    """A policy that both tenants have under the same id."""
    policy_id = acme.policy()
    globex.change(policy_id)
    return policy_id


def test_a_tenant_is_never_answered_with_anothers_entry(
    acme: Api, globex: Api, policy: str
) -> None:
    acme.put(policy, **SAME)
    for asked in (
        SAME,
        {"exact_key": KEY, "scope": "team"},
        {"embedding": VECTOR, "scope": "team", "space": "s", "partition": KEY},
        {**SAME, "after_exact": True},
    ):
        assert outcome(globex.lookup(policy, **asked)) == (None, "no_entry")
        assert acme.lookup(policy, **asked)["hit"]


def test_a_tenants_policy_never_decides_for_another(acme: Api, globex: Api) -> None:
    """Both have been changed as often, so that only the tenant tells them apart."""
    strict = acme.policy(threshold=0.99)
    globex.change(strict, threshold=0.5)
    near = {"embedding": [0.95, 0.3122499]}
    for api in (acme, globex):
        api.put(strict, embedding=[1.0, 0.0])
    for _ in range(2):
        assert outcome(acme.lookup(strict, **near)) == (None, "below_threshold")
        assert globex.lookup(strict, **near)["hit"]


def test_a_tenant_named_in_a_body_or_a_header_changes_nothing(
    acme: Api, globex: Api, policy: str
) -> None:
    acme.put(policy, **SAME)
    body = {"policy_id": policy, **SAME, "tenant": "acme"}
    headers = {"x_tenant": "acme", "x_forwarded_client_cert": "URI=acme"}
    assert not globex.ok("POST", "/cache/lookup", body, **headers)["hit"]


def test_another_tenants_policy_is_not_there(acme: Api, globex: Api) -> None:
    policy = acme.policy()
    acme.put(policy, **SAME)
    for path, body in (
        ("/cache/lookup", {"policy_id": policy, **SAME}),
        ("/cache/put", {"policy_id": policy, **SAME, "response": 1}),
        ("/cache/purge", {"policy_id": policy}),
    ):
        refused(globex.call("POST", path, body), 404, "NOT_FOUND", "cache_policy not found")
    for method in ("GET", "DELETE"):
        refused(globex.call(method, f"/policies/{policy}"), 404, "NOT_FOUND")
    assert policy not in str(globex.ok("GET", "/policies"))
    assert policy not in str(globex.ok("GET", "/stats"))
    assert acme.lookup(policy, **SAME)["hit"]


def test_another_tenants_entry_is_not_there(acme: Api, globex: Api, policy: str) -> None:
    entry = acme.put(policy, **SAME)["entry_id"]
    for method in ("GET", "DELETE"):
        reply = globex.call(method, f"/cache/entries/{entry}")
        assert refused(reply, 404, "NOT_FOUND") == "entry not found"
    assert globex.purge(entry_id=entry) == {"matched": 0, "purged": 0, "dry_run": False}
    assert globex.purge(entry_id=entry, dry_run=True)["matched"] == 0
    assert acme.ok("GET", f"/cache/entries/{entry}")["entry_id"] == entry
    assert acme.lookup(policy, **SAME)["generation"] == 1


@pytest.mark.parametrize(
    "selectors",
    [{"scope": "team"}, {"prompt_text": ""}, {"tags": ["t"]}, {"model": "m"}, {"policy_id": ""}],
    ids=lambda selectors: next(iter(selectors)),
)
def test_a_purge_stays_with_its_tenant(
    acme: Api, globex: Api, policy: str, selectors: dict[str, Any]
) -> None:
    acme.put(policy, **SAME, tags=["t"], model="m")
    globex.put(policy, **SAME, tags=["t"], model="m")
    if "policy_id" in selectors:
        selectors = {"policy_id": policy}
    assert globex.purge(**selectors)["purged"] >= 1
    assert not globex.lookup(policy, **SAME)["hit"]
    assert acme.lookup(policy, **SAME)["hit"]


def test_an_alias_stays_with_its_tenant(acme: Api, globex: Api, policy: str) -> None:
    entry = acme.put(policy, **SAME)["entry_id"]
    asked = {**SAME, "exact_key": "cd" * 32}
    assert acme.lookup(policy, **asked)["tier"] == "semantic"
    acme.wait_for_alias(entry)
    assert outcome(acme.lookup(policy, **asked)) == ("exact", "alias")
    assert outcome(globex.lookup(policy, **asked)) == (None, "no_entry")


def test_deleting_a_policy_leaves_the_other_tenants_alone(
    acme: Api, globex: Api, policy: str
) -> None:
    acme.put(policy, **SAME)
    globex.ok("DELETE", f"/policies/{policy}")
    assert acme.lookup(policy, **SAME)["hit"]


def test_generations_are_a_tenants_own(acme: Api, globex: Api, policy: str) -> None:
    globex.purge(policy_id=policy)
    assert acme.lookup(policy, **SAME)["generation"] == 1
    assert acme.put(policy, **SAME, generation=1)["stored"]
    assert globex.put(policy, **SAME, generation=1)["reason"] == "stale_generation"


def test_counters_of_stats_are_a_tenants_own(running: Running, acme: Api, policy: str) -> None:
    packed = Api(running.url, "globex", MESSAGEPACK)
    for _ in range(3):
        packed.lookup(policy, **SAME)
    packed.close()
    mine = [one for one in acme.ok("GET", "/stats")["policies"] if one["policy_id"] == policy]
    assert (mine[0]["hits"], mine[0]["misses"]) == (0, 0)
