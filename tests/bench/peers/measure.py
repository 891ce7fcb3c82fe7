"""What is measured of one system, in one order: fill, found, hits, misses, memory."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from tests.bench.peers import prompts
from tests.bench.peers.asking import Ask, Seen, Served, run
from tests.end_to_end.stack import descendants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.peers.systems import System

MAIN = "main"  # the scope that hits and misses are asked of
CLIENTS = (1, 8, 32)
_FILL_CLIENTS = 8
_WORKING_SET = 100  # prompts that hits ask for, under the 200 that LiteLLM's memory holds
_SETTLED_SECONDS = 0.4


@dataclass(frozen=True)
class Plan:
    """How much is done; every phase is bounded in time."""

    scopes: int = 200
    prompts_per_scope: int = 10
    main_prompts: int = 1000
    asked_of_scopes: int = 1000
    seconds: float = 4.0
    fill_seconds: float = 45.0


QUICK = Plan(
    prompts_per_scope=1, main_prompts=60, asked_of_scopes=100, seconds=0.6, fill_seconds=6.0
)


@dataclass
class Result:
    """One row. Times in milliseconds, memory in MB."""

    name: str
    told_apart: str
    stored: int = 0
    hit_p50: float = 0.0
    hit_p99: float = 0.0
    hits: dict[int, float] = field(default_factory=dict)  # answers per second, by clients
    miss_p50: float = 0.0
    miss_p99: float = 0.0
    stored_per_second: float = 0.0
    embeddings_per_miss: float | None = None
    rss: float = 0.0
    pss: float = 0.0
    found: float = 0.0  # of what was stored in scopes
    found_main: float = 0.0  # of what hits asked for in the main scope
    wrong: int = 0
    failed: int = 0
    failure: bytes = b""


class Measuring:
    """One system, up and running."""

    def __init__(self, system: System, stub: str, plan: Plan) -> None:
        self._system = system
        self._stub = stub
        self._plan = plan
        self._numbers = itertools.count(1)
        self._known = 0  # main prompts that were stored
        self.result = Result(system.name, system.told_apart)

    async def all(self) -> Result:
        scoped = await self._fill()
        await self._found(scoped)
        await self._hits()
        await self._misses()
        rss, pss = memory(self._system.pids)
        self.result.rss, self.result.pss = rss, pss
        return self.result

    async def _fill(self) -> list[tuple[str, str]]:
        """Store the main prompts and the popular ones of every scope; those that were stored."""
        plan, system = self._plan, self._system
        main = [(f"m{number}", MAIN) for number in range(plan.main_prompts)]
        scoped = [
            (f"p{number}", f"scope-{scope}")
            for number in range(plan.prompts_per_scope)
            for scope in range(plan.scopes)
        ]
        first = (system.store(topic, scope) for topic, scope in main)
        seen = await self._run(first, _FILL_CLIENTS, plan.fill_seconds)
        self.result.stored = self._known = seen.count
        self.result.stored_per_second = seen.per_second
        done: list[tuple[str, str]] = []

        def asks() -> Iterator[Ask]:
            for topic, scope in scoped:
                done.append((topic, scope))
                yield system.store(topic, scope)

        seen = await self._run(asks(), _FILL_CLIENTS, plan.fill_seconds)
        await self._settled()
        self.result.stored += seen.count
        return done

    async def _found(self, scoped: list[tuple[str, str]]) -> None:
        """Ask every scope for what was stored in it."""
        step = max(1, len(scoped) // self._plan.asked_of_scopes)
        chosen = scoped[::step]
        before = await self._calls()
        asks = (self._again(topic, scope) for topic, scope in chosen)
        seen = await self._run(asks, _FILL_CLIENTS, self._plan.fill_seconds)
        self.result.found = await self._stored_share(seen, before)

    async def _hits(self) -> None:
        chosen = [f"m{number}" for number in range(min(self._known, _WORKING_SET))]
        topics = itertools.cycle(chosen)
        # A small memory may have forgotten them; what was stored stays what it was.
        again = (self._system.store(topic, MAIN) for topic in chosen)
        await self._run(again, _FILL_CLIENTS, self._plan.fill_seconds)
        await self._settled()
        for clients in CLIENTS:
            before = await self._calls()
            asks = (self._again(topic, MAIN) for topic in topics)
            seen = await self._run(asks, clients, self._plan.seconds)
            self.result.hits[clients] = seen.per_second
            if clients == 1:
                self.result.hit_p50 = seen.percentile(0.5, Served.STORED)
                self.result.hit_p99 = seen.percentile(0.99, Served.STORED)
                self.result.found_main = await self._stored_share(seen, before)

    async def _misses(self) -> None:
        def asks() -> Iterator[Ask]:
            for number in self._numbers:
                topic = f"unknown{number}"
                yield self._system.ask(topic, prompts.paraphrase(topic, number), MAIN)

        await self._settled()
        before = await self._calls()
        seen = await self._run(asks(), 1, self._plan.seconds)
        await self._settled()
        after = await self._calls()
        self.result.miss_p50 = seen.percentile(0.5, Served.FRESH)
        self.result.miss_p99 = seen.percentile(0.99, Served.FRESH)
        if self._system.calls_upstream:
            embeddings = after.get("embeddings", 0) - before.get("embeddings", 0)
            self.result.embeddings_per_miss = embeddings / seen.count

    def _again(self, topic: str, scope: str) -> Ask:
        """Ask for what is stored: the same words where only those are known, else a paraphrase."""
        if self._system.exact:
            return self._system.ask(topic, prompts.prompt(topic), scope)
        text = prompts.paraphrase(topic, next(self._numbers))
        return self._system.ask(topic, text, scope)

    async def _run(self, asks: Iterator[Ask], clients: int, seconds: float) -> Seen:
        seen = await run(self._system.url, asks, clients=clients, seconds=seconds)
        self.result.wrong += len(seen.seconds[Served.WRONG])
        self.result.failed += len(seen.seconds[Served.FAILED])
        self.result.failure = self.result.failure or seen.failure
        return seen

    async def _stored_share(self, seen: Seen, before: dict[str, int]) -> float:
        """The share that the cache answered; of the same words, what did not reach the upstream."""
        if not self._system.exact:
            return seen.share(Served.STORED)
        after = await self._calls()
        forwarded = after.get("completions", 0) - before.get("completions", 0)
        return 1 - forwarded / max(1, seen.count)

    async def _calls(self) -> dict[str, int]:
        async with httpx.AsyncClient(trust_env=False) as client:
            told: dict[str, int] = (await client.get(f"{self._stub}/calls")).json()
            return told

    async def _settled(self) -> None:
        """Wait, 10 s at most, until nothing has been asked of the stub for a while."""
        end = time.monotonic() + 10
        before = await self._calls()
        while time.monotonic() < end:
            await asyncio.sleep(_SETTLED_SECONDS)
            now = await self._calls()
            if now == before:
                return
            before = now


def memory(roots: list[int]) -> tuple[float, float]:
    """RSS and PSS in MB of these processes and all below them; PSS counts shared pages once."""
    pids = {pid for root in roots for pid in [root, *descendants(root)]}
    total = {"Rss": 0, "Pss": 0}
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            if name in total:
                total[name] += int(value.split()[0])
    return total["Rss"] / 1024, total["Pss"] / 1024
