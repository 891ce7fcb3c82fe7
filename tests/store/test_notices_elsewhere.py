"""A lease says that what is written here is heard: not there, not late, and not by luck."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from cachesvc.store.leases import Hold
from cachesvc.store.notices import since_boot
from tests.pgbouncer import pgbouncer
from tests.relay import Relay
from tests.replication import ask_server, replicated
from tests.store.listening import listening_to
from tests.store.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cachesvc.store.embedded import EmbeddedPostgres

TELL = "SELECT pg_notify('cachesvc', 'changed')::text"


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, "cachesvc.store")
    return caplog


@pytest.fixture
def line(database_url: str) -> Iterator[Relay]:
    """A line to the database that can be frozen."""
    with Relay(database_url) as relay:
        yield relay


async def test_a_listen_url_of_another_database_is_never_trusted_and_that_is_said_once(
    postgres: EmbeddedPostgres, database_url: str, said: pytest.LogCaptureFixture
) -> None:
    async with listening_to(postgres.url, written=database_url) as listening:
        await listening.never_holds(4)
    (message,) = (each.getMessage() for each in said.records)
    assert "service.listen_url, which names another database" in message


async def test_who_listens_to_the_old_primary_of_two_goes_to_the_one_that_is_written_to(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    """Both live, and take writes: the old one was never told that it was replaced."""
    with replicated(tmp_path) as pair:
        await pair.promote()
        new = pair.replica.url
        async with listening_to(pair.primary.url, written=new) as listening:
            await listening.never_holds(3)
        assert len(said.records) == 1
        async with listening_to(pair.url, written=new) as listening:
            await until(listening.holds)
            await ask_server(new, TELL)
            await listening.proved_since(since_boot())
            assert "changed" in listening.heard
            # And back: what is written to is what counts, not what came last.
        async with listening_to(pair.url, written=pair.primary.url) as listening:
            await until(listening.holds)


async def test_a_host_that_swallows_packets_does_not_keep_the_listener_from_the_next(
    line: Relay, database_url: str
) -> None:
    with Relay(database_url) as dead:
        dead.freeze()
        hosts = f"{urlsplit(dead.url).hostname}:{urlsplit(dead.url).port},"
        url = line.url.replace("@", f"@{hosts}")
        async with listening_to(url, written=database_url) as listening:
            await until(listening.holds)


async def test_nothing_is_trusted_while_the_writing_connections_are_frozen_and_then_it_is_again(
    line: Relay, database_url: str, said: pytest.LogCaptureFixture
) -> None:
    async with listening_to(database_url, written=line.url) as listening:
        await until(listening.holds)
        said.clear()
        line.freeze()
        await until(listening.lost)
        await listening.never_holds(3)
        assert [each.getMessage() for each in said.records] == [
            "no answers are served from memory: the database did not answer in time"
        ]
        listening.heard.clear()
        line.thaw()
        await until(listening.holds)
        assert listening.heard[0] is None, "what was written meanwhile may be anything"


async def test_a_pool_that_is_used_up_ends_no_lease(database_url: str) -> None:
    async with listening_to(database_url, written=database_url) as listening:
        await until(listening.holds)
        database = listening.notices._database
        await ask_server(database_url, TELL)
        async with database.connection(), Hold(database._keyed), Hold(database._searching):
            for _ in range(20):
                await listening.notices.settled()
                assert listening.notices.holds


async def test_what_is_written_through_a_pooler_is_heard_past_it(database_url: str) -> None:
    with pgbouncer(database_url) as url:
        async with listening_to(database_url, written=url) as listening:
            await until(listening.holds)
            for _ in range(20):
                listening.heard.clear()
                await ask_server(database_url, TELL)
                await listening.notices.settled()
                assert listening.heard == ["changed"]
                assert listening.notices.holds


async def test_a_listener_that_the_server_ends_is_missed_at_once_and_comes_back(
    database_url: str,
) -> None:
    async with listening_to(database_url, written=database_url) as listening:
        await until(listening.holds)
        listening.heard.clear()
        await ask_server(
            database_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'cachesvc notices' AND datname = current_database()",
        )
        await until(listening.lost)
        await until(listening.holds)
        assert listening.heard[0] is None
