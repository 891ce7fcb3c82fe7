"""`max_entries` is held off the reply path, within a moment of a put or of a lower limit."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

from cachesvc.core.policy import Policy
from cachesvc.service.limits import Limits
from cachesvc.service.telemetry import Telemetry
from cachesvc.settings import Settings
from tests.service.serving import Api, Running

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cachesvc.store.base import Room

EVICTED = 'cachesvc_evictions_total{cause="max_entries"}'


def fill(api: Api, policy: str, numbers: Iterable[int], **fields: Any) -> None:
    for n in numbers:
        api.put(policy, exact_key=f"{n:064x}", prompt_text=str(n), **fields)


def kept(api: Api, policy: str) -> list[int]:
    entries = api.ok("GET", f"/cache/entries?policy_id={policy}&limit=1000")["entries"]
    return sorted(int(entry["prompt_text"]) for entry in entries)


def wait_for(api: Api, policy: str, expected: list[int], seconds: float = 2) -> None:
    deadline = time.monotonic() + seconds
    while kept(api, policy) != expected:
        assert time.monotonic() < deadline, kept(api, policy)


def test_the_oldest_go_soon_after_the_limit_is_passed(database_url: str) -> None:
    with Running(database_url) as service, closing(Api(service.url)) as api:
        policy, other = api.policy(max_entries=10), api.policy()
        fill(api, other, range(30))
        fill(api, policy, range(30))
        wait_for(api, policy, list(range(20, 30)))
        assert len(kept(api, other)) == 30
        assert api.metrics()[EVICTED] == 20
        # Again, after all was quiet.
        fill(api, policy, [30])
        wait_for(api, policy, list(range(21, 31)))
        assert api.metrics()[EVICTED] == 21


def test_a_lower_limit_acts_without_a_put(api: Api) -> None:
    policy = api.policy()
    fill(api, policy, range(6))
    api.change(policy, max_entries=2)
    wait_for(api, policy, [4, 5])


def test_two_replicas_hold_one_limit(api: Api, other_replica: Api) -> None:
    policy = api.policy(max_entries=5)
    for n in range(20):
        fill((api, other_replica)[n % 2], policy, [n])
    wait_for(api, policy, list(range(15, 20)))


def test_the_same_wording_replaces_and_evicts_nothing(api: Api) -> None:
    policy = api.policy(max_entries=3)
    fill(api, policy, [0, 1, 2, 2, 2, 1, 2, 0])
    for _ in range(4):
        api.put(policy, embedding=[1.0], prompt_text="7")
        wait_for(api, policy, [0, 2, 7])
    assert api.lookup(policy, embedding=[1.0])["hit"]


class Slow:
    """A store whose looks take as long as it is told, and that counts them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.looks = 0

    async def remove_overflow(self, room: Room) -> int:
        self.looks += 1
        await asyncio.sleep(self.seconds)
        return 0


async def test_many_puts_cost_few_looks_and_slow_looks_fewer() -> None:
    policy, found = Policy(id="p", max_entries=5), []
    for seconds in (0.0, 0.1):
        store = Slow(seconds)
        limits = Limits(store, Settings(), Telemetry(Settings()))  # type: ignore[arg-type]
        ends = time.monotonic() + 0.9
        while time.monotonic() < ends:
            limits.check("t", policy)
            await asyncio.sleep(0.001)
        found.append(store.looks)
        await limits.drain(1)
    assert 2 <= found[0] <= 5
    assert found[1] == 1


async def test_draining_ends_though_the_database_does_not_answer() -> None:
    class Frozen(Slow):
        async def remove_overflow(self, room: Room) -> int:
            looking.set()
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait_for(thawed.wait(), 30)
                if thawed.is_set():
                    return 0

    looking, thawed = asyncio.Event(), asyncio.Event()
    limits = Limits(Frozen(0), Settings(), Telemetry(Settings()))  # type: ignore[arg-type]
    limits.check("t", Policy(id="p", max_entries=5))
    await looking.wait()
    began = time.monotonic()
    await limits.drain(0.1)
    assert time.monotonic() - began < 2
    thawed.set()
    await limits.drain(2)


def test_a_policy_without_a_limit_costs_nothing() -> None:
    limits = Limits(Slow(0), Settings(), Telemetry(Settings()))  # type: ignore[arg-type]
    limits.check("t", Policy(id="p"))  # would need a running loop
