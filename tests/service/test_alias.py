"""An alias: left by a semantic hit asked with an exact key, gone with what it stands on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.service.serving import KEY, outcome

if TYPE_CHECKING:
    from tests.service.serving import Api

PARAPHRASE, THIRD = "cd" * 32, "ef" * 32
NORTH, NEAR = [1.0, 0.0, 0.0], [0.95, 0.3122499, 0.0]  # cosine 0.95


def aliased(api: Api, **fields: Any) -> tuple[str, str]:
    """(policy, entry) where PARAPHRASE is an alias of KEY's entry."""
    policy = api.policy(threshold=0.9, **fields)
    entry = api.put(policy, exact_key=KEY, embedding=NORTH)["entry_id"]
    hit = api.lookup(policy, exact_key=PARAPHRASE, embedding=NEAR, after_exact=True)
    assert outcome(hit) == ("semantic", "semantic")
    api.wait_for_alias(entry)
    return policy, entry


def exact(api: Api, policy: str, **fields: Any) -> tuple[str | None, str]:
    return outcome(api.lookup(policy, exact_key=PARAPHRASE, **fields))


def test_a_semantic_hit_is_an_exact_one_the_next_time(api: Api) -> None:
    policy, entry = aliased(api)
    reply = api.lookup(policy, exact_key=PARAPHRASE)
    assert outcome(reply) == ("exact", "alias")
    assert reply["entry_id"] == entry
    assert reply["similarity"] == pytest.approx(0.95, abs=1e-3)
    assert reply["expires_at"] <= api.lookup(policy, exact_key=KEY)["expires_at"]
    # The vector is not even looked at.
    far = {"embedding": [0.0, 0.0, 1.0]}
    assert outcome(api.lookup(policy, exact_key=PARAPHRASE, **far)) == ("exact", "alias")


def test_an_alias_passes_the_threshold_in_force(api: Api) -> None:
    policy, _ = aliased(api)
    reply = api.lookup(policy, exact_key=PARAPHRASE, threshold=0.99)
    assert outcome(reply) == (None, "below_threshold")
    assert reply["similarity"] == pytest.approx(0.95, abs=1e-3)
    api.change(policy, threshold=0.99)
    assert exact(api, policy) == (None, "below_threshold")
    api.change(policy, threshold=0.9)
    assert exact(api, policy) == ("exact", "alias")


def test_an_alias_answers_only_while_the_semantic_tier_is_on(api: Api) -> None:
    policy, _ = aliased(api)
    api.change(policy, threshold=0.9, tiers=["exact"])
    assert exact(api, policy)[0] is None
    api.change(policy, threshold=0.9)
    assert exact(api, policy) == ("exact", "alias")


def test_refreshing_the_entry_removes_its_aliases(api: Api) -> None:
    policy, _ = aliased(api)
    api.put(policy, exact_key=KEY, embedding=NORTH, response={"new": True})
    assert exact(api, policy) == (None, "no_entry")


@pytest.mark.parametrize("how", ["policy", "entry", "prompt", "delete"])
def test_purging_the_entry_removes_its_aliases(api: Api, how: str) -> None:
    policy, entry = aliased(api)
    if how == "delete":
        api.ok("DELETE", f"/cache/entries/{entry}")
    else:
        what = {"policy": {}, "entry": {"entry_id": entry}, "prompt": {"prompt_text": ""}}[how]
        assert api.purge(policy_id=policy, **what)["purged"] == 1
    assert exact(api, policy) == (None, "no_entry")
    assert exact(api, policy, embedding=NEAR) == (None, "no_entry")


def test_a_put_for_the_key_of_an_alias_replaces_it(api: Api) -> None:
    policy, entry = aliased(api)
    own = api.put(policy, exact_key=PARAPHRASE, embedding=NEAR, response={"own": 1})
    reply = api.lookup(policy, exact_key=PARAPHRASE)
    assert outcome(reply) == ("exact", "exact")
    assert reply["entry_id"] == own["entry_id"]
    assert api.ok("GET", f"/cache/entries/{entry}")["aliases"] == 0


def test_exact_tier_off_and_shadow_leave_no_alias(api: Api) -> None:
    asked = {"exact_key": PARAPHRASE, "embedding": NEAR}
    for fields in ({"tiers": ["semantic"]}, {"mode": "shadow"}):
        policy = api.policy(threshold=0.9)
        entry = api.put(policy, exact_key=KEY, embedding=NORTH)["entry_id"]
        api.change(policy, threshold=0.9, **fields)
        api.lookup(policy, **asked)
        api.change(policy, threshold=0.9)
        # One that is left now proves that an earlier one would have been there.
        api.lookup(policy, exact_key=THIRD, embedding=NEAR)
        api.wait_for_alias(entry)
        assert exact(api, policy) == (None, "no_entry")


def test_an_alias_stays_in_its_scope(api: Api) -> None:
    policy, _ = aliased(api)
    assert exact(api, policy, scope="another") == (None, "no_entry")
