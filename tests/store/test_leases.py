"""Connections that are handed straight on are as good as those that the pool hands out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cachesvc.errors import StoreRefused, StoreUnavailable
from cachesvc.store.pool import HOUSEKEEPERS, connect
from tests.relay import Relay
from tests.store.waiting import until

if TYPE_CHECKING:
    from tests.postgres import Stores

WHO = "SELECT pg_backend_pid()"


async def test_statements_one_after_another_share_a_connection(stores: Stores) -> None:
    pids = {(await stores.database.row(WHO))[0] for _ in range(20)}
    assert len(pids) == 1


async def test_statements_at_once_use_every_connection_and_no_more(stores: Stores) -> None:
    """There are four for lookups by key; whoever comes fifth waits, and is served."""

    async def pid() -> int:
        return int((await stores.database.row("SELECT pg_backend_pid(), pg_sleep(0.02)"))[0])

    for _ in range(3):
        assert len(set(await asyncio.gather(*(pid() for _ in range(40))))) == 4


async def test_who_waits_for_a_connection_gets_the_one_that_comes_back(stores: Stores) -> None:
    database = stores.database
    held = [database.connection() for _ in range(HOUSEKEEPERS)]
    pids = {await (await one.__aenter__()).fetchval(WHO) for one in held}

    async def pid() -> int:
        async with database.connection() as connection:
            return int(await connection.fetchval(WHO))

    waiting = [asyncio.create_task(pid()) for _ in range(8)]
    await asyncio.sleep(0)
    for one in held:
        await one.__aexit__(None, None, None)
    assert set(await asyncio.gather(*waiting)) == pids


async def test_a_refused_or_cancelled_statement_leaves_nothing_behind(stores: Stores) -> None:
    database = stores.database
    for _ in range(6):
        with pytest.raises(StoreRefused):
            await database.row("SELECT 1/0")
        task = asyncio.create_task(database.row("SELECT pg_sleep(9)"))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (await database.row("SELECT 7"))[0] == 7


async def test_connections_that_the_server_ended_meanwhile_are_replaced(stores: Stores) -> None:
    database = stores.database
    await asyncio.gather(*(database.row("SELECT pg_sleep(0.02)") for _ in range(4)))
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    ended = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {others}"
    assert (await database.search(ended))[0][0] == 4

    async def none_left() -> bool:
        left = f"SELECT count(*) FROM pg_stat_activity WHERE {others}"
        return not (await database.search(left))[0][0]

    async def all_answer() -> bool:
        # A call that meets a farewell which is still on its way fails, and only that one.
        asked = [database.row("SELECT 7") for _ in range(4)]
        answered = await asyncio.gather(*asked, return_exceptions=True)
        assert all(
            not isinstance(one, Exception) or isinstance(one, StoreUnavailable) for one in answered
        )
        return [row[0] for row in answered if not isinstance(row, BaseException)] == [7] * 4

    await until(none_left)
    await until(all_answer)


async def test_closing_ends_what_is_idle_and_waits_for_what_is_not(stores: Stores) -> None:
    database = await connect(stores.url, size=4, application_name="closing")
    await asyncio.gather(*(database.row("SELECT pg_sleep(0.02)") for _ in range(2)))
    last = asyncio.create_task(database.row("SELECT 7, pg_sleep(0.2)"))
    await asyncio.sleep(0.05)
    await database.close()
    assert (await last)[0] == 7

    async def none_left() -> bool:
        left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'closing'"
        return not (await stores.database.row(left))[0]

    await until(none_left)
    with pytest.raises(StoreUnavailable):
        await database.row("SELECT 1")


async def test_a_cancellation_is_not_lost_when_the_server_is_frozen(
    stores: Stores, database_url: str
) -> None:
    """Else what runs in the background would never end."""
    with Relay(database_url) as relay:
        database = await connect(relay.url, size=2, statement_timeout_ms=200)
        try:
            await database.row(WHO)
            for write in (False, True):
                sleeping = "SELECT pg_sleep(9)"
                wanted = database.write(sleeping, [()]) if write else database.row(sleeping)
                task = asyncio.create_task(wanted)
                await until(lambda: sleeps(stores))
                relay.freeze()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                relay.thaw()
        finally:
            await database.close()


async def sleeps(stores: Stores) -> bool:
    """Whether somebody's statement has begun to sleep."""
    (row,) = await stores.database.search(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE wait_event = 'PgSleep' AND datname = current_database()"
    )
    return bool(row["count"])
