"""What every protocol promises of answers: only whole ones are read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesvc.dialects import sse
from cachesvc.dialects.table import DIALECTS
from tests.dialects.samples import BY_NAME, SAMPLES, STREAMS
from tests.dialects.shapes import DONE, JSON, STREAM, data, named

if TYPE_CHECKING:
    from cachesvc.core.admission import Reading
    from cachesvc.dialects.base import Dialect
    from tests.dialects.shapes import Sample

every = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.dialect.name)
every_stream = pytest.mark.parametrize(
    ("dialect", "body", "reading"), STREAMS.values(), ids=STREAMS.keys()
)


def test_every_protocol_has_a_sample_and_chat_is_first() -> None:
    assert [dialect.name for dialect in DIALECTS] == list(BY_NAME)
    assert [dialect.path for dialect in DIALECTS] == [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/embeddings",
    ]


@every
def test_a_json_answer_is_read(sample: Sample) -> None:
    for media_type in (JSON, "application/json; charset=utf-8", "Application/Problem+JSON"):
        assert sample.dialect.read_answer(media_type, sample.json_answer) == sample.json_reading


@every
def test_a_json_answer_cut_anywhere_is_not_whole(sample: Sample) -> None:
    body = sample.json_answer.rstrip()
    for cut in range(len(body)):
        assert sample.dialect.read_answer(JSON, body[:cut]) is None, cut


@every_stream
def test_a_stream_is_read(dialect: Dialect, body: bytes, reading: Reading) -> None:
    assert dialect.read_answer(STREAM, body) == reading
    for ends in (b"\r\n", b"\r"):
        assert dialect.read_answer(STREAM, body.replace(b"\n", ends)) == reading


@every_stream
def test_a_stream_cut_anywhere_is_not_whole(dialect: Dialect, body: bytes, reading: Any) -> None:
    for cut in range(len(body)):
        assert dialect.read_answer(STREAM, body[:cut]) is None, cut


@every_stream
def test_a_comment_after_the_end_may_be_there_but_not_half_of_it(
    dialect: Dialect, body: bytes, reading: Reading
) -> None:
    comment = b": bye\n\n"
    for cut in range(len(comment) + 1):
        is_whole = cut == 0 or cut >= comment.index(b"\n") + 1
        assert (dialect.read_answer(STREAM, body + comment[:cut]) == reading) is is_whole, cut


@every_stream
def test_nothing_but_comments_may_come_after_the_end(
    dialect: Dialect, body: bytes, reading: Any
) -> None:
    first = body[: body.index(b"\n\n") + 2]
    for more in (first, named("ping"), b"data: x\n\n", b"data: x\n", b"event: x\n"):
        assert dialect.read_answer(STREAM, body + more) is None


@every_stream
def test_an_error_anywhere_in_a_stream_spoils_it(
    dialect: Dialect, body: bytes, reading: Any
) -> None:
    error = {"message": "Overloaded", "type": "overloaded_error"}
    frames = [frame + b"\n\n" for frame in body.split(b"\n\n")[:-1]]
    for failure in (
        named("error", error=error),
        data({"type": "error", "error": error}),
        data({"error": error}),
        data({"object": "error", "message": "x", "code": 500}),
        b"event: error\ndata: {}\n\n",
        b"event: error\n\n",
        b"event: ping\n" + data({"error": error}),
    ):
        for place in range(len(frames)):
            spoiled = b"".join((*frames[:place], failure, *frames[place:]))
            assert dialect.read_answer(STREAM, spoiled) is None, (failure, place)
        assert dialect.has_ended(sse.split(failure)[-1])  # type: ignore[index]


@every_stream
def test_a_stream_has_ended_at_its_last_event_alone(
    dialect: Dialect, body: bytes, reading: Any
) -> None:
    events = sse.split(body)
    assert events is not None
    assert [dialect.has_ended(event) for event in events] == [False] * (len(events) - 1) + [True]


@every_stream
def test_a_streams_media_type_alone_says_how_it_is_read(
    dialect: Dialect, body: bytes, reading: Any
) -> None:
    others = ("", JSON, "text/plain", "application/vnd.amazon.eventstream", "application/x-ndjson")
    for media_type in others:
        assert dialect.read_answer(media_type, body) is None


@every
def test_a_json_answers_media_type_alone_says_how_it_is_read(sample: Sample) -> None:
    others = ("", STREAM, "text/plain", "application/vnd.amazon.eventstream", "text/html")
    for media_type in others:
        for body in (sample.json_answer, sample.json_answer + b"\n\n"):
            assert sample.dialect.read_answer(media_type, body) is None


@every
def test_an_error_as_a_200_is_no_answer(sample: Sample) -> None:
    whole = json.loads(sample.json_answer)
    error = {"message": "Overloaded", "type": "overloaded_error"}
    for value in (
        {"error": error},
        {"type": "error", "error": error},
        {**whole, "error": error},
        {**whole, "error": "overloaded"},
        {"object": "error", "message": "x"},
        {},
    ):
        assert sample.dialect.read_answer(JSON, json.dumps(value).encode()) is None


@every
@pytest.mark.parametrize("body", [b"[]", b"null", b'"x"', b"7", b"", b"[" * 100_000, b"\xff"])
def test_what_is_no_object_is_no_answer(sample: Sample, body: bytes) -> None:
    assert sample.dialect.read_answer(JSON, body) is None


@every
def test_the_end_alone_is_no_answer(sample: Sample) -> None:
    for body in (b"", b"\n\n", DONE, named("message_stop"), b": hi\n\n", named("response.failed")):
        assert sample.dialect.read_answer(STREAM, body) is None


_pieces = st.sampled_from(
    (
        *(b'{"choices":[{', b'"content":[', b"}]", b"}", b'"error":', b'"type":"message_stop"'),
        *(b"\n\n", b"\r", b"data: ", b"event: message_stop", b"data: [DONE]", b"\xff", b'"', b"\\"),
    )
)


@given(st.binary(max_size=60) | st.lists(_pieces, max_size=14).map(b"".join))
def test_no_answer_is_too_odd_to_be_looked_at(body: bytes) -> None:
    for dialect in DIALECTS:
        for kind in (JSON, STREAM):
            dialect.read_answer(kind, body)
        for event in sse.Splitter().feed(body):
            dialect.has_ended(event)
