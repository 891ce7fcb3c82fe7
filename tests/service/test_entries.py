"""`GET /cache/entries`: what is stored, filtered, and page by page."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from cachesvc.client import CacheClient
from cachesvc.wire_admin import EntryFilter
from tests.service.serving import KEY, Api, execute, refused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.service.serving import Running

NORTH = [1.0, 0.0, 0.0]


def listed(api: Api, **query: Any) -> dict[str, Any]:
    return api.ok("GET", f"/cache/entries?{urlencode(query, doseq=True)}")


def prompts(api: Api, **query: Any) -> list[str]:
    return [entry["prompt_text"] for entry in listed(api, **query)["entries"]]


def number(n: int) -> str:
    return f"{n:064x}"


def test_an_entry_is_told_without_its_answer(api: Api) -> None:
    policy = api.policy()
    put = api.put(
        policy,
        exact_key=KEY,
        embedding=NORTH,
        response="12345678",
        prompt_text="Why?",
        tags=["a", "b"],
        model="gpt",
        upstream_ms=12.5,
    )
    (entry,) = listed(api, policy_id=policy)["entries"]
    whole = api.ok("GET", f"/cache/entries/{put['entry_id']}")
    assert whole.pop("response") == "12345678"
    assert entry == whole
    assert (entry["body_bytes"], entry["state"], entry["upstream_ms"]) == (10, "live", 12.5)
    assert entry["entry_id"] == put["entry_id"]


@pytest.fixture(scope="module")
def shelf(api: Api, module_database_url: str) -> str:
    """A policy with entries that differ in one thing each, told by their prompts."""
    policy = api.policy()
    shelf: dict[str, dict[str, Any]] = {
        "plain": {},
        "scoped": {"scope": "alice"},
        "modelled": {"model": "gpt"},
        "one tag": {"tags": ["red"]},
        "two tags": {"tags": ["red", "blue"]},
        "semantic": {"embedding": NORTH},
        "expired": {},
        "quarantined": {},
        "old": {},
    }
    for n, (prompt, fields) in enumerate(shelf.items()):
        api.put(policy, exact_key=number(n), prompt_text=prompt, **fields)
    api.put(policy, embedding=NORTH, prompt_text="no key")
    here = f"policy_id = '{policy}' AND convert_from(prompt_text, 'UTF8')"
    for change in (
        f"exact_expires_at = now() - interval '1 s' WHERE {here} = 'expired'",
        f"quarantined_at = now() WHERE {here} = 'quarantined'",
        f"created_at = created_at - interval '600 s' WHERE {here} = 'old'",
    ):
        execute(module_database_url, f"UPDATE entries SET {change}")
    return policy


ALL = {
    *("plain", "scoped", "modelled", "one tag", "two tags", "semantic", "expired", "quarantined"),
    *("old", "no key"),
}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ALL),
        ({"scope": "alice"}, {"scoped"}),
        ({"scope": ""}, ALL - {"scoped"}),
        ({"model": "gpt"}, {"modelled"}),
        ({"tag": "red"}, {"one tag", "two tags"}),
        ({"tag": ["red", "blue"]}, {"two tags"}),
        ({"tag": ["red", "green"]}, set()),
        ({"tier": "semantic"}, {"semantic", "no key"}),
        ({"tier": "exact"}, ALL - {"no key"}),
        ({"state": "live"}, ALL - {"expired", "quarantined"}),
        ({"state": "expired"}, {"expired"}),
        ({"state": "quarantined"}, {"quarantined"}),
        ({"older_than_seconds": "599.5"}, {"old"}),
        ({"older_than_seconds": "0", "tag": "red", "prompt": "ONE"}, {"one tag"}),
        ({"prompt": "TAG"}, {"one tag", "two tags"}),
        ({"prompt": ""}, ALL),
        ({"unheard_of": "1"}, ALL),
    ],
)
def test_filters_select_alone_and_together(
    api: Api, shelf: str, query: dict[str, Any], expected: set[str]
) -> None:
    assert set(prompts(api, policy_id=shelf, **query)) == expected


@pytest.mark.parametrize(
    ("prompt", "sought", "found"),
    [
        ("Wie heißt ÄRGER?", "ärger", True),
        ("ΣΊΣΥΦΟΣ", "σίσυφοσ", True),
        ("100% sure", "0% S", True),
        ("1000 sure", "0% s", False),
        ("snake_case", "E_C", True),
        ("snakeXcase", "e_c", False),
        (r"a\000b", r"\000", True),
        ("a.b", "a.b", True),
        ("axb", "a.b", False),
        ("[x](y)*", "[X](Y)*", True),
        ("nul\x00l", "null", True),
        (r"back\\slash", "\\\\S", True),
        ("two\nlines", "two\nlines", True),
        ("'; DROP TABLE entries; --", "'; drop", True),
        ("x", "***:x", False),
    ],
)
def test_part_of_a_prompt_is_found_in_any_case_and_letter_by_letter(
    api: Api, prompt: str, sought: str, found: bool
) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY, prompt_text=prompt)
    assert prompts(api, policy_id=policy, prompt=sought) == ([prompt] if found else [])


def test_pages_are_newest_first_and_stable_under_puts(api: Api) -> None:
    first, second = api.policy(), api.policy()
    for n in range(7):
        api.put((first, second)[n % 2], exact_key=number(n), prompt_text=f"{n}", tags=["page"])
    seen, cursor, pages = [], None, 0
    while True:
        query: dict[str, Any] = {} if cursor is None else {"cursor": cursor}
        page = listed(api, tag="page", limit=2, **query)
        seen += [entry["prompt_text"] for entry in page["entries"]]
        cursor, pages = page["next_cursor"], pages + 1
        if cursor is None:
            break
        # What comes meanwhile is newer than all that is still to be shown.
        api.put(first, exact_key=number(100 + pages), prompt_text="new", tags=["page"])
    assert seen == ["6", "5", "4", "3", "2", "1", "0"]
    assert pages == 4


def test_entries_of_one_moment_are_each_shown_once(api: Api, module_database_url: str) -> None:
    policy = api.policy()
    for n in range(9):
        api.put(policy, exact_key=number(n), prompt_text=str(n))
    execute(
        module_database_url,
        f"UPDATE entries SET created_at = '2026-01-01' WHERE policy_id = '{policy}'",
    )
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = listed(api, policy_id=policy, limit=4, **cursor)
        seen += [entry["prompt_text"] for entry in page["entries"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert sorted(seen) == [str(n) for n in range(9)]


def test_a_purged_or_deleted_policy_shows_nothing_even_while_its_rows_are_there(
    api: Api, module_database_url: str
) -> None:
    policy = api.policy()
    api.put(policy, exact_key=KEY)
    execute(
        module_database_url,
        f"UPDATE policies SET generation = 9, oldest_generation = 9 WHERE id = '{policy}'",
    )
    assert prompts(api, policy_id=policy) == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("limit=0", ("limit", "1 to 1,000")),
        ("limit=1001", ("limit", "1 to 1,000")),
        ("limit=x", ("limit", "whole number")),
        ("limit=1&limit=2", ("limit", "twice")),
        ("older_than_seconds=-1", ("older_than_seconds", "0 to")),
        ("older_than_seconds=nan", ("older_than_seconds", "0 to")),
        ("older_than_seconds=soon", ("older_than_seconds", "number")),
        ("state=dead", ("state", "live, expired, quarantined")),
        ("tier=both", ("tier", "exact, semantic")),
        ("policy_id=a%20b", ("policy_id",)),
        (f"scope={'x' * 257}", ("scope", "256")),
        ("model=%00", ("model", "U+0000")),
        ("tag=", ("tag", "1 to 128")),
        ("prompt=%00", ("prompt", "U+0000")),
        (f"prompt={'x' * 1001}", ("prompt", "0 to 1,000")),
        ("cursor=", ("cursor",)),
        ("cursor=xyz", ("cursor",)),
        ("cursor=%C3%A9", ("cursor",)),
        ("cursor=f_____________________________-A", ("cursor",)),
        (f"cursor={'A' * 1000}", ("cursor",)),
    ],
)
def test_a_wrong_value_is_422_and_named_before_any_query(
    nowhere: Api, query: str, words: tuple[str, ...]
) -> None:
    refused(nowhere.call("GET", f"/cache/entries?{query}"), 422, "INVALID", *words)


def test_a_query_that_is_not_utf8_is_400(nowhere: Api) -> None:
    refused(nowhere.call("GET", "/cache/entries?scope=%ff"), 400, "BAD_REQUEST", "query")


@pytest.fixture
def tenants(running: Running) -> Iterator[dict[str, Api]]:
    made = {name: Api(running.url, name) for name in ("acme", "globex")}
    yield made
    for one in made.values():
        one.close()


def test_a_list_stays_within_its_tenant(tenants: dict[str, Api]) -> None:
    for name, api in tenants.items():
        api.ok("PUT", "/policies/same", {"sharing": "shared"})
        api.put("same", exact_key=KEY, prompt_text=name)
    for name, api in tenants.items():
        assert prompts(api) == [name]
        assert prompts(api, policy_id="same") == [name]
    for name, stranger in (("acme", "globex"), ("globex", "acme")):
        page = listed(tenants[name], limit=1)
        assert prompts(tenants[stranger], prompt=name) == []
        assert page["next_cursor"] is None


def test_it_answers_under_dp_and_through_the_client(api: Api, running: Running) -> None:
    policy = api.policy()
    for n in range(3):
        api.put(policy, exact_key=number(n), prompt_text=str(n), tags=["é&=", "b"])
    assert len(api.ok("GET", f"/dp/cache/entries?policy_id={policy}")["entries"]) == 3
    with closing(CacheClient(running.url)) as client:
        query = EntryFilter(policy_id=policy, tag=["é&=", "b"], limit=2)
        page = client.entries(query)
        assert [entry.prompt_text for entry in page.entries] == ["2", "1"]
        query.cursor = page.next_cursor
        page = client.entries(query)
        assert [entry.prompt_text for entry in page.entries] == ["0"]
        assert page.next_cursor is None
