"""PgBouncer in transaction mode: every verb works, with our settings, whatever session it gets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from cachesvc.core.policy import Policy
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.base import Selection
from cachesvc.store.migrate import migrate_in_subprocess, status
from cachesvc.store.notices import Notices
from cachesvc.store.pool import SETTINGS, connect
from cachesvc.store.postgres import PostgresStore
from tests.pgbouncer import pgbouncer
from tests.postgres import POLICY, TENANT
from tests.store.entries import exact, nearest, new, unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachesvc.store.pool import Database

OURS = ", ".join(SETTINGS)


@pytest_asyncio.fixture
async def pooled(database_url: str) -> AsyncIterator[Database]:
    with pgbouncer(database_url) as url:
        database = await connect(url, size=16, statement_timeout_ms=5000)
        yield database
        await database.close()


async def test_every_session_works_for_everybody_at_once(pooled: Database) -> None:
    store, admin = PostgresStore(pooled), PostgresAdmin(pooled)
    await admin.save_policy(TENANT, POLICY, Policy())

    async def caller(number: int) -> None:
        for turn in range(10):
            prompt = f"{number}/{turn}"
            await store.put(new(prompt, vector=unit(number * 10 + turn)))
            assert (await store.find_exact(exact(prompt))).candidates
            assert (await store.find_nearest(nearest(unit(number * 10 + turn)))).candidates

    await asyncio.gather(*(caller(number) for number in range(16)))
    assert (await admin.counts(TENANT))[0].entries == 160
    assert (await admin.purge(Selection(TENANT, POLICY), dry_run=False))[1] == 160


async def test_settings_hold_in_every_statement_and_stay_in_no_session(
    pooled: Database, database_url: str
) -> None:
    query = f"SELECT {', '.join(f'current_setting({name!r})' for name in SETTINGS)}"
    for _ in range(10):
        for row in (await pooled.row(query), (await pooled.search(query))[0]):
            assert list(row.values()) == list(SETTINGS.values())
    async with pooled.connection() as connection:
        for _ in range(10):
            assert await connection.fetchval("SELECT current_setting('enable_sort')") == "on"


async def test_a_fault_leaves_nothing_behind(pooled: Database) -> None:
    await PostgresAdmin(pooled).save_policy(TENANT, POLICY, Policy())
    for _ in range(20):
        with pytest.raises(Exception, match="SQLSTATE 22012"):
            await pooled.row("SELECT 1 / 0")
        assert (await pooled.row("SELECT 1 AS one"))["one"] == 1
    work = [asyncio.create_task(pooled.row("SELECT pg_sleep(5)")) for _ in range(4)]
    await asyncio.sleep(0.1)
    for task in work:
        task.cancel()
    await asyncio.gather(*work, return_exceptions=True)
    async with asyncio.timeout(4):
        assert await PostgresStore(pooled).policy(TENANT, POLICY)


async def test_a_pooler_that_hides_is_told_by_a_setting(database_url: str) -> None:
    ignored = f"{OURS}, statement_timeout, lock_timeout, idle_in_transaction_session_timeout"
    with pgbouncer(database_url, ignored=ignored) as url:
        database = await connect(url, size=8, statement_timeout_ms=5000, pooled=True)
        row = await database.row("SELECT current_setting('plan_cache_mode') AS mode")
        assert row["mode"] == "force_generic_plan"
        await database.close()


@pytest.mark.parametrize("ignored", ["", "synchronous_commit"])
async def test_no_copy_is_trusted_through_a_pooler(database_url: str, ignored: str) -> None:
    """With one server session the beats would come back, and changes of others would not."""
    database = await connect(database_url)
    with pgbouncer(database_url, ignored=ignored) as url:
        notices = Notices(url, database)
        listening = asyncio.create_task(notices.run(lambda _: None))
        for _ in range(20):
            await asyncio.sleep(0.05)
            assert not notices.holds
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
    await database.close()


def test_a_database_can_be_migrated_and_examined_through_a_pooler(empty_database_url: str) -> None:
    with pgbouncer(empty_database_url) as url:
        for _ in range(3):
            migrate_in_subprocess(url)
            found = status(url)
            assert found.complaint is None
            assert 384 in found.indexed_dimensions
