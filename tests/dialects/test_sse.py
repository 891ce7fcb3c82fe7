"""The event splitter: the same events however the bytes were cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesvc.dialects.sse import Event, Splitter, split, with_data
from tests.dialects.samples import STREAMS


def fed(*pieces: bytes) -> tuple[list[Event], bool]:
    splitter = Splitter()
    events = [event for piece in pieces for event in splitter.feed(piece)]
    events += splitter.finish()
    return events, splitter.at_boundary


STREAM = b': hello\r\n\r\nevent: a\rdata: 1\rdata:2\r\rdata: {"x": "\xc3\xa9"}\n\nid: 7\n: c\n\n'


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: x\n\n", [Event("message", b"x")]),
        (b"data:x\r\n\r\n", [Event("message", b"x")]),
        (b"data: a\ndata: b\n\n", [Event("message", b"a\nb")]),
        (b"event: ping\ndata\n\n", [Event("ping", b"")]),
        (b"event: ping\n\n", [Event("ping", b"")]),
        (b"\xef\xbb\xbfdata: x\n\n", [Event("message", b"x")]),
        (b"data:  two\n\n", [Event("message", b" two")]),
        (b": comment\n\n\n", []),
        (b"retry: 10\nid: 3\n\n", []),
    ],
)
def test_events_are_read_as_browsers_read_them(stream: bytes, events: list[Event]) -> None:
    assert fed(stream) == (events, True)


@pytest.mark.parametrize(
    "stream", [b"data: x\n", b"data: x", b"d", b": half a comment", b"event: x\n", b"\xef\xbb"]
)
def test_a_stream_cut_inside_a_frame_is_not_whole(stream: bytes) -> None:
    assert fed(stream)[1] is False
    assert split(stream) is None


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_a_cut_at_any_byte_changes_nothing(cut: int) -> None:
    assert fed(STREAM[:cut], STREAM[cut:]) == fed(STREAM)


@pytest.mark.parametrize("shows", STREAMS)
def test_every_protocols_stream_gives_the_same_events_at_every_cut(shows: str) -> None:
    stream = STREAMS[shows][1]
    whole = fed(stream)
    assert whole == (split(stream), True)
    for ends in (stream, stream.replace(b"\n", b"\r\n")):
        for cut in range(len(ends) + 1):
            assert fed(ends[:cut], ends[cut:]) == whole, cut


def test_byte_by_byte_changes_nothing() -> None:
    assert fed(*(STREAM[i : i + 1] for i in range(len(STREAM)))) == fed(STREAM)


@given(
    st.lists(st.sampled_from([b"\r", b"\n", b"data: ", b"event:", b":", b"x", b"\xef\xbb\xbf"])),
    st.randoms(use_true_random=False),
)
def test_any_stream_in_any_pieces_gives_the_same_events(parts: list[bytes], random: object) -> None:
    stream = b"".join(parts)
    cuts = sorted(random.randint(0, len(stream)) for _ in range(5))  # type: ignore[attr-defined]
    bounds = [0, *cuts, len(stream)]
    pieces = [stream[a:b] for a, b in itertools.pairwise(bounds)]
    assert fed(*pieces) == fed(stream)


@given(
    st.lists(
        st.sampled_from(
            [
                b"\r",
                b"\n",
                b"\r\n",
                b"data: ",
                b"data:",
                b"data",
                b"event:",
                b":",
                b"a",
                b"\xef\xbb\xbf",
            ]
        )
    )
)
def test_the_edited_data_is_what_is_read_and_all_else_stays(parts: list[bytes]) -> None:
    stream = b"".join(parts)
    assert with_data(stream, lambda data: data) == stream
    edited = with_data(stream, lambda data: data.replace(b"a", b"bb"))
    assert edited.count(b"bb") <= stream.count(b"a")
    expected = [(e.name, e.data.replace(b"a", b"bb")) for e in fed(stream)[0]]
    assert [(e.name, e.data) for e in fed(edited)[0]] == expected
    assert edited.replace(b"bb", b"a") == stream


def test_an_edit_that_loses_a_line_is_not_followed() -> None:
    stream = b"data: a\ndata: b\n\ndata: c\n\n"
    assert with_data(stream, lambda data: b"x") == b"data: a\ndata: b\n\ndata: x\n\n"
