"""Aliases are written many at a time, and each stands or falls by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from cachesvc.core.policy import Policy
from cachesvc.errors import StoreUnavailable
from cachesvc.store.base import Alias, Place
from tests.postgres import POLICY, TENANT
from tests.store.entries import PLACE, exact, key, new, unit
from tests.store.test_aliases import answers, put_with_alias

if TYPE_CHECKING:
    from tests.postgres import Stores


async def test_aliases_that_come_together_are_judged_one_by_one(stores: Stores) -> None:
    entry_id = await put_with_alias(stores)
    await stores.admin.save_policy(TENANT, "second", Policy(sharing="shared"))
    elsewhere = Place(TENANT, "second", "shared")
    second = await stores.entries.put(new("origin", place=elsewhere, vector=unit(1)))
    row = await stores.entries.policy(TENANT, POLICY)
    assert second.entry_id
    assert row
    good, other = Alias(PLACE, key("x"), entry_id, 0.95, row.revision), second.entry_id
    await stores.entries.add_aliases(
        [
            Alias(PLACE, key("gone"), uuid4(), 0.95),
            Alias(PLACE, key("stranger"), other, 0.95),
            Alias(PLACE, key("late"), entry_id, 0.95, row.revision - 1),
            Alias(Place(TENANT, "never", "shared"), key("x"), entry_id, 0.95),
            Alias(elsewhere, key("x"), other, 0.96),
            good,
        ]
    )
    for name in ("gone", "stranger", "late"):
        assert not await answers(stores, name)
    for place, wanted, similarity in ((PLACE, entry_id, 0.95), (elsewhere, other, 0.96)):
        (found,) = (await stores.entries.find_exact(exact("x", place))).candidates
        assert (found.entry_id, found.similarity) == (wanted, similarity)


async def test_an_alias_waits_for_nobody_who_removes_its_entry(stores: Stores) -> None:
    entry_id = await put_with_alias(stores)
    async with stores.database.connection() as connection, connection.transaction():
        await connection.execute("SELECT FROM entries FOR UPDATE")
        await stores.entries.add_aliases([Alias(PLACE, key("x"), entry_id, 0.95)])
    assert not await answers(stores, "x")


async def test_aliases_give_way_to_whoever_changes_them(stores: Stores) -> None:
    """So that nobody else has to: a purge or a verdict that waits for them comes first."""
    entry_id = await put_with_alias(stores)
    second = await stores.entries.put(new("second", vector=unit(2)))
    assert second.entry_id
    aliases = [Alias(PLACE, key(name), second.entry_id, 0.95) for name in ("other", "x")]
    async with stores.database.connection() as connection, connection.transaction():
        await connection.execute("SELECT FROM aliases FOR UPDATE")
        with pytest.raises(StoreUnavailable):
            await stores.entries.add_aliases(aliases)
    (found,) = (await stores.entries.find_exact(exact("other"))).candidates
    assert found.entry_id == entry_id
    await stores.entries.add_aliases(aliases)
    (found,) = (await stores.entries.find_exact(exact("other"))).candidates
    assert found.entry_id == second.entry_id
    # Only aliases are so impatient.
    assert (await stores.database.row("SHOW lock_timeout"))[0] != "100ms"


async def test_two_who_write_the_same_aliases_do_not_wait_in_a_circle(stores: Stores) -> None:
    entry_id = await put_with_alias(stores)
    aliases = [Alias(PLACE, key(f"{number}"), entry_id, 0.95) for number in range(50)]
    for _ in range(10):
        batches = aliases, aliases[::-1], aliases[25:] + aliases[:25]
        await asyncio.gather(*(stores.entries.add_aliases(batch) for batch in batches))
        await stores.database.rows("DELETE FROM aliases WHERE tenant = $1", TENANT)
    await stores.entries.add_aliases(aliases)
    assert [count.aliases for count in await stores.admin.counts(TENANT)] == [50]
