"""An answer without its usage: the numbers there are 0, and every other byte is as it was."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesvc.dialects import sse
from cachesvc.dialects.table import DIALECTS
from tests.dialects.samples import BY_NAME, SAMPLES, STREAMS
from tests.dialects.shapes import JSON, STREAM

if TYPE_CHECKING:
    from cachesvc.core.admission import Reading
    from cachesvc.dialects.base import Dialect
    from tests.dialects.shapes import Sample

CHAT = BY_NAME["openai-chat"].dialect
RESPONSES = BY_NAME["openai-responses"].dialect
ANTHROPIC = BY_NAME["anthropic-messages"].dialect


def numbers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [n for inner in value.values() for n in numbers(inner)]
    if isinstance(value, list):
        return [n for inner in value for n in numbers(inner)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def usages(value: Any) -> list[Any]:
    """The usage objects of one answer or event, taken out of it."""
    owners = [value, value.get("response"), value.get("message")]
    return [owner.pop("usage", None) for owner in owners if isinstance(owner, dict)]


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.dialect.name)
def test_without_usage_a_json_answer_has_zeroes_there_and_all_else_as_it_was(
    sample: Sample,
) -> None:
    edited = sample.dialect.without_usage(JSON, sample.json_answer)
    before, after = json.loads(sample.json_answer), json.loads(edited)
    used, unused = usages(before), usages(after)
    assert before == after
    assert any(numbers(used))
    assert not any(numbers(unused))
    assert len(numbers(unused)) == len(numbers(used))
    assert re.sub(rb"[0-9]+", b"", edited) == re.sub(rb"[0-9]+", b"", sample.json_answer)


@pytest.mark.parametrize(("dialect", "body", "reading"), STREAMS.values(), ids=STREAMS.keys())
def test_without_usage_a_stream_has_the_same_events(
    dialect: Dialect, body: bytes, reading: Reading
) -> None:
    edited = dialect.without_usage(STREAM, body)
    before, after = sse.split(body), sse.split(edited)
    assert before is not None
    assert after is not None
    assert [event.name for event in before] == [event.name for event in after]
    for one, other in zip(before, after, strict=True):
        if one.data != b"[DONE]":
            was, now = json.loads(one.data), json.loads(other.data)
            assert not any(numbers(usages(now)))
            usages(was)
            assert was == now
    unused = dialect.read_answer(STREAM, edited)
    assert unused is not None
    assert (unused.prompt_tokens, unused.completion_tokens) == (0, 0)
    assert (unused.finish_reasons, unused.refused) == (reading.finish_reasons, reading.refused)
    assert re.sub(rb"[0-9]+", b"", edited) == re.sub(rb"[0-9]+", b"", body)


@pytest.mark.parametrize(
    ("body", "edited"),
    [
        (b'{"usage":{"a":12}}', b'{"usage":{"a":0}}'),
        (
            b' {"usage" :\r\n\t{ "a" : -1.5e+3 , "b":[7,{"c":8}] } } ',
            b' {"usage" :\r\n\t{ "a" : 0 , "b":[0,{"c":0}] } } ',
        ),
        (b'{"us\\u0061ge":{"a":12}}', b'{"us\\u0061ge":{"a":0}}'),
        (b'{"usage":{"a":1},"x":1,"usage":{"a":2}}', b'{"usage":{"a":0},"x":1,"usage":{"a":0}}'),
        (b'{"usage":{"7":"8 \\" 9","c":"1"}}', b'{"usage":{"7":"8 \\" 9","c":"1"}}'),
        (b'{"usage":{"a":true,"b":null}}', b'{"usage":{"a":true,"b":null}}'),
        (
            b'{"usage":{"a":1},"big":' + b"9" * 5000 + b"}",
            b'{"usage":{"a":0},"big":' + b"9" * 5000 + b"}",
        ),
        (b'{"x":"\xc3\xa9\\ud800","usage":{"a":1}}', b'{"x":"\xc3\xa9\\ud800","usage":{"a":0}}'),
    ],
)
def test_the_usage_is_found_however_it_is_written(body: bytes, edited: bytes) -> None:
    assert CHAT.without_usage(JSON, body) == edited


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":"\\"usage\\":{\\"a\\":1}"}',
        b'{"x":{"usage":{"a":1}}}',
        b'{"x":[{"usage":{"a":1}}]}',
        b'[{"usage":{"a":1}}]',
        b'{"usage ":{"a":1},"Usage":{"a":1}}',
        b'{"usage":7}',
        b'{"usage":[7]}',
        b'{"usage":{"a":1}',
        b'{"usage":{"a":1}} x',
        b'{"usage":{"a":01}}',
        b'{"usage":{"a":NaN}}',
        b'\xef\xbb\xbf{"usage":{"a":1}}',
        b'{"usage":{"a":1},"b":"\xff"}',
        b'{"response":{"usage":{"a":1}},"message":{"usage":{"a":1}}}',
        b'{"usage":' + b"[" * 100_000,
        b"usage",
        b"",
    ],
)
def test_what_is_no_usage_or_no_json_stays_as_it_is(body: bytes) -> None:
    assert CHAT.without_usage(JSON, body) == body


def test_other_media_types_stay_as_they_are() -> None:
    body = b'{"usage":{"a":1}}'
    for media_type in ("", "text/plain", "application/octet-stream"):
        assert CHAT.without_usage(media_type, body) == body


def test_each_protocol_has_its_own_places_for_usage() -> None:
    response = b'data: {"response":{"usage":{"a":1}},"usage":{"a":1}}\n\n'
    message = b'data: {"message":{"usage":{"a":1}},"usage":{"a":1}}\n\n'
    zeroed = response.replace(b'"response":{"usage":{"a":1', b'"response":{"usage":{"a":0')
    assert RESPONSES.without_usage(STREAM, response) == zeroed
    assert RESPONSES.without_usage(STREAM, message) == message
    assert ANTHROPIC.without_usage(STREAM, message) == message.replace(b"1", b"0")
    assert CHAT.without_usage(STREAM, message) == message.replace(b'"a":1}}\n', b'"a":0}}\n')


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_usage_over_several_data_lines_is_found(end: bytes) -> None:
    lines = (b'data: {"usage":', b": 12", b"id: 12", b"data", b'data:{"a": 12}}', b"", b"")
    edited = (b'data: {"usage":', b": 12", b"id: 12", b"data", b'data:{"a": 0}}', b"", b"")
    assert CHAT.without_usage(STREAM, end.join(lines)) == end.join(edited)
    bom = b"\xef\xbb\xbf"
    assert CHAT.without_usage(STREAM, bom + end.join(lines)) == bom + end.join(edited)


_pieces = st.sampled_from(
    (
        *(b'{"usage":{"a":5', b"}}", b'{"x":1', b',"usage":{"b":[7]}', b"}", b"7", b'"', b"\\"),
        *(b"\r", b"\n", b"\n\n", b"data: ", b"data:", b"data", b"event: x", b":"),
        *(b"\xff", b"\xef\xbb\xbf"),
    )
)


@given(st.lists(_pieces, max_size=14).map(b"".join), st.sampled_from([JSON, STREAM]))
def test_without_usage_never_fails_nor_changes_what_is_no_number(body: bytes, kind: str) -> None:
    for dialect in DIALECTS:
        edited = dialect.without_usage(kind, body)
        assert re.sub(rb"[0-9]", b"", edited) == re.sub(rb"[0-9]", b"", body)
        before, after = sse.split(body), sse.split(edited)
        assert (before is None) == (after is None)
        assert len(before or ()) == len(after or ())


def test_a_large_answer_loses_its_usage_in_linear_time() -> None:
    def seconds(size: int) -> float:
        filler = b'{"a":"' + b'\\"usage\\":{ ' * size + b'"},'
        body = b'{"x":[' + filler + b'{}],"usage":{"a":' + b"9" * size + b"}}"
        stream = b"data: " + body + b"\n\n"
        best = 9.0
        for _ in range(3):
            start = time.perf_counter()
            assert CHAT.without_usage(JSON, body).endswith(b'{"a":0}}')
            assert CHAT.without_usage(STREAM, stream).endswith(b'{"a":0}}\n\n')
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds(80_000) < 8 * 4 * max(seconds(10_000), 1e-3)
