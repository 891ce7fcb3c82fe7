"""The primary dies and its replica takes over, under traffic, with nothing but a URL of both."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import pytest

from tests.behaviours.stack import Stack, said, stack
from tests.proxy.rig import eventually
from tests.replication import caught_up, replicated

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger("tests")

RESUMES_SECONDS = 5.0


@pytest.mark.alone
async def test_no_request_fails_and_puts_resume_when_the_replica_is_promoted(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    with replicated(tmp_path) as pair:
        async with stack(pair.url, {}, embed=False, lookup_budget_ms=200) as run:
            await run.expect("MISS", "before")
            await run.expect("HIT exact", "before")
            await caught_up(pair)
            traffic = Traffic(run)
            async with asyncio.TaskGroup() as callers:
                for number in range(4):
                    callers.create_task(traffic.call(number))
                await traffic.calls(20)
                pair.kill_primary()
                await traffic.calls(40)
                await pair.promote()
                promoted = time.monotonic()
                seconds = await traffic.first_put_after(promoted) - promoted
                traffic.over.set()
            record_property("puts_resumed_seconds", seconds)
            log.info("puts resumed after %.2f s; %d requests", seconds, traffic.count)
            assert traffic.failed == []
            assert seconds <= RESUMES_SECONDS
            got = await run.chat("before")
            assert said(got) == "HIT exact"


class Traffic:
    """Callers of which each asks a new question, then the same again."""

    def __init__(self, run: Stack) -> None:
        self.over = asyncio.Event()
        self.count = 0
        self.failed: list[object] = []
        self._run = run
        self._hit = float("-inf")  # when the last question was sent that was then a hit

    async def call(self, caller: int) -> None:
        turn = 0
        while not self.over.is_set():
            turn += 1
            question = f"{caller}: {turn}"
            asked = time.monotonic()
            for _ in range(2):
                got = await self._run.chat(question)
                self.count += 1
                if got.status != 200:
                    self.failed.append(got)
                if said(got) == "HIT exact":
                    self._hit = max(self._hit, asked)
                await asyncio.sleep(0.02)

    async def calls(self, more: int) -> None:
        """Wait for so many more requests."""
        enough = self.count + more

        async def made() -> bool:
            return self.count >= enough

        await eventually(made)

    async def first_put_after(self, since: float) -> float:
        """When an answer to a question asked after `since` came from the cache."""

        async def kept() -> bool:
            return self._hit >= since

        await eventually(kept)
        return time.monotonic()
