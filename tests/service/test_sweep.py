"""The sweep keeps up, leaves the database time for others, and forgets nobody."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from cachesvc.core.policy import Policy
from cachesvc.service.sweep import _batches, reap
from cachesvc.service.telemetry import Telemetry
from cachesvc.settings import Settings
from cachesvc.store.base import Place
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import new, save
from tests.store.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

_COLUMNS = (
    "tenant, policy_id, scope, space, partition, prompt_hash, body, prompt_text, prompt_tokens, "
    "completion_tokens, model, tags, generation, provenance, created_at"
)
_EXPIRED = (
    f"INSERT INTO entries (id, exact_key, exact_expires_at, {_COLUMNS}) "
    "SELECT gen_random_uuid(), uuid_send(gen_random_uuid()), now() - interval '1 s', "
    f"{_COLUMNS} FROM entries, generate_series(1, $1) WHERE policy_id = '{POLICY}' "
    "AND exact_expires_at > now()"
)


@asynccontextmanager
async def meanwhile(*works: Coroutine[object, object, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def expire(stores: Stores) -> None:
    """Something is expired at every moment."""
    while True:
        await stores.database.row(_EXPIRED, 3)


def evicted(telemetry: Telemetry, cause: str) -> float:
    value = telemetry.registry.get_sample_value("cachesvc_evictions_total", {"cause": cause})
    return value or 0.0


async def test_limits_are_held_while_rows_expire_all_the_time(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.entries.put(new("seed"))
    await stores.admin.save_policy(TENANT, "full", Policy(sharing="shared", max_entries=2))
    for number in range(5):
        await stores.entries.put(new(str(number), place=Place(TENANT, "full", "shared")))
    telemetry = Telemetry(Settings())

    async def held() -> bool:
        return evicted(telemetry, "max_entries") == 3

    sweep = reap(Settings(), stores.admin, stores.records, telemetry, every=3600)
    async with meanwhile(expire(stores), expire(stores)):
        await stores.database.row(_EXPIRED, 3)
        async with meanwhile(sweep):
            await until(held)
    assert evicted(telemetry, "expired") > 0


async def test_a_backlog_goes_in_one_sweep(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.entries.put(new("seed"))
    await stores.database.row(_EXPIRED, 3000)
    telemetry = Telemetry(Settings())

    async def gone() -> bool:
        return evicted(telemetry, "expired") == 3000

    async with meanwhile(reap(Settings(), stores.admin, stores.records, telemetry, every=3600)):
        await until(gone)


async def test_it_rests_as_long_as_it_works() -> None:
    left = [500, 500, 20]

    async def remove() -> int:
        await asyncio.sleep(0.05)
        return left.pop(0)

    began = time.monotonic()
    assert [gone async for gone in _batches(remove, enough=500)] == [500, 500, 20]
    assert time.monotonic() - began >= 5 * 0.05
    assert left == []
