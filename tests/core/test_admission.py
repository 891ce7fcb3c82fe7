"""Admission: only whole answers that may be repeated are kept."""

from __future__ import annotations

import dataclasses

import pytest

from cachesvc.core.admission import Captured, Reading, admit
from cachesvc.core.model import Reason
from cachesvc.core.policy import Policy

POLICY = Policy()
WHOLE = Captured(status=200, media_type="application/json", body=b"{}", clean=True)
STOP = Reading(finish_reasons=("stop",))


def test_a_whole_answer_is_kept() -> None:
    assert admit(WHOLE, STOP, POLICY) is None
    assert admit(WHOLE, Reading(), POLICY) is None  # an answer need not name a finish reason


@pytest.mark.parametrize("status", [100, 201, 204, 206, 301, 304, 400, 401, 429, 500, 503])
def test_only_status_200_is_kept(status: int) -> None:
    captured = dataclasses.replace(WHOLE, status=status)
    assert admit(captured, STOP, POLICY) is Reason.NOT_CACHEABLE


@pytest.mark.parametrize(
    ("captured", "reading", "reason"),
    [
        (dataclasses.replace(WHOLE, clean=False), STOP, Reason.INCOMPLETE),
        (WHOLE, None, Reason.INCOMPLETE),
        (dataclasses.replace(WHOLE, body=None), STOP, Reason.NOT_CACHEABLE),
        (dataclasses.replace(WHOLE, body=None, oversize=True), None, Reason.TOO_LARGE),
        (dataclasses.replace(WHOLE, body=b"x" * 1_048_577), STOP, Reason.TOO_LARGE),
    ],
)
def test_what_is_not_whole_is_not_kept(
    captured: Captured, reading: Reading | None, reason: Reason
) -> None:
    assert admit(captured, reading, POLICY) is reason


def test_the_cap_is_inclusive_and_zero_keeps_nothing() -> None:
    exactly = dataclasses.replace(WHOLE, body=b"x" * 1_048_576)
    assert admit(exactly, STOP, POLICY) is None
    assert admit(WHOLE, STOP, Policy(max_body_bytes=0)) is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "finish",
    [
        *("content_filter", "content-filter", "SAFETY", "PROHIBITED_CONTENT", "refusal", "failed"),
        *("incomplete", "error", "abort", "cancelled", "network_error"),
    ],
)
def test_filtered_and_failed_answers_are_not_kept(finish: str) -> None:
    mixed = Reading(finish_reasons=("stop", finish))
    assert admit(WHOLE, mixed, POLICY) is Reason.NOT_CACHEABLE
    assert admit(WHOLE, Reading(refused=True), POLICY) is Reason.NOT_CACHEABLE


@pytest.mark.parametrize(
    "finish", ["stop", "length", "tool_calls", "eos", "end_turn", "STOP", "stop_sequence"]
)
def test_other_finish_reasons_are_kept(finish: str) -> None:
    assert admit(WHOLE, Reading(finish_reasons=(finish,)), POLICY) is None


def test_an_operators_list_is_the_whole_list() -> None:
    only_stop = Policy(cacheable_finish_reasons=("stop",))
    assert admit(WHOLE, STOP, only_stop) is None
    assert admit(WHOLE, Reading(finish_reasons=("length",)), only_stop) is Reason.NOT_CACHEABLE
    assert admit(WHOLE, Reading(), only_stop) is Reason.NOT_CACHEABLE
    filtered = Policy(cacheable_finish_reasons=("content_filter",))
    assert admit(WHOLE, Reading(finish_reasons=("content_filter",)), filtered) is None
