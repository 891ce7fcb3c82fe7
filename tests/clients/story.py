"""What an SDK saw three times: without the proxy, through it, and through it again."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.clients import cases
from tests.clients.sdks import Driver, Report, Sdk
from tests.end_to_end.stack import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.clients.upstream import Upstream
    from tests.end_to_end.stack import Up


@dataclass(frozen=True)
class Run:
    """A driver's report, and how often each case reached the upstream."""

    report: Report
    calls: Counter[str]


@dataclass(frozen=True)
class Story:
    """The three runs of one SDK."""

    sdk: Sdk
    direct: Run
    first: Run
    second: Run

    def differences(self, *parts: str) -> list[str]:
        """Where a run through the proxy differs from the direct one: SDK, case, run, field."""
        return [
            f"{self.sdk.name} {case}, {name} run: {found}"
            for name, run in (("first", self.first), ("second", self.second))
            for case, told in self.direct.report.items()
            for part in parts
            for found in differences(
                _comparable(case, part, told), _comparable(case, part, run.report[case]), part
            )
        ]


def tell(sdk: Sdk, home: Path, upstream: Upstream, up: Up) -> Story:
    """Run all cases three times; before the third run every answer has been stored."""
    with Driver(sdk, home) as driver:
        direct = _run(driver, upstream.url, upstream)
        entries, answered = up.entries(), _kept(sdk, upstream)
        first = _run(driver, up.proxy, upstream)
        expected = entries + _kept(sdk, upstream) - answered
        # What was not stored shows below, case by case.
        with contextlib.suppress(AssertionError):
            eventually(lambda: up.entries() >= expected, 5)
        second = _run(driver, up.proxy, upstream)
    return Story(sdk, direct, first, second)


def _run(driver: Driver, url: str, upstream: Upstream) -> Run:
    before = _calls(driver.sdk, upstream)
    report = driver.run(url)
    return Run(report, _calls(driver.sdk, upstream) - before)


def _calls(sdk: Sdk, upstream: Upstream) -> Counter[str]:
    pairs = list(upstream.calls.items())
    return Counter({case: calls for (who, case), calls in pairs if who == sdk.credential})


def _kept(sdk: Sdk, upstream: Upstream) -> int:
    """How many answers that must be stored the upstream has given to this SDK."""
    pairs = list(upstream.answered.items())
    return sum(n for (who, case), n in pairs if who == sdk.credential and cases.is_kept(case))


def _comparable(case: str, part: str, told: dict[str, Any]) -> Any:
    """One part of what a case told, without what depends on when the network delivered what."""
    kind = cases.scenario(case)
    if part == "error":
        return _failure(kind, told["error"])
    if part == "exchanges":
        torn = kind in cases.LEFT or kind == "reset"
        names = ("status", "media_type") if torn else ("status", "media_type", "body")
        # A retry that was needed without the cache is not needed when the answer is there.
        counted = told["exchanges"][-1:] if kind == "flaky" else told["exchanges"]
        return [{name: exchange[name] for name in names} for exchange in counted]
    # What a reset overtakes is lost.
    return None if kind == "reset" else told[part]


def _failure(kind: str, error: dict[str, Any] | None) -> Any:
    if error is None:
        return None
    if kind not in cases.LEFT | cases.BROKEN:
        return error
    told = {"kind": error["kind"], "status": error["status"]}
    # The proxy passes an early end on as a reset, which nobody can take for a whole answer; where
    # an SDK lets httpx's own errors through, both are its TransportError.
    if kind == "cut" and "TransportError" in error["kinds"]:
        told["kind"] = "TransportError"
    return told


def differences(before: Any, after: Any, path: str) -> Iterator[str]:
    """The places in which two JSON values differ, as lines to read."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted({*before, *after}):
            absent = "(absent)"
            yield from differences(
                before.get(name, absent), after.get(name, absent), f"{path}.{name}"
            )
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif before != after or type(before) is not type(after):
        yield f"{path} was {_short(before)}, became {_short(after)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:200]} … {text[-200:]}"
