"""Real SDKs see the same objects and the same bytes with and without `cachesvc up` in between."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.clients import cases
from tests.clients.sdks import SDKS, Sdk
from tests.clients.story import Story, differences, tell
from tests.clients.upstream import Upstream
from tests.end_to_end.stack import Up, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as running:
        yield running


@pytest.fixture(scope="module")
def up(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with Up(tmp_path_factory.mktemp("up"), "--upstream", upstream.url) as running:
        yield running


@pytest.fixture(scope="module", params=SDKS, ids=lambda sdk: sdk.name)
def story(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Story:
    sdk: Sdk = request.param
    if sdk.missing:
        pytest.skip(sdk.missing)
    upstream, up = request.getfixturevalue("upstream"), request.getfixturevalue("up")
    return tell(sdk, tmp_path_factory.mktemp("driver"), upstream, up)


def told(lines: list[str]) -> None:
    """Fail with these lines, if there are any."""
    if lines:
        pytest.fail("\n".join(lines), pytrace=False)


def test_without_the_proxy_every_case_ends_as_it_was_scripted(story: Story) -> None:
    lines = []
    for case, seen in story.direct.report.items():
        kind = cases.scenario(case)
        if cases.is_kept(case) and (seen["error"] or not seen["objects"]):
            lines.append(f"{story.sdk.name} {case}: no answer, {seen['error']}")
        if kind in cases.STATUSES and cases.STATUSES[kind] not in _statuses(seen):
            lines.append(f"{story.sdk.name} {case}: not refused with {cases.STATUSES[kind]}")
        if (kind in cases.BROKEN or kind == "hang") and not seen["error"]:
            lines.append(f"{story.sdk.name} {case}: no error was raised")
        if not story.direct.calls[case]:
            lines.append(f"{story.sdk.name} {case}: did not reach the upstream")
    told(lines)


def test_the_sdks_objects_are_the_same_with_and_without_the_proxy(story: Story) -> None:
    told(story.differences("objects"))


def test_statuses_media_types_and_body_bytes_are_the_same_with_and_without_the_proxy(
    story: Story,
) -> None:
    assert any(seen["exchanges"] for seen in story.direct.report.values())
    told(story.differences("exchanges"))


def test_what_fails_raises_the_same_error_with_and_without_the_proxy(story: Story) -> None:
    assert any(seen["error"] for seen in story.direct.report.values())
    told(story.differences("error"))


def test_what_may_be_kept_reaches_the_upstream_the_first_time_and_never_again(
    story: Story,
) -> None:
    lines = []
    for case in filter(cases.is_kept, story.direct.report):
        first, second = story.first.calls[case], story.second.calls[case]
        if first != story.direct.calls[case]:
            lines.append(f"{story.sdk.name} {case}, first run: {first} calls of the upstream")
        if second:
            lines.append(f"{story.sdk.name} {case}, second run: {second} calls of the upstream")
        lines += [
            f"{story.sdk.name} {case}, second run: {status} instead of HIT"
            for status in _cache(story.second.report[case])
            if status != "HIT"
        ]
    told(lines)


def test_failures_departures_and_stateful_answers_are_never_served_from_the_cache(
    story: Story,
) -> None:
    lines = []
    for case in story.direct.report:
        if cases.is_kept(case):
            continue
        for name, run in (("first", story.first), ("second", story.second)):
            if run.calls[case] != story.direct.calls[case]:
                lines.append(f"{story.sdk.name} {case}, {name} run: {run.calls[case]} calls")
            if "HIT" in _cache(run.report[case]):
                lines.append(f"{story.sdk.name} {case}, {name} run: HIT")
            if cases.scenario(case) == "stateful" and set(_cache(run.report[case])) != {"BYPASS"}:
                lines.append(f"{story.sdk.name} {case}, {name} run: not told to be a BYPASS")
    told(lines)


def test_the_upstream_sees_every_caller_leave_who_leaves_the_proxy(
    story: Story, upstream: Upstream
) -> None:
    leaving = [case for case in story.direct.report if cases.scenario(case) in cases.LEFT]
    assert leaving

    def seen_leaving(case: str) -> bool:
        who = story.sdk.credential, case
        return upstream.left[who] == upstream.calls[who]

    for case in leaving:
        eventually(lambda case=case: seen_leaving(case))  # type: ignore[misc]


def test_an_sdk_that_is_not_installed_as_listed_is_skipped_with_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.clients.sdks.BUILT", tmp_path)
    python = Sdk("openai-3", "current", "openai_sdk.py")
    assert python.missing == "run: make clients"
    stamp = tmp_path / "current.ready"
    stamp.touch()
    assert python.missing is None
    os.utime(stamp, (0, 0))
    assert python.missing == "run: make clients"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Sdk("ai", "node", "driver.mjs").missing == "node is not installed"


def test_a_difference_is_told_by_its_place() -> None:
    before = {"choices": [{"index": 0, "text": "a"}, {"index": 1}], "n": 1}
    after = {"choices": [{"index": 0, "text": "b"}, {"index": 1}], "n": True, "new": None}
    assert list(differences(before, after, "objects[0]")) == [
        "objects[0].choices[0].text was 'a', became 'b'",
        "objects[0].n was 1, became True",
        "objects[0].new was '(absent)', became None",
    ]
    assert list(differences([1], [1, 2], "x")) == ["x was [1], became [1, 2]"]


def _statuses(seen: dict[str, object]) -> list[int]:
    exchanges = seen["exchanges"]
    assert isinstance(exchanges, list)
    return [exchange["status"] for exchange in exchanges]


def _cache(seen: dict[str, object]) -> list[str | None]:
    exchanges = seen["exchanges"]
    assert isinstance(exchanges, list)
    return [exchange["cache"] for exchange in exchanges]
