"""An alias lets an exact key be answered by another entry, exactly as long as that entry lives."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from cachesvc.core.model import Answer
from cachesvc.core.policy import Policy
from cachesvc.store.base import Alias, Place, Selection
from tests.postgres import POLICY, TENANT, Stores
from tests.store.entries import PLACE, age, exact, key, nearest, new, save, unit
from tests.store.waiting import until, waits_for_a_lock


async def put_with_alias(stores: Stores, ttl: int = 3600, semantic: int | None = None) -> UUID:
    """An entry under the key "origin", and the alias "other" of it."""
    await save(stores, ttl, semantic)
    stored = await stores.entries.put(new("origin", vector=unit(1)))
    assert stored.entry_id
    await stores.entries.add_aliases([Alias(PLACE, key("other"), stored.entry_id, 0.9375)])
    return stored.entry_id


async def answers(stores: Stores, name: str = "other") -> bool:
    return bool((await stores.entries.find_exact(exact(name))).candidates)


async def test_an_alias_answers_with_its_entry_and_its_similarity(stores: Stores) -> None:
    entry_id = await put_with_alias(stores)
    found = await stores.entries.find_exact(exact("other"))
    (candidate,) = found.candidates
    assert (candidate.entry_id, candidate.alias, candidate.similarity) == (entry_id, True, 0.9375)
    assert candidate.answer.body == new("origin").answer.body
    (origin,) = (await stores.entries.find_exact(exact("origin"))).candidates
    assert candidate.created_at == origin.created_at
    row = await stores.admin.entry(TENANT, entry_id)
    assert row is not None
    assert row.aliases == 1


async def test_an_alias_never_outlives_its_entry(stores: Stores) -> None:
    await put_with_alias(stores, 3600, 100)
    (candidate,) = (await stores.entries.find_exact(exact("other"))).candidates
    (origin,) = (await stores.entries.find_nearest(nearest(unit(1)))).candidates
    assert candidate.expires_at == origin.expires_at
    await age(stores, 101)
    found = await stores.entries.find_exact(exact("other"))
    assert (found.candidates, found.dead) == ((), "expired")


async def test_an_alias_lives_no_longer_than_the_exact_tier_allows(stores: Stores) -> None:
    await put_with_alias(stores, 50, 3600)
    await age(stores, 51)
    assert not await answers(stores)
    await save(stores, 3600, 3600)
    assert not await answers(stores)


async def test_raising_a_ttl_does_not_lengthen_an_alias(stores: Stores) -> None:
    await put_with_alias(stores, 50, 3600)
    await save(stores, 3600, 3600)
    await age(stores, 51)
    assert not await answers(stores)


async def test_lowering_a_ttl_kills_aliases_for_good(stores: Stores) -> None:
    await put_with_alias(stores)
    await age(stores, 60)
    await save(stores, 30, 3600)
    assert not await answers(stores)
    await save(stores, 3600, 3600)
    assert not await answers(stores)


async def test_an_alias_stays_dead_when_its_entry_was_killed_by_a_lower_ttl(
    stores: Stores,
) -> None:
    await put_with_alias(stores)
    await age(stores, 60)
    await save(stores, 3600, 30)
    assert not await answers(stores)
    await save(stores, 3600, 3600)
    assert not await answers(stores)
    assert await answers(stores, "origin")


async def test_an_alias_is_left_to_a_living_entry_of_the_same_place_only(stores: Stores) -> None:
    entry_id = await put_with_alias(stores)
    await stores.admin.save_policy(TENANT, "second", Policy())
    await stores.admin.save_policy("globex", POLICY, Policy())
    for place in (
        Place(TENANT, POLICY, "elsewhere"),
        Place(TENANT, "second", "shared"),
        Place("globex", POLICY, "shared"),
    ):
        await stores.entries.add_aliases([Alias(place, key("x"), entry_id, 0.95)])
        assert not (await stores.entries.find_exact(exact("x", place))).candidates
    await stores.entries.add_aliases([Alias(PLACE, key("x"), uuid4(), 0.95)])
    await age(stores, 3601)
    await stores.entries.add_aliases([Alias(PLACE, key("x"), entry_id, 0.95)])
    assert [count.aliases for count in await stores.admin.counts(TENANT)] == [0, 1]
    assert [count.aliases for count in await stores.admin.counts("globex")] == [0]


async def test_an_entry_off_the_semantic_tier_takes_no_alias(stores: Stores) -> None:
    await save(stores, 3600)
    stored = await stores.entries.put(new("origin"))
    assert stored.entry_id
    await stores.entries.add_aliases([Alias(PLACE, key("other"), stored.entry_id, 0.95)])
    assert not await answers(stores)


@pytest.mark.parametrize("change", ["refresh", "purge", "quarantine", "delete policy"])
async def test_what_happens_to_the_entry_ends_its_aliases(stores: Stores, change: str) -> None:
    entry_id = await put_with_alias(stores)
    if change == "refresh":
        await stores.entries.put(new("origin", vector=unit(1)))
    elif change == "purge":
        await stores.admin.purge(Selection(TENANT, entry_id=entry_id), dry_run=False)
    elif change == "quarantine":
        await stores.database.row("UPDATE entries SET quarantined_at = now()")
        assert (await stores.entries.find_exact(exact("other"))).dead == "quarantined"
    else:
        await stores.admin.delete_policy(TENANT, POLICY)
        await save(stores, 3600)
    assert not await answers(stores)
    if change != "quarantine":
        assert (await stores.entries.find_exact(exact("other"))).dead is None
        (row,) = await stores.database.rows("SELECT count(*) FROM aliases")
        assert row["count"] == 0


async def test_a_put_for_its_key_replaces_the_alias(stores: Stores) -> None:
    await put_with_alias(stores)
    await stores.entries.put(new("other", answer=Answer(b"own", None), ttl_seconds=10))
    (candidate,) = (await stores.entries.find_exact(exact("other"))).candidates
    assert (candidate.alias, candidate.answer.body) == (False, b"own")
    await age(stores, 11)
    assert not await answers(stores)


async def test_an_alias_that_comes_late_does_not_stand_beside_an_own_answer(
    stores: Stores,
) -> None:
    entry_id = await put_with_alias(stores)
    await stores.entries.put(new("other"))
    await stores.entries.add_aliases([Alias(PLACE, key("other"), entry_id, 0.99)])
    found = await stores.entries.find_exact(exact("other"))
    assert [candidate.alias for candidate in found.candidates] == [False]


async def test_the_own_entry_comes_before_an_alias(stores: Stores) -> None:
    await put_with_alias(stores)
    await stores.database.row("UPDATE aliases SET exact_key = $1", key("origin"))
    found = await stores.entries.find_exact(exact("origin"))
    assert [candidate.alias for candidate in found.candidates] == [False, True]


async def test_an_alias_can_be_left_anew(stores: Stores) -> None:
    await put_with_alias(stores)
    second = await stores.entries.put(new("second", vector=unit(2)))
    assert second.entry_id
    await stores.entries.add_aliases([Alias(PLACE, key("other"), second.entry_id, 0.95)])
    (candidate,) = (await stores.entries.find_exact(exact("other"))).candidates
    assert (candidate.entry_id, candidate.similarity) == (second.entry_id, 0.95)


async def test_an_alias_without_its_entry_answers_nothing_and_goes_when_it_expires(
    stores: Stores,
) -> None:
    await put_with_alias(stores)
    await stores.database.row("DELETE FROM entries")
    found = await stores.entries.find_exact(exact("other"))
    assert (found.candidates, found.dead) == ((), None)
    await age(stores, 3601)
    assert await stores.admin.remove_expired(10) == 1
    assert (await stores.admin.counts(TENANT))[0].aliases == 0


async def test_aliases_and_refreshes_at_once_leave_no_answer_of_a_replaced_entry(
    stores: Stores,
) -> None:
    await put_with_alias(stores)

    async def refresh() -> None:
        for _ in range(30):
            await stores.entries.put(new("origin", vector=unit(1)))

    async def alias() -> None:
        for n in range(60):
            found = (await stores.entries.find_nearest(nearest(unit(1)))).candidates
            for candidate in found:
                await stores.entries.add_aliases(
                    [Alias(PLACE, key(f"{n}"), candidate.entry_id, 0.95)]
                )

    await asyncio.gather(refresh(), alias(), alias())
    (last,) = (await stores.entries.find_exact(exact("origin"))).candidates
    for n in range(60):
        found = (await stores.entries.find_exact(exact(str(n)))).candidates
        assert {candidate.entry_id for candidate in found} <= {last.entry_id}


@pytest.mark.parametrize(
    ("change", "answers_still"),
    [
        ({"window": 1}, False),
        ({"window": 3}, False),
        ({"window": 2, "ignore_roles": ("system",)}, False),
        ({"window": 2, "extract": "$.messages[0].content"}, False),
        ({"window": 2, "embed": "another"}, False),
        ({"window": 2, "threshold": 0.5, "top_k": 9}, True),
    ],
)
async def test_a_change_of_what_is_compared_ends_every_alias_for_good(
    stores: Stores, change: dict[str, Any], answers_still: bool
) -> None:
    two = Policy(sharing="shared", window=2)
    await stores.admin.save_policy(TENANT, POLICY, two)
    stored = await stores.entries.put(new("origin", vector=unit(1)))
    assert stored.entry_id
    await stores.entries.add_aliases([Alias(PLACE, key("other"), stored.entry_id, 0.95)])
    await stores.admin.save_policy(TENANT, POLICY, Policy(sharing="shared", **change))
    assert await answers(stores) is answers_still
    await stores.admin.save_policy(TENANT, POLICY, two)
    assert await answers(stores) is answers_still
    assert await answers(stores, "origin")
    await stores.entries.add_aliases([Alias(PLACE, key("other"), stored.entry_id, 0.95)])
    assert await answers(stores)


async def test_aliases_of_a_policy_from_before_a_field_was_there_answer_still(
    stores: Stores,
) -> None:
    await put_with_alias(stores)
    assert await answers(stores)
    older = "UPDATE policies SET document = document - 'extract' - 'embed' RETURNING id"
    assert await stores.database.row(older)
    await save(stores, 3600)
    assert await answers(stores)


async def test_an_alias_of_a_hit_judged_under_a_policy_of_before_is_not_left(
    stores: Stores,
) -> None:
    entry_id = await put_with_alias(stores)
    before = await stores.entries.policy(TENANT, POLICY)
    assert before is not None
    saved, _ = await stores.admin.save_policy(TENANT, POLICY, Policy(window=3))
    await stores.entries.add_aliases([Alias(PLACE, key("late"), entry_id, 0.95, before.revision)])
    assert not await answers(stores, "late")
    await stores.entries.add_aliases([Alias(PLACE, key("late"), entry_id, 0.95, saved.revision)])
    assert await answers(stores, "late")


async def test_an_alias_left_while_a_policy_waits_to_be_saved_does_not_outlive_that(
    stores: Stores,
) -> None:
    """The alias is younger than the statement that saves the policy, and older than its effect."""
    entry_id = await put_with_alias(stores)
    async with stores.database.connection() as connection, connection.transaction():
        await connection.execute("SELECT FROM policies FOR SHARE")
        save = asyncio.create_task(stores.admin.save_policy(TENANT, POLICY, Policy(window=3)))
        await until(lambda: waits_for_a_lock(stores))
        await stores.entries.add_aliases([Alias(PLACE, key("late"), entry_id, 0.95)])
    await save
    assert not await answers(stores, "late")


async def test_an_alias_answers_only_in_the_space_and_partition_that_a_lookup_names(
    stores: Stores,
) -> None:
    await save(stores, 3600)
    home = {"space": "s", "partition": key("p")}
    stored = await stores.entries.put(new("origin", vector=unit(1), **home))
    assert stored.entry_id
    await stores.entries.add_aliases([Alias(PLACE, key("other"), stored.entry_id, 0.95)])
    named: list[tuple[dict[str, Any], bool]] = [
        ({}, True),
        (home, True),
        ({"space": "s"}, True),
        ({"space": "t"}, False),
        ({"space": "S"}, False),
        ({"partition": key("q")}, False),
        ({**home, "space": "t"}, False),
    ]
    for fields, expected in named:
        found = await stores.entries.find_exact(exact("other", **fields))
        assert bool(found.candidates) is expected, fields
        own = await stores.entries.find_exact(exact("origin", **fields))
        assert own.candidates, fields
