"""What is replaced unseen, or judged when it is gone, is told of all the same."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import asyncpg
import pytest_asyncio

from cachesvc.store.notices import CHANNEL
from cachesvc.store.records import NewVerdict
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import key, new, save
from tests.store.waiting import until, waits_for_a_lock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest_asyncio.fixture
async def told(stores: Stores) -> AsyncIterator[list[Any]]:
    """What is notified, as it comes."""
    heard: list[Any] = []
    connection = await asyncpg.connect(stores.url)
    await connection.add_listener(CHANNEL, lambda *parts: heard.append(json.loads(parts[3])))
    yield heard
    await connection.close()


async def test_a_fresh_answer_is_told_to_nobody_and_a_refreshed_one_by_its_name(
    stores: Stores, told: list[Any]
) -> None:
    await save(stores, 3600)

    async def policy_told() -> bool:
        return [TENANT, POLICY] in told

    await until(policy_told)
    told.clear()
    first = await stores.entries.put(new("a"))
    second = await stores.entries.put(new("a"))
    assert (first.replaced, second.replaced) == (False, True)

    async def heard() -> bool:
        return bool(told)

    await until(heard)
    assert told == [[TENANT, POLICY, [str(first.entry_id)]]]


async def test_a_twin_that_was_put_meanwhile_is_replaced_aloud(
    stores: Stores, told: list[Any]
) -> None:
    """The second put waits for the first, whose answer its statement cannot see."""
    await save(stores, 3600)
    async with stores.database.connection() as first:
        transaction = first.transaction()
        await transaction.start()
        # As a put under way holds it.
        await first.execute(
            "INSERT INTO entries (tenant, policy_id, scope, id, exact_key, space, partition, body, "
            "prompt_hash, prompt_text, prompt_tokens, completion_tokens, model, tags, generation, "
            "provenance, created_at, exact_expires_at) VALUES ($1, $2, 'shared', $3, $4, '', '', "
            "'1', '', '', 0, 0, '', '{}', 1, '', now(), now() + interval '1 hour')",
            *(TENANT, POLICY, uuid4(), key("a")),
        )
        second = asyncio.create_task(stores.entries.put(new("a")))
        await until(lambda: waits_for_a_lock(stores))
        told.clear()
        await transaction.commit()
    assert (await second).replaced

    async def policy_told() -> bool:
        return [TENANT, POLICY] in told

    await until(policy_told)


async def test_a_wrong_verdict_on_an_entry_that_went_still_reaches_copies(
    stores: Stores, told: list[Any]
) -> None:
    await save(stores, 3600)
    gone = uuid4()
    verdict = NewVerdict(TENANT, gone, None, wrong=True, source="me", lifts=True)
    assert await stores.records.give_verdict(verdict) is None

    async def heard() -> bool:
        return [TENANT, "", [str(gone)]] in told

    await until(heard)
