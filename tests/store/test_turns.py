"""Who waits for a connection has his turn: strictly first come, first served."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import pytest
import pytest_asyncio

from cachesvc.core.policy import Policy
from cachesvc.deadline import Overdue, Within
from cachesvc.errors import StoreError
from cachesvc.store.patience import patient
from cachesvc.store.pool import HOUSEKEEPERS, connect
from tests.postgres import POLICY, TENANT
from tests.store.entries import exact, nearest, new, unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachesvc.store.embedded import EmbeddedPostgres
    from cachesvc.store.pool import Database
    from tests.postgres import Stores


class Callers:
    """Statements by name, on the one connection for lookups by key; `served` is who, in order."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.served: list[str] = []

    async def ask(self, name: str, query: str = "SELECT 1") -> None:
        try:
            await self._database.row(query)
        finally:
            self.served.append(name)

    async def start(self, *names: str) -> list[asyncio.Task[None]]:
        """They ask in this order, and are in the queue when it returns."""
        tasks = [asyncio.create_task(self.ask(name)) for name in names]
        await asyncio.sleep(0)
        return tasks


@pytest_asyncio.fixture
async def callers(database_url: str) -> AsyncIterator[Callers]:
    """There is one connection, and it is made."""
    database = await connect(database_url, size=2, statement_timeout_ms=5000)
    await database.row("SELECT 1")
    yield Callers(database)
    await database.close()


async def test_who_gives_a_connection_back_and_comes_again_is_a_newcomer(callers: Callers) -> None:
    async def twice(first: str) -> None:
        with contextlib.suppress(StoreError):
            await callers.ask("first", first)
        await callers.ask("newcomer")

    for query in ("SELECT 1", "SELECT 1/0", "SELECT pg_terminate_backend(pg_backend_pid())"):
        callers.served.clear()
        holding = asyncio.create_task(twice(query))
        await asyncio.sleep(0)
        waiting = await callers.start("second", "third")
        await asyncio.gather(holding, *waiting, return_exceptions=True)
        assert callers.served == ["first", "second", "third", "newcomer"], query


async def test_who_is_cancelled_when_his_turn_has_come_passes_it_on_to_the_next(
    callers: Callers,
) -> None:
    for query in ("SELECT 1", "SELECT 1/0"):
        callers.served.clear()
        waiting: list[asyncio.Task[None]] = []

        async def holder(query: str, waiting: list[asyncio.Task[None]]) -> None:
            with contextlib.suppress(StoreError):
                await callers.ask("first", query)
            # What was given back has just been handed to the second, who does not run yet.
            waiting[0].cancel()
            await callers.ask("newcomer")

        holding = asyncio.create_task(holder(query, waiting))
        await asyncio.sleep(0)
        waiting += await callers.start("second", "third", "fourth")
        await asyncio.gather(holding, *waiting, return_exceptions=True)
        assert waiting[0].cancelled()
        assert callers.served == ["first", "second", "third", "fourth", "newcomer"], query


async def test_who_gets_no_connection_leaves_the_attempt_to_the_next(
    callers: Callers, database_url: str, postgres: EmbeddedPostgres
) -> None:
    async def again(name: str) -> None:
        for turn in ("", " again"):
            with contextlib.suppress(StoreError):
                await callers.ask(name + turn)

    name = urlsplit(database_url).path[1:]
    elsewhere = await asyncpg.connect(postgres.url)
    try:
        await elsewhere.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        ending = callers.ask("first", "SELECT pg_terminate_backend(pg_backend_pid())")
        tasks = map(asyncio.create_task, (ending, again("second"), again("third")))
        await asyncio.gather(*tasks, return_exceptions=True)
        assert callers.served == ["first", "second", "third", "second again", "third again"]
        await elsewhere.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    finally:
        await elsewhere.close()
    await callers.ask("after all that")


@pytest.mark.parametrize("ended", [False, True])
async def test_who_is_cancelled_at_any_moment_leaves_his_place_to_the_next(
    callers: Callers, ended: bool
) -> None:
    """Also while a new connection is made for him, because the last one ended."""
    for moment in range(30):
        if ended:
            with contextlib.suppress(StoreError):
                await callers.ask("ending", "SELECT pg_terminate_backend(pg_backend_pid())")
        first, second = await callers.start("first", "second")
        for _ in range(moment**2):
            await asyncio.sleep(0)
        first.cancel()
        await second
        await asyncio.gather(first, return_exceptions=True)
    await callers.ask("after all that")


async def test_no_lookup_waits_for_housekeeping(stores: Stores) -> None:
    await stores.admin.save_policy(TENANT, POLICY, Policy(sharing="shared"))
    await stores.entries.put(new("a", vector=unit(1)))
    begun, over = asyncio.Semaphore(0), asyncio.Event()

    async def sweep() -> None:
        async with patient(stores.database):
            begun.release()
            await over.wait()

    sweeps = [asyncio.create_task(sweep()) for _ in range(10)]
    for _ in range(HOUSEKEEPERS):
        await begun.acquire()
    for _ in range(5):
        lookups = (stores.entries.find_nearest(nearest(unit(1))) for _ in range(4))
        assert all(found.candidates for found in await asyncio.gather(*lookups))
        assert (await stores.entries.find_exact(exact("a"))).candidates
    assert begun.locked()
    over.set()
    await asyncio.gather(*sweeps)


async def test_deadlines_that_pass_while_one_waits_cost_no_connection(stores: Stores) -> None:
    """Also those that pass in the very moment in which a turn, or an answer, comes."""
    database, loop = stores.database, asyncio.get_running_loop()

    async def hasty(number: int) -> None:
        with contextlib.suppress(Overdue):
            await Within(0.004 + number % 7 / 1000, twice())

    async def twice() -> None:
        await database.row("SELECT pg_sleep(0.002)")
        await database.row("SELECT pg_sleep(0.002)")

    for _ in range(30):
        loop.call_later(0.003, time.sleep, 0.004)  # the loop lags: much is due at once
        await asyncio.gather(*(hasty(number) for number in range(12)))
    pids = asyncio.gather(*(database.row("SELECT pg_backend_pid(), pg_sleep(0.1)") for _ in "1234"))
    assert len({row[0] for row in await asyncio.wait_for(pids, 30)}) == 4
