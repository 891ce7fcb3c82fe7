"""`/cache/lookup`: exact, then nearest, then decide."""

from __future__ import annotations

import re
from contextlib import closing
from typing import Any

import pytest

from tests.service.serving import KEY, Api, Running, outcome, refused

OTHER_KEY = "cd" * 32
NORTH, NEAR, EAST = [1.0, 0.0, 0.0], [0.95, 0.3122499, 0.0], [0.0, 1.0, 0.0]  # NORTH·NEAR = 0.95


def test_an_exact_hit_tells_everything_about_the_entry(api: Api) -> None:
    policy = api.policy(ttl_seconds=100)
    stored = api.put(policy, exact_key=KEY, prompt_tokens=5, completion_tokens=6)
    reply = api.lookup(policy, exact_key=KEY)
    assert reply.pop("expires_at") == stored["expires_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", stored["expires_at"])
    assert reply == {
        "hit": True,
        "tier": "exact",
        "reason": "exact",
        "prompt_tokens": 5,
        "completion_tokens": 6,
        "similarity": 1.0,
        "generation": 1,
        "entry_id": stored["entry_id"],
        "age_seconds": 0,
        "response": {"answer": 42},
    }


def test_a_miss_is_200_and_tells_the_best_similarity_and_no_entry(api: Api) -> None:
    policy = api.policy()
    assert api.lookup(policy, embedding=NORTH) == {
        "hit": False,
        "tier": None,
        "reason": "no_entry",
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "similarity": 0.0,
        "generation": 1,
    }
    api.put(policy, embedding=NEAR)
    reply = api.lookup(policy, embedding=NORTH, threshold=0.99)
    assert outcome(reply) == (None, "below_threshold")
    assert reply["similarity"] == pytest.approx(0.95, abs=1e-3)
    assert not reply.keys() & {"entry_id", "response", "body", "expires_at", "age_seconds"}


def test_exact_comes_before_nearest(api: Api) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY, embedding=EAST, response={"from": "exact"})
    api.put(policy, exact_key=OTHER_KEY, embedding=NORTH, response={"from": "nearest"})
    reply = api.lookup(policy, exact_key=KEY, embedding=NORTH)
    assert (outcome(reply), reply["response"]) == (("exact", "exact"), {"from": "exact"})


def test_nearest_answers_where_exact_has_nothing(api: Api) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY, embedding=NORTH)
    reply = api.lookup(policy, exact_key=OTHER_KEY, embedding=NEAR)
    assert outcome(reply) == ("semantic", "semantic")
    assert round(reply["similarity"], 6) == reply["similarity"]
    assert 0.92 <= reply["similarity"] < 1


def test_after_exact_skips_the_exact_tier(api: Api) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY, embedding=NORTH)
    reply = api.lookup(policy, exact_key=KEY, embedding=EAST, after_exact=True)
    assert outcome(reply) == (None, "below_threshold")


def test_keys_match_in_any_case(api: Api) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY.upper(), partition="AB" * 32, embedding=NORTH)
    assert api.lookup(policy, exact_key=KEY)["hit"]
    assert api.lookup(policy, partition="ab" * 32, embedding=NORTH)["hit"]


def test_a_partition_is_compared_only_with_itself(api: Api) -> None:
    policy, one, other = api.policy(), "11" * 32, "22" * 32
    api.put(policy, partition=one, embedding=NORTH)
    assert api.lookup(policy, partition=one, embedding=NORTH)["hit"]
    assert outcome(api.lookup(policy, partition=other, embedding=NORTH)) == (None, "no_entry")
    assert outcome(api.lookup(policy, embedding=NORTH)) == (None, "no_entry")


def test_scope_space_and_dimension_are_never_widened(api: Api) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY, embedding=NORTH, scope="a", space="s")
    hit = {"scope": "a", "space": "s", "embedding": NORTH}
    assert api.lookup(policy, **hit)["hit"]
    for change in ({"scope": "b"}, {"scope": None}, {"space": "t"}, {"embedding": [1.0, 0.0]}):
        assert outcome(api.lookup(policy, **{**hit, **change})) == (None, "no_entry")
    assert outcome(api.lookup(policy, exact_key=KEY, scope="b")) == (None, "no_entry")


@pytest.mark.parametrize("scope", [None, ""])
def test_without_a_scope_only_a_policy_that_shares_answers(api: Api, scope: str | None) -> None:
    policy = api.policy(sharing="credential")
    put = api.put(policy, exact_key=KEY, scope=scope)
    assert put == {
        "entry_id": None,
        "expires_at": None,
        "stored": False,
        "reason": "scope_required",
    }
    assert outcome(api.lookup(policy, exact_key=KEY, scope=scope)) == (None, "scope_required")
    api.put(policy, exact_key=KEY, scope="me")
    assert api.lookup(policy, exact_key=KEY, scope="me")["hit"]
    api.change(policy, sharing="shared")
    assert outcome(api.lookup(policy, exact_key=KEY, scope=scope)) == (None, "no_entry")


def test_a_caller_may_tighten_the_threshold_and_never_loosen_it(api: Api) -> None:
    """0.95 is what is seen."""
    policy = api.policy(threshold=0.96)
    api.put(policy, embedding=NEAR)

    def hits(threshold: float | None) -> bool:
        return bool(api.lookup(policy, embedding=NORTH, threshold=threshold)["hit"])

    assert [hits(asked) for asked in (None, 0.0, 0.94, 0.96)] == [False] * 4
    api.change(policy, threshold=0.96, threshold_floor=0.94)
    assert [hits(asked) for asked in (None, 0.0, 0.94, 0.96)] == [False, True, True, False]
    api.change(policy, threshold=0.94)
    assert [hits(asked) for asked in (None, 0.0, 0.96, 1.0)] == [True, True, False, False]


def test_nothing_that_is_not_alike_ever_hits(api: Api) -> None:
    policy = api.policy(threshold=0, threshold_floor=0)
    api.put(policy, embedding=NORTH)
    for vector in (EAST, [-1.0, 0.0, 0.0]):
        reply = api.lookup(policy, embedding=vector, threshold=0)
        assert outcome(reply) == (None, "below_threshold")
        assert reply["similarity"] <= 0


def test_the_nearest_of_several_answers(api: Api) -> None:
    policy = api.policy(threshold=0.5)
    for number, vector in enumerate(([0.9, 0.5, 0.0], NEAR, [0.8, 0.7, 0.0])):
        api.put(policy, embedding=vector, prompt_text=str(number), response={"n": number})
    assert api.lookup(policy, embedding=NORTH)["response"] == {"n": 1}
    assert api.lookup(policy, embedding=NORTH, top_k=1)["response"] == {"n": 1}


def test_a_tier_that_is_off_is_skipped(api: Api) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY, embedding=NORTH)
    exact, nearest = {"exact_key": KEY}, {"embedding": NORTH}
    api.change(policy, tiers=["semantic"])
    assert outcome(api.lookup(policy, **exact)) == (None, "tier_off")
    assert outcome(api.lookup(policy, **exact, **nearest)) == ("semantic", "semantic")
    api.change(policy, tiers=["exact"])
    assert outcome(api.lookup(policy, **nearest)) == (None, "tier_off")
    assert outcome(api.lookup(policy, **exact, **nearest, after_exact=True)) == (None, "tier_off")
    assert outcome(api.lookup(policy, **exact, **nearest)) == ("exact", "exact")


@pytest.mark.parametrize("off", [{"enabled": False}, {"mode": "off"}])
def test_a_policy_that_is_off_is_a_miss_and_stores_nothing(api: Api, off: dict[str, Any]) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY)
    api.change(policy, **off)
    assert outcome(api.lookup(policy, exact_key=KEY)) == (None, "no_policy")
    reply = api.put(policy, exact_key=OTHER_KEY)
    assert (reply["stored"], reply["reason"]) == (False, "no_policy")
    api.change(policy)
    assert api.lookup(policy, exact_key=KEY)["hit"]
    assert not api.lookup(policy, exact_key=OTHER_KEY)["hit"]


def test_shadow_judges_and_serves_nothing(api: Api) -> None:
    policy = api.policy(mode="shadow")
    assert api.put(policy, exact_key=KEY, embedding=NORTH)["stored"]
    for asked in ({"exact_key": KEY}, {"embedding": NORTH}):
        reply = api.lookup(policy, **asked)
        assert outcome(reply) == (None, "shadow")
        assert reply["similarity"] == 1.0
        assert not reply.keys() & {"entry_id", "response", "expires_at"}
    far = api.lookup(policy, embedding=EAST)
    assert (outcome(far), far["similarity"]) == ((None, "shadow"), 0.0)


def test_what_the_database_answers_goes_by_the_policy_in_force(
    module_database_url: str, other_replica: Api
) -> None:
    """This replica remembers the policy; another one changes it. No query goes by the old one."""
    with (
        Running(module_database_url, {"hot_bytes": 0}) as service,
        closing(Api(service.url)) as api,
    ):
        _follow_the_policy(api, other_replica)


def _follow_the_policy(api: Api, other_replica: Api) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY, embedding=NORTH)
    assert api.lookup(policy, exact_key=KEY)["hit"]
    changes: list[tuple[dict[str, Any], tuple[str | None, str]]] = [
        ({"mode": "off"}, (None, "no_policy")),
        ({}, ("exact", "exact")),
        ({"sharing": "credential"}, (None, "scope_required")),
        ({}, ("exact", "exact")),
        ({"tiers": ["semantic"]}, (None, "tier_off")),
        ({"mode": "shadow"}, (None, "shadow")),
        ({}, ("exact", "exact")),
    ]
    for change, expected in changes:
        other_replica.change(policy, **change)
        assert outcome(api.lookup(policy, exact_key=KEY)) == expected
    other_replica.change(policy, threshold=0.99)
    assert outcome(api.lookup(policy, embedding=NEAR)) == (None, "below_threshold")
    other_replica.change(policy, threshold=0.9)
    assert api.lookup(policy, embedding=NEAR)["hit"]
    other_replica.ok("DELETE", f"/policies/{policy}")
    asked = {"policy_id": policy, "exact_key": KEY}
    refused(api.call("POST", "/cache/lookup", asked), 404, "NOT_FOUND")
    other_replica.change(policy)
    assert outcome(api.lookup(policy, exact_key=KEY)) == (None, "no_entry")


def test_an_unknown_policy_is_404_in_the_known_words(api: Api) -> None:
    for path in ("/cache/lookup", "/cache/put"):
        body = {"policy_id": "there-is-none", "exact_key": KEY, "response": 1}
        reply = api.call("POST", path, body)
        assert refused(reply, 404, "NOT_FOUND") == "cache_policy not found"


def test_unknown_fields_and_nulls_are_as_if_absent(api: Api) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY, tags=None, ttl_seconds=None, unknown={"a": [1]}, scope=None)
    reply = api.lookup(policy, exact_key=KEY, embedding=None, threshold=None, top_k=None, new=1)
    assert reply["hit"]


def test_a_candidate_older_than_asked_is_skipped(api: Api) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY, embedding=NORTH)
    for asked in ({"exact_key": KEY}, {"embedding": NORTH}):
        assert api.lookup(policy, **asked, max_age_seconds=1e308)["hit"]
        assert api.lookup(policy, **asked, max_age_seconds=60)["hit"]
        assert not api.lookup(policy, **asked, max_age_seconds=0)["hit"]


def test_lookup_answers_under_dp_too(api: Api) -> None:
    policy = api.policy()
    api.ok("POST", "/dp/cache/put", {"policy_id": policy, "exact_key": KEY, "response": 1})
    assert api.ok("POST", "/dp/cache/lookup", {"policy_id": policy, "exact_key": KEY})["hit"]
