"""Lookups that have to wait are asked in one statement, and each gets what is its own."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from cachesvc.core.policy import Policy
from cachesvc.errors import NotFound, StoreRefused, StoreUnavailable
from cachesvc.store.admin import PostgresAdmin
from cachesvc.store.base import Alias, Place
from cachesvc.store.pool import connect
from cachesvc.store.postgres import PostgresStore
from cachesvc.store.sql import plural
from cachesvc.store.together import MOST_AT_ONCE, Together
from tests.postgres import POLICY, TENANT
from tests.store.entries import ANSWER, PLACE, exact, key, new, save, unit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.postgres import Stores

QUERY = plural("find_exact")
FOREVER = timedelta(days=1000)


class Asking:
    """What goes to the database, and how many were asked for at once in each tenant."""

    def __init__(self, stores: Stores, lines: int = 1) -> None:
        self.database = stores.database
        self.statements: list[tuple[str, int]] = []
        self.together = Together(self._fetch, lines)

    async def _fetch(self, query: str, tenant: str, *values: Any) -> list[Any]:
        many = query == QUERY.many
        assert many or query == QUERY.one
        self.statements.append((tenant, len(values[0]) if many else 1))
        return await self.database.rows(query, tenant, *values)

    async def ask(self, name: str, *, tenant: str = TENANT, scope: str = "shared") -> list[Any]:
        """The ids that are found for a key."""
        rows = await self.together.rows(QUERY, tenant, POLICY, scope, key(name), FOREVER, "", b"")
        return [row["id"] for row in rows if row["id"] is not None]

    async def all(self, names: Iterable[str]) -> list[Any]:
        found: list[Any] = await asyncio.gather(*map(self.ask, names), return_exceptions=True)
        return found


@pytest.fixture
async def asking(stores: Stores) -> Asking:
    await save(stores, 3600)
    return Asking(stores)


async def test_who_has_to_wait_goes_with_the_others_and_finds_his_own(
    stores: Stores, asking: Asking
) -> None:
    names = [f"prompt {number}" for number in range(2 * MOST_AT_ONCE)]
    stored = {name: (await stores.entries.put(new(name))).entry_id for name in names[::2]}
    found = await asking.all(names)
    assert found == [[stored[name]] if name in stored else [] for name in names]
    assert asking.statements == [*((TENANT, 1), (TENANT, MOST_AT_ONCE), (TENANT, MOST_AT_ONCE - 1))]


async def test_nobody_waits_while_a_connection_is_free(stores: Stores) -> None:
    asking = Asking(stores, lines=3)
    await save(stores, 3600)
    for _ in range(3):
        assert await asking.all("abc") == [[], [], []]
    assert asking.statements == [(TENANT, 1)] * 9


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
    assert asking.statements == [(TENANT, 1), (TENANT, 2)]
    assert [type(each) for each in found[1:3]] == [asyncio.CancelledError] * 2


async def test_a_line_is_not_lost_with_who_held_it(asking: Asking) -> None:
    for _ in range(3):
        tasks = [asyncio.create_task(asking.ask("a")) for _ in range(3)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert await asking.all("ab") == [[], []]


async def test_a_fault_is_everybodys_and_the_next_is_served(stores: Stores, asking: Asking) -> None:
    database, there = asking.database, await connect(stores.url, size=2)
    asking.database = there
    await there.close()
    faults = await asking.all("abcd")
    assert [type(fault) for fault in faults] == [StoreUnavailable] * 4
    assert len({id(fault) for fault in faults}) == 4
    asking.database = database
    assert await asking.all("abcd") == [[]] * 4


async def test_in_a_crowd_the_store_finds_what_it_finds_alone(database_url: str) -> None:
    """Hits, aliases, what is dead, what is too old, and a policy that is not there."""
    database = await connect(database_url, size=2)  # one of them for lookups by key
    try:
        store, admin = PostgresStore(database), PostgresAdmin(database)
        await admin.save_policy(TENANT, POLICY, Policy(sharing="shared", ttl_seconds=60))
        first = await store.put(new("a", vector=unit(1)))
        assert first.entry_id
        await store.add_aliases([Alias(PLACE, key("alias"), first.entry_id, 0.95)])
        await store.put(new("short", ttl_seconds=1))
        await database.row(
            "UPDATE entries SET exact_expires_at = now() WHERE exact_key = $1", key("short")
        )
        queries = [
            *(exact("a"), exact("alias"), exact("short"), exact("none")),
            exact("a", max_age_seconds=0.0),
            *(exact("alias", space="other"), exact("a", Place(TENANT, POLICY, "elsewhere"))),
            *(exact("a", Place(TENANT, "never", "shared")), exact("a", Place("never", POLICY, ""))),
        ]
        alone = [await outcome(store, query) for query in queries]
        crowd = await asyncio.gather(*(outcome(store, query) for query in queries * 3))
        assert crowd == alone * 3
        assert [len(each) for each in alone] == [1, 1, 0, 0, 0, 0, 0, 1, 1]
        assert alone[-2:] == [[NotFound]] * 2
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
