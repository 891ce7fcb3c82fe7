"""`POST /cache/feedback`: a wrong answer answers nobody any more, at once and everywhere."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from cachesvc.client import CacheClient
from cachesvc.wire import FeedbackRequest
from tests.service.serving import KEY, MESSAGEPACK, Api, execute, fetch, outcome, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.serving import Running

NORTH, NEAR = [1.0, 0.0, 0.0], [0.95, 0.3122499, 0.0]
PARAPHRASE = "cd" * 32
NO_ENTRY = "00000000-0000-0000-0000-000000000000"


def judge(api: Api, entry: str, verdict: str, **fields: Any) -> dict[str, Any]:
    return api.ok("POST", "/cache/feedback", {"entry_id": entry, "verdict": verdict, **fields})


def put(api: Api, policy: str, **fields: Any) -> str:
    reply = api.put(policy, exact_key=KEY, embedding=NORTH, **fields)
    return str(reply["entry_id"])


def test_a_wrong_answer_is_quarantined_in_both_tiers_with_its_aliases(
    api: Api, other_replica: Api
) -> None:
    policy = api.policy(threshold=0.9)
    entry = put(api, policy)
    api.lookup(policy, exact_key=PARAPHRASE, embedding=NEAR)
    api.wait_for_alias(entry)
    generation = api.lookup(policy, exact_key=KEY)["generation"]
    assert other_replica.lookup(policy, exact_key=PARAPHRASE)["reason"] == "alias"
    assert judge(api, entry, "wrong") == {
        "entry_id": entry,
        "verdict": "wrong",
        "quarantined": True,
    }
    for one in (api, other_replica):
        assert outcome(one.lookup(policy, exact_key=KEY)) == (None, "quarantined")
        assert outcome(one.lookup(policy, exact_key=KEY, embedding=NORTH)) == (None, "quarantined")
        assert not one.lookup(policy, embedding=NORTH)["hit"]
        assert not one.lookup(policy, exact_key=PARAPHRASE)["hit"]
        assert one.lookup(policy, exact_key=KEY)["generation"] == generation
    shown = api.ok("GET", f"/cache/entries/{entry}")
    assert (shown["state"], shown["aliases"]) == ("quarantined", 0)


@pytest.mark.parametrize("fields", [{"exact_key": KEY, "embedding": NORTH}, {"embedding": NORTH}])
def test_a_fresh_answer_takes_the_place_of_a_quarantined_one_and_lives(
    api: Api, fields: dict[str, Any]
) -> None:
    policy = api.policy()
    entry = api.put(policy, prompt_text="why?", **fields)["entry_id"]
    judge(api, entry, "wrong")
    assert not api.lookup(policy, **fields)["hit"]
    fresh = api.put(policy, prompt_text="why?", response="better", **fields)["entry_id"]
    assert api.lookup(policy, **fields)["response"] == "better"
    assert api.lookup(policy, embedding=NORTH)["entry_id"] == fresh
    late = {"entry_id": entry, "verdict": "wrong"}
    refused(api.call("POST", "/cache/feedback", late), 404, "NOT_FOUND", "entry")
    assert api.lookup(policy, **fields)["hit"]


def test_a_quarantined_entry_hides_no_other(api: Api) -> None:
    policy = api.policy(threshold=0.9, top_k=1)
    wrong = put(api, policy)
    api.put(policy, exact_key=PARAPHRASE, embedding=NEAR, response="other")
    judge(api, wrong, "wrong")
    assert api.lookup(policy, embedding=NORTH)["response"] == "other"


@pytest.fixture(scope="module")
def callers(running: Running) -> Iterator[dict[str, Api]]:
    names = ("acme", "acme-admin", "acme-data", "acme-feedback", "globex")
    made = {name: Api(running.url, name) for name in names}
    yield made
    for one in made.values():
        one.close()


def test_right_ends_a_quarantine_only_from_an_admin(callers: dict[str, Api]) -> None:
    admin, data = callers["acme-admin"], callers["acme-data"]
    policy = admin.policy()
    entry = put(admin, policy)
    assert judge(data, entry, "right")["quarantined"] is False
    assert judge(data, entry, "wrong")["quarantined"] is True
    assert judge(data, entry, "right")["quarantined"] is True
    assert not admin.lookup(policy, exact_key=KEY)["hit"]
    assert judge(admin, entry, "right")["quarantined"] is False
    assert admin.lookup(policy, exact_key=KEY)["hit"]
    assert admin.lookup(policy, embedding=NORTH)["hit"]


@pytest.mark.parametrize("caller", ["acme-data", "acme-feedback"])
def test_a_caller_judges_what_is_in_the_scope_it_names_and_nothing_else(
    callers: dict[str, Api], caller: str
) -> None:
    admin, judge_of = callers["acme-admin"], callers[caller]
    policy = admin.policy(sharing="credential")
    entry = put(admin, policy, scope="alice")
    for scope in ({}, {"scope": ""}, {"scope": "bob"}, {"scope": "alice "}):
        body = {"entry_id": entry, "verdict": "wrong", **scope}
        refused(judge_of.call("POST", "/cache/feedback", body), 404, "NOT_FOUND", "entry")
    assert admin.lookup(policy, exact_key=KEY, scope="alice")["hit"]
    assert judge(judge_of, entry, "wrong", scope="alice")["quarantined"]
    assert not admin.lookup(policy, exact_key=KEY, scope="alice")["hit"]


def test_an_admin_judges_every_scope_unless_it_names_one(callers: dict[str, Api]) -> None:
    admin = callers["acme-admin"]
    policy = admin.policy()
    entry = put(admin, policy, scope="alice")
    body = {"entry_id": entry, "verdict": "wrong", "scope": "bob"}
    refused(admin.call("POST", "/cache/feedback", body), 404, "NOT_FOUND")
    assert judge(admin, entry, "wrong")["quarantined"]


def test_another_tenants_entry_is_not_there(callers: dict[str, Api]) -> None:
    policy = callers["acme"].policy()
    entry = put(callers["acme"], policy)
    body = {"entry_id": entry, "verdict": "wrong"}
    refused(callers["globex"].call("POST", "/cache/feedback", body), 404, "NOT_FOUND", "entry")
    assert callers["acme"].lookup(policy, exact_key=KEY)["hit"]


def test_every_verdict_is_recorded_with_what_was_said(
    callers: dict[str, Api], module_database_url: str
) -> None:
    admin, data = callers["acme-admin"], callers["acme-data"]
    policy = admin.policy()
    entry = put(admin, policy)
    said = {"prompt_text": "why\x00?", "embedding": [0.0, 2.0, 0.0], "note": "no\nsuch thing"}
    judge(data, entry, "wrong", **said)
    judge(data, entry, "wrong", **said)  # a client's retry
    judge(admin, entry, "right")
    rows = fetch(
        module_database_url,
        "SELECT entry_id::text, scope, verdict, source, prompt_text, embedding::text, note"
        f" FROM verdicts WHERE policy_id = '{policy}' AND tenant = 'acme' ORDER BY created_at",
    )
    assert rows == [
        (entry, "", "wrong", "acme-data", b"why\x00?", "[0,1,0]", "no\nsuch thing"),
        (entry, "", "right", "acme-admin", None, None, ""),
    ]
    # They outlive the entry, and not the policy.
    admin.call("DELETE", f"/cache/entries/{entry}")
    count = f"SELECT count(*) FROM verdicts WHERE policy_id = '{policy}'"
    assert fetch(module_database_url, count) == [(2,)]
    admin.call("DELETE", f"/policies/{policy}")
    assert fetch(module_database_url, count) == [(0,)]


def test_verdicts_are_counted_by_policy_verdict_and_role(callers: dict[str, Api]) -> None:
    admin, data = callers["acme-admin"], callers["acme-data"]
    policy = admin.policy()
    entry = put(admin, policy)
    judge(data, entry, "wrong")
    judge(data, entry, "wrong")
    judge(admin, entry, "right")
    told = {n: v for n, v in admin.metrics().items() if "verdicts_total" in n and policy in n}
    labels = f'policy="{policy}",source="{{}}",tenant="acme",verdict="{{}}"'
    assert told == {
        f"cachesvc_verdicts_total{{{labels.format('data', 'wrong')}}}": 2,
        f"cachesvc_verdicts_total{{{labels.format('admin', 'right')}}}": 1,
    }


def test_a_purged_entry_cannot_be_judged(api: Api, module_database_url: str) -> None:
    policy = api.policy()
    entry = put(api, policy)
    execute(
        module_database_url,
        f"UPDATE policies SET generation = 5, oldest_generation = 5 WHERE id = '{policy}'",
    )
    for one in (entry, NO_ENTRY):
        body = {"entry_id": one, "verdict": "wrong"}
        refused(api.call("POST", "/cache/feedback", body), 404, "NOT_FOUND", "entry")


@pytest.mark.parametrize(
    ("fields", "status", "code", "word"),
    [
        ({"entry_id": None}, 400, "BAD_REQUEST", "entry_id"),
        ({"entry_id": 7}, 400, "BAD_REQUEST", "entry_id"),
        ({"entry_id": "x"}, 422, "INVALID", "entry_id"),
        ({"verdict": None}, 400, "BAD_REQUEST", "verdict"),
        ({"verdict": True}, 400, "BAD_REQUEST", "verdict"),
        ({"verdict": "bad"}, 422, "INVALID", "right, wrong"),
        ({"scope": "x" * 257}, 422, "INVALID", "scope"),
        ({"note": "x" * 2001}, 422, "INVALID", "2,000"),
        ({"note": "\x00"}, 422, "INVALID", "note"),
        ({"embedding": [0.0]}, 422, "INVALID", "embedding"),
        ({"embedding": "no base64"}, 400, "BAD_REQUEST", "embedding"),
        ({"prompt_text": 1}, 400, "BAD_REQUEST", "prompt_text"),
    ],
)
def test_what_is_wrong_is_named_before_any_query(
    nowhere: Api, fields: dict[str, Any], status: int, code: str, word: str
) -> None:
    body = {"entry_id": NO_ENTRY, "verdict": "wrong", **fields}
    refused(nowhere.call("POST", "/cache/feedback", body), status, code, word)


def test_it_answers_under_dp_in_messagepack_and_through_the_client(
    api: Api, running: Running
) -> None:
    policy = api.policy()
    entry = put(api, policy)
    with closing(Api(running.url, format=MESSAGEPACK)) as packed:
        body = {"entry_id": entry, "verdict": "wrong", "embedding": b"\x00\x00\x80?"}
        assert packed.ok("POST", "/dp/cache/feedback", body)["quarantined"] is True
    with closing(CacheClient(running.url)) as client:
        given = client.feedback(FeedbackRequest(entry_id=entry, verdict="right"))
    assert (given.entry_id, given.verdict, given.quarantined) == (entry, "right", False)
