"""Lookups that have to wait are asked in one statement, and each gets what is its own."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from cachesvc.core.policy import Policy
from cachesvc.errors import NotFound, StoreRefused, StoreUnavailable
from cachesvc.service.together import TogetherCounts
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.base import Alias, Place
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from cachesvc.store.sql import plural
from cachesvc.store.together import MOST_AT_ONCE, Together
from tests.postgres import POLICY, TENANT
from tests.store.entries import ANSWER, PLACE, exact, key, new, save, unit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Iterable

    from cachesvc.store.pool import Database
    from tests.postgres import Stores

QUERY = plural("find_exact")
FOREVER = timedelta(days=1000)


class Asking:
    """What goes to the database, and how many were asked for at once in each tenant."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.statements: list[tuple[str, int]] = []
        self.together = Together(database.lookups._leases, self._fetch)

    async def _fetch(self, connection: Any, query: str, values: tuple[Any, ...]) -> list[Any]:
        many = query == QUERY.many
        assert many or query == QUERY.one
        self.statements.append((values[0], len(values[1]) if many else 1))
        return await self.database._ask(connection, query, values)

    async def ask(self, name: str, *, tenant: str = TENANT, scope: str = "shared") -> list[Any]:
        """The ids that are found for a key."""
        asked = POLICY, scope, key(name), FOREVER, "", b""
        async with asyncio.timeout(10):
            rows = await self.together.rows(QUERY, tenant, *asked)
        return [row["id"] for row in rows if row["id"] is not None]

    async def all(self, names: Iterable[str]) -> list[Any]:
        found: list[Any] = await asyncio.gather(*map(self.ask, names), return_exceptions=True)
        return found

    def taken(self, *sizes: int) -> None:
        """So many were asked for at once, one statement after another."""
        assert self.statements == [(TENANT, size) for size in sizes]
        self.statements.clear()


@pytest_asyncio.fixture
async def asking(stores: Stores) -> AsyncIterator[Asking]:
    """With one connection for lookups by key, which is there."""
    await save(stores, 3600)
    database = await connect(stores.url, size=2)
    try:
        await database.row("SELECT 1")
        yield Asking(database)
    finally:
        await database.close()


def counted(asking: Asking) -> tuple[float | None, float | None]:
    """In /metrics: how many were taken along, and how many of them were left alone."""
    registry = CollectorRegistry()
    registry.register(TogetherCounts([asking.together]))
    names = "taken_along", "left_alone"
    first, second = (registry.get_sample_value(f"cachesvc_lookups_{one}_total") for one in names)
    return first, second


async def test_who_has_to_wait_goes_with_the_others_and_finds_his_own(
    stores: Stores, asking: Asking
) -> None:
    names = [f"prompt {number}" for number in range(2 * MOST_AT_ONCE)]
    stored = {name: (await stores.entries.put(new(name))).entry_id for name in names[::2]}
    found = await asking.all(names)
    assert found == [[stored[name]] if name in stored else [] for name in names]
    asking.taken(1, MOST_AT_ONCE, MOST_AT_ONCE - 1)
    assert counted(asking) == (2 * MOST_AT_ONCE - 3, 0)


async def test_nobody_waits_while_a_connection_is_free(stores: Stores) -> None:
    await save(stores, 3600)
    database = await connect(stores.url, size=6)
    try:
        asking = Asking(database)
        for _ in range(3):
            assert await asking.all("abc") == [[], [], []]
        asking.taken(*[1] * 9)
    finally:
        await database.close()


async def test_lookups_and_writes_have_one_queue(asking: Asking) -> None:
    """Whoever writes does not overtake those who read, nor the other way round."""
    ended: list[str] = []

    async def told(name: str, work: Awaitable[Any]) -> None:
        await work
        ended.append(name)

    def write(number: int) -> Awaitable[Any]:
        return told(f"write {number}", asking.database.row("SELECT pg_sleep(0.01)"))

    works = [write(0), told("a", asking.ask("a")), write(1), told("b", asking.ask("b")), write(2)]
    await asyncio.gather(*works)
    assert ended[0] == "write 0"
    assert sorted(ended[1:3]) == ["a", "b"]
    assert ended[3:] == ["write 1", "write 2"]
    asking.taken(2)


async def test_a_statement_is_one_tenants(stores: Stores, asking: Asking) -> None:
    await stores.admin.save_policy("other", POLICY, Policy(sharing="shared"))
    theirs = Place("other", POLICY, "shared")
    mine = await stores.entries.put(new("a"))
    other = await stores.entries.put(new("a", place=theirs))
    asked = [asking.ask("a", tenant=tenant) for tenant in (TENANT, "other") * 4]
    assert await asyncio.gather(*asked) == [[mine.entry_id], [other.entry_id]] * 4
    assert asking.statements == [(TENANT, 1), ("other", 4), (TENANT, 3)]


async def test_what_is_refused_to_one_costs_the_others_nothing(
    stores: Stores, asking: Asking
) -> None:
    """The driver cannot send a lone surrogate; no request has one, but it must not matter."""
    stored = await stores.entries.put(new("a"))
    scopes = ("shared", "shared", "\ud800", "shared")
    asked = [asking.ask("a", scope=scope) for scope in scopes]
    first, second, refused, last = await asyncio.gather(*asked, return_exceptions=True)
    assert first == second == last == [stored.entry_id]
    assert isinstance(refused, StoreRefused)
    assert await asking.ask("a") == [stored.entry_id]


async def test_who_gave_up_is_not_asked_for(stores: Stores, asking: Asking) -> None:
    stored = await stores.entries.put(new("a"))
    tasks = [asyncio.create_task(asking.ask("a")) for _ in range(5)]
    await asyncio.sleep(0)
    for task in tasks[1:3]:
        task.cancel()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [found[0], *found[3:]] == [[stored.entry_id]] * 3
    asking.taken(1, 2)
    assert [type(each) for each in found[1:3]] == [asyncio.CancelledError] * 2


@pytest.mark.parametrize("who", ["the carrier", "a companion", "all"])
async def test_who_gives_up_while_it_is_asked_takes_nobody_with_him(
    asking: Asking, stores: Stores, who: str
) -> None:
    stored = await stores.entries.put(new("a"))
    tasks: list[asyncio.Task[Any]] = []
    fetch = asking.together._fetch
    given_up = {"the carrier": slice(1, 2), "a companion": slice(2, 3), "all": slice(1, 5)}[who]

    async def watched(connection: Any, query: str, values: tuple[Any, ...]) -> list[Any]:
        if query == QUERY.many:
            for task in tasks[given_up]:
                task.cancel()
        return await fetch(connection, query, values)

    asking.together._fetch = watched
    tasks += [asyncio.create_task(asking.ask("a")) for _ in range(5)]
    found = await asyncio.gather(*tasks, return_exceptions=True)
    for task, each in zip(tasks, found, strict=True):
        if task in tasks[given_up]:
            assert isinstance(each, asyncio.CancelledError)
        else:
            assert each == [stored.entry_id]
    # The connection was not lost with who held it, nor is there another one now.
    asking.statements.clear()
    assert await asking.ask("a") == [stored.entry_id]
    leases = asking.database.lookups._leases
    assert (leases._free, len(leases._idle)) == (0, 1)


async def test_who_went_along_with_one_that_hangs_asks_for_himself(stores: Stores) -> None:
    """As where eight answers are too long for the time that one has; for a while, nobody joins."""
    await save(stores, 3600)
    stored = await stores.entries.put(new("a"))
    database = await connect(stores.url, size=4)  # two for lookups by key
    asking = Asking(database)
    fetch = asking.together._fetch

    async def slow(connection: Any, query: str, values: tuple[Any, ...]) -> list[Any]:
        if query == QUERY.many:
            return list(await connection.fetch("SELECT pg_sleep(9)"))
        return await fetch(connection, query, values)

    asking.together._fetch = slow
    try:
        await asyncio.gather(database.row("SELECT 1"), database.row("SELECT 1"))
        tasks = [asyncio.create_task(asking.ask("a")) for _ in range(6)]
        carrier, others = tasks[2], tasks[:2] + tasks[3:]
        assert await asyncio.gather(*others) == [[stored.entry_id]] * 5
        assert not carrier.done()
        with pytest.raises(StoreUnavailable):
            await carrier
        assert await asking.all("aaaaaa") == [[stored.entry_id]] * 6
        asking.taken(*[1] * 11)
        taken_along, left_alone = counted(asking)
        assert taken_along == 0
        assert left_alone
    finally:
        await database.close()


async def test_without_a_database_everybody_is_told(asking: Asking) -> None:
    await asking.database.close()
    faults = await asking.all("abcd")
    assert [type(fault) for fault in faults] == [StoreUnavailable] * 4


async def test_in_a_crowd_the_store_finds_what_it_finds_alone(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hits, aliases, what is dead, what is too old, and a policy that is not there."""
    database = await connect(database_url, size=2)  # one of them for lookups by key
    try:
        store, admin = PostgresStore(database), PostgresAdmin(database)
        await admin.save_policy(TENANT, POLICY, Policy(sharing="shared", ttl_seconds=60))
        first = await store.put(new("a", vector=unit(1), space="one", partition=b"p" * 32))
        assert first.entry_id
        await store.add_aliases([Alias(PLACE, key("alias"), first.entry_id, 0.95)])
        await store.put(new("short", ttl_seconds=1))
        await database.row(
            "UPDATE entries SET exact_expires_at = now() WHERE exact_key = $1", key("short")
        )
        queries = [
            *(exact("a"), exact("alias"), exact("alias", space="one", partition=b"p" * 32)),
            *(exact("short"), exact("none"), exact("a", max_age_seconds=0.0)),
            *(exact("alias", space="other"), exact("alias", partition=b"q" * 32)),
            exact("a", Place(TENANT, POLICY, "elsewhere")),
            *(exact("a", Place(TENANT, "never", "shared")), exact("a", Place("never", POLICY, ""))),
        ]
        alone = [await outcome(store, query) for query in queries]
        assert [len(each) for each in alone] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1]
        assert alone[-2:] == [[NotFound]] * 2
        asking = Asking(database)
        monkeypatch.setattr(database, "lookups", asking.together)
        crowd = await asyncio.gather(*(outcome(store, query) for query in queries * 3))
        assert crowd == alone * 3
        assert sum(number for _, number in asking.statements) == len(crowd)
        assert len(asking.statements) < len(crowd) / 2
    finally:
        await database.close()


async def outcome(store: PostgresStore, query: Any) -> list[Any]:
    try:
        found = await store.find_exact(query)
    except NotFound:
        return [NotFound]
    if found.candidates:
        assert found.candidates[0].answer == ANSWER
    return [(one.entry_id, one.alias, one.similarity) for one in found.candidates]
