"""Chat completions: which requests are read, and which answers are whole."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cachesvc.core.admission import Reading
from cachesvc.dialects.openai_chat import OpenAIChat
from cachesvc.errors import Unreadable

CHAT = OpenAIChat()
MESSAGE = {"role": "user", "content": "hi"}


def read(**fields: Any) -> Any:
    body = {"model": "m", "messages": [MESSAGE], **fields}
    return CHAT.read(json.dumps(body).encode())


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": None},
        {"messages": []},
        {"messages": {"role": "user"}},
        {"messages": ["hi"]},
        {"messages": [None]},
        {"messages": [[]]},
        {"messages": [{"content": "hi"}]},
        {"messages": [{"role": 1, "content": "hi"}]},
        {"messages": [{"role": "user", "content": {"type": "text", "text": "hi"}}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": ["hi"]}]},
        {"messages": [{"role": "user", "content": [{"text": "hi"}]}]},
        {"model": 7},
        {"model": None},
        {"stream": "true"},
        {"stream": 1},
        {"stream": []},
    ],
)
def test_another_shape_is_not_judged(fields: dict[str, Any]) -> None:
    with pytest.raises(Unreadable):
        read(**fields)


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"x"', b"{}", b'{"prompt":"hi"}'])
def test_what_is_no_chat_request_is_not_judged(body: bytes) -> None:
    with pytest.raises(Unreadable):
        CHAT.read(body)


def test_a_request_is_read_whole() -> None:
    ask = read(temperature=1, stream=True)
    assert (ask.protocol, ask.model, ask.stream, ask.temperature) == ("openai-chat", "m", True, 1.0)
    assert ask.turns[0].texts == (("messages", 0, "content"),)
    assert ask.comparable
    assert not read().stream
    assert read(temperature="hot").temperature is None


def chunk(**choice: Any) -> bytes:
    body = {"choices": [{"index": 0, "delta": {}, "finish_reason": None, **choice}]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


HELLO = chunk(delta={"content": "Hello [DONE]"})
STOP = chunk(finish_reason="stop")
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":6}}\n\n'
DONE = b"data: [DONE]\n\n"


def whole(body: bytes, media_type: str = "text/event-stream; charset=utf-8") -> Reading | None:
    return CHAT.read_answer(media_type, body)


@pytest.mark.parametrize(
    ("body", "is_whole"),
    [
        pytest.param(HELLO + STOP + DONE, True, id="done"),
        pytest.param((HELLO + STOP + DONE).replace(b"\n", b"\r\n"), True, id="done in CRLF"),
        pytest.param(HELLO + STOP + DONE + b": bye\n\n", True, id="comment after done"),
        pytest.param(HELLO + STOP + DONE + b": bye\n", True, id="comment line after done"),
        pytest.param(b": hi\n\n" + HELLO + DONE, True, id="comment first"),
        pytest.param(HELLO + STOP, False, id="no done"),
        pytest.param(HELLO, False, id="done inside content"),
        pytest.param(HELLO + DONE[:-1], False, id="done without its blank line"),
        pytest.param(HELLO + DONE + b": by", False, id="truncated comment"),
        pytest.param(HELLO + DONE + STOP, False, id="something after done"),
        pytest.param(HELLO + b"event: message_stop\ndata: {}\n\n", False, id="another protocol's"),
        pytest.param(HELLO + b'data: {"error":{"message":"x"}}\n\n' + DONE, False, id="error"),
        pytest.param(HELLO + b"event: error\ndata: {}\n\n" + DONE, False, id="error event"),
        pytest.param(HELLO + b'data: {"object":"error","code":5}\n\n' + DONE, False, id="an error"),
        pytest.param(chunk(error={"code": 5}) + DONE, False, id="an error in a choice"),
        pytest.param(HELLO + b"data: not json\n\n" + DONE, False, id="not JSON"),
        pytest.param(DONE, False, id="nothing but done"),
        pytest.param(b"", False, id="nothing"),
        pytest.param(b'{"choices":[{}]}', False, id="JSON under the stream's type"),
    ],
)
def test_a_stream_is_whole_when_its_last_event_is_the_end(body: bytes, is_whole: bool) -> None:
    assert (whole(body) is not None) is is_whole


@pytest.mark.parametrize("cut", range(len(HELLO + STOP + DONE)))
def test_a_stream_cut_at_any_byte_is_not_whole(cut: int) -> None:
    assert whole((HELLO + STOP + DONE)[:cut]) is None


def test_a_stream_tells_its_finish_and_its_usage() -> None:
    assert whole(HELLO + STOP + USAGE + DONE) == Reading(("stop",), False, 5, 6)
    assert whole(chunk(delta={"refusal": "no"}) + STOP + DONE) == Reading(("stop",), refused=True)


@pytest.mark.parametrize(
    ("body", "reading"),
    [
        (
            b'{"choices":[{"message":{"content":"x\\ud800"},"finish_reason":"stop"}],'
            b'"usage":{"prompt_tokens":7,"completion_tokens":11}}',
            Reading(("stop",), False, 7, 11),
        ),
        (b'{"choices":[{"message":{"content":null}}]}', Reading()),
        (
            b'{"choices":[{"finish_reason":"stop"},{"finish_reason":"length"}]}',
            Reading(("stop", "length")),
        ),
        (
            b'{"choices":[{"message":{"refusal":"no"},"finish_reason":"stop"}]}',
            Reading(("stop",), True),
        ),
        (b'{"choices":[{}],"usage":{"prompt_tokens":-1,"completion_tokens":true}}', Reading()),
        (b'{"choices":[{}],"error":null}', Reading()),
        (b'{"choices":[{}],"error":{"message":"x"}}', None),
        (b'{"error":{"message":"overloaded"}}', None),
        (b'{"choices":[]}', None),
        (b'{"choices":[{"error":{"code":5},"message":{"content":"par"}}]}', None),
        (b'{"choices":["x"]}', None),
        (b'{"choices":[{}]} trailing', None),
        (b'{"choices":[{}]', None),
        (b'{"choices":[NaN]}', None),
        (b"data: {}\n\n", None),
        (b"\xff", None),
        (b"[" * 100_000, None),
    ],
)
def test_a_json_answer_is_whole_when_it_parses_and_has_choices(
    body: bytes, reading: Reading | None
) -> None:
    assert whole(body, "application/json") == reading


@pytest.mark.parametrize("media_type", ["", "text/html", "application/octet-stream", "text/plain"])
def test_another_media_type_is_never_an_answer(media_type: str) -> None:
    assert whole(b'{"choices":[{}]}', media_type) is None


def test_an_error_has_the_apis_shape() -> None:
    error = json.loads(CHAT.error(502, "upstream_unreachable", "no answer"))["error"]
    assert error["message"] == "no answer"
    assert set(error) == {"message", "type", "param", "code"}
