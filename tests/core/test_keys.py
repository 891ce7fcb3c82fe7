"""The two keys: what makes two requests one request, and what may be compared at all."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cachesvc.core import keys
from tests.core.requests import BODY, POLICY, TARGET, ask, changed, without

if TYPE_CHECKING:
    from cachesvc.core.policy import Policy

USER = ("messages", 3, "content", 0, "text")

# Each differs from BODY in one thing that could change the answer.
DIFFERENT = {
    "model": changed("model", to="gpt-4o-mini"),
    "system prompt": changed("messages", 0, "content", to="You are wordy."),
    "system role": changed("messages", 0, "role", to="developer"),
    "earlier question": changed("messages", 1, "content", to="Good morning"),
    "earlier answer": changed("messages", 2, "content", to="Hello!"),
    "no earlier turn": without("messages", 1),
    "order of turns": changed("messages", to=[BODY["messages"][i] for i in (0, 2, 1, 3)]),
    "a turn more": changed("messages", 4, to={"role": "assistant", "content": "Paris."}),
    "name": changed("messages", 1, "name", to="ada"),
    "empty name": changed("messages", 1, "name", to=""),
    "null name": changed("messages", 1, "name", to=None),
    "tool calls": changed("messages", 2, "tool_calls", to=[{"id": "a", "type": "function"}]),
    "tool call id": changed("messages", 2, "tool_call_id", to="call_1"),
    "unknown field of a message": changed("messages", 1, "weight", to=1),
    "unknown field of a block": changed("messages", 3, "content", 0, "cache_control", to={}),
    "image": changed("messages", 3, "content", 1, to={"type": "image_url", "image_url": {}}),
    "second text": changed("messages", 3, "content", 1, to={"type": "text", "text": "Why?"}),
    "temperature": changed("temperature", to=0.7),
    "temperature null": changed("temperature", to=None),
    "temperature absent": without("temperature"),
    "temperature as text": changed("temperature", to="0.2"),
    "temperature in thousandths": changed("temperature", to=200),
    "temperature true": changed("temperature", to=True),
    "top_p": changed("top_p", to=0.8),
    "top_p absent": without("top_p"),
    "seed": changed("seed", to=8),
    "seed as float": changed("seed", to=7.0),
    "seed null": changed("seed", to=None),
    "stop": changed("stop", to=["\n"]),
    "stop null": changed("stop", to=None),
    "n": changed("n", to=2),
    "user": changed("user", to="u1"),
    "max_tokens": changed("max_tokens", to=10),
    "max_completion_tokens": changed("max_completion_tokens", to=10),
    "frequency_penalty": changed("frequency_penalty", to=-0.5),
    "presence_penalty": changed("presence_penalty", to=0.5),
    "logit_bias": changed("logit_bias", to={"50256": -100}),
    "logprobs": changed("logprobs", to=True),
    "top_logprobs": changed("top_logprobs", to=2),
    "response_format": changed("response_format", to={"type": "json_object"}),
    "tools": changed("tools", to=[{"type": "function", "function": {"name": "f"}}]),
    "no tools": changed("tools", to=[]),
    "tool_choice": changed("tool_choice", to="none"),
    "parallel_tool_calls": changed("parallel_tool_calls", to=False),
    "functions": changed("functions", to=[{"name": "f"}]),
    "function_call": changed("function_call", to="auto"),
    "modalities": changed("modalities", to=["text"]),
    "audio": changed("audio", to={"voice": "alloy"}),
    "prediction": changed("prediction", to={"type": "content", "content": "x"}),
    "reasoning_effort": changed("reasoning_effort", to="low"),
    "verbosity": changed("verbosity", to="low"),
    "service_tier": changed("service_tier", to="flex"),
    "store": changed("store", to=True),
    "metadata": changed("metadata", to={"a": "b"}),
    "web_search_options": changed("web_search_options", to={}),
    "stream": changed("stream", to=True),
    "stream_options": changed("stream_options", to={"include_usage": True}),
    "unknown field": changed("x_vendor", to=1),
    "unknown null field": changed("x_vendor", to=None),
}
DIFFERENT_TARGETS = {
    "method": dataclasses.replace(TARGET, method="PUT"),
    "path": dataclasses.replace(TARGET, path="/openai/v1/chat/completions"),
    "query": dataclasses.replace(TARGET, query="api-version=2"),
    "upstream": dataclasses.replace(TARGET, upstream="https://other:443"),
    "header": dataclasses.replace(TARGET, headers=(("openai-project", ("p2",)),)),
    "header twice": dataclasses.replace(TARGET, headers=(("openai-project", ("p1", "p1")),)),
    "no header": dataclasses.replace(TARGET, headers=()),
    "other header": dataclasses.replace(TARGET, headers=(("openai-beta", ("p1",)),)),
    "forced model": dataclasses.replace(TARGET, forced={"model": "gpt-4o"}),
    "forced parameter": dataclasses.replace(TARGET, forced={"temperature": 0}),
}
TARGET_CASES = [pytest.param(target, id=name) for name, target in DIFFERENT_TARGETS.items()]


def exact(body: dict[str, Any], target: keys.Target = TARGET) -> bytes:
    return keys.exact_key(ask(body), target)


def partition(
    body: dict[str, Any], target: keys.Target = TARGET, policy: Policy = POLICY
) -> bytes | None:
    asked = keys.question(ask(body), policy)
    return None if asked is None else keys.partition(ask(body), target, policy, asked)


@pytest.mark.parametrize("body", [pytest.param(b, id=name) for name, b in DIFFERENT.items()])
def test_a_difference_in_any_field_makes_another_key_and_another_partition(
    body: dict[str, Any],
) -> None:
    assert exact(body) != exact(BODY)
    assert partition(body) != partition(BODY)


@pytest.mark.parametrize("target", TARGET_CASES)
def test_a_difference_in_the_envelope_makes_another_key_and_another_partition(
    target: keys.Target,
) -> None:
    assert exact(BODY, target) != exact(BODY)
    assert partition(BODY, target) != partition(BODY)


def test_all_these_differences_differ_from_each_other_too() -> None:
    made = [exact(body) for body in DIFFERENT.values()]
    made += [exact(BODY, target) for target in DIFFERENT_TARGETS.values()]
    assert len(set(made)) == len(made)


def test_only_the_embedded_text_leaves_the_partition() -> None:
    other = changed(*USER, to="Which city is the capital of France?")
    assert exact(other) != exact(BODY)
    assert partition(other) == partition(BODY)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(dict(reversed(BODY.items())), id="order of keys"),
        pytest.param(
            changed("messages", 0, to={"content": "You are terse.", "role": "system"}),
            id="order of nested keys",
        ),
        pytest.param(changed("stream", to=False), id="stream false"),
        pytest.param(changed("stream", to=None), id="stream null"),
        pytest.param(changed("stream", to=0), id="stream 0"),
        pytest.param(changed("temperature", to=0.2000001), id="noise in temperature"),
        pytest.param(changed("top_p", to=0.9004), id="noise in top_p"),
    ],
)
def test_what_cannot_change_the_answer_makes_the_same_keys(body: dict[str, Any]) -> None:
    assert exact(body) == exact(BODY)
    assert partition(body) == partition(BODY)


def test_white_space_and_escapes_in_the_body_are_not_part_of_the_key() -> None:
    from cachesvc.dialects.openai_chat import OpenAIChat

    pretty = json.dumps(BODY, indent=3, ensure_ascii=True).replace("France", "\\u0046rance")
    assert keys.exact_key(OpenAIChat().read(pretty.encode()), TARGET) == exact(BODY)


def test_order_in_arrays_matters() -> None:
    one, two = {"type": "function", "function": {"name": "a"}}, {"type": "custom"}
    assert exact(changed("tools", to=[one, two])) != exact(changed("tools", to=[two, one]))


def test_a_forced_field_stands_in_the_key_instead_of_the_callers() -> None:
    forced = dataclasses.replace(TARGET, forced={"model": "gpt-4o", "temperature": 0})
    body = changed("temperature", to=0.9) | {"model": "whatever"}
    assert exact(body, forced) == exact(BODY, forced)
    assert keys.effective_model(ask(body), forced) == "gpt-4o"


def test_the_keys_of_one_request_never_equal_each_other() -> None:
    assert exact(BODY) != partition(BODY)


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(msgspec.structs.replace(POLICY, window=2), id="window"),
        pytest.param(msgspec.structs.replace(POLICY, ignore_roles=()), id="ignore_roles"),
        pytest.param(
            msgspec.structs.replace(POLICY, ignore_roles=("system",)), id="fewer ignored roles"
        ),
    ],
)
def test_the_rule_of_extraction_is_part_of_the_partition(policy: Policy) -> None:
    assert partition(BODY, policy=policy) != partition(BODY)


def test_a_text_cannot_forge_the_placeholder() -> None:
    bodies = [changed(*USER, to="x")]
    bodies += [changed("messages", 1, "content", to=text) for text in ("0", "\x00", "")]
    made = [partition(body) for body in bodies]
    assert len(set(made)) == len(made)


def test_the_last_messages_that_survive_are_embedded() -> None:
    def text(**fields: Any) -> str | None:
        asked = keys.question(ask(BODY), msgspec.structs.replace(POLICY, **fields))
        return asked.text if asked else None

    last = "What is the capital of France?"
    assert text() == last
    assert text(window=2) == f"Hello\n{last}"
    assert text(window=9, ignore_roles=()) == f"You are terse.\nHello\nHi!\n{last}"
    assert text(ignore_roles=("user",)) == "Hi!"
    assert text(ignore_roles=("user", "assistant", "system")) is None


def test_a_forged_boundary_gives_another_text_than_a_real_one() -> None:
    policy = msgspec.structs.replace(POLICY, window=2)

    def text(*contents: str) -> str:
        messages = [{"role": "user", "content": content} for content in contents]
        asked = keys.question(ask({"model": "m", "messages": messages}), policy)
        assert asked is not None
        return asked.text

    assert text("a", "b") == "a\nb"
    assert text("a\nb") == "a\nb"  # one block stays as it is; it has another partition
    assert text("x", "a\nb") != text("x\na", "b")
    assert text("a\\", "nb") != text("a", "\\nb")
    real = {"model": "m", "messages": [{"role": "user", "content": c} for c in ("a", "b")]}
    forged = {"model": "m", "messages": [{"role": "user", "content": "a\nb"}]}
    assert partition(real, policy=policy) != partition(forged, policy=policy)


NOT_COMPARABLE = {
    "image": changed("messages", 3, "content", 1, to={"type": "image_url", "image_url": {}}),
    "image in an earlier turn": changed("messages", 1, "content", to=[{"type": "input_audio"}]),
    "tool role": changed("messages", 1, "role", to="tool"),
    "function role": changed("messages", 1, "role", to="function"),
    "tool calls": changed("messages", 2, "tool_calls", to=[{"id": "a"}]),
    "function call": changed("messages", 2, "function_call", to={"name": "f"}),
    "tool call id": changed("messages", 2, "tool_call_id", to="c"),
    "name": changed("messages", 3, "name", to="ada"),
    "tools": changed("tools", to=[{"type": "function"}]),
    "functions": changed("functions", to=[{"name": "f"}]),
    "text that is no text": changed("messages", 3, "content", 0, "text", to=5),
    "white space": changed(*USER, to=" \n\t\u00a0"),
    "nothing": changed("messages", 3, "content", to=[]),
    "null": changed("messages", 3, "content", to=None),
}


@pytest.mark.parametrize("body", [pytest.param(b, id=n) for n, b in NOT_COMPARABLE.items()])
def test_what_only_equality_can_judge_has_no_semantic_tier_but_a_key(body: dict[str, Any]) -> None:
    assert keys.question(ask(body), POLICY) is None
    assert len(exact(body)) == 32


def test_empty_tool_calls_do_not_end_the_semantic_tier() -> None:
    assert keys.question(ask(changed("messages", 2, "tool_calls", to=[])), POLICY) is not None
