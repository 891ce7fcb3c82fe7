"""The side copy stays within the policy's cap, whatever comes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cachesvc.core.model import Reason
from cachesvc.core.policy import Policy
from cachesvc.dialects.openai_chat import OpenAIChat
from cachesvc.proxy.capture import Capture
from tests.proxy.rig import STREAM, events


@dataclass
class Head:
    """The head of an upstream's answer."""

    status: int = 200
    media_type: str = STREAM

    def values(self, name: bytes) -> list[str]:
        return [self.media_type] if name == b"content-type" else []


def _capture(head: Head, cap: int) -> Capture:
    return Capture(head, OpenAIChat(), Policy(max_body_bytes=cap))  # type: ignore[arg-type]


def test_what_is_over_the_cap_is_dropped_at_once_and_stays_dropped() -> None:
    capture = _capture(Head(), 1000)
    for _ in range(50):
        capture.feed(b"x" * 30)
        assert capture.size <= 1000
    assert capture.size == 0
    assert capture.seal().refusal is Reason.TOO_LARGE
    assert not capture.looks_cut()


def test_of_what_is_no_200_nothing_is_copied() -> None:
    capture = _capture(Head(status=500), 1000)
    capture.feed(b"x")
    assert capture.size == 0
    assert capture.seal().refusal is Reason.NOT_CACHEABLE
    assert not capture.looks_cut()


@pytest.mark.parametrize(
    ("body", "cut"),
    [
        (events("a"), False),
        (events("a", end=""), True),
        (events("a")[:-1], True),
        (b"", True),
        (events("a", end='data: {"error": {}}\n\n'), True),
        (events("a", end='data: {"error": {"message": "x"}}\n\n'), False),
        (events("a", end="event: message_stop\ndata: {}\n\n"), True),
        (events("a", end="event: error\ndata: {}\n\n"), False),
        (events("a") + b": bye\n\n", False),
    ],
)
def test_a_stream_without_length_tells_by_itself_whether_it_was_cut(body: bytes, cut: bool) -> None:
    capture = _capture(Head(), 10_000)
    capture.feed(body)
    assert capture.looks_cut() is cut


@pytest.mark.parametrize(("body", "cut"), [(b"{}", False), (b"[1", True), (b"", True)])
def test_so_does_json_and_no_other_type(body: bytes, cut: bool) -> None:
    capture = _capture(Head(media_type="application/json; charset=utf-8"), 10_000)
    capture.feed(body)
    assert capture.looks_cut() is cut
    other = _capture(Head(media_type="text/html"), 10_000)
    other.feed(body)
    assert not other.looks_cut()
