"""The lease: whoever trusts it has heard everything that was committed before it was given."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

import asyncpg
import pytest
import pytest_asyncio

from cachesvc.store.notices import LEASE_SECONDS, since_boot
from tests.pgbouncer import pgbouncer
from tests.relay import Relay
from tests.replication import ask_server
from tests.store.listening import Listening, listening_to
from tests.store.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

TELL = "SELECT pg_notify('cachesvc', $1)"


@pytest.fixture
def relay(database_url: str) -> Iterator[Relay]:
    with Relay(database_url) as relay:
        yield relay


@pytest_asyncio.fixture
async def listening(relay: Relay, database_url: str) -> AsyncIterator[Listening]:
    """Over a line that can be frozen."""
    async with listening_to(relay.url, written=database_url) as listening:
        await until(listening.holds)
        yield listening


async def test_a_proof_comes_after_every_change_that_it_covers(
    listening: Listening, database_url: str
) -> None:
    async def changes(who: int) -> None:
        connection = await asyncpg.connect(database_url)
        try:
            for number in range(15):
                told = f"{who}/{number}"
                await connection.execute(TELL, told)
                await listening.proved_since(since_boot())
                assert told in listening.heard
        finally:
            await connection.close()

    await asyncio.gather(*(changes(who) for who in range(4)))


async def test_who_has_settled_has_heard_what_was_committed_before(
    listening: Listening, database_url: str
) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        for number in range(50):
            await connection.execute(TELL, str(number))
            await listening.notices.settled()
            assert str(number) in listening.heard
            assert listening.notices.holds
    finally:
        await connection.close()


async def test_a_frozen_line_is_trusted_no_longer_than_the_lease(
    listening: Listening, relay: Relay, database_url: str
) -> None:
    relay.freeze()
    frozen = since_boot()
    await until(listening.lost)
    # Not longer than the lease, and what this machine needs to look.
    assert since_boot() - frozen < LEASE_SECONDS + 0.5
    started = time.monotonic()
    await listening.notices.settled()
    assert time.monotonic() - started < 3
    assert not listening.notices.holds
    listening.heard.clear()
    await ask_server(database_url, "SELECT pg_notify('cachesvc', 'meanwhile')::text")
    relay.thaw()
    await until(listening.holds)
    assert {None, "meanwhile"} & {*listening.heard}, "what was missed may be anything"


async def test_a_listener_that_has_ended_keeps_nobody_waiting(
    listening: Listening, relay: Relay
) -> None:
    relay.freeze()
    settling = asyncio.create_task(listening.notices.settled())
    await asyncio.sleep(0)
    await listening.end()
    started = time.monotonic()
    await settling
    await listening.notices.settled()
    assert time.monotonic() - started < 0.5
    assert not listening.notices.holds


@pytest.mark.parametrize("hidden", [False, True], ids=["it refuses settings", "it hides"])
async def test_a_pooler_of_transactions_is_never_trusted_and_that_is_said_once(
    database_url: str, caplog: pytest.LogCaptureFixture, hidden: bool
) -> None:
    """It brings some notifications back, by chance, and loses others."""
    caplog.set_level(logging.WARNING, "cachesvc.store")
    if hidden:
        connection = await asyncpg.connect(database_url)
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
        await connection.close()
    with pgbouncer(database_url, ignored="synchronous_commit" if hidden else "") as url:
        async with listening_to(url, written=database_url) as listening:
            await listening.never_holds(2)
    (said,) = (each.getMessage() for each in caplog.records)
    assert "service.listen_url" in said
