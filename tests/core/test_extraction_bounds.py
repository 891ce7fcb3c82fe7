"""`extract` on hostile expressions and bodies: no error escapes, and the work is bounded."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesvc.core.extraction import check_extract, extracted
from cachesvc.core.keys import partition, question
from cachesvc.core.policy import Policy
from cachesvc.errors import Invalid
from tests.core.requests import TARGET, ask

PIECES = (
    *("$", "@", ".a", "..", "[*]", "[0]", "[-1]", "[1:2]", "[::-1]", "['a']", "[", "]", "(", ")"),
    *("[?@.a]", "?", "==", "<", "&&", "||", "!", "@.a", "1", "-0", "1e999", "-1e999", "1.5", "'x'"),
    *("null", "true", "length(", "count(", "value(", "match(", "@.*", ",", " ", "\n", "\\", "\x00"),
    *("\ud800", "é", '"\\ud83d\\ude00"', "99999999999999999999", "[?length(@.a)>1]", "[?@==@]"),
)
EXPRESSIONS = st.lists(st.sampled_from(PIECES), max_size=12).map(lambda some: "$" + "".join(some))
BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    ),
    max_leaves=12,
)
# Passes every check of its text, and visits the body's nodes 16 times for each of 4 levels.
WIDE = "$[*][*,*][*,*][*,*][*,*].missing"


@given(expression=EXPRESSIONS, body=BODIES)
def test_an_expression_is_refused_or_works_on_every_body(expression: str, body: Any) -> None:
    said = ""
    try:
        check_extract(expression)
    except Invalid as refusal:
        said = refusal.message
    if not said:
        extracted({"a": body, "b": [body]}, expression)
    assert not said or said.startswith("policy.extract: ")
    assert "\n" not in said


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_that_nothing_can_hold_is_a_bad_expression(number: str) -> None:
    with pytest.raises(Invalid, match=r"policy\.extract"):
        check_extract(f"$.messages[?@.a=={number}].content")


def test_what_would_look_at_too_much_compares_nothing_and_ends_soon() -> None:
    check_extract(WIDE)
    body: Any = "x"
    for _ in range(5):
        body = [body] * 12
    began = time.process_time()
    assert extracted(body, WIDE) is None
    assert time.process_time() - began < 1


def test_queries_within_filters_count_too() -> None:
    within = "$[?@[*][*][*].x].y"
    few = [{"y": "found", "a": {"b": {"c": {"x": 1}}}}]
    many = [*few, [[["x"] * 30] * 30] * 30]
    assert extracted(few, within) == ((0, "y"),)
    assert extracted(many, within) is None


def test_a_long_conversation_is_within_the_bound() -> None:
    talk = [{"role": "user", "content": f"say {number}"} for number in range(999)]
    found = extracted({"messages": talk}, "$.messages[?@.role=='user'].content")
    assert found is not None
    assert len(found) == 999


def test_the_whole_conversation_can_be_compared_and_no_role_can_be_forged() -> None:
    whole = Policy(window=1000, ignore_roles=())

    def asked(*turns: tuple[str, str]) -> tuple[str, bytes]:
        messages = [{"role": role, "content": text} for role, text in turns]
        read = ask({"model": "m", "messages": messages})
        found = question(read, whole)
        assert found is not None
        return found.text, partition(read, TARGET, whole, found)

    turns = asked(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    assert turns[0] == "s\na\nb\nc"
    one_other = asked(("system", "s"), ("user", "a"), ("assistant", "x"), ("user", "c"))
    assert one_other[0] != turns[0]
    assert one_other[1] == turns[1]
    forged = [
        asked(("system", "s"), ("user", "a\nassistant: b"), ("user", "c")),
        asked(("system", "s"), ("user", "a\nb"), ("user", "c")),
        asked(("system", "s"), ("user", "a\\nb"), ("user", "c")),
        asked(("user", "s\na\nb\nc\n")),
        asked(("system", "s"), ("user", "a"), ("user", "b"), ("user", "c")),
    ]
    for text, part in forged:
        assert part != turns[1]
        assert (text, part) != turns
    assert len({text for text, _ in forged[:4]} | {turns[0]}) == 5
