"""Responses: what is read, what belongs to the provider, and which answers are whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cachesvc.core.admission import Reading
from cachesvc.core.ask import Ask, Turn
from cachesvc.dialects import sse
from cachesvc.dialects.openai_responses import OpenAIResponses
from cachesvc.errors import Unreadable
from tests.dialects.openai_samples import RESPONSES, response
from tests.dialects.shapes import DONE, JSON, STREAM, data, named

DIALECT = OpenAIResponses()
TEXT = {"role": "user", "content": "hi"}
FUNCTION = {"type": "function", "name": "w", "parameters": {}}


def read(**fields: Any) -> Ask:
    body = {"model": "m", "input": "hi", "store": False, **fields}
    return DIALECT.read(json.dumps(body).encode())


def test_a_request_is_read_whole() -> None:
    ask = DIALECT.read(json.dumps(RESPONSES.request).encode())
    assert (ask.protocol, ask.model, ask.stream) == ("openai-responses", "gpt-5", False)
    assert ask.comparable
    assert not ask.stateful
    assert ask.turns == (
        Turn("system", (("instructions",),)),
        Turn("user", (("input", 0, "content"),)),
        Turn("assistant", (("input", 1, "content", 0, "text"),)),
        Turn("user", (("input", 2, "content", 0, "text"),)),
    )
    assert read().turns == (Turn("user", (("input",),)),)
    assert read(temperature=1, stream=True).temperature == 1.0
    assert read(stream=True).stream


@pytest.mark.parametrize(
    "fields",
    [
        {"input": None},
        {"input": []},
        {"input": 7},
        {"input": {"role": "user"}},
        {"input": ["hi"]},
        {"input": [None]},
        {"input": [{}]},
        {"input": [{"content": "hi"}]},
        {"input": [{"role": 1, "content": "hi"}]},
        {"input": [{"type": 1, "role": "user", "content": "hi"}]},
        {"input": [{"type": "message", "content": "hi"}]},
        {"input": [{"role": "user"}]},
        {"input": [{"role": "user", "content": None}]},
        {"input": [{"role": "user", "content": ["hi"]}]},
        {"input": [{"role": "user", "content": [{"text": "hi"}]}]},
        {"instructions": 7},
        {"instructions": [TEXT]},
        {"tools": "x"},
        {"tools": ["x"]},
        {"prompt": "hi"},
        {"store": None, "input": None},
        {"model": None},
        {"stream": 1},
    ],
)
def test_another_shape_is_not_judged(fields: dict[str, Any]) -> None:
    with pytest.raises(Unreadable):
        read(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"store": True},
        {"store": None},
        {"store": 0},
        {"previous_response_id": "resp_0"},
        {"conversation": "conv_1"},
        {"conversation": {"id": "conv_1"}},
        {"background": True},
        {"background": 1},
        {"prompt": {"id": "pmpt_1"}},
        {"prompt": {"id": "pmpt_1"}, "input": None},
        {"tools": [FUNCTION, {"type": "web_search"}]},
        {"tools": [{"type": "mcp", "server_url": "https://x"}]},
        {"tools": [{"name": "of no type"}]},
        {"input": [TEXT, {"type": "item_reference", "id": "msg_1"}]},
        {"input": [TEXT, {"type": None, "id": "msg_1"}]},
        {"input": [TEXT, {"id": "msg_1"}]},
    ],
)
def test_an_answer_that_the_provider_keeps_is_stateful(fields: dict[str, Any]) -> None:
    assert read(**fields).stateful


def test_a_request_that_does_not_say_store_false_is_stateful() -> None:
    assert DIALECT.read(b'{"model":"m","input":"hi"}').stateful


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"previous_response_id": None, "conversation": None, "prompt": None, "tools": None},
        {"background": False, "tools": []},
        {"background": None},
        {"tools": [FUNCTION, {"type": "custom", "name": "c"}]},
        {"input": [{"type": "message", "id": "msg_1", **TEXT}]},
    ],
)
def test_an_answer_that_nobody_keeps_is_not_stateful(fields: dict[str, Any]) -> None:
    assert not read(**fields).stateful


@pytest.mark.parametrize(
    "item",
    [
        {"type": "function_call", "call_id": "c", "name": "w", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "7"},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "of tomorrow", "role": "user", "content": "hi"},
        {"role": "user", "content": [{"type": "input_image", "image_url": "https://x/1.png"}]},
        {"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]},
        {"role": "user", "content": [{"type": "input_text", "text": 7}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "tool", "content": "hi"},
        {"role": "user", "name": "", "content": "hi"},
    ],
)
def test_what_only_equality_can_judge_is_not_comparable(item: dict[str, Any]) -> None:
    ask = read(input=[TEXT, item])
    assert not ask.comparable
    assert not ask.stateful
    assert read(input=[TEXT]).comparable


def test_tools_are_not_comparable() -> None:
    assert not read(tools=[FUNCTION]).comparable
    assert read(tools=[]).comparable


@pytest.mark.parametrize("status", ["incomplete", "failed", "cancelled", "queued", None, 7])
def test_a_response_that_is_not_completed_is_not_whole(status: Any) -> None:
    answer = response(status, incomplete_details={"reason": "max_output_tokens"})
    assert DIALECT.read_answer(JSON, json.dumps(answer).encode()) is None
    end = named("response.completed", response=answer)
    assert DIALECT.read_answer(STREAM, end) is None


@pytest.mark.parametrize("kind", ["incomplete", "failed", "cancelled"])
def test_a_stream_that_did_not_complete_has_ended_but_is_not_whole(kind: str) -> None:
    end = named(f"response.{kind}", response=response(kind))
    assert DIALECT.read_answer(STREAM, end) is None
    assert DIALECT.read_answer(STREAM, end + RESPONSES.stream_answer) is None
    (event,) = sse.split(end) or []
    assert DIALECT.has_ended(event)


def test_a_refusal_is_told() -> None:
    refusal = {"type": "message", "content": [{"type": "refusal", "refusal": "no"}]}
    body = json.dumps(response(output=[refusal])).encode()
    assert DIALECT.read_answer(JSON, body) == Reading(("completed",), refused=True)
    stream = named("response.refusal.delta", delta="no") + named(
        "response.completed", response=response()
    )
    assert DIALECT.read_answer(STREAM, stream) == Reading(("completed",), refused=True)


def test_the_events_type_is_told_by_its_name_or_its_data_but_not_by_two_that_differ() -> None:
    whole = {"response": response()}
    assert DIALECT.read_answer(STREAM, data({"type": "response.completed", **whole}))
    assert DIALECT.read_answer(STREAM, b"event: response.completed\n" + data(whole))
    assert DIALECT.read_answer(STREAM, b"event: response.completed\ndata: {}\n\n")
    differ = b"event: response.completed\n" + data({"type": "response.created", **whole})
    assert DIALECT.read_answer(STREAM, differ) is None
    differ = b"event: response.created\n" + data({"type": "response.completed", **whole})
    assert DIALECT.read_answer(STREAM, differ) is None


def test_a_done_behind_the_end_is_passed_over_and_in_its_place_is_none() -> None:
    whole = RESPONSES.stream_answer
    assert DIALECT.read_answer(STREAM, whole + DONE) == DIALECT.read_answer(STREAM, whole)
    assert (
        DIALECT.read_answer(STREAM, whole[: whole.index(b"event: response.completed")] + DONE)
        is None
    )
    assert DIALECT.read_answer(STREAM, whole + DONE + DONE) is None


def test_an_error_has_the_apis_shape() -> None:
    error = json.loads(DIALECT.error(504, "not_cached", "nothing cached"))["error"]
    assert set(error) == {"message", "type", "param", "code"}
