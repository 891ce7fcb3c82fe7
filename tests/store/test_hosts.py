"""A URL of several hosts: whichever of them is dead, deaf or the wrong one, another is found."""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

import pytest

from cachesvc.core.policy import Policy
from cachesvc.errors import StoreUnavailable
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.hosts import each_host
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import exact, new, save


@pytest.mark.parametrize(
    ("url", "urls"),
    [
        (
            "postgresql://u:p@a,b:2/d?x=y",
            ["postgresql://u:p@a/d?x=y", "postgresql://u:p@b:2/d?x=y"],
        ),
        ("postgresql://[::1]:1,[::2]/d", ["postgresql://[::1]:1/d", "postgresql://[::2]/d"]),
        (
            "postgresql:///d?host=/a,/b&port=1,2",
            ["postgresql:///d?host=%2Fa&port=1", "postgresql:///d?host=%2Fb&port=2"],
        ),
        ("postgresql://a/d", ["postgresql://a/d"]),
        ("a,b", ["a,b"]),
    ],
)
def test_a_url_of_several_hosts_is_one_for_each(url: str, urls: list[str]) -> None:
    assert each_host(url) == urls


async def test_a_host_that_swallows_packets_keeps_nobody_from_the_other(database_url: str) -> None:
    # The kernel takes the connection, and nobody ever answers.
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        database = await connect(_two(database_url, "127.0.0.1", port), size=8)
        # The first caller's time may be over while the deaf one is waited for.
        with suppress(StoreUnavailable):
            await PostgresAdmin(database).save_policy(TENANT, POLICY, Policy())
        await PostgresAdmin(database).save_policy(TENANT, POLICY, Policy())
        # From now on it is the last one asked.
        began = time.monotonic()
        store = PostgresStore(database)
        await asyncio.gather(*(store.policy(TENANT, POLICY) for _ in range(4)))
        assert time.monotonic() - began < 2
        await database.close()


async def test_hosts_of_which_none_can_be_written_to_are_an_outage(database_url: str) -> None:
    url = f"{_two(database_url, '127.0.0.1', 1)}&target_session_attrs=standby"
    database = await connect(url, size=2)
    with pytest.raises(StoreUnavailable, match=r"target_session_attrs|cannot be reached"):
        await PostgresStore(database).policy(TENANT, POLICY)
    await database.close()


async def test_a_connection_that_cannot_write_any_more_is_given_up(stores: Stores) -> None:
    await save(stores, 3600)
    # Every connection there is now belongs to a primary that is none any more.
    await stores.database.row("SET default_transaction_read_only = on")

    async def put() -> bool:
        try:
            return (await stores.entries.put(new("a"))).entry_id is not None
        except StoreUnavailable:
            return False

    assert not await put()
    assert await put()
    assert (await stores.entries.find_exact(exact("a"))).candidates


def _two(url: str, host: str, port: int) -> str:
    parts = urlsplit(url)
    folder = parse_qs(parts.query)["host"][0]
    return f"postgresql://{parts.username}@{parts.path}?host={host},{folder}&port={port},5432"
