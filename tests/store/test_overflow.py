"""A policy's `max_entries`: the oldest go, what is dead takes no place, nothing else is touched."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from cachesvc.core.policy import Policy
from cachesvc.store import eviction
from cachesvc.store.admin import _listed
from cachesvc.store.base import Alias, Listing, Place, Room
from cachesvc.store.sql import statement
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import PLACE, age, exact, key, new, save, unit

if TYPE_CHECKING:
    from uuid import UUID


async def limit(stores: Stores, most: int | None, ttl: int = 3600) -> None:
    policy = Policy(sharing="shared", max_entries=most, ttl_seconds=ttl)
    await stores.admin.save_policy(TENANT, POLICY, policy)


async def put(stores: Stores, *names: str, place: Place = PLACE) -> list[UUID]:
    made = [await stores.entries.put(new(name, place=place, vector=unit(1, 2))) for name in names]
    return [one.entry_id for one in made if one.entry_id]


async def held(stores: Stores, place: Place = PLACE) -> set[str]:
    """Which of the names 0 to 19 answer."""
    found = set()
    for name in map(str, range(20)):
        if (await stores.entries.find_exact(exact(name, place))).candidates:
            found.add(name)
    return found


async def overflow(stores: Stores, tenant: str = TENANT, policy_id: str = POLICY) -> int:
    """Remove what does not fit under a policy; how many went."""
    for room in await stores.admin.limited():
        if (room.tenant, room.policy_id) == (tenant, policy_id):
            return await stores.admin.remove_overflow(room)
    return 0


async def test_the_oldest_go_and_nobody_elses(stores: Stores) -> None:
    await limit(stores, 3)
    for tenant, policy_id in ((TENANT, "other"), ("globex", POLICY)):
        await stores.admin.save_policy(tenant, policy_id, Policy(sharing="shared"))
        await put(stores, "0", "1", "2", "3", "4", place=Place(tenant, policy_id, "shared"))
    await put(stores, "0", "1", "2", "3", "4")
    assert await stores.admin.limited() == [Room(TENANT, POLICY, 3)]
    assert await overflow(stores) == 2
    assert await overflow(stores) == 0
    assert await held(stores) == {"2", "3", "4"}
    for tenant, policy_id in ((TENANT, "other"), ("globex", POLICY)):
        assert await overflow(stores, tenant, policy_id) == 0
        assert len(await held(stores, Place(tenant, policy_id, "shared"))) == 5


async def test_scopes_share_one_limit(stores: Stores) -> None:
    await limit(stores, 2)
    other = Place(TENANT, POLICY, "other")
    await put(stores, "0", "1")
    await put(stores, "2", place=other)
    assert await overflow(stores) == 1
    assert (await held(stores), await held(stores, other)) == ({"1"}, {"2"})


async def test_without_a_limit_or_within_it_nothing_goes(stores: Stores) -> None:
    for most in (None, 3, 4, 10**12):
        await limit(stores, most)
        await put(stores, "0", "1", "2")
        assert await overflow(stores) == 0
    assert await held(stores) == {"0", "1", "2"}


async def test_the_same_wording_again_takes_no_second_place(stores: Stores) -> None:
    await limit(stores, 2)
    await put(stores, "0", "1", *["1"] * 10, "0")
    assert await overflow(stores) == 0
    await put(stores, "2")
    assert await overflow(stores) == 1
    # Put anew after 1, so 1 is the oldest.
    assert await held(stores) == {"0", "2"}


async def test_aliases_go_with_their_entries(stores: Stores) -> None:
    await limit(stores, 1)
    old, young = await put(stores, "0", "1")
    for name, entry in (("a", old), ("b", young)):
        await stores.entries.add_aliases([Alias(PLACE, key(name), entry, 0.95)])
    assert await overflow(stores) == 1
    rows = await stores.database.rows("SELECT entry_id FROM aliases")
    assert [row["entry_id"] for row in rows] == [young]


@pytest.mark.parametrize("death", ["expired", "quarantined", "purged", "lower ttl"])
async def test_nothing_that_lives_goes_while_the_dead_take_up_its_place(
    stores: Stores, death: str
) -> None:
    """The dead are younger than what lives: by age alone, the living would have to go."""
    await limit(stores, 3, ttl=3600)
    await put(stores, "0", "1", "2")
    dead = [str(n) for n in range(10, 15)]
    if death == "lower ttl":
        # Off the semantic tier, so that the exact one's TTL alone kills them.
        for name in dead:
            await stores.entries.put(new(name, ttl_seconds=50))
        await age(stores, 60)
        await put(stores, "0", "1", "2")
    else:
        await put(stores, *dead)
        keys = [key(name) for name in dead]
        change = {
            "expired": "exact_expires_at = now(), semantic_expires_at = now()",
            "quarantined": "quarantined_at = now()",
            "purged": "generation = 0",
        }[death]
        await stores.database.row(f"UPDATE entries SET {change} WHERE exact_key = ANY($1)", keys)
    await overflow(stores)
    assert await held(stores) == {"0", "1", "2"}
    await put(stores, "3")
    await overflow(stores)
    assert await held(stores) == {"1", "2", "3"}


async def test_more_than_one_batch_goes_batch_by_batch(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "BATCH", 2)
    monkeypatch.setattr(eviction, "_RANKED", 2)
    await limit(stores, 5)
    await put(stores, *map(str, range(15)))
    removed = [await overflow(stores) for _ in range(4)]
    assert removed == [4, 4, 2, 0]
    assert await held(stores) == {"10", "11", "12", "13", "14"}


async def test_replicas_that_look_at_once_remove_what_one_would(stores: Stores) -> None:
    await limit(stores, 5)

    async def look() -> int:
        return sum([await overflow(stores) for _ in range(5)])

    await put(stores, *map(str, range(20)))
    assert sum(await asyncio.gather(*(look() for _ in range(4)))) == 15
    assert await held(stores) == {"15", "16", "17", "18", "19"}


async def test_puts_and_looks_at_once_keep_the_limit_and_never_wait_in_a_circle(
    stores: Stores,
) -> None:
    await limit(stores, 5)

    async def write(worker: int) -> None:
        for n in range(30):
            await put(stores, str((worker * 7 + n) % 20))

    async def look() -> None:
        for _ in range(30):
            await overflow(stores)

    await asyncio.gather(*(write(worker) for worker in range(3)), look(), look())
    await overflow(stores)
    assert len(await held(stores)) == 5


async def test_a_locked_entry_is_waited_for_by_nobody_and_goes_later(stores: Stores) -> None:
    await limit(stores, 1)
    await put(stores, "0", "1", "2")
    async with stores.database.connection() as holder, holder.transaction():
        await holder.execute("SELECT FROM entries WHERE exact_key = $1 FOR UPDATE", key("0"))
        assert await overflow(stores) == 1
    assert await overflow(stores) == 1
    assert await held(stores) == {"2"}


async def plan(stores: Stores, name: str, *values: object) -> str:
    async with stores.database.connection() as connection:
        rows = await connection.fetch("EXPLAIN (COSTS OFF) " + statement(name), *values)
    return "\n".join(row[0] for row in rows)


async def test_a_look_and_a_page_go_by_the_index_of_age(stores: Stores) -> None:
    await save(stores, 3600)
    await stores.entries.put(new("seed", vector=unit(1, 2)))
    columns = "tenant, policy_id, scope, space, partition, prompt_hash, body, prompt_text, "
    columns += "prompt_tokens, completion_tokens, model, tags, generation, provenance, "
    columns += "exact_expires_at"
    await stores.database.row(
        f"INSERT INTO entries (id, exact_key, created_at, {columns}) SELECT gen_random_uuid(), "
        f"n::text::bytea, created_at + n * interval '1 ms', {columns} FROM entries, "
        "generate_series(1, 5000) n"
    )
    async with stores.database.connection() as connection:
        await connection.execute("ANALYZE")
        await connection.execute("VACUUM entries")
    used = await plan(stores, "used", TENANT, POLICY)
    assert "Index Only Scan using entries_by_age" in used
    page = await plan(stores, "list_entries", *_listed(Listing(TENANT, prompt="x")))
    assert "Index Scan Backward using entries_by_age" in page
    assert "Seq Scan on entries" not in used + page
