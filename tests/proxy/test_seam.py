"""Deadlines, reasons and the outer guard of failing open, each by itself."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import pytest

from cachesvc.core.model import Miss, Reason
from cachesvc.errors import EmbedError, ServiceError, ServiceUnavailable
from cachesvc.proxy.seam import Budget, CircuitOpen, DeadlinePassed, Guard, fail_open, within
from tests.proxy.rig import Clock

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any


async def test_a_deadline_waits_for_nobody_not_even_for_a_cancellation_that_hangs() -> None:
    go = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await go.wait()
            raise ValueError("too late to matter") from None

    loop, reported = asyncio.get_running_loop(), list[object]()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    began = loop.time()
    loop.call_later(5, go.set)  # or a waiting deadline would wait for ever
    with pytest.raises(DeadlinePassed):
        await within(Budget(0.02), stubborn())
    assert loop.time() - began < 4
    go.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert reported == []


async def test_a_budget_that_is_used_up_lets_nothing_wait() -> None:
    clock = Clock()
    budget = Budget(1.0, clock)
    clock.now += 2
    with pytest.raises(DeadlinePassed):
        await within(budget, asyncio.sleep(60))


async def test_a_caller_who_leaves_cancels_the_work() -> None:
    cancelled, began = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    budget = Budget(60)
    call = asyncio.create_task(within(budget, work()))
    await began.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(5):
        await cancelled.wait()
    assert not budget.passed


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ServiceUnavailable("x"), Reason.CACHE_UNAVAILABLE),
        (ServiceError("x", status=403), Reason.CACHE_UNAVAILABLE),
        (EmbedError("x"), Reason.EMBEDDER_FAILED),
        (CircuitOpen("x"), Reason.CIRCUIT_OPEN),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_every_failure_is_a_miss_with_its_reason(error: Exception, reason: Reason) -> None:
    async def work() -> None:
        raise error

    assert await fail_open(Budget(10), work()) == Miss(reason)


async def test_a_bug_is_no_failure_to_be_forgiven() -> None:
    async def work() -> None:
        raise KeyError("bug")

    work_with_bug: Coroutine[Any, Any, None] = work()
    with pytest.raises(KeyError):
        await fail_open(Budget(10), work_with_bug)


def test_the_guard_tells_each_bug_once_and_never_what_was_sent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counted = list[int]()
    guard = Guard(lambda: counted.append(1))

    def buggy(what: str) -> None:
        with guard:
            raise KeyError(what)

    with caplog.at_level(logging.ERROR):
        for number in range(3):
            buggy(f"a secret {number}")
    assert len(counted) == 3
    assert len(caplog.records) == 1
    assert "KeyError" in caplog.text
    assert "test_seam.py" in caplog.text
    assert "a secret" not in caplog.text
    with pytest.raises(asyncio.CancelledError), guard:
        raise asyncio.CancelledError
