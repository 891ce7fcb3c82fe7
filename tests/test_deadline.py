"""Who waits with a deadline gets the result or goes on; the work is ended, whatever it does."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time

import pytest

from cachesvc.begun import begun
from cachesvc.deadline import Overdue, Within

PATIENCE = 30.0


class Work:
    """Waits until it may end; tells what became of it."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.may_give_up = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.task: asyncio.Task[object] | None = None

    async def run(self) -> str:
        self.task = asyncio.current_task()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            await self.may_give_up.wait()  # as a driver does with a frozen server
            raise
        return "done"


async def test_the_result_is_given_by_the_task_that_waits() -> None:
    work, ends = Work(), list[bool]()
    work.may_end.set()
    assert await Within(PATIENCE, work.run(), over=lambda: ends.append(True)) == "done"
    assert work.task is asyncio.current_task()
    assert ends == [True]


async def test_an_error_of_the_work_is_the_waiters() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise LookupError

    ends = list[bool]()
    with pytest.raises(LookupError):
        await Within(PATIENCE, fails(), over=lambda: ends.append(True))
    assert ends == [True]


async def test_nobody_waits_for_overdue_work_that_hangs_in_its_cancellation() -> None:
    work, ended = Work(), asyncio.Event()
    with pytest.raises(Overdue):
        await Within(0.01, work.run(), over=ended.set)
    await asyncio.wait_for(work.cancelled.wait(), PATIENCE)
    assert not ended.is_set()  # it still has its place
    work.may_give_up.set()
    await asyncio.wait_for(ended.wait(), PATIENCE)


async def test_overdue_work_that_never_waits_long_is_ended_too() -> None:
    ended = asyncio.Event()

    async def restless() -> None:
        for _ in itertools.count():
            await asyncio.sleep(0)

    with pytest.raises(Overdue):
        await Within(0.01, restless(), over=ended.set)
    await asyncio.wait_for(ended.wait(), PATIENCE)


async def test_overdue_work_that_ends_in_an_error_reports_to_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ended = asyncio.Event()

    async def fails() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise LookupError from None

    with pytest.raises(Overdue):
        await Within(0.01, fails(), over=ended.set)
    await asyncio.wait_for(ended.wait(), PATIENCE)
    assert not caplog.records


async def test_a_cancellation_of_the_waiter_passes_into_the_work() -> None:
    work, ends = Work(), list[bool]()

    async def wait() -> str:
        return await Within(PATIENCE, work.run(), over=lambda: ends.append(True))

    waiter = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.wait_for(work.cancelled.wait(), PATIENCE)
    work.may_give_up.set()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert ends == [True]


async def test_a_cancelled_waiter_is_not_kept_past_the_deadline() -> None:
    work, ended = Work(), asyncio.Event()

    async def wait() -> str:
        return await Within(0.05, work.run(), over=ended.set)

    waiter = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiter, PATIENCE)
    await asyncio.wait_for(ended.wait(), PATIENCE)  # cancelled once more


async def test_a_deadline_inside_the_work_is_the_works_own() -> None:
    async def patient() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()
        except TimeoutError:
            return "gave up"
        raise AssertionError("the deadline did not come")

    assert await Within(PATIENCE, patient()) == "gave up"
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_what_begins_without_a_task_has_one_before_its_work_begins() -> None:
    work, ended = Work(), asyncio.Event()
    work.may_end.set()
    results = list[str]()

    async def request() -> None:
        results.append(await Within(PATIENCE, work.run(), over=ended.set))

    kept = list[asyncio.Task[None]]()

    def begin() -> None:  # as a protocol does, which is in no task
        rest = begun(request())
        assert rest is not None
        assert not results
        kept.append(asyncio.get_running_loop().create_task(rest))

    asyncio.get_running_loop().call_soon(begin)
    await asyncio.wait_for(ended.wait(), PATIENCE)
    await asyncio.wait_for(kept[0], PATIENCE)
    assert results == ["done"]
    assert work.task is kept[0]


async def test_a_task_cancelled_before_its_turn_leaves_nothing_behind() -> None:
    work, ended = Work(), asyncio.Event()
    tasks = list[asyncio.Task[None]]()

    async def request() -> None:
        await Within(PATIENCE, work.run(), over=ended.set)

    def begin() -> None:
        rest = begun(request())
        assert rest is not None
        tasks.append(asyncio.get_running_loop().create_task(rest))
        tasks[0].cancel()

    asyncio.get_running_loop().call_soon(begin)
    await asyncio.wait_for(ended.wait(), PATIENCE)
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    assert work.task is None  # it never began


async def test_what_overdue_work_has_come_to_wait_for_since_is_cancelled_too() -> None:
    """The result comes in the very moment of the deadline, and the work waits for the next one."""
    loop = asyncio.get_running_loop()
    first, second = loop.create_future(), loop.create_future()

    async def twice() -> None:
        await first
        await second

    loop.call_later(0.01, first.set_result, None)
    loop.call_later(0.001, time.sleep, 0.03)  # both are due when the loop looks again
    with pytest.raises(Overdue):
        await Within(0.01, twice())
    assert second.cancelled()


async def test_a_timeout_that_a_cleanup_begins_never_cancels_who_has_gone_on() -> None:
    """As a driver's does, which bounds its farewell to a frozen server."""
    cleaned = asyncio.Event()

    async def lingers() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await asyncio.Event().wait()
            cleaned.set()

    with pytest.raises(Overdue):
        await Within(0.01, lingers())
    await asyncio.wait_for(cleaned.wait(), PATIENCE)
    await asyncio.sleep(0.05)
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()


async def test_overdue_work_has_heard_of_it_when_its_waiter_does() -> None:
    work = Work()
    work.may_give_up.set()
    with pytest.raises(Overdue):
        await Within(0.01, work.run())
    assert work.cancelled.is_set()
