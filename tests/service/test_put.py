"""`/cache/put`: what is kept, for how long, and what replaces what."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.service.serving import KEY, execute, outcome, refused

if TYPE_CHECKING:
    from tests.service.serving import Api

OTHER_KEY = "cd" * 32
NORTH, EAST = [1.0, 0.0], [0.0, 1.0]
NOTHING = {"entry_id": None, "expires_at": None, "stored": False}


def seconds_left(reply: dict[str, Any]) -> float:
    expires = datetime.fromisoformat(reply["expires_at"])
    return (expires - datetime.now(expires.tzinfo)).total_seconds()


def age(url: str, policy: str, seconds: int) -> None:
    """Make the entries of a policy older than they are."""
    execute(
        url,
        f"UPDATE entries SET created_at = created_at - interval '{seconds} s',"
        f" exact_expires_at = exact_expires_at - interval '{seconds} s',"
        f" semantic_expires_at = semantic_expires_at - interval '{seconds} s'"
        f" WHERE policy_id = '{policy}'",
    )


def test_what_is_stored_is_told(api: Api) -> None:
    reply = api.put(api.policy(ttl_seconds=100), exact_key=KEY)
    assert set(reply) == {"entry_id", "expires_at", "stored", "reason"}
    assert (reply["stored"], reply["reason"]) == (True, "stored")
    assert 95 < seconds_left(reply) <= 100


def test_an_entry_remembers_where_it_came_from(api: Api) -> None:
    policy = api.policy()
    fields = {
        "exact_key": KEY,
        "partition": OTHER_KEY,
        "embedding": NORTH,
        "scope": "me",
        "space": "local/x",
        "prompt_text": "why \0 is \U0001f600?",
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "tags": ["a", "b"],
        "model": "gpt",
        "upstream_ms": 12.5,
    }
    body = {"policy_id": policy, "response": None, "body": "AAEC", "media_type": "x/y", **fields}
    stored = api.ok("POST", "/cache/put", body, x_request_id="req-9")
    entry = api.ok("GET", f"/cache/entries/{stored['entry_id']}")
    del fields["embedding"]
    assert {name: entry[name] for name in fields} == fields
    assert entry["provenance"] == "local req-9"
    assert (entry["dimensions"], entry["generation"], entry["aliases"]) == (2, 1, 0)
    assert (entry["body"], entry["media_type"], entry["policy_id"]) == ("AAEC", "x/y", policy)
    assert entry["exact_expires_at"] == entry["semantic_expires_at"] == stored["expires_at"]


@pytest.mark.parametrize("request_id", ["a b", "x" * 129, "a\tb"])
def test_a_request_id_that_would_break_a_line_is_left_out(api: Api, request_id: str) -> None:
    body = {"policy_id": api.policy(), "exact_key": KEY, "response": 1}
    stored = api.ok("POST", "/cache/put", body, x_request_id=request_id)
    assert api.ok("GET", f"/cache/entries/{stored['entry_id']}")["provenance"] == "local"


def test_an_equal_put_replaces_in_both_tiers(api: Api) -> None:
    policy = api.policy()
    first = api.put(policy, exact_key=KEY, embedding=NORTH, response={"n": 1})
    second = api.put(policy, exact_key=KEY, embedding=EAST, response={"n": 2})
    assert api.lookup(policy, exact_key=KEY)["response"] == {"n": 2}
    assert not api.lookup(policy, embedding=NORTH)["hit"]
    assert api.lookup(policy, embedding=EAST)["response"] == {"n": 2}
    assert first["entry_id"] != second["entry_id"]
    refused(api.call("GET", f"/cache/entries/{first['entry_id']}"), 404, "NOT_FOUND")


def test_without_an_exact_key_the_prompt_tells_what_is_equal(api: Api) -> None:
    policy = api.policy()
    for number, prompt in enumerate(("a", "b", "a")):
        api.put(policy, embedding=NORTH, prompt_text=prompt, response={"n": number})
    assert stats(api, policy)["entries"] == 2
    assert api.lookup(policy, embedding=NORTH)["response"] == {"n": 2}


def stats(api: Api, policy: str) -> dict[str, Any]:
    found = api.ok("GET", "/stats")["policies"]
    return next(one for one in found if one["policy_id"] == policy)


def test_an_answer_over_the_cap_is_200_and_not_stored(api: Api) -> None:
    policy = api.policy(max_body_bytes=10)
    fits, over = "x" * 8, "x" * 9  # and two quotes
    assert api.put(policy, exact_key=KEY, response=fits)["stored"]
    assert api.put(policy, exact_key=KEY, response=over) == {**NOTHING, "reason": "too_large"}
    assert api.lookup(policy, exact_key=KEY)["response"] == fits
    api.change(policy, max_body_bytes=0)
    empty = api.put(policy, exact_key=OTHER_KEY, body="", media_type="text/plain")
    assert empty == {**NOTHING, "reason": "too_large"}


def test_a_cap_that_another_replica_lowered_holds_at_once(api: Api, other_replica: Api) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY)
    other_replica.change(policy, max_body_bytes=3)
    assert api.put(policy, exact_key=KEY)["reason"] == "too_large"


def test_only_the_tiers_that_are_on_are_filled(api: Api) -> None:
    policy = api.policy(tiers=["exact"])
    api.put(policy, exact_key=KEY, embedding=NORTH)
    assert api.put(policy, embedding=NORTH) == {**NOTHING, "reason": "tier_off"}
    api.change(policy)
    assert api.lookup(policy, exact_key=KEY)["hit"]
    assert not api.lookup(policy, embedding=NORTH)["hit"]
    api.change(policy, tiers=["semantic"])
    api.put(policy, exact_key=OTHER_KEY, embedding=EAST)
    assert api.put(policy, exact_key=OTHER_KEY) == {**NOTHING, "reason": "tier_off"}
    api.change(policy)
    assert api.lookup(policy, embedding=EAST)["hit"]
    assert not api.lookup(policy, exact_key=OTHER_KEY)["hit"]


def test_a_put_of_before_a_purge_is_dropped(api: Api) -> None:
    policy = api.policy()
    known = api.lookup(policy, exact_key=KEY)["generation"]
    api.put(policy, exact_key=OTHER_KEY, generation=known, response={"n": "live"})
    api.purge(policy_id=policy, scope="somebody-else")
    late = api.put(policy, exact_key=KEY, generation=known)
    assert late == {**NOTHING, "reason": "stale_generation"}
    late = api.put(policy, exact_key=OTHER_KEY, generation=known, response={"n": "late"})
    assert late["reason"] == "stale_generation"
    assert outcome(api.lookup(policy, exact_key=KEY)) == (None, "no_entry")
    assert api.lookup(policy, exact_key=OTHER_KEY)["response"] == {"n": "live"}


def test_an_absent_generation_is_the_current_one(api: Api) -> None:
    policy = api.policy()
    api.purge(policy_id=policy)
    api.put(policy, exact_key=KEY)
    reply = api.lookup(policy, exact_key=KEY)
    assert (reply["hit"], reply["generation"]) == (True, 2)
    api.put(policy, exact_key=OTHER_KEY, generation=2)
    assert api.lookup(policy, exact_key=OTHER_KEY)["hit"]


def test_a_generation_yet_to_come_is_422(api: Api) -> None:
    body = {"policy_id": api.policy(), "exact_key": KEY, "response": 1, "generation": 7}
    message = refused(api.call("POST", "/cache/put", body), 422, "INVALID", "generation")
    assert "is 7" in message
    assert message.endswith("is 1")


def test_the_generation_survives_deletion(api: Api) -> None:
    policy = api.policy()
    api.purge(policy_id=policy)
    api.put(policy, exact_key=KEY)
    api.ok("DELETE", f"/policies/{policy}")
    assert api.change(policy)["generation"] > 2
    assert outcome(api.lookup(policy, exact_key=KEY)) == (None, "no_entry")
    late = api.put(policy, exact_key=KEY, generation=2)
    assert late["reason"] == "stale_generation"


def test_the_policy_caps_the_ttl_of_both_tiers(api: Api) -> None:
    policy = api.policy(ttl_seconds=100, semantic_ttl_seconds=200)
    both = {"exact_key": KEY, "embedding": NORTH}
    reply = api.put(policy, **both, ttl_seconds=10**30)
    assert 195 < seconds_left(reply) <= 200  # the later of the two
    assert 95 < seconds_left(api.lookup(policy, exact_key=KEY)) <= 100
    assert 195 < seconds_left(api.lookup(policy, embedding=NORTH)) <= 200
    reply = api.put(policy, **both, ttl_seconds=50)
    assert 45 < seconds_left(reply) <= 50
    assert 45 < seconds_left(api.lookup(policy, exact_key=KEY)) <= 50


def test_reading_never_extends_life(api: Api) -> None:
    policy = api.policy()
    stored = api.put(policy, exact_key=KEY)
    assert {api.lookup(policy, exact_key=KEY)["expires_at"] for _ in range(3)} == {
        stored["expires_at"]
    }


def test_lowering_a_ttl_acts_at_once_and_raising_it_revives_nothing(
    api: Api, module_database_url: str
) -> None:
    policy = api.policy(ttl_seconds=1000)
    api.put(policy, exact_key=KEY, embedding=NORTH)
    age(module_database_url, policy, 100)
    assert api.lookup(policy, exact_key=KEY)["age_seconds"] in (100, 101)
    api.change(policy, ttl_seconds=50)
    assert outcome(api.lookup(policy, exact_key=KEY)) == (None, "expired")
    assert not api.lookup(policy, embedding=NORTH)["hit"]
    api.change(policy, ttl_seconds=10_000)
    assert outcome(api.lookup(policy, exact_key=KEY)) == (None, "expired")
    assert not api.lookup(policy, embedding=NORTH)["hit"]
    api.put(policy, exact_key=KEY, embedding=NORTH)
    assert api.lookup(policy, exact_key=KEY)["hit"]
    assert api.lookup(policy, embedding=NORTH)["hit"]


def test_an_entry_of_one_second_expires_by_the_clock_of_the_database(api: Api) -> None:
    policy = api.policy()
    both = {"exact_key": KEY, "embedding": NORTH}
    expires = seconds_left(api.put(policy, **both, ttl_seconds=1))
    assert 0 < expires <= 1
    assert api.lookup(policy, exact_key=KEY)["hit"]
    deadline = time.monotonic() + 5
    while api.lookup(policy, exact_key=KEY)["hit"]:
        assert time.monotonic() < deadline
    assert outcome(api.lookup(policy, exact_key=KEY)) == (None, "expired")
    assert outcome(api.lookup(policy, **both)) == (None, "expired")
    assert not api.lookup(policy, embedding=NORTH)["hit"]


def test_ttls_lie_within_a_year(api: Api) -> None:
    reply = api.put(api.policy(ttl_seconds=31_536_000), exact_key=KEY)
    assert seconds_left(reply) > timedelta(days=364).total_seconds()
