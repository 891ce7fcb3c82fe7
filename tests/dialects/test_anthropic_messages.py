"""Messages: what is read, what runs at the provider, and which answers are whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cachesvc.core.admission import Captured, Reading, admit
from cachesvc.core.ask import Ask, Turn
from cachesvc.core.model import Reason
from cachesvc.core.policy import Policy
from cachesvc.dialects.anthropic_messages import AnthropicMessages
from cachesvc.errors import Unreadable
from tests.dialects.samples import ANTHROPIC, message, messages_stream
from tests.dialects.shapes import JSON, STREAM, data, named

DIALECT = AnthropicMessages()
TEXT = {"role": "user", "content": "hi"}
TOOL = {"name": "w", "input_schema": {"type": "object"}}


def read(**fields: Any) -> Ask:
    body = {"model": "m", "max_tokens": 9, "messages": [TEXT], **fields}
    return DIALECT.read(json.dumps(body).encode())


def test_a_request_is_read_whole() -> None:
    ask = DIALECT.read(json.dumps(ANTHROPIC.request).encode())
    assert (ask.protocol, ask.model, ask.temperature) == (
        "anthropic-messages",
        "claude-sonnet-4-5",
        0.5,
    )
    assert ask.comparable
    assert not ask.stateful
    assert ask.turns == (
        Turn("system", (("system", 0, "text"),)),
        Turn("user", (("messages", 0, "content"),)),
        Turn("assistant", (("messages", 1, "content", 0, "text"),)),
        Turn("user", (("messages", 2, "content", 0, "text"),)),
    )
    assert read(system="Be terse.").turns[0] == Turn("system", (("system",),))
    assert read(system=None).turns == read().turns
    assert read(stream=True).stream


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": None},
        {"messages": []},
        {"messages": "hi"},
        {"messages": ["hi"]},
        {"messages": [{"content": "hi"}]},
        {"messages": [{"role": 1, "content": "hi"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user", "content": {"type": "text", "text": "hi"}}]},
        {"messages": [{"role": "user", "content": ["hi"]}]},
        {"messages": [{"role": "user", "content": [{"text": "hi"}]}]},
        {"system": 7},
        {"system": {"type": "text", "text": "hi"}},
        {"system": ["hi"]},
        {"tools": {"name": "w"}},
        {"tools": ["w"]},
        {"mcp_servers": "https://x"},
        {"model": 7},
        {"stream": "true"},
    ],
)
def test_another_shape_is_not_judged(fields: dict[str, Any]) -> None:
    with pytest.raises(Unreadable):
        read(**fields)


@pytest.mark.parametrize(
    "block",
    [
        {"type": "image", "source": {"type": "url", "url": "https://x/1.png"}},
        {"type": "document", "source": {"type": "text", "data": "hi"}},
        {"type": "tool_use", "id": "t", "name": "w", "input": {}},
        {"type": "tool_result", "tool_use_id": "t", "content": "7"},
        {"type": "thinking", "thinking": "Hm.", "signature": "Eq=="},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text"},
        {"type": "text", "text": None},
    ],
)
def test_a_block_that_is_no_text_is_not_comparable(block: dict[str, Any]) -> None:
    ask = read(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}, block]}])
    assert not ask.comparable
    assert not ask.stateful
    assert not read(system=[block]).comparable


@pytest.mark.parametrize(
    "tool",
    [
        TOOL,
        {"type": None, **TOOL},
        {"type": "custom", **TOOL},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "text_editor_20250728", "name": "str_replace_based_edit_tool"},
        {"type": "computer_20250124", "name": "computer"},
        {"type": "memory_20250818", "name": "memory"},
    ],
)
def test_tools_that_the_caller_runs_are_not_comparable(tool: dict[str, Any]) -> None:
    ask = read(tools=[tool])
    assert not ask.comparable
    assert not ask.stateful


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL, {"type": "web_search_20250305", "name": "web_search"}]},
        {"tools": [{"type": "code_execution_20250825", "name": "code_execution"}]},
        {"tools": [{"type": "of_tomorrow", "name": "x"}]},
        {"tools": [{"type": 7}]},
        {"mcp_servers": [{"type": "url", "url": "https://x", "name": "x"}]},
        {"container": "container_1"},
        {"container": {"skills": []}},
    ],
)
def test_what_runs_at_the_provider_is_stateful(fields: dict[str, Any]) -> None:
    ask = read(**fields)
    assert ask.stateful
    assert not ask.comparable


def test_nothing_written_out_is_nothing() -> None:
    ask = read(tools=[], mcp_servers=[], container=None, system=None)
    assert ask.comparable
    assert not ask.stateful


def refusals(stop_reason: str, policy: Policy) -> set[Reason | None]:
    """What admission says to this stop reason, in JSON and in a stream."""
    json_body = json.dumps(message(stop_reason)).encode()
    bodies = {JSON: json_body, STREAM: messages_stream(stop_reason=stop_reason)}
    return {
        admit(Captured(200, kind, body, clean=True), DIALECT.read_answer(kind, body), policy)
        for kind, body in bodies.items()
    }


@pytest.mark.parametrize("reason", ["end_turn", "max_tokens", "stop_sequence", "tool_use"])
def test_an_answer_that_came_to_an_end_is_kept(reason: str) -> None:
    assert refusals(reason, Policy()) == {None}
    assert refusals(reason, Policy(cacheable_finish_reasons=("x",))) == {Reason.NOT_CACHEABLE}


def test_a_refusal_is_not_kept() -> None:
    assert refusals("refusal", Policy()) == {Reason.NOT_CACHEABLE}


@pytest.mark.parametrize("reason", ["pause_turn", "compaction"])
def test_an_unfinished_turn_is_never_kept(reason: str) -> None:
    assert refusals(reason, Policy()) == {Reason.INCOMPLETE}
    assert refusals(reason, Policy(cacheable_finish_reasons=(reason,))) == {Reason.INCOMPLETE}


def test_the_last_count_of_each_kind_is_the_one() -> None:
    start = named("message_start", message={"usage": {"input_tokens": 5, "output_tokens": 1}})
    one = named("message_delta", delta={}, usage={"output_tokens": 3, "input_tokens": None})
    two = named("message_delta", delta={}, usage={"output_tokens": 8, "cache_read_input_tokens": 7})
    body = start + one + two + named("message_stop")
    assert DIALECT.read_answer(STREAM, body) == Reading((), False, 12, 8)


def test_a_ping_without_data_is_passed_over() -> None:
    body = ANTHROPIC.stream_answer
    bare = body.replace(named("ping"), b"event: ping\n\n")
    assert bare != body
    assert DIALECT.read_answer(STREAM, bare) == DIALECT.read_answer(STREAM, body)


def test_the_end_is_told_by_the_events_name_or_its_data() -> None:
    start = named("message_start", message=message(None))
    reading = Reading()
    assert DIALECT.read_answer(STREAM, start + b"event: message_stop\ndata: {}\n\n") == reading
    assert DIALECT.read_answer(STREAM, start + data({"type": "message_stop"})) == reading
    assert DIALECT.read_answer(STREAM, start) is None
    differ = b"event: message_stop\n" + data({"type": "message_delta"})
    assert DIALECT.read_answer(STREAM, start + differ) is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "not_found_error"),
        (418, "invalid_request_error"),
        (502, "api_error"),
        (504, "timeout_error"),
    ],
)
def test_an_error_has_the_apis_shape(status: int, kind: str) -> None:
    error = json.loads(DIALECT.error(status, "upstream_unreachable", "no answer"))
    assert error == {"type": "error", "error": {"type": kind, "message": "no answer"}}
