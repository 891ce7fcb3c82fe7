"""What a judged reply says, for every outcome, as one table."""

from __future__ import annotations

import dataclasses

import pytest
from http_sfv.list import List

from cachesvc.core.model import Bypass, Miss, Reason, Tier
from cachesvc.core.policy import Policy
from cachesvc.proxy.client import Found
from cachesvc.proxy.headers import CacheHeaders
from cachesvc.settings import ProxyHeaders

HEADERS = CacheHeaders(ProxyHeaders())
EXACT = Found("exact", Tier.EXACT, b"{}", "application/json", "id-1", 1.0, 42, 3540)
ALIAS = dataclasses.replace(EXACT, reason="alias", similarity=0.97312)
SEMANTIC = dataclasses.replace(
    EXACT, reason="semantic", tier=Tier.SEMANTIC, similarity=0.973128, ttl_seconds=None
)


def _said(headers: object) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in headers]  # type: ignore[attr-defined]


def test_an_exact_hit() -> None:
    assert _said(HEADERS.of_hit(EXACT, Policy())) == [
        ("content-type", "application/json"),
        ("age", "42"),
        ("X-AI-Cache-Status", "HIT"),
        ("X-AI-Cache-Tier", "exact"),
        ("X-AI-Cache-Age", "42"),
        ("X-AI-Cache-Entry-Id", "id-1"),
        ("cache-status", "cachesvc; hit; ttl=3540; detail=exact"),
    ]


def test_a_hit_through_an_alias_is_exact_and_has_no_similarity() -> None:
    said = dict(_said(HEADERS.of_hit(ALIAS, Policy())))
    assert said["X-AI-Cache-Tier"] == "exact"
    assert "X-AI-Cache-Similarity" not in said
    assert said["cache-status"] == "cachesvc; hit; ttl=3540; detail=alias"


def test_a_semantic_hit_tells_its_similarity_with_four_decimals() -> None:
    said = dict(_said(HEADERS.of_hit(SEMANTIC, Policy())))
    assert (said["X-AI-Cache-Tier"], said["X-AI-Cache-Similarity"]) == ("semantic", "0.9731")
    assert said["cache-status"] == "cachesvc; hit; detail=semantic"


@pytest.mark.parametrize(
    ("outcome", "status", "expected"),
    [
        (Miss(Reason.NO_ENTRY), "MISS", "fwd=miss; fwd-status=200; detail=no_entry"),
        (Miss(Reason.BELOW_THRESHOLD), "MISS", "fwd=miss; fwd-status=200; detail=below_threshold"),
        (Miss(Reason.EXPIRED), "MISS", "fwd=miss; fwd-status=200; detail=expired"),
        (Miss(Reason.SHADOW), "MISS", "fwd=miss; fwd-status=200; detail=shadow"),
        (
            Miss(Reason.CREDENTIAL_UNPROVEN),
            "MISS",
            "fwd=miss; fwd-status=200; detail=credential_unproven",
        ),
        (Miss(Reason.LOOKUP_TIMEOUT), "MISS", "fwd=bypass; fwd-status=200; detail=lookup_timeout"),
        (
            Miss(Reason.CACHE_UNAVAILABLE),
            "MISS",
            "fwd=bypass; fwd-status=200; detail=cache_unavailable",
        ),
        (Miss(Reason.CIRCUIT_OPEN), "MISS", "fwd=bypass; fwd-status=200; detail=circuit_open"),
        (
            Miss(Reason.EMBEDDER_FAILED),
            "MISS",
            "fwd=bypass; fwd-status=200; detail=embedder_failed",
        ),
        (Miss(Reason.BUG), "MISS", "fwd=bypass; fwd-status=200; detail=bug"),
        (
            Bypass(Reason.CALLER_NO_CACHE),
            "BYPASS",
            "fwd=request; fwd-status=200; detail=caller_no_cache",
        ),
        (Bypass(Reason.CALLER_SKIP), "BYPASS", "fwd=request; fwd-status=200; detail=caller_skip"),
        (Bypass(Reason.BYPASS_RULE), "BYPASS", "fwd=bypass; fwd-status=200; detail=bypass_rule"),
    ],
    ids=lambda value: value.reason if isinstance(value, Miss | Bypass) else "",
)
def test_every_way_to_go_on(outcome: Miss | Bypass, status: str, expected: str) -> None:
    assert _said(HEADERS.of_pass(outcome, 200, Policy())) == [
        ("X-AI-Cache-Status", status),
        ("cache-status", f"cachesvc; {expected}"),
    ]


def test_the_set_of_aisix() -> None:
    policy = Policy(header_names="aisix")
    hit = dict(_said(HEADERS.of_hit(SEMANTIC, policy)))
    assert hit["x-aisix-cache"] == "hit"
    assert hit["x-aisix-cache-layer"] == "semantic"
    assert hit["x-aisix-cache-similarity"] == "0.9731"
    assert not [name for name in hit if name.lower().startswith("x-ai-")]
    assert _said(HEADERS.of_pass(Miss(Reason.NO_ENTRY), 200, policy))[0] == (
        "x-aisix-cache",
        "miss",
    )
    assert _said(HEADERS.of_pass(Bypass(Reason.CALLER_SKIP), 200, policy))[0] == (
        "x-aisix-cache",
        "bypass",
    )


def test_names_are_settings() -> None:
    names = ProxyHeaders(status="X-A", tier="X-B", similarity="X-C", age="X-D", entry_id="X-E")
    said = dict(_said(CacheHeaders(names).of_hit(SEMANTIC, Policy())))
    assert {name for name in said if name.startswith("X-")} == {"X-A", "X-B", "X-C", "X-D", "X-E"}


def test_without_headers_nothing_is_said() -> None:
    silent = Policy(headers=False)
    assert _said(HEADERS.of_hit(SEMANTIC, silent)) == [("content-type", "application/json")]
    assert HEADERS.of_pass(Miss(Reason.NO_ENTRY), 200, silent) == []
    assert HEADERS.of_refusal(Miss(Reason.NO_ENTRY), silent) == []


def test_no_header_of_ours_is_the_upstreams_and_cache_status_comes_after_its_own() -> None:
    theirs = [
        (b"x-ai-cache-status", b"HIT"),
        (b"X-AI-Cache-Tier", b"semantic"),
        (b"x-ai-cache-similarity", b"0.9999"),
        (b"x-ai-cache-age", b"99"),
        (b"x-ai-cache-entry-id", b"theirs"),
        (b"age", b"12"),
        (b"Cache-Status", b"upstream; hit"),
        (b"x-other", b"1"),
    ]
    ours = HEADERS.of_pass(Miss(Reason.NO_ENTRY), 200, Policy())
    assert _said(HEADERS.merged(theirs, ours, Policy())) == [
        ("age", "12"),
        ("Cache-Status", "upstream; hit"),
        ("x-other", "1"),
        ("X-AI-Cache-Status", "MISS"),
        ("cache-status", "cachesvc; fwd=miss; fwd-status=200; detail=no_entry"),
    ]


def test_names_of_another_set_than_the_policys_are_left_alone() -> None:
    theirs = [(b"x-aisix-cache", b"hit"), (b"x-aisix-cache-layer", b"exact"), (b"x-a", b"1")]
    aisix = Policy(header_names="aisix", headers=False)
    assert HEADERS.merged(theirs, [], aisix) == [(b"x-a", b"1")]
    assert HEADERS.merged(theirs, [], Policy()) == theirs


def test_every_cache_status_is_a_structured_field() -> None:
    outcomes: list[Miss | Bypass] = [Miss(reason) for reason in Reason]
    outcomes += [Bypass(reason) for reason in Reason]
    said = [dict(_said(HEADERS.of_pass(o, 502, Policy())))["cache-status"] for o in outcomes]
    for value in [*said, dict(_said(HEADERS.of_hit(EXACT, Policy())))["cache-status"]]:
        parsed = List()
        parsed.parse(value.encode())
        assert str(parsed[0].value) == "cachesvc"


def test_a_reason_that_is_no_token_is_not_passed_on() -> None:
    odd = dataclasses.replace(EXACT, reason='x; y="\r\n')
    said = dict(_said(HEADERS.of_hit(odd, Policy())))
    assert said["cache-status"] == "cachesvc; hit; ttl=3540; detail=exact"
