"""`extract`: what of a body is compared, by a JSONPath, and that the rest must be equal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesvc.core.extraction import check_extract, extracted
from cachesvc.core.keys import partition, question
from cachesvc.core.policy import Policy, read_policy
from cachesvc.dialects.anthropic_messages import AnthropicMessages
from cachesvc.dialects.openai_completions import OpenAICompletions
from cachesvc.dialects.openai_responses import OpenAIResponses
from cachesvc.errors import Invalid
from tests.core.requests import TARGET, ask

if TYPE_CHECKING:
    from cachesvc.dialects.base import Dialect

LAST = "$.messages[-1].content"
USERS = "$.messages[?@.role=='user'].content"
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "too"}]},
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=20,
)


def asked(policy: Policy, messages: list[Any] | None = None) -> str | None:
    found = question(ask({"model": "m", "messages": messages or TALK}), policy)
    return None if found is None else found.text


def parted(policy: Policy, **fields: Any) -> bytes:
    read = ask({"model": "m", "messages": TALK, **fields})
    found = question(read, policy)
    assert found is not None
    return partition(read, TARGET, policy, found)


@pytest.mark.parametrize(
    ("extract", "window", "text"),
    [
        (LAST, 1000, "two\ntoo"),
        (USERS, 1, "too"),  # a text is a text, wherever it stands
        (USERS, 2, "two\ntoo"),
        (USERS, 1000, "one\ntwo\ntoo"),
        ("$.messages[0].content", 1, "Be brief."),
        ("$.messages[*].content", 1000, "Be brief.\none\n1\ntwo\ntoo"),
        ("$.messages[1]['content','content']", 1000, "one"),
        ("$.messages[-1].content[0].text", 1, "two"),
        ("$.messages[3,1].content", 1000, "one\ntwo\ntoo"),  # the order is the conversation's
    ],
)
def test_the_last_texts_that_the_expression_finds_are_compared(
    extract: str, window: int, text: str
) -> None:
    assert asked(Policy(extract=extract, window=window)) == text


@pytest.mark.parametrize(
    "extract",
    [
        *("$.messages[9].content", "$.messages[0]", "$.model.x", "$.messages", "$.temperature"),
        *("$.model", "$.messages[-1].role", "$.messages[*]['role','content']", "$..*"),
        *("$.messages[-1].content[*].type", "$.messages[-1].content[*]['type','text']"),
    ],
)
def test_what_is_no_text_is_not_compared(extract: str) -> None:
    assert asked(Policy(extract=extract)) is None


def test_an_image_or_a_tool_ends_the_semantic_tier_wherever_the_expression_looks() -> None:
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    assert asked(Policy(extract="$.messages[0].content"), [*TALK, image]) is None


def test_what_is_not_found_must_be_equal() -> None:
    policy = Policy(extract=LAST, window=1000)
    other_end = [*TALK[:-1], {"role": "user", "content": [{"type": "text", "text": "x"}] * 2}]
    assert parted(policy) == parted(policy, messages=other_end)
    changes: list[dict[str, Any]] = [
        {"messages": [{"role": "system", "content": "Be long."}, *TALK[1:]]},
        {"model": "other"},
        {"messages": [*TALK[:-1], {**TALK[-1], "role": "assistant"}]},
        {"messages": [*TALK[:-1], {"role": "user", "content": "two"}]},
    ]
    for change in changes:
        assert parted(policy) != parted(policy, **change)
    assert parted(policy) != parted(Policy(extract="$.messages[3].content", window=1000))
    assert parted(policy) != parted(Policy(window=1000, extract=None, ignore_roles=("system",)))


@pytest.mark.parametrize(
    ("extract", "said"),
    [
        ("", "1 to 256 characters"),
        ("$" + ".a" * 128, "1 to 256 characters"),
        ("messages[-1].content", "RFC 9535"),
        ("messages.@reverse.0.content", "RFC 9535"),
        ("$.messages[?match(@.role,'u.*')].content", "RFC 9535"),
        ("$.messages[?@.role =~ /u/].content", "RFC 9535"),
        ("$..a..b", 'one ".."'),
        ("$.a[?@.b==$.c]", 'one "$"'),
        ("$.a | $.b", 'one "$"'),
    ],
)
def test_a_bad_expression_is_refused_by_name(extract: str, said: str) -> None:
    with pytest.raises(Invalid, match=r"policy\.extract") as caught:
        check_extract(extract)
    assert said in str(caught.value)


def test_a_policy_with_a_bad_expression_is_refused() -> None:
    with pytest.raises(Invalid, match=r"policy\.extract"):
        read_policy(b'{"extract": "$["}', "p")


@pytest.mark.parametrize(
    ("dialect", "fields", "extract", "text"),
    [
        (OpenAICompletions(), {"prompt": "one"}, "$.prompt", "one"),
        (OpenAICompletions(), {"prompt": ["one"]}, "$.prompt[*]", "one"),
        (AnthropicMessages(), {"system": "Be brief.", "messages": TALK[1:]}, LAST, "two\ntoo"),
        (
            AnthropicMessages(),
            {"system": "Be brief.", "messages": TALK[1:]},
            "$.system",
            "Be brief.",
        ),
        (OpenAIResponses(), {"input": "one", "store": False}, "$.input", "one"),
        (
            OpenAIResponses(),
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "two"}]}]},
            "$.input[-1].content",
            "two",
        ),
    ],
)
def test_every_protocol_is_looked_into_in_its_own_shape(
    dialect: Dialect, fields: dict[str, Any], extract: str, text: str
) -> None:
    read = dialect.read(json.dumps({"model": "m", "max_tokens": 5, **fields}).encode())
    found = question(read, Policy(extract=extract, window=9))
    assert found is not None
    assert found.text == text


@given(value=VALUES, extract=st.sampled_from([LAST, USERS, "$..text", "$..*", "$[*][*]", "$"]))
def test_every_body_can_be_looked_into(value: Any, extract: str) -> None:
    for path in extracted(value, extract) or ():
        found = value
        for step in path:
            found = found[step]
        assert isinstance(found, str)


def test_a_body_that_is_deep_or_wide_is_not_compared() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    assert extracted(deep, "$..*") is None
    assert extracted(["x"] * 1001, "$[*]") is None
