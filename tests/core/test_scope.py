"""Scope: who shares answers with whom."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from cachesvc.core.policy import Policy
from cachesvc.core.scope import credential_of, scope_of

SECRET = b"a secret of the operator's"
OWN = Policy()
SHARED = Policy(sharing="shared")
BY_USER = Policy(scope_headers=("X-User", "x-team"))
SHARED_BY_USER = Policy(sharing="shared", scope_headers=("x-user",))

# Every one of these callers is somebody else.
CALLERS: dict[str, dict[str, list[str]]] = {
    "nobody": {},
    "key a": {"authorization": ["Bearer a"]},
    "key b": {"authorization": ["Bearer b"]},
    "no scheme": {"authorization": ["a"]},
    "x-api-key": {"x-api-key": ["Bearer a"]},
    "api-key": {"api-key": ["Bearer a"]},
    "two headers": {"authorization": ["Bearer a"], "x-api-key": ["k"]},
    "two values": {"authorization": ["Bearer a", "k"]},
    "joined": {"authorization": ["Bearer ax-api-keyk"]},
    "empty": {"authorization": [""]},
}


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(CALLERS, 2)))
def test_two_credentials_never_share_a_scope(one: str, other: str) -> None:
    assert scope_of(CALLERS[one], OWN, SECRET) != scope_of(CALLERS[other], OWN, SECRET)


def test_one_credential_has_one_scope_and_it_tells_nothing() -> None:
    scope = scope_of(CALLERS["key a"], OWN, SECRET)
    assert scope == scope_of(dict(CALLERS["key a"]), OWN, SECRET)
    assert len(scope) == 43
    assert "Bearer" not in scope
    assert scope != scope_of(CALLERS["key a"], OWN, b"another secret")


def test_without_a_credential_the_scope_is_anonymous() -> None:
    assert scope_of({"x-user": ["ada"]}, OWN, SECRET) == "anonymous"


def test_sharing_drops_the_credential() -> None:
    assert {scope_of(headers, SHARED, SECRET) for headers in CALLERS.values()} == {"shared"}
    ada = {"x-user": ["ada"]}
    one = scope_of(ada | CALLERS["key a"], SHARED_BY_USER, SECRET)
    assert one == scope_of(ada | CALLERS["key b"], SHARED_BY_USER, SECRET)
    assert one != scope_of({"x-user": ["bob"]}, SHARED_BY_USER, SECRET)


def test_a_request_without_credential_and_header_is_not_the_anonymous_of_another_rule() -> None:
    assert scope_of({}, SHARED_BY_USER, SECRET) not in ("shared", "anonymous")
    assert scope_of({}, BY_USER, SECRET) not in ("shared", "anonymous")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param({"x-user": [""]}, {}, id="absent is not empty"),
        pytest.param(
            {"x-user": ["a"], "x-team": ["b"]}, {"x-user": ["b"], "x-team": ["a"]}, id="ab"
        ),
        pytest.param({"x-user": ["a:b"]}, {"x-user": ["a"], "x-team": ["b"]}, id="separator"),
        pytest.param({"x-user": ["a", "b"]}, {"x-user": ["a,b"]}, id="two values"),
        pytest.param({"x-user": ["1:6:x-team"]}, {"x-user": [], "x-team": []}, id="forged prefix"),
        pytest.param({"x-user": ["a=1"]}, {"x-user": ["a"], "x-team": ["1"]}, id="equals sign"),
    ],
)
def test_no_value_can_forge_another_scope(
    one: dict[str, list[str]], other: dict[str, list[str]]
) -> None:
    assert scope_of(one, BY_USER, SECRET) != scope_of(other, BY_USER, SECRET)


def test_the_order_of_scope_headers_is_the_policys() -> None:
    headers = {"x-user": ["a"], "x-team": ["b"]}
    turned = msgspec.structs.replace(BY_USER, scope_headers=("x-team", "x-user"))
    assert scope_of(headers, BY_USER, SECRET) != scope_of(headers, turned, SECRET)


def test_a_credentials_name_is_not_its_scope() -> None:
    assert credential_of(CALLERS["key a"], SECRET) != scope_of(CALLERS["key a"], OWN, SECRET)
    names = [credential_of(headers, SECRET) for headers in CALLERS.values()]
    assert len(set(names)) == len(names)
