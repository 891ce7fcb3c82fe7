"""Policies: every field has a default and a bound, and the bound is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cachesvc.core.policy import Policy, match_policy, read_policy, resolve
from cachesvc.errors import BadRequest, Invalid, RequestError


def read(**fields: Any) -> Policy:
    return read_policy(json.dumps(fields).encode(), "p")


def test_nothing_is_a_policy() -> None:
    full = resolve(read(), "p", 3)
    assert (full.name, full.threshold, full.threshold_floor, full.generation) == (
        "p",
        0.92,
        0.92,
        3,
    )
    assert (full.ttl_seconds, full.semantic_ttl_seconds) == (3600, 3600)


def test_what_is_shown_can_be_put_back() -> None:
    full = resolve(read(threshold=0.8, threshold_floor=0.5), "p", 9)
    again = read_policy(json.dumps(_dump(full)).encode(), "p")
    assert resolve(again, "p", 9) == full


def _dump(policy: Policy) -> dict[str, Any]:
    import msgspec

    made: dict[str, Any] = msgspec.to_builtins(policy)
    return made


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"thresold": 0.9}, "thresold"),
        ({"threshold": 1.01}, "threshold"),
        ({"threshold": -0.01}, "threshold"),
        ({"threshold": 0.8, "threshold_floor": 0.9}, "threshold_floor"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 33}, "top_k"),
        ({"ttl_seconds": 0}, "ttl_seconds"),
        ({"ttl_seconds": 31_536_001}, "ttl_seconds"),
        ({"semantic_ttl_seconds": 0}, "semantic_ttl_seconds"),
        ({"mode": "dry"}, "mode"),
        ({"tiers": []}, "tiers"),
        ({"tiers": ["exact", "exact"]}, "tiers"),
        ({"tiers": ["fuzzy"]}, "tiers"),
        ({"applies_to": "route:x"}, "applies_to"),
        ({"applies_to": "model:"}, "applies_to"),
        ({"sharing": "global"}, "sharing"),
        ({"scope_headers": ["a b"]}, "scope_headers[0]"),
        ({"bypass_on": [{"header": "", "equals": "1"}]}, "bypass_on[0].header"),
        ({"bypass_on": [{"header": "x", "equals": "1", "not": 1}]}, "bypass_on"),
        ({"window": 0}, "window"),
        ({"max_body_bytes": -1}, "max_body_bytes"),
        ({"max_entries": 0}, "max_entries"),
        ({"max_temperature": -1}, "max_temperature"),
        ({"usage_on_hit": "none"}, "usage_on_hit"),
        ({"header_names": "other"}, "header_names"),
        ({"replay": "slow"}, "replay"),
        ({"id": "other"}, "id"),
        ({"name": "a\x00b"}, "U+0000"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(Invalid) as refusal:
        read(**fields)
    assert named in refusal.value.message


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"null", b'{"threshold":"high"}', b'{"enabled":1}', b'{"top_k":true}', b"\xff"],
)
def test_what_is_no_policy_at_all_is_a_bad_request(document: bytes) -> None:
    with pytest.raises(BadRequest):
        read_policy(document, "p")


def test_a_caller_may_tighten_but_not_loosen() -> None:
    policy = read(threshold=0.9, threshold_floor=0.85)
    assert policy.effective_threshold(None) == 0.9
    assert policy.effective_threshold(0.95) == 0.95
    assert policy.effective_threshold(0.87) == 0.87
    assert policy.effective_threshold(0.1) == 0.85
    assert read(threshold=0.9).effective_threshold(0.1) == 0.9


@pytest.mark.parametrize(
    ("policies", "chosen"),
    [
        pytest.param([], None, id="none"),
        pytest.param([{"name": "b"}, {"name": "a"}], "a", id="by name"),
        pytest.param([{"name": "a"}, {"name": "b", "priority": 1}], "b", id="by priority"),
        pytest.param([{"name": "a"}, {"name": "b", "applies_to": "model:m"}], "b", id="narrower"),
        pytest.param([{"name": "a"}, {"name": "b", "applies_to": "api_key:s"}], "b", id="key"),
        pytest.param([{"name": "a", "applies_to": "model:x"}], None, id="other model"),
        pytest.param([{"name": "a", "applies_to": "api_key:x"}], None, id="other key"),
        pytest.param([{"name": "a", "enabled": False}, {"name": "b"}], "b", id="disabled"),
        pytest.param([{"name": "a", "mode": "off"}], None, id="off"),
        pytest.param([{"name": "a", "mode": "shadow"}], "a", id="shadow"),
    ],
)
def test_one_policy_rules_a_request(policies: list[dict[str, Any]], chosen: str | None) -> None:
    read_all = [read(**fields) for fields in policies]
    found = match_policy(read_all, model="m", scope_of=lambda _: "s")
    assert (found.name if found else None) == chosen
    again = match_policy(read_all[::-1], model="m", scope_of=lambda _: "s")
    assert again == found


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (b'{"treshold": 1}', "policy.treshold: is no field of a policy"),
        (b'{"threshold": "high"}', "policy.threshold: expected float, got str"),
        (b'{"tiers": [3]}', "policy.tiers[0]: expected str, got int"),
        (b"[]", "policy: expected object, got array"),
    ],
)
def test_a_misfit_names_its_field(document: bytes, told: str) -> None:
    with pytest.raises(RequestError) as refused:
        read_policy(document, "p")
    assert refused.value.message == told
